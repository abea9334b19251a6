"""`contrast doctor`: each ailment is found, named with its fix, and repaired only where that is safe."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import doctor
from pipelines.doctor import Finding, check_git, check_leftovers, check_locks, examine
from pipelines.locks import locked


@pytest.fixture
def patient(tmp_path):
    """A project folder with as little as the checks need, under git."""
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / "params.yaml").write_text("experiments: [a]\n")
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    (tmp_path / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    return tmp_path


def age(path, seconds=3600):
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_healthy_set_up_is_reported_as_such(patient, capsys, monkeypatch):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert examine(patient, fix=False) == 0
    out = capsys.readouterr().out
    assert "problem" not in out
    for said in ("prefect 3", "parts from", "DVC works with git", "no stale locks", "disk space"):
        assert said in out


def test_a_problem_names_its_fix_and_the_exit_code_says_that_something_is_left(tmp_path, monkeypatch, capsys):
    done = []
    sick = [Finding("it hurts", "rest", lambda: done.append("rested")), Finding("it bleeds", "see a surgeon")]
    monkeypatch.setattr(doctor, "findings", lambda project: iter(sick))
    assert examine(tmp_path, fix=False) == 1
    assert "it hurts\n         fix: rest (`contrast doctor --fix` does it)" in capsys.readouterr().out
    assert done == []
    assert examine(tmp_path, fix=True) == 1
    assert done == ["rested"]
    assert "see a surgeon" in capsys.readouterr().out


def test_the_fastapi_that_breaks_prefect_is_found(monkeypatch):
    versions = {"prefect": "3.8.8", "fastapi": "0.165.0"}
    monkeypatch.setattr(doctor, "_version", lambda name: versions.get(name, "1.0"))
    assert ["fastapi<0.151" in finding.remedy for finding in doctor.check_versions()].count(True) == 1
    versions["prefect"] = "3.9.1"
    assert not [finding for finding in doctor.check_versions() if finding.remedy]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "timm" else "0.1")
    assert [finding.text for finding in doctor.check_versions() if finding.remedy] == ["timm is not installed"]


def test_a_broken_plugin_and_two_of_one_name_are_found(install):
    install("broken", "broken-plugin", "1/0")
    problems = [finding for finding in doctor.check_plugins() if finding.remedy]
    assert len(problems) == 1
    assert "broken-plugin" in problems[0].text
    assert "ZeroDivisionError" in problems[0].text
    install("acme", "losses", "")
    install("rival", "losses", "")
    problems = [finding for finding in doctor.check_plugins() if finding.remedy]
    assert "acme" in problems[0].text
    assert "rival" in problems[0].text


def test_another_contrast_on_path_is_found(monkeypatch, tmp_path):
    other = tmp_path / "contrast"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "another one" in doctor.check_path().text
    other.unlink()
    assert "is missing" in doctor.check_path().text


def test_dvc_without_git_under_git_and_the_other_way_round_are_repaired(patient):
    assert not check_git(patient).remedy
    (patient / ".dvc" / "config.local").write_text('[core]\n    no_scm = True\n[remote "store"]\n    url = x\n')
    finding = check_git(patient)
    assert "there is a git repository" in finding.text
    finding.repair()
    assert not check_git(patient).remedy
    assert '[remote "store"]' in (patient / ".dvc" / "config.local").read_text()

    (patient / ".git").rename(patient / "not-git")
    finding = check_git(patient)
    assert "expects a git repository" in finding.text
    finding.repair()
    assert check_git(patient) == Finding("DVC works without git")


def test_a_stale_entry_of_dvc_s_lock_is_removed_but_not_under_a_dvc_at_work(patient):
    path = patient / ".dvc" / "tmp" / "rwlock"
    stale = {"pid": os.getpid(), "cmd": "dvc repro"}  # a number that another process has got since
    path.write_text(json.dumps({"write": {"x": stale}}))
    finding = next(finding for finding in check_locks(patient) if finding.remedy)
    assert f"pid {os.getpid()}" in finding.text
    finding.repair()
    assert not path.exists()
    with subprocess.Popen(["sleep", "60"], executable="/bin/sleep") as sleeper:
        sleeper.kill()
        time.sleep(0.2)  # not waited for: a zombie, which DVC takes for alive
        path.write_text(json.dumps({"read": {"x": [{"pid": sleeper.pid, "cmd": "dvc repro"}]}}))
        assert [finding.remedy != "" for finding in check_locks(patient)] == [True]


def test_a_stage_at_work_is_told_and_its_half_written_files_are_left_alone(patient):
    partial = patient / "artifacts" / ".encoder.safetensors.partial"
    partial.parent.mkdir()
    partial.write_bytes(b"half")
    age(partial)
    with locked(patient / ".contrast" / "locks" / "pretrain@a.lock", "pretrain@a"):
        assert f"pretrain@a is running as pid {os.getpid()}" in [finding.text for finding in check_locks(patient)]
        assert list(check_leftovers(patient)) == []
    assert len(list(check_leftovers(patient))) == 1


def test_old_half_written_files_are_deleted_and_new_ones_kept(patient):
    old, new = (patient / "artifacts" / f".{name}.partial" for name in ("old", "new"))
    old.parent.mkdir()
    for path in (old, new):
        path.write_bytes(b"half")
    age(old)
    (finding,) = check_leftovers(patient)
    assert ".old.partial" in finding.text
    finding.repair()
    assert not old.exists()
    assert new.exists()


def test_too_little_disk_space_is_found(patient, monkeypatch):
    assert doctor.check_space(patient).remedy == ""
    monkeypatch.setattr(doctor, "LITTLE_SPACE", 2**60)
    assert "dvc gc" in doctor.check_space(patient).remedy


def test_a_prefect_server_that_does_not_answer_is_a_finding_and_not_a_crash(patient, monkeypatch):
    monkeypatch.setattr(doctor.server, "configured", lambda: True)

    def refused(project):
        raise ConnectionError("connection refused")

    monkeypatch.setattr(doctor.server, "available", refused)
    (finding,) = doctor.check_prefect(patient)
    assert "connection refused" in finding.text
    assert "PREFECT_API_URL" in finding.remedy


def test_outside_a_project_only_the_installation_is_looked_at(tmp_path):
    texts = [finding.text for finding in doctor.findings(tmp_path)]
    assert texts[-1] == f"{tmp_path} is not a project; looked at the installation only"
