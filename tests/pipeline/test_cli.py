"""The command line: what it imports, how it words mistakes, which code it exits with."""

import subprocess
import sys
import types

import click
import pytest

from cl_core.errors import ConfigError, DataError, Interrupted
from pipelines import cli

HEAVY = ("torch", "prefect", "dvc", "pydantic", "numpy", "rich")


def main(*arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    return caught.value.code


@pytest.fixture
def command(monkeypatch):
    """A function that makes `contrast boom` do something."""

    def add(action):
        body = click.command("boom")(action)
        monkeypatch.setitem(cli.COMMANDS, "boom", "Does what a test wants.")
        monkeypatch.setitem(sys.modules, "pipelines.commands.boom", types.SimpleNamespace(command=body))

    return add


def raising(error):
    def action():
        raise error

    return action


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["diagnose", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    script = f"""
import sys
from pipelines.cli import main
try:
    main({arguments!r})
finally:
    print("heavy:", [name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("heavy: []\n")
    assert len(done.stdout.splitlines()) > 1


def test_help_lists_every_command_with_its_sentence(capsys):
    assert main("--help") == 0
    shown = capsys.readouterr().out
    for name, sentence in cli.COMMANDS.items():
        assert name in shown
        assert sentence in shown


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_can_be_asked_for_help(name, capsys):
    assert main(name, "--help") == 0
    assert "Usage: contrast " + name in capsys.readouterr().out


@pytest.mark.parametrize("name", ["run", "stage", "check", "schema", "doctor"])
def test_every_command_about_a_project_takes_its_folder(name, capsys):
    main(name, "--help")
    assert "--project" in capsys.readouterr().out


def test_a_misspelt_command_is_answered_with_the_nearest_one(capsys):
    assert main("pluings") == 2
    assert "no command is called 'pluings' - did you mean 'plugins'?" in capsys.readouterr().err


def test_a_wrong_option_exits_with_2(capsys):
    assert main("run", "--jobs", "0") == 2
    assert "--jobs" in capsys.readouterr().err


def test_every_problem_gets_its_own_line_and_no_traceback(command, capsys):
    command(raising(ConfigError(["params.yaml:3: sedd: unknown key", "params.yaml:4: size: too small"])))
    assert main("boom") == 1
    expected = "error: params.yaml:3: sedd: unknown key\nerror: params.yaml:4: size: too small\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("error", "code"), [(DataError("no images"), 1), (Interrupted("saved"), 75), (KeyboardInterrupt(), 130)]
)
def test_errors_become_exit_codes(command, error, code, capsys):
    command(raising(error))
    assert main("boom") == code
    assert "Traceback" not in capsys.readouterr().err


def test_a_mistake_of_ours_is_not_hidden(command):
    command(raising(ZeroDivisionError("of ours")))
    with pytest.raises(ZeroDivisionError, match="of ours"):
        cli.main(["boom"])


def test_a_command_that_returns_a_code_exits_with_it(command):
    command(lambda: 3)
    assert main("boom") == 3


def test_outside_a_project_run_says_how_to_get_one(tmp_path, capsys):
    assert main("run", "--project", str(tmp_path)) == 1
    said = capsys.readouterr().err
    assert "is not a contrast project" in said
    assert "contrast init DIR" in said


@pytest.mark.parametrize("minutes", ["nan", "inf", "-1", "1e9"])
@pytest.mark.parametrize("command", ["init", "tune"])
def test_minutes_that_nobody_can_wait_for_are_refused_on_the_command_line(command, minutes, capsys):
    assert main(command, "x", "--minutes", minutes) == 2
    assert "--minutes" in capsys.readouterr().err
