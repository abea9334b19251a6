"""The search of `contrast tune` without training: which candidates it makes, who goes on, who wins, what is written."""

from dataclasses import replace

import pytest

from cl_core.data.files import read_json
from cl_core.errors import ConfigError
from cl_core.project import check_experiment, load_project, read_experiment
from pipelines.tuning.outcome import list_experiment, write
from pipelines.tuning.run import Clock
from pipelines.tuning.search import ETA, Candidate, Job, Search, budgets, winner
from pipelines.tuning.space import Space
from pipelines.tuning.trial import Result
from tests.conftest import EXPERIMENT

IMAGES = 1258
CHAINS = """\
  chains:
    augment:
      - {name: random_resized_crop, scale: [0.3, 0.9]}
      - {name: rotation, degrees: 15}
"""
ORIGIN = {
    "batch": 64,
    "rate": 0.4,
    "temperature": 0.5,
    "crop": 0.08,
    "strength": 0.5,
    "method": "simclr/nt_xent",
}


@pytest.fixture
def space(project):
    """A function that gives the space around the small experiment, after edits of its text."""

    def make(*edits, methods=None, images=IMAGES):
        text = EXPERIMENT
        for old, new in edits:
            assert old in text
            text = text.replace(old, new)
        loaded = load_project(folder := project({"experiments/tiny.yaml": text}))
        (start,) = loaded.experiments
        return Space.around(loaded, start, read_experiment(folder, "tiny"), methods, images)

    return make


def choices(space):
    return {axis.name: list(axis.choices) for axis in space.axes}


def result(candidate, images, score):
    return Result(
        edit=candidate.edit,
        images=images,
        figure="knn_top1",
        score=score,
        noise=0.01,
        failure="" if score is not None else "collapsed",
        seconds=images / 100,
        units_per_image=2.0,
    )


def search(space, score, *, seed=0, jobs=40, limit=None):
    """A search whose scores come from a function of the values and the rung, and the jobs in their order."""
    found, order = Search(space, seed, [100, 300, 900], limit), []
    while len(order) < jobs and (job := found.next_job()) is not None:
        job.candidate.results[job.rung] = result(
            job.candidate, found.rungs[job.rung], score(job.candidate.values, job.rung)
        )
        order.append((job.candidate.number, job.rung, job.candidate.edit))
    return found, order


def nearer_to_one(values, rung):
    """Better the nearer the rate is to 1 and the smaller the batch."""
    return values["rate"] / 2 + 8 / values["batch"] + rung / 100


def test_the_axes_hold_the_experiments_own_values_and_what_fits_it(space):
    assert choices(space()) == {
        "batch": [32, 64, 128, 256],
        "rate": [0.02, 0.05, 0.1, 0.2, 0.4, 1.0],  # 0.1 at batch 64 is 0.4 per 256, and 0.5 would tell nothing new
        "temperature": [0.1, 0.2, 0.5],
        "crop": [0.08, 0.2, 0.4, 0.6],
        "strength": [0.25, 0.5, 1.0],
        "method": ["simclr/nt_xent", "simclr/dcl", "byol", "vicreg/vicreg", "swav", "nnclr"],
    }


def test_batches_leave_four_steps_and_rates_keep_the_unit_of_the_rule(space):
    edits = [("batch_size: 64", "batch_size: 24"), ("lr: 0.1", "lr: {base: 0.1, per: 64}")]
    found = choices(space(*edits, images=200))
    assert found["batch"] == [24, 48]
    assert found["rate"] == [0.005, 0.0125, 0.025, 0.05, 0.1, 0.25]


def test_an_experiment_that_makes_its_own_views_keeps_its_method_and_crops(space):
    jigsaw = [
        ("name: simclr, hidden_dim: 16, out_dim: 8", "name: jigsaw"),
        ("loss: {name: nt_xent, temperature: 0.5}\nviews:\n  recipe: {name: simclr-cifar}\n", ""),
    ]
    assert set(choices(space(*jigsaw))) == {"batch", "rate"}


def test_methods_that_are_named_must_fit_and_those_that_do_are_the_only_others(space):
    assert choices(space(methods=["byol"]))["method"] == ["simclr/nt_xent", "byol"]
    assert "method" not in choices(space(methods=[]))
    with pytest.raises(ConfigError, match=r"--methods: bylo: .*did you mean 'byol'"):
        space(methods=["bylo"])
    with pytest.raises(ConfigError, match=r"--methods: simclr: .*simclr needs a loss"):
        space(methods=["simclr"])


