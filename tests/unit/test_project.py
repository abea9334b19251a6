"""Reading a project: every mistake of every file at once, parts that fit their method, extends."""

import pytest
import torch

from cl_core.assembly import build_method
from cl_core.check import check_project
from cl_core.errors import ConfigError
from cl_core.project import load_project, merge
from cl_core.registry import load_registry
from tests.conftest import EXPERIMENT, PARAMS

BYOL = "method: {name: byol}\nencoder: {name: resnet8}\nviews: {recipe: {name: byol}}\n"
JIGSAW = "method: {name: jigsaw}\nencoder: {name: resnet8}\n"


def problems_of(folder):
    with pytest.raises(ConfigError, match=r".") as caught:
        load_project(folder)
    return caught.value.problems


def test_a_correct_project_gives_its_experiments_with_defaults_filled_in(project):
    loaded = load_project(project())
    tiny = loaded.experiments[0]
    assert tiny.loss == {"name": "nt_xent", "options": {"temperature": 0.5}}
    assert tiny.encoder["options"]["width"] == 4
    assert tiny.chains["augment"][0]["name"] == "random_resized_crop"


def test_mistakes_in_several_files_are_reported_together(project):
    folder = project(
        {
            "params.yaml": "experiments: [tiny, other, missing]\nsize: 3\ndiagnose: []\ndistil: []\n"
            "data: {source: {name: digts}}\n",
            "experiments/other.yaml": "method: {name: simclrr}\nencoder: {name: resnet8, widht: 3}\n",
        }
    )
    problems = problems_of(folder)
    assert any("params.yaml:2: size: unknown key" in problem for problem in problems)
    assert any("no method is called 'simclrr' - did you mean 'simclr'" in problem for problem in problems)
    assert any("unknown option 'widht' - did you mean 'width'" in problem for problem in problems)
    assert any("there is no file experiments/missing.yaml" in problem for problem in problems)


def test_an_unknown_source_is_named_with_its_line(project):
    problems = problems_of(
        project({"params.yaml": "experiments: [tiny]\ndata:\n  source: {name: digts}\ndiagnose: []\ndistil: []\n"})
    )
    assert problems[0].startswith("params.yaml:3: data.source.name: no source is called 'digts' - did you mean")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("method: {name: simclr}\nencoder: {name: resnet8}\nviews: {recipe: {name: simclr-cifar}}", "needs a loss"),
        (f"{BYOL}loss: {{name: nt_xent}}", "loss: byol takes no loss; delete this section"),
        (f"{JIGSAW}views: {{recipe: {{name: byol}}}}", "views: jigsaw makes its views itself"),
        (
            "method: {name: simclr}\nencoder: {name: resnet8}\nloss: {name: nt_xent}\nviews: {recipe: {name: byol}}",
            "simclr takes the chains augment, got augment_a, augment_b",
        ),
        (
            "method: {name: simclr}\nencoder: {name: resnet8}\nloss: {name: nt_xent}",
            "simclr takes the chains augment, got none",
        ),
    ],
)
def test_a_method_gets_the_parts_it_asks_for_and_no_others(project, text, said):
    problems = problems_of(project({"experiments/tiny.yaml": text}))
    assert len(problems) == 1
    assert said in problems[0]


def test_one_chain_called_augment_serves_every_view(project):
    text = BYOL.replace("{recipe: {name: byol}}", "{recipe: {name: simclr-cifar}}")
    loaded = load_project(project({"experiments/tiny.yaml": text}))
    assert set(loaded.experiments[0].chains) == {"augment"}


def test_extends_takes_everything_from_the_base_but_what_the_file_says(project):
    folder = project(
        {"params.yaml": "experiments: [seeded]\ndiagnose: []\ndistil: []\ndata: {source: {name: digits}}\n"}
    )
    (folder / "experiments" / "seeded.yaml").write_text("extends: tiny\nseed: 7\nloss: {name: nt_xent}\n")
    seeded = load_project(folder).experiments[0]
    assert seeded.seed == 7
    assert seeded.method["options"]["hidden_dim"] == 16
    assert seeded.loss["options"]["temperature"] == 0.5


def test_extends_that_goes_in_a_circle_is_an_error(project):
    folder = project({"experiments/tiny.yaml": "extends: b\n", "experiments/b.yaml": "extends: tiny\n"})
    assert "tiny -> b -> tiny is a circle" in problems_of(folder)[0]


def test_a_part_of_another_name_replaces_the_whole_part():
    base = {"loss": {"name": "a", "temperature": 1}, "train": {"batch_size": 2, "log_every": 3}}
    over = {"loss": {"name": "b"}, "train": {"batch_size": 4}}
    assert merge(base, over) == {"loss": {"name": "b"}, "train": {"batch_size": 4, "log_every": 3}}


def test_a_folder_that_is_no_project_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match=r"params.yaml: there is no such file; create it, or run `contrast init`"):
        load_project(tmp_path)


