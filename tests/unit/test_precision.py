"""The choice of precision: measured where it is left open, kept, and the checkpoint's where a run continues."""

import copy
import json
import shutil
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cl_core.config import OptimizerConfig, ScheduleConfig, TrainConfig
from cl_core.data.ingest import SplitRule, ingest
from cl_core.data.store import Store
from cl_core.errors import CollapseError, Interrupted
from cl_core.training import trainer as trainer_module
from cl_core.training.precision import Choice, choices, decide, decide_compiled, decision_key, emulates_bf16, pick
from cl_core.training.processes import Devices
from cl_core.training.progress import PlainProgress
from cl_core.training.tracking import Observers
from cl_core.training.trainer import pretrain
from cl_core.types import Encoder, Example, Method, StepOutput, Views

CPU = torch.device("cpu")
FP32, FP32_LAST, BF16, BF16_LAST = choices(TrainConfig())


@pytest.fixture(autouse=True)
def bf16_is_worth_trying(monkeypatch):
    """On every machine, so that these tests say the same everywhere."""
    monkeypatch.setattr(trainer_module, "emulates_bf16", lambda device: False)


def attempt_of(outcomes, tried=None):
    """An attempt whose steps raise what `outcomes` says of a choice, or else do nothing."""

    def attempt(choice):
        def step():
            if tried is not None:
                tried.append(choice)
            if choice in outcomes:
                raise outcomes[choice]

        return step

    return attempt


def test_everything_open_gives_four_choices_the_plainest_first():
    assert [str(choice) for choice in choices(TrainConfig())] == [
        "fp32, contiguous",
        "fp32, channels-last",
        "bf16, contiguous",
        "bf16, channels-last",
    ]


def test_what_the_configuration_says_is_not_open():
    assert choices(TrainConfig(precision="bf16", channels_last=True)) == [BF16_LAST]
    assert choices(TrainConfig(precision="fp32")) == [FP32, FP32_LAST]
    assert choices(TrainConfig(channels_last=False)) == [FP32, BF16]


def test_bf16_is_not_tried_where_it_can_only_be_slower_unless_it_is_asked_for(monkeypatch):
    for capability, emulated in (("NO AVX", True), ("AVX2", True), ("AVX512", False), ("DEFAULT", False)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda found=capability: found)
        assert emulates_bf16(CPU) is emulated
        assert not emulates_bf16(torch.device("cuda"))
    assert choices(TrainConfig(), bf16=False) == [FP32, FP32_LAST]
    assert choices(TrainConfig(precision="bf16", channels_last=True), bf16=False) == [BF16_LAST]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({FP32: 1.0, FP32_LAST: 0.5, BF16: 2.0}, FP32_LAST),
        ({FP32: 1.0, FP32_LAST: 0.95}, FP32),
        ({FP32: 1.0, FP32_LAST: 0.8, BF16: 0.75, BF16_LAST: 0.3}, BF16_LAST),
        ({BF16: 1.0}, BF16),
    ],
)
def test_the_fastest_wins_unless_a_plainer_one_is_about_as_fast(seconds, expected):
    assert pick(seconds) == expected


def test_compiling_is_not_tried_in_a_short_run(tmp_path):
    tried, path = [], tmp_path / "decisions.json"
    answer = [decide_compiled(FP32, attempt_of({}, tried), steps=9, key="k", path=path, device=CPU) for _ in range(2)]
    assert answer == [FP32, FP32]
    assert set(tried) == {FP32}
    assert len(tried) == 2  # one step to warm up, one to time, and nothing the second time


