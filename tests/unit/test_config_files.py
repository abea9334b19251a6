"""params.yaml and experiments/*.yaml: what is accepted, and how mistakes are told."""

import pytest

from cl_core.config import ExperimentConfig, OptimizerConfig, ParamsConfig
from cl_core.documents import expand_environment, read_yaml, validate
from cl_core.errors import ConfigError


def problems_of(tmp_path, model, text):
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"file\.yaml") as caught:
        validate(model, read_yaml(path, "file.yaml"))
    return caught.value.problems


def test_all_problems_of_a_file_are_reported_together_with_line_path_value_and_rule(tmp_path):
    problems = problems_of(
        tmp_path,
        ParamsConfig,
        'experiments: [a]\nsed: 3\ndata:\n  source: {name: digits}\n  size: "32"\n  splits: {validation: 1.5}\n'
        "diagnose: []\ndistil: []\n",
    )
    assert sorted(problems) == [
        "file.yaml:2: sed: unknown key - did you mean 'seed'?; known keys: title, experiments, diagnose, distil, seed, "
        "data, evaluation, run, plugins, claims",
        "file.yaml:5: data.size: should be a valid integer, got '32'",
        "file.yaml:6: data.splits.validation: must be a share of the images in [0, 1) or a whole number of images, "
        "got 1.5",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optimizer: {lr: {base: 0.1, rul: linear}}", "optimizer.lr.rul: unknown key - did you mean 'rule'?"),
        ("optimizer: {lr: -1}", "optimizer.lr: should be greater than 0, got -1"),
        ("train: {precision: fp16}", "train.precision: should be 'auto', 'fp32' or 'bf16', got 'fp16'"),
        ("schedule: {epochs: 2, warmup_epochs: 3}", "schedule: warmup_epochs 3 exceeds epochs 2; lower it"),
        ("views: {recipe: {name: a}, chains: {augment: []}}", "views: takes a recipe or chains, not both"),
        ("views: {chains: {argument: []}}", "views.chains.argument"),
        ("distil: {budget: 12, epochs: 0}", "distil.epochs: should be greater than 0, got 0"),
        ("distil: {epochs: 2}", "distil.budget: is required and missing: Labels that the teacher was fine-tuned"),
        ("distil: {budget: 0.1, labelled_share: 2}", "distil.labelled_share: should be less than or equal to 1, got"),
    ],
)
def test_a_wrong_value_in_an_experiment_is_explained(tmp_path, text, said):
    problems = problems_of(tmp_path, ExperimentConfig, f"method: {{name: m}}\nencoder: {{name: e}}\n{text}\n")
    assert len(problems) == 1
    assert problems[0].startswith("file.yaml:3: ")
    assert said in problems[0]


def test_a_missing_section_is_named(tmp_path):
    assert problems_of(tmp_path, ExperimentConfig, "encoder: {name: e}\n") == [
        "file.yaml:1: method: is required and missing"
    ]


def test_a_project_without_the_list_distil_is_told_what_to_write(tmp_path):
    assert problems_of(tmp_path, ParamsConfig, "experiments: [a]\ndiagnose: []\ndata: {source: {name: digits}}\n") == [
        "file.yaml:1: distil: is required and missing: Those of them whose fine-tuned classifier is distilled; "
        "`distil: []` for none."
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1, 2", "file.yaml:1: not valid YAML"),
        ("a: 1\na: 2", "file.yaml:2: not valid YAML: found duplicate key"),
        ("- a", "must be a mapping of sections, got list"),
        ("", "must be a mapping of sections, got NoneType"),
    ],
)
def test_a_file_that_is_no_mapping_is_an_error_with_its_line(tmp_path, text, said):
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"file\.yaml") as caught:
        read_yaml(path, "file.yaml")
    assert said in str(caught.value)


def test_yaml_is_read_as_dvc_reads_it(tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text("lr: 1e-3\nflag: on\n")
    assert read_yaml(path, "file.yaml").data == {"lr": 0.001, "flag": "on"}


@pytest.mark.parametrize(
    ("lr", "batch", "expected"),
    [(0.3, 64, 0.3), ({"base": 0.3}, 512, 0.6), ({"base": 0.075, "per": 1, "rule": "sqrt"}, 256, 1.2)],
)
def test_the_learning_rate_is_a_number_or_a_rule(lr, batch, expected):
    assert OptimizerConfig.model_validate({"lr": lr}).peak_lr(batch) == pytest.approx(expected)


def test_settings_never_change_after_loading():
    config = OptimizerConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.momentum = 0.5


def test_environment_variables_in_paths_are_expanded_and_unset_ones_are_an_error(monkeypatch):
    monkeypatch.setenv("IMAGES", "/data")
    assert expand_environment({"path": "${IMAGES}/cats", "n": 3}, "x") == {"path": "/data/cats", "n": 3}
    with pytest.raises(ConfigError, match=r"x.path: environment variable NO_SUCH_FOLDER is not set; export"):
        expand_environment({"path": "${NO_SUCH_FOLDER}"}, "x")