def test_an_edit_says_only_what_differs_and_what_has_to_follow(space):
    found = space()
    assert found.edit(found.origin) == {}
    # A rate that is a plain number becomes a rule, so that it follows the batch.
    rule = {"lr": {"base": 0.4, "per": 256, "rule": "linear"}}
    assert found.edit({**found.origin, "batch": 32}) == {"train": {"batch_size": 32}, "optimizer": rule}
    # Another loss has another default temperature; a method without loss has none.
    dcl = {"loss": {"name": "dcl", "temperature": 0.5}}
    assert found.edit({**found.origin, "method": "simclr/dcl"}) == dcl
    byol = {"method": {"name": "byol"}, "loss": None}
    assert found.edit({**found.origin, "method": "byol", "temperature": 0.1}) == byol


def test_chains_that_are_spelt_out_get_their_crop_edited_and_nothing_else(space):
    found = space(("  recipe: {name: simclr-cifar}\n", CHAINS))
    assert choices(found)["crop"] == [0.08, 0.2, 0.3, 0.4, 0.6]
    edit = found.edit({**found.origin, "crop": 0.6})
    crop, rotation = edit["views"]["chains"]["augment"]
    assert crop == {"name": "random_resized_crop", "scale": [0.6, 0.9]}
    assert rotation == {"name": "rotation", "degrees": 15}
    assert found.experiment(edit).chains["augment"][0]["options"]["scale"] == [0.6, 0.9]
    narrow = space(("  recipe: {name: simclr-cifar}\n", CHAINS.replace("[0.3, 0.9]", "[0.3, 0.5]")))
    assert not narrow.admits({**narrow.origin, "crop": 0.6})


def test_every_candidate_is_a_valid_experiment_and_none_comes_twice(space):
    found, _ = search(space(), nearer_to_one)
    edits = [candidate.edit for candidate in found.candidates]
    assert edits[0] == {}
    assert all(edits.count(edit) == 1 for edit in edits)
    for candidate in found.candidates:
        assert found.space.admits(candidate.values)