@pytest.mark.parametrize("compiled_sleeps", [0.0, 0.02], ids=["faster", "slower"])
def test_compiling_is_tried_in_a_long_run_and_its_answer_kept(tmp_path, compiled_sleeps):
    tried, path = [], tmp_path / "decisions.json"

    def attempt(choice):
        tried.append(choice)
        return lambda: time.sleep(compiled_sleeps if choice.compiled else 0.01)

    def answer(steps):
        return decide_compiled(FP32, attempt, steps=steps, key="k", path=path, device=CPU, report=lambda _: None)

    expected = replace(FP32, compiled=compiled_sleeps == 0.0)
    assert answer(10**6) == expected
    assert set(tried) == {FP32, replace(FP32, compiled=True)}
    tried.clear()
    assert answer(10**6) == expected
    assert tried == []


def test_a_network_that_cannot_be_compiled_is_trained_as_it_is(tmp_path):
    said, broken = [], replace(FP32, compiled=True)

    def attempt(choice):
        def step():
            time.sleep(0.001)
            if choice == broken:
                raise RuntimeError("no compiler found")

        return step

    path = tmp_path / "decisions.json"
    answer = decide_compiled(FP32, attempt, steps=10**7, key="k", path=path, device=CPU, report=said.append)
    assert answer == FP32
    assert "no compiler found" in said[-1]


def test_a_single_choice_is_taken_without_trying_it(tmp_path):
    tried = []
    path = tmp_path / "decisions.json"
    assert decide([BF16], attempt_of({}, tried), key="k", path=path, device=CPU) == BF16
    assert tried == []
    assert not path.exists()


def test_a_measured_choice_is_recorded_and_taken_again_without_measuring(tmp_path):
    path, said = tmp_path / "new" / "decisions.json", []
    options = [FP32, FP32_LAST]
    first = decide(options, attempt_of({}), key="k", path=path, device=CPU, report=said.append)
    record = json.loads(path.read_text())["k"]
    assert record["choice"] == asdict(first)
    assert record["milliseconds"].keys() == {"fp32, contiguous", "fp32, channels-last"}
    tried = []
    assert decide(options, attempt_of({}, tried), key="k", path=path, device=CPU, report=said.append) == first
    assert tried == []
    assert "measured before" in said[-1]


def test_the_recorded_choice_holds_even_if_another_would_be_measured_faster(tmp_path):
    path = tmp_path / "decisions.json"
    path.write_text(json.dumps({"k": {"choice": asdict(BF16_LAST)}, "other": {"a": 1}}))
    assert decide([FP32, BF16_LAST], attempt_of({}), key="k", path=path, device=CPU, report=lambda _: None) == BF16_LAST


def test_a_recorded_choice_that_is_no_longer_open_is_measured_anew_and_the_rest_of_the_file_stays(tmp_path):
    path = tmp_path / "decisions.json"
    path.write_text(json.dumps({"k": {"choice": asdict(BF16_LAST)}, "other": {"a": 1}}))
    assert decide([FP32, FP32_LAST], attempt_of({}), key="k", path=path, device=CPU, report=lambda _: None) != BF16_LAST
    assert json.loads(path.read_text())["other"] == {"a": 1}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"k": {"choice": 3}}'])
def test_a_damaged_record_is_measured_anew(tmp_path, content):
    path = tmp_path / "decisions.json"
    path.write_text(content)
    tried = []
    decide([FP32, FP32_LAST], attempt_of({}, tried), key="k", path=path, device=CPU, report=lambda _: None)
    assert set(tried) == {FP32, FP32_LAST}
    assert "choice" in json.loads(path.read_text())["k"]


def test_a_choice_that_does_not_work_is_passed_over_and_named(tmp_path):
    said = []
    outcomes = {BF16: RuntimeError("no bf16 kernel\ndetails"), BF16_LAST: CollapseError("loss is nan")}
    options = [BF16, BF16_LAST, FP32]
    choice = decide(options, attempt_of(outcomes), key="k", path=tmp_path / "d.json", device=CPU, report=said.append)
    assert choice == FP32
    assert "precision: bf16, contiguous does not work here: no bf16 kernel" in said


