"""An experiment with several seeds: which runs it has, what they are called, and that none disturbs another."""

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from cl_core.check import check_project
from cl_core.config import ClaimConfig
from cl_core.data.files import sha256_file, write_json
from cl_core.errors import ConfigError
from cl_core.listing import json_schemas
from cl_core.project import load_project
from cl_core.registry import load_registry
from cl_core.report.claims import judge
from cl_core.report.collect import collect
from cl_core.report.diagnoses import diagnoses
from cl_core.report.groups import group_seeds
from cl_core.report.results import tables
from cl_core.resolve import PER_EXPERIMENT, RESOLVED, RUN_LIST, run_list, write_resolved
from pipelines import stages
from pipelines.planning import chosen_runs, read_sweeps
from tests.conftest import EXPERIMENT
from tests.unit.test_report import finetune_metrics, linear_metrics, write_metrics
from tests.unit.test_report import write_resolved as write_resolved_run
from tests.unit.toy_results import answers, write_predictions

ROOT = Path(__file__).parents[2]
SWEEPS = {"a": {"a": 0, "a-s1": 1, "a-s2": 2}, "b": {"b": 0}}


def swept(project, seeds, extra=""):
    return project({"experiments/tiny.yaml": f"{EXPERIMENT}seeds: {seeds}\n{extra}"})


def runs(folder):
    return [(run.name, run.seed) for experiment in load_project(folder).experiments for run in experiment.runs]


def problems_of(folder):
    with pytest.raises(ConfigError, match=r".") as caught:
        load_project(folder)
    return caught.value.problems


def resolved(folder):
    return {str(path.relative_to(folder / RESOLVED)) for path in (folder / RESOLVED).rglob("*.json")}


def test_the_run_of_the_own_seed_is_called_like_the_experiment_and_the_others_after_their_seed(project):
    assert runs(project()) == [("tiny", 0)]
    assert runs(swept(project, [0, 1, 12])) == [("tiny", 0), ("tiny-s1", 1), ("tiny-s12", 12)]
    assert runs(swept(project, [2, 0])) == [("tiny-s2", 2), ("tiny", 0)]
    assert runs(swept(project, [1, 2])) == [("tiny-s1", 1), ("tiny-s2", 2)]
    assert runs(swept(project, [7, 8], "seed: 7\n")) == [("tiny", 7), ("tiny-s8", 8)]


def test_the_own_seed_may_be_that_of_the_project(project):
    folder = swept(project, [0, 3])
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("seed: 0", "seed: 3"))
    assert runs(folder) == [("tiny-s0", 0), ("tiny", 3)]


def test_extends_hands_on_the_seeds_unless_the_file_names_one_or_others(project):
    folder = swept(project, [0, 1])
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("[tiny]", "[b]"))
    for text, expected in (
        ("", [("b", 0), ("b-s1", 1)]),
        ("seed: 4\n", [("b", 4)]),
        ("seed: 4\nseeds: [4, 5]\n", [("b", 4), ("b-s5", 5)]),
        ("seeds: [6]\n", [("b-s6", 6)]),
    ):
        (folder / "experiments" / "b.yaml").write_text(f"extends: tiny\n{text}")
        assert runs(folder) == expected


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ("[0, 1, 0]", "seeds: lists 0 twice; keep one"),
        ("[0, -1]", "seeds.1: should be greater than or equal to 0, got -1"),
        ("[]", "seeds: List should have at least 1 item"),
        ("3", "seeds: should be a valid array, got 3"),
        ("[0.5]", "seeds.0: should be a valid integer"),
    ],
)
def test_wrong_seeds_are_explained(project, seeds, said):
    (problem,) = problems_of(swept(project, seeds))
    assert problem.startswith("experiments/tiny.yaml:")
    assert said in problem


def test_a_run_that_would_be_called_like_another_experiment_is_an_error_that_names_the_file(project):
    folder = swept(project, [0, 1])
    (folder / "experiments" / "tiny-s1.yaml").write_text("extends: tiny\nseed: 1\n")
    line = len(EXPERIMENT.splitlines()) + 1
    assert problems_of(folder) == [
        f"experiments/tiny.yaml:{line}: seeds: the run of seed 1 is called tiny-s1, which experiments/tiny-s1.yaml is "
        f"too; rename or delete that file"
    ]


def test_a_seed_more_or_less_leaves_the_inputs_of_all_other_runs_as_they_are(project):
    folder = project()
    assert RUN_LIST in write_resolved(folder)
    swept(project, [0, 1])
    added = {RESOLVED / "tiny-s1" / f"{stage}.json" for stage in PER_EXPERIMENT}
    assert set(write_resolved(folder)) == {RUN_LIST, RESOLVED / "report.json", *added}
    swept(project, [1])
    removed = {RESOLVED / "tiny" / f"{stage}.json" for stage in PER_EXPERIMENT}
    assert set(write_resolved(folder)) == {RUN_LIST, RESOLVED / "report.json", *removed}
    assert write_resolved(folder) == []


def test_runs_differ_in_name_and_seed_alone(project):
    folder = swept(project, [0, 1])
    write_resolved(folder)
    one, other = (json.loads((folder / RESOLVED / name / "pretrain.json").read_text()) for name in ("tiny", "tiny-s1"))
    assert other == {**one, "experiment": "tiny-s1", "config": {**one["config"], "seed": 1}}


def test_lists_of_experiments_mean_all_their_seeds(project):
    folder = swept(project, [0, 1], "distil: {budget: 0.1}\n")
    params = folder / "params.yaml"
    text = params.read_text().replace("diagnose: []", "diagnose: [tiny]").replace("distil: []", "distil: [tiny]")
    params.write_text(text)
    write_resolved(folder)
    listed = YAML(typ="safe").load((folder / RUN_LIST).read_text())["runs"]
    assert list(listed.values()) == [["tiny", "tiny-s1"]] * 3
    assert {"tiny/distil.json", "tiny-s1/distil.json"} <= resolved(folder)