def test_a_method_whose_construction_looks_at_values_passes_the_check(project, install):
    install(
        "acme",
        "looking",
        "import torch\n"
        "from cl_core import hookimpl\n"
        "from plugins.methods import Jigsaw\n"
        "class Looking(Jigsaw):\n"
        '    """Looks at values of tensors that it makes."""\n'
        "    def __init__(self, encoder):\n"
        "        super().__init__(encoder)\n"
        "        self.count = len(torch.arange(5).nonzero())\n"
        "        assert float(torch.ones(3).sum()) == 3\n"
        "@hookimpl\n"
        "def register_methods():\n"
        "    return {'looking': Looking}\n",
    )
    folder = project({"experiments/tiny.yaml": "method: {name: looking}\nencoder: {name: resnet8}\n"})
    assert any("looking on resnet8" in line for line in check_project(folder))


def test_the_check_reports_what_a_method_refuses_when_it_is_built(project):
    autoencoder = "method: {name: denoising_autoencoder, emphasis: [0, 0]}\nencoder: {name: resnet8}\n"
    folder = project({"experiments/tiny.yaml": autoencoder + "views: {recipe: {name: crop-flip}}\n"})
    with pytest.raises(ConfigError, match=r"experiments/tiny.yaml: method.emphasis \[0, 0\] leaves no loss"):
        check_project(folder)


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ("[tini]", "params.yaml:2: diagnose.0: tini is not among experiments - did you mean 'tiny'?; add it there or"),
        ("[tiny, tiny]", "diagnose lists tiny twice; keep one"),
    ],
)
def test_experiments_that_are_to_be_diagnosed_have_to_exist(project, listed, said):
    problems = problems_of(project({"params.yaml": PARAMS.replace("diagnose: []", f"diagnose: {listed}")}))
    assert [said in problem for problem in problems] == [True], problems


DISTIL = "extends: tiny\ndistil: {budget: 0.1}\n"


@pytest.mark.parametrize(
    ("listed", "experiment", "said"),
    [
        ("[b]", "extends: tiny\n", "params.yaml:3: distil: b has no settings; add `distil: {budget: 0.1}` to exp"),
        ("[bb]", "extends: tiny\n", "params.yaml:3: distil.0: bb is not among experiments - did you mean 'b'?; add it"),
        ("[]", DISTIL, "distil: b has a section distil; add the name here, or write `distil: null` in experiments/b"),
        ("[b]", DISTIL.replace("0.1", "0.2"), "budget 0.2 of experiments/b.yaml has no teacher: the budgets of eva"),
        ("[b]", DISTIL.replace("0.1", "0.1, encoder: {name: resnet9}"), "b.yaml:2: distil.encoder.name: no encoder is"),
        ("[b, b]", DISTIL, "distil lists b twice; keep one"),
    ],
)
def test_the_list_of_what_is_distilled_and_the_settings_for_it_must_fit(project, listed, experiment, said):
    params = PARAMS.replace("[tiny]", "[tiny, b]").replace("distil: []", f"distil: {listed}")
    problems = problems_of(project({"params.yaml": params, "experiments/b.yaml": experiment}))
    assert [said in problem for problem in problems] == [True], problems


def test_an_experiment_that_extends_a_distilled_one_may_leave_that_out(project):
    params = PARAMS.replace("[tiny]", "[tiny, b, c]").replace("distil: []", "distil: [b]")
    files = {"experiments/b.yaml": DISTIL, "experiments/c.yaml": "extends: b\nseed: 1\ndistil: null\n"}
    tiny, b, c = load_project(project({"params.yaml": params, **files})).experiments
    assert (tiny.student, c.student) == (None, None)
    assert b.student == b.encoder


def test_the_check_builds_the_student_too(project):
    params = PARAMS.replace("distil: []", "distil: [tiny]")
    student = "distil: {budget: 0.1, encoder: {name: vit, width: 33, heads: 2}}\n"
    folder = project({"params.yaml": params, "experiments/tiny.yaml": EXPERIMENT + student})
    with pytest.raises(ConfigError, match=r"experiments/tiny.yaml: .*heads"):
        check_project(folder)


INFO_NCE = (
    "method: {name: simclr}\nencoder: {name: resnet8}\nloss: {name: info_nce}\nviews: {recipe: {name: simclr-cifar}}\n"
)


def test_a_score_reaches_the_loss_and_is_trained_with_the_method(project):
    text = INFO_NCE + "score: {name: bilinear, dim: 128}\n"
    experiment = load_project(project({"experiments/tiny.yaml": text})).experiments[0]
    inputs = {key: getattr(experiment, key) for key in ("method", "encoder", "loss", "score", "chains")}
    one, same, other = (build_method(load_registry(), {**inputs, "image_size": 32}, seed=seed) for seed in (0, 0, 1))
    assert one.loss.score.weight.shape == (128, 128)
    assert any(parameter is one.loss.score.weight for group in one.parameter_groups() for parameter in group.params)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.encoder.conv1.weight, other.encoder.conv1.weight)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (INFO_NCE, "loss: info_nce needs a score; add a section such as `score: {name: cosine}`"),
        (INFO_NCE.replace("info_nce", "nt_xent") + "score: {name: cosine}\n", "score: nt_xent takes no score"),
        (f"{BYOL}score: {{name: cosine}}\n", "score: an experiment without loss takes no score"),
        (INFO_NCE + "score: {name: cosin}\n", "no score is called 'cosin' - did you mean 'cosine'"),
    ],
)
def test_scores_and_losses_that_do_not_fit_are_named(project, text, said):
    (problem,) = problems_of(project({"experiments/tiny.yaml": text}))
    assert said in problem