def test_if_no_choice_works_the_plainest_is_left_to_show_its_error(tmp_path):
    outcomes = dict.fromkeys([FP32, BF16], RuntimeError("no memory"))
    path = tmp_path / "d.json"
    assert decide([FP32, BF16], attempt_of(outcomes), key="k", path=path, device=CPU, report=lambda _: None) == FP32
    assert not path.exists()


def decided_by(seconds_of, tmp_path):
    """The choice where the k-th step of a choice takes seconds_of(choice, k), and how often each was tried."""
    tried = Counter()

    def attempt(choice):
        def step():
            tried[choice] += 1
            time.sleep(seconds_of(choice, tried[choice]))

        return step

    choice = decide([FP32, BF16], attempt, key="k", path=tmp_path / "d.json", device=CPU, report=lambda _: None)
    return choice, tried


def test_a_hopelessly_slow_choice_is_given_up_after_its_second_step(tmp_path):
    choice, tried = decided_by(lambda choice, _: 0.1 if choice == BF16 else 0.002, tmp_path)
    assert choice == FP32
    assert tried[BF16] == 2
    assert tried[FP32] > 2


def test_a_slow_start_and_a_disturbed_step_do_not_cost_the_faster_choice_its_place(tmp_path):
    def seconds(choice, step):
        return (0.3 if step == 1 else 0.05 if step == 3 else 0.01) if choice == BF16 else 0.03

    assert decided_by(seconds, tmp_path)[0] == BF16


def test_runs_that_measure_at_the_same_time_agree(tmp_path):
    path = tmp_path / "decisions.json"

    def decided(_):
        return decide([FP32, FP32_LAST], attempt_of({}), key="k", path=path, device=CPU, report=lambda _: None)

    with ThreadPoolExecutor(8) as pool:
        (choice,) = set(pool.map(decided, range(32)))
    assert json.loads(path.read_text())["k"]["choice"]["channels_last"] == choice.channels_last


def test_the_key_tells_networks_batches_and_open_choices_apart():
    small, wide = nn.Linear(4, 2), nn.Linear(4, 3)
    key = decision_key(small, [2, 8, 4], CPU, [FP32, BF16])
    assert key == decision_key(nn.Linear(4, 2), [2, 8, 4], CPU, [FP32, BF16])
    others = [
        decision_key(wide, [2, 8, 4], CPU, [FP32, BF16]),
        decision_key(small, [2, 16, 4], CPU, [FP32, BF16]),
        decision_key(small, [2, 8, 4], CPU, [FP32]),
    ]
    assert len({key, *others}) == 4
    assert f"torch {torch.__version__}" in key
    assert f"{torch.get_num_threads()} threads" in key


class Noise:
    def fingerprint(self):
        return {}

    def __iter__(self):
        for i in range(20):
            image = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            yield Example(key=str(i), image=image, label="a", split="train")


class Conv(Encoder):
    out_dim = 4

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def stages(self, images):
        return {"only": self.body(images)}