@pytest.mark.parametrize("folder", [ROOT, *(path.parent for path in ROOT.glob("benchmarks/*/dvc.yaml"))], ids=str)
def test_the_committed_lists_of_runs_are_those_of_the_settings(folder):
    assert (folder / RUN_LIST).read_bytes() == run_list(load_project(folder))


def test_dvc_is_told_to_begin_again_where_it_read_the_list_of_runs_too_early(project, monkeypatch):
    folder = project()
    stages.resolve(folder)
    monkeypatch.setenv("DVC_STAGE", "resolve")
    stages.resolve(folder)
    swept(project, [0, 1])
    with pytest.raises(ConfigError, match=r"runs\.yaml did not list the runs .* run the same command again"):
        stages.resolve(folder)
    stages.resolve(folder)


def test_the_check_names_the_seeds(project):
    assert check_project(swept(project, [0, 2]))[-1].endswith("seeds 0, 2")
    assert check_project(swept(project, [2]))[-1].endswith("seed 2")


def test_editors_know_seeds():
    seeds = json_schemas(load_registry())["experiment"]["properties"]["seeds"]
    assert {"type": "integer", "minimum": 0} in [shape.get("items") for shape in seeds["anyOf"]]


@pytest.mark.parametrize(
    ("names", "seeds", "expected"),
    [
        ((), (), ["a", "a-s1", "a-s2", "b"]),
        (("a",), (), ["a", "a-s1", "a-s2"]),
        (("a-s1",), (), ["a-s1"]),
        (("a",), (0, 2), ["a", "a-s2"]),
        ((), (0,), ["a", "b"]),
        ((), (1,), ["a-s1"]),
        (("b", "a"), (0, 1), ["b", "a", "a-s1"]),
        (("nobody",), (), ["nobody"]),
    ],
)
def test_experiments_and_seeds_choose_runs(names, seeds, expected):
    assert chosen_runs(SWEEPS, names, seeds) == expected


@pytest.mark.parametrize(
    ("names", "seeds", "said"),
    [
        (
            ("a",),
            (0, 3),
            r"--seeds: no chosen experiment has the seed 3 \(a has 0, 1, 2\); add it to `seeds` of its file",
        ),
        (("a", "b"), (1,), r"--seeds: b has none of the seeds 1 \(a has 0, 1, 2; b has 0\)"),
    ],
)
def test_seeds_that_are_not_there_are_named_with_those_that_are(names, seeds, said):
    with pytest.raises(ConfigError, match=said):
        chosen_runs(SWEEPS, names, seeds)


def test_what_was_resolved_tells_the_runs_of_an_experiment(project, tmp_path):
    folder = swept(project, [0, 1])
    write_resolved(folder)
    assert read_sweeps(folder) == {"tiny": {"tiny": 0, "tiny-s1": 1}}
    assert read_sweeps(tmp_path / "nothing") == {}


@pytest.fixture
def judged(tmp_path):
    """Results of `a` with the seeds 1 and 10 and of `b` with 1 alone."""
    sweeps = {"a": {"a-s1": 1, "a-s10": 10}, "b": {"b-s1": 1}}
    for file, runs_of in sweeps.items():
        for name, seed in runs_of.items():
            temperature = 0.5 if file == "a" else 0.1
            write_resolved_run(tmp_path, name, method="simclr", seed=seed, temperature=temperature)
            write_metrics(tmp_path, name, linear_metrics(0.6 + seed / 100), finetune_metrics(0.6))
            same = {"predicted": answers(0.6, 7), "knn_predicted": answers(0.6, 8)}
            write_predictions(tmp_path / "runs" / name / "linear_eval", same)
            diagnose(tmp_path / "runs" / name, "warning" if seed == 10 else "fine")
    report = tmp_path / "resolved" / "report.json"
    content = json.loads(report.read_text())
    write_json(report, {**content, "config": {**content["config"], "runs": sweeps}})
    return group_seeds(collect(tmp_path, [name for names in sweeps.values() for name in names]))


def diagnose(run, state):
    (run / "pretrain").mkdir()
    (run / "pretrain" / "method.safetensors").write_bytes(b"weights")
    finding = {"name": "collapse", "question": "Has it collapsed?", "state": state, "text": state}
    digest = sha256_file(run / "pretrain" / "method.safetensors")
    (run / "diagnose").mkdir()
    found = {"method_sha256": digest, "images": {"held_out": 9}, "findings": [finding]}
    write_json(run / "diagnose" / "findings.json", found)


def test_seeds_are_one_row_under_the_name_of_their_experiment(judged):
    (table,) = tables(judged)
    assert [(row.label, row.note) for row in table.rows] == [("a", "2 seeds (1, 10)"), ("b-s1", "")]
    assert table.rows[0].linear.values == pytest.approx((0.61, 0.7))


def test_a_claim_names_an_experiment_and_compares_the_seeds_that_both_have(judged):
    claim = ClaimConfig(claim="a is better", better="a", worse="b", figure="knn")
    (outcome,) = judge([claim], judged)
    assert outcome.state == "not told apart"
    assert outcome.difference == pytest.approx(0.0)


def test_a_diagnosis_tells_the_worst_answer_and_how_many_seeds_gave_it(judged):
    several, one = diagnoses(judged)
    assert (several.label, several.images, one.label) == ("a", 9, "b-s1")
    ((finding, seeds),) = several.findings
    assert (finding.state, seeds) == ("warning", "in 1 of 2 seeds; these figures are of seed 10")
    assert one.findings[0][1] == ""
