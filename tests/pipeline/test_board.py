"""The table of stages: one line per change in a log, a table that is redrawn on a terminal, never in the way."""

import io
import re
import subprocess
import sys

from rich.console import Console

from pipelines.board import Board


def show(board):
    with board:
        board.begin("pretrain@a")
        board.line("pretrain@a", "step 3, loss [0.5]")
        board.end("pretrain@a", "failed", "params.yaml: [bold]wrong[/bold]")
        board.end("report", "not run", "needs pretrain@a")


def test_a_log_gets_one_line_when_a_stage_starts_and_one_when_it_ends():
    file = io.StringIO()
    show(Board(["pretrain@a", "report"], Console(file=file, width=60)))
    first, second, third = file.getvalue().splitlines()
    assert first.split() == ["pretrain@a", "running"]
    assert second.split()[:2] == ["pretrain@a", "failed"]
    assert second.endswith("params.yaml: [bold]wrong[/bold]")  # shown as it is, however long, markup and all
    assert third.split() == ["report", "not", "run", "needs", "pretrain@a"]


def test_a_terminal_ends_with_the_whole_table():
    file = io.StringIO()
    show(Board(["pretrain@a", "report"], Console(file=file, width=100, force_terminal=True, color_system=None)))
    without_codes = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    first, second = without_codes.replace("\r", "\n").strip().splitlines()[-2:]
    assert first.split()[:2] == ["pretrain@a", "failed"]
    assert second.split()[:3] == ["report", "not", "run"]


def test_the_last_line_of_a_running_stage_is_shown():
    file = io.StringIO()
    with Board(["embed@a"], Console(file=file, width=100, force_terminal=True, color_system=None)) as board:
        board.begin("embed@a")
        board.line("embed@a", "1271 train images")
    assert "1271 train images" in file.getvalue()


def test_a_reader_that_has_gone_does_not_stop_the_work():
    script = """
import sys
from pipelines.board import Board
with Board(["a", "b"]) as board:
    for round in range(2000):
        board.begin("a")
        board.end("b", "ran")
print("reached the end", file=sys.stderr)
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", script], **pipes) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == "reached the end\n"
    assert process.returncode == 0