def test_the_best_third_goes_on_and_the_start_follows_to_be_compared_with(space):
    found, entered = Search(space(), 0, [100, 300, 900]), {0: [], 1: [], 2: []}
    for _ in range(40):
        job = found.next_job()
        entered[job.rung].append(job.candidate)
        if job.rung > 0 and job.candidate is not found.start:
            below = found.reached(job.rung - 1)
            assert job.candidate in below[: len(below) // ETA]
        score = nearer_to_one(job.candidate.values, job.rung)
        job.candidate.results[job.rung] = result(job.candidate, found.rungs[job.rung], score)
    assert entered[0][0] is found.start
    for rung in (1, 2):
        assert entered[rung].index(found.start) == 1  # it opens no rung
    assert len(entered[0]) > len(entered[1]) > len(entered[2]) > 1


def test_the_order_of_trials_depends_on_seed_and_scores_alone_and_more_time_makes_it_longer(space):
    shared = space()
    _, order = search(shared, nearer_to_one, jobs=30)
    assert search(shared, nearer_to_one, jobs=12)[1] == order[:12]
    assert search(shared, nearer_to_one, seed=1, jobs=12)[1] != order[:12]


def test_the_search_learns_where_good_values_are(space):
    found, _ = search(space(), nearer_to_one, jobs=45)
    first, last = found.candidates[1:9], found.candidates[-8:]
    assert sum(c.score(0) for c in last) > sum(c.score(0) for c in first)
    best, rung = winner(found)
    assert rung == 2
    assert best.values["rate"] == 1.0


def test_trials_that_fail_are_ranked_last_and_go_no_further(space):
    found, _ = search(space(), lambda values, rung: 0.5 if values == ORIGIN else None, jobs=10)
    assert found.reached(0)[0] is found.start
    assert found.reached(1) == []
    assert winner(found) is None


def test_a_gain_within_one_standard_error_is_no_gain(space):
    shared = space()
    assert winner(search(shared, lambda values, rung: 0.5, jobs=20)[0]) is None
    small = search(shared, lambda values, rung: 0.5 + 0.009 * (values["batch"] != 64), jobs=20)[0]
    assert winner(small) is None
    clear = search(shared, lambda values, rung: 0.5 + 0.011 * (values["batch"] != 64), jobs=20)[0]
    assert winner(clear) is not None


def test_the_winner_is_looked_for_where_the_start_was_compared_last(space):
    found, order = search(space(), lambda values, rung: float(values != ORIGIN), jobs=4)
    assert [at for _, at, _ in order] == [0, 0, 0, 1]  # promoted, but the start has not followed yet
    assert winner(found)[1] == 0


def test_a_limit_ends_the_search_once_no_promotion_is_left(space):
    found, order = search(space(), nearer_to_one, limit=6, jobs=100)
    assert len(found.candidates) == 6
    assert len(order) < 100
    assert found.next_job() is None


def test_a_space_is_used_up_when_nothing_new_is_proposed(space):
    small = space(methods=[], images=100)
    small.axes[:] = [axis for axis in small.axes if axis.name == "crop"]
    found, _ = search(small, lambda values, rung: values["crop"], jobs=100)
    assert len(found.candidates) == 4


def test_rungs_are_shares_of_a_full_run_but_never_more_than_it(space):
    assert budgets(2_700_000) == [100_000, 300_000, 900_000]
    assert budgets(100_000) == [10_000, 30_000, 90_000]
    assert budgets(29_999) == [10_000]
    assert budgets(5_000) == [5_000]
    assert budgets(100_000, smallest=1000) == [1000, 3000, 9000]


def test_where_nothing_is_better_nothing_is_written_and_it_is_said(space, tmp_path):
    found, _ = search(space(), lambda values, rung: 0.5, jobs=10)
    root = found.space.project.root
    before = {path: path.read_text() for path in root.rglob("*.yaml")}
    outcome = write(found, tmp_path)
    assert outcome.path is None
    assert "other settings beat tiny as it is by more than chance would. Nothing was written." in outcome.lines[0]
    assert {path: path.read_text() for path in root.rglob("*.yaml")} == before
    assert read_json(tmp_path / "summary.json")["winner"] is None


def test_a_dearer_method_gets_fewer_epochs_and_every_value_its_reason(space, tmp_path):
    found = space(("epochs: 1, warmup_epochs: 0", "epochs: 30, warmup_epochs: 3"), methods=["byol"])
    scores = {"byol": 0.8, "simclr/nt_xent": 0.5}
    tried, _ = search(found, lambda values, rung: scores.get(values["method"], 0.4), jobs=12)
    best = next(candidate for candidate in tried.reached(0) if candidate.values["method"] == "byol")
    for rung, old in best.results.items():
        best.results[rung] = replace(old, units_per_image=3.0, score=0.9)
    text = write(tried, tmp_path).path.read_text()
    assert "name: byol  # byol beat simclr/nt_xent by 0.4 validation kNN" in text
    assert "loss: null\n" in text
    assert "epochs: 20  # as much computing as 30 epochs of tiny: an image costs 1.5 times as much" in text
    assert "warmup_epochs: 2.0\n" in text
    experiment = load_project(found.project.root).experiments[-1]
    assert experiment.name == "tiny-tuned"
    assert experiment.method["name"] == "byol"
    assert experiment.chains["augment"][0]["options"]["scale"][0] == best.values["crop"]


def test_the_time_of_a_trial_is_told_from_those_of_its_method(space):
    shared = space()
    found, now = Search(shared, 0, [100, 300]), [0.0]
    clock = Clock(1.0, now=lambda: now[0])
    job = found.next_job()
    assert clock.estimate(found, job, 100) == 0
    job.candidate.results[0] = result(job.candidate, 100, 0.5)
    assert clock.estimate(found, job, 300) == pytest.approx(3.0)
    other = Candidate(number=1, values={**shared.origin, "method": "byol"}, edit={})
    assert clock.estimate(found, Job(candidate=other, rung=0), 100) == pytest.approx(1.0)
    now[0] = 45.0
    assert clock.left == 15
    now[0] = 100.0
    assert clock.left == 0


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("experiments: [a, b]  # two\nseed: 0\n", "experiments: [a, a-tuned, b]  # two\nseed: 0\n"),
        ("experiments:\n  - a  # first\n\nseed: 0\n", "experiments:\n  - a  # first\n  - a-tuned\n\nseed: 0\n"),
        ("seed: 0\nexperiments:\n- b\n- 'a'", "seed: 0\nexperiments:\n- b\n- 'a'\n- a-tuned"),
    ],
)  # fmt: skip
def test_a_name_is_added_to_params_yaml_without_touching_anything_else(before, after):
    assert list_experiment(before, "a-tuned", "a") == after


def test_reading_an_experiment_and_checking_it_can_be_done_apart(project):
    folder = project({"experiments/cold.yaml": "extends: tiny\nloss: {temperature: 0.1}\n"})
    loaded, document = load_project(folder), read_experiment(folder, "cold")
    assert check_experiment("cold", document, loaded.registry, 3).loss["options"] == {"temperature": 0.1}
    assert check_experiment("cold", document, loaded.registry, 3).seed == 3