class Toy(Method):
    """Pulls features to a buffer that counts the steps; notes the memory format of its views."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.dropout = Conv(), nn.Dropout(0.5)
        self.register_buffer("updates", torch.zeros(()))
        self.seen = []

    def make_views(self, images, rng):
        return Views(images=(images,))

    def forward(self, views):
        self.seen.append(views.images[0].is_contiguous(memory_format=torch.channels_last))
        return StepOutput(loss=(self.dropout(self.encoder(views.images[0])) - 1).square().mean())

    def after_update(self, progress):
        self.updates += 1


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    out = tmp_path_factory.mktemp("precision") / "store"
    ingest(Noise(), out, size=8, splits=SplitRule(0, 0), source_spec={}, report=lambda line: None)
    return Store.open(out).split("train")


def train(split, folder, *, method=None, stop=lambda: False, decisions="decisions.json", said=None, **options):
    pretrain(
        method or Toy(),
        split,
        optimizer=OptimizerConfig(lr=0.1),
        schedule=ScheduleConfig(epochs=3),
        train=TrainConfig(batch_size=8, knn_every=0, **options),
        seed=1,
        out=folder / "out",
        checkpoints=folder / "checkpoints",
        card={},
        observers=Observers(progress=PlainProgress((said if said is not None else []).append)),
        validation=None,
        materialized=None,
        decisions=folder / decisions,
        stop=stop,
    )
    training = json.loads((folder / "out" / "encoder.json").read_text())["training"]
    return Choice(**{field.name: training[field.name] for field in fields(Choice)})


def record(folder, choice, name="decisions.json"):
    """Let every key of the decisions file say `choice`, whatever was measured."""
    path = folder / name
    path.write_text(json.dumps({key: {"choice": asdict(choice)} for key in json.loads(path.read_text())}))


def test_a_run_measures_keeps_and_prints_its_choice(split, tmp_path):
    said = []
    choice = train(split, tmp_path, said=said)
    layout, compiled = json.loads((tmp_path / "decisions.json").read_text()).values()
    assert layout["choice"] == compiled["choice"] == asdict(choice)
    assert any(line.startswith(f"precision: {choice} (") for line in said)
    assert any(line.endswith(str(choice)) and line.startswith("training for 6 steps on ") for line in said)


@pytest.mark.parametrize("choice", [FP32_LAST, BF16], ids=str)
def test_a_later_run_takes_the_recorded_choice(split, tmp_path, choice):
    train(split, tmp_path)
    record(tmp_path, choice)
    method = Toy()
    assert train(split, tmp_path, method=method) == choice
    assert set(method.seen) == {choice.channels_last}


def test_measuring_leaves_no_trace_in_the_trained_weights(split, tmp_path):
    measured = train(split, tmp_path / "measured")
    train(split, tmp_path / "told", precision=measured.precision, channels_last=measured.channels_last)
    weights = [(tmp_path / name / "out" / "encoder.safetensors").read_bytes() for name in ("measured", "told")]
    assert weights[0] == weights[1]


def test_measuring_touches_neither_the_method_nor_the_random_numbers(split, tmp_path):
    method = Toy()
    run = trainer_module.Run(
        method=method,
        split=split,
        optimizer=OptimizerConfig(),
        schedule=ScheduleConfig(epochs=3),
        train=TrainConfig(batch_size=8),
        seed=1,
        device=CPU,
        devices=Devices(),
    )
    before, random = copy.deepcopy(method.state_dict()), torch.get_rng_state()
    trainer_module.choose(run, next(iter(run.loader(0, 1))), tmp_path / "decisions.json", lambda line: None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())
    assert all(parameter.grad is None for parameter in method.parameters())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("choice", [FP32_LAST, BF16], ids=str)
def test_a_continued_run_keeps_the_checkpoints_choice_whatever_the_record_says(split, tmp_path, choice):
    train(split, tmp_path)
    record(tmp_path, choice)
    with pytest.raises(Interrupted, match="stopped at step 1"):
        train(split, tmp_path, stop=lambda: True)
    record(tmp_path, FP32)
    said = []
    assert train(split, tmp_path, said=said) == choice
    assert any(line.startswith("continuing after step 1") and str(choice) in line for line in said)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("default")  # torch's own
def test_a_compiled_run_trains_to_the_same_weights_up_to_rounding(split, tmp_path):
    runs = {}
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        options = {"precision": "fp32", "channels_last": False, "compile": compiled}
        method = Toy()
        method.dropout = nn.Identity()  # a compiled dropout draws other numbers from the same seed
        assert train(split, folder, method=method, **options).compiled == compiled
        runs[compiled] = load_file(folder / "out" / "encoder.safetensors")
    assert runs[False].keys() == runs[True].keys()
    for name, weights in runs[False].items():
        torch.testing.assert_close(runs[True][name], weights, atol=1e-5, rtol=1e-5)
