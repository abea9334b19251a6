"""`contrast diagnose`: on a network that was really trained, and where there is nothing to look at."""

import json

import pytest
from rich.console import Console

from cl_core.data.files import sha256_file
from cl_core.errors import ConfigError
from cl_core.report.collect import collect
from pipelines.diagnosis import print_findings, run
from pipelines.stages import resolve, run_stage

RUN = "artifacts/runs/tiny"
FINDINGS = f"{RUN}/diagnose/findings.json"


@pytest.fixture
def trained(project):
    """The small project, pretrained."""
    folder = project()
    resolve(folder)
    for stage in ("ingest", "views", "pretrain"):
        run_stage(folder, stage, None if stage == "ingest" else "tiny")
    return folder


def test_a_trained_experiment_is_diagnosed_though_not_listed_and_the_report_finds_it(trained, capsys):
    method = trained / RUN / "pretrain" / "method.safetensors"
    before = sha256_file(method)
    capsys.readouterr()
    run(trained, "tiny")
    shown = capsys.readouterr().out
    assert "Do different images get" in shown
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 80
    found = json.loads((trained / FINDINGS).read_text())
    assert found["method_sha256"] == before == sha256_file(method)
    assert {finding["name"] for finding in found["findings"]} == {"collapse", "projection", "colours"}
    (experiment,) = collect(trained / "artifacts", ["tiny"])
    assert [finding.name for finding in experiment.diagnosed.findings] == [f["name"] for f in found["findings"]]
    once = (trained / FINDINGS).read_bytes()
    run(trained, "tiny")
    assert (trained / FINDINGS).read_bytes() == once

    # What was found in another training says nothing of this one.
    (trained / FINDINGS).write_text(json.dumps({**found, "method_sha256": "0" * 64}))
    assert collect(trained / "artifacts", ["tiny"])[0].diagnosed is None

    path = trained / "experiments" / "tiny.yaml"
    path.write_text(path.read_text().replace("out_dim: 8", "out_dim: 12"))
    with pytest.raises(ConfigError, match=r"other settings than it has now \(method\); run `contrast run tiny` first"):
        run(trained, "tiny")


def test_what_cannot_be_diagnosed_is_explained(project):
    folder = project()
    with pytest.raises(ConfigError, match="no experiment is called 'tinny' - did you mean 'tiny'"):
        run(folder, "tinny")
    with pytest.raises(ConfigError, match=r"tiny has not been pretrained .* run `contrast run tiny` first"):
        run(folder, "tiny")


def test_the_table_says_question_verdict_and_figures_in_80_columns(capsys):
    finding = {
        "question": "Do the guards keep the order from trivial statistics?",
        "state": "warning",
        "text": "statistics solve [many] puzzles",
        "figures": {"statistics": 0.41237},
        "against": {"chance": 1 / 72},
    }
    skipped = {"question": "Is h better?", "state": "skipped", "text": "no labels", "figures": {}, "against": {}}
    found = {"images": {"fit": 2000, "held_out": 1000}, "findings": [finding, skipped]}
    print_findings(found, "jigsaw", Console(width=80))
    shown = capsys.readouterr().out
    assert "jigsaw: judged on 1,000 images" in shown
    for text in ("warning", "[many]", "statistics 0.412", "(chance 0.0139)", "skipped"):
        assert text in shown
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 80
