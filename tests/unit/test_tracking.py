"""Who hears what of a run: curves, hooks, trackers and the console."""

import builtins
import io
import json
import math
import sys

import pluggy
import pytest
import torch
from rich.console import Console

from cl_core import hookspecs
from cl_core.errors import CollapseError, ConfigError, Interrupted
from cl_core.training.progress import LiveProgress, PlainProgress, Status, Throughput, console_progress, duration
from cl_core.training.tracking import Observers, curves_csv
from cl_core.types import RunInfo, RunSummary
from plugins.trackers import JsonLines, TensorBoard


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Recorder:
    """A tracker and, registered with pluggy, an observer; `failing` names the call that raises."""

    def __init__(self, failing=""):
        self.failing, self.calls = failing, []

    def note(self, name, *facts):
        self.calls.append((name, *facts))
        if name == self.failing:
            raise OSError("the disk is full")

    def start(self, run):
        self.note("start", run.experiment)

    def log(self, step, metrics):
        self.note("log", step, dict(metrics))

    def end(self, summary):
        self.note("end", summary.status, summary.step)

    @hookspecs.hookimpl
    def on_run_start(self, run):
        self.note("on_run_start", run.experiment)

    @hookspecs.hookimpl
    def on_log(self, step, metrics):
        self.note("on_log", step, dict(metrics))

    @hookspecs.hookimpl
    def on_run_end(self, summary):
        self.note("on_run_end", summary.status, summary.step)


def hooks_of(*plugins):
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    for plugin in plugins:
        manager.register(plugin)
    return manager.hook


def run_info(folder, total_steps=100):
    return RunInfo(experiment="toy", directory=folder, total_steps=total_steps, config={})


def observers_of(said, *, trackers=(), plugins=()):
    return Observers(hooks_of(*plugins), trackers, PlainProgress(said.append))


def status(step, **figures):
    defaults = {
        "steps_per_epoch": 40,
        "metrics": {"loss": 4.12345},
        "images_per_second": 811.6,
        "data_wait_share": 0.021,
        "seconds_left": 130.0,
    }
    return Status(step=step, total_steps=800, **{**defaults, **figures})


def test_curves_have_fixed_columns_first_and_last_and_the_methods_own_between():
    rows = [
        {"step": 10, "zeta": 1.0, "alpha": 2.0, "epoch": 0.5, "loss": 3.0, "lr": 0.1},
        {"step": 20, "late": 0.25, "epoch": 1.0, "loss": 2.0, "lr": 0.1, "knn_top1": 0.5, "feature_std": 1.0},
    ]
    assert curves_csv(rows) == (
        "step,epoch,loss,lr,zeta,alpha,late,knn_top1,feature_std\n10,0.5,3,0.1,1,2,,,\n20,1,2,0.1,,,0.25,0.5,1\n"
    )


def test_curves_keep_what_float32_can_tell_apart_and_write_nan_as_such():
    a, b = torch.tensor(1.0), torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    rows = [{"step": 1, "loss": float(a)}, {"step": 2, "loss": float(b)}, {"step": 3, "loss": math.nan}]
    assert [line.split(",")[2] for line in curves_csv(rows).splitlines()[1:]] == ["1", "1.0000001", "nan"]


def test_all_observers_hear_the_same_in_order(tmp_path):
    tracker, plugin = Recorder(), Recorder()
    observers = observers_of([], trackers=[tracker], plugins=[plugin])
    with observers.run(run_info(tmp_path)):
        observers.log(5, {"loss": 1.0})
        observers.log(10, {"loss": 0.5})
    assert tracker.calls == [
        ("start", "toy"),
        ("log", 5, {"loss": 1.0}),
        ("log", 10, {"loss": 0.5}),
        ("end", "finished", 10),
    ]
    assert [call[0] for call in plugin.calls] == ["on_run_start", "on_log", "on_log", "on_run_end"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Interrupted("stopped"), "interrupted"),
        (KeyboardInterrupt("stopped"), "interrupted"),
        (ValueError("stopped"), "failed"),
    ],
)
def test_the_end_is_told_once_with_how_it_came(tmp_path, error, expected):
    tracker, plugin = Recorder(), Recorder()
    observers = observers_of([], trackers=[tracker], plugins=[plugin])
    with pytest.raises(type(error), match="stopped") as caught, observers.run(run_info(tmp_path)):
        raise error
    assert caught.value is error
    assert [call for call in tracker.calls if call[0] == "end"] == [("end", expected, 0)]
    assert [call for call in plugin.calls if call[0] == "on_run_end"] == [("on_run_end", expected, 0)]


def test_a_tracker_that_cannot_start_fails_the_run_and_those_started_before_are_told(tmp_path):
    first, broken, plugin = Recorder(), Recorder("start"), Recorder()
    observers = observers_of([], trackers=[first, broken], plugins=[plugin])
    with pytest.raises(OSError, match="disk is full"), observers.run(run_info(tmp_path)):
        pytest.fail("the run began")
    assert first.calls[-1] == ("end", "failed", 0)
    assert broken.calls == [("start", "toy")]
    assert plugin.calls[-1] == ("on_run_end", "failed", 0)


def test_a_tracker_that_fails_later_is_left_out_with_one_warning_and_the_run_goes_on(tmp_path):
    said, broken, sound = [], Recorder("log"), Recorder()
    observers = observers_of(said, trackers=[broken, sound])
    with observers.run(run_info(tmp_path)):
        for step in (1, 2, 3):
            observers.log(step, {})
    assert [call[0] for call in broken.calls] == ["start", "log", "end"]
    assert [call[0] for call in sound.calls] == ["start", "log", "log", "log", "end"]
    assert len(said) == 1
    assert "tracker Recorder failed" in said[0]
    assert "the disk is full" in said[0]


def test_an_observer_that_fails_at_the_end_does_not_hide_why_the_run_failed(tmp_path):
    said, tracker, plugin = [], Recorder("end"), Recorder("on_run_end")
    observers = observers_of(said, trackers=[tracker], plugins=[plugin])
    with pytest.raises(ValueError, match="the real reason"), observers.run(run_info(tmp_path)):
        raise ValueError("the real reason")
    assert [line.split(" failed")[0] for line in said] == ["warning: tracker Recorder", "warning: on_run_end"]


def test_a_hook_stops_the_run_by_raising(tmp_path):
    class Strict:
        @hookspecs.hookimpl
        def on_log(self, step, metrics):
            raise CollapseError(f"enough at {step}")

    tracker = Recorder()
    observers = observers_of([], trackers=[tracker], plugins=[Strict()])
    with pytest.raises(CollapseError, match="enough at 7"), observers.run(run_info(tmp_path)):
        observers.log(7, {})
    assert tracker.calls[-1] == ("end", "failed", 7)


def test_what_hooks_return_is_handed_on_and_nothing_else(tmp_path):
    class Talking:
        @hookspecs.hookimpl
        def on_log(self, step, metrics):
            return f"loss {metrics['loss']}\nlow" if step == 7 else None

    observers = observers_of([], plugins=[Talking(), Recorder()])
    with observers.run(run_info(tmp_path)):
        assert observers.log(6, {"loss": 1.0}) == []
        assert observers.log(7, {"loss": 0.5}) == ["loss 0.5", "low"]
    assert observers_of([]).log(7, {}) == Observers(progress=PlainProgress([].append)).log(7, {}) == []


def test_observers_cannot_edit_each_others_figures(tmp_path):
    class Vandal(Recorder):
        def log(self, step, metrics):
            metrics.clear()

    kept = Recorder()
    observers = observers_of([], trackers=[Vandal(), kept])
    figures = {"loss": 1.0}
    with observers.run(run_info(tmp_path)):
        observers.log(1, figures)
    assert figures == {"loss": 1.0}
    assert ("log", 1, {"loss": 1.0}) in kept.calls


def test_the_same_observers_serve_a_second_run(tmp_path):
    tracker = Recorder()
    observers = observers_of([], trackers=[tracker])
    for _ in range(2):
        with observers.run(run_info(tmp_path)):
            observers.log(3, {})
    assert [call[0] for call in tracker.calls] == ["start", "log", "end"] * 2


def test_the_status_line_says_what_a_person_wants_to_know():
    assert status(120).line() == ("epoch 3/20  step 120/800  loss 4.1235  812 images/s  data wait 2 %  2 min left")
    with_knn = status(121, metrics={"loss": 1.0, "knn_top1": 0.7104}).line()
    assert with_knn.startswith("epoch 4/20  step 121/800  loss 1.0000  knn 0.710  ")
    begun = status(121, metrics={"loss": 1.0, "knn_top1": 0.7104}, untrained={"knn_top1": 0.27}).line()
    assert begun.startswith("epoch 4/20  step 121/800  loss 1.0000  knn 0.710 (untrained 0.270)  ")
    unlabelled = {"metrics": {"loss": 1.0, "self_match": 0.5, "rankme": 9.0}, "untrained": {"self_match": 0.25}}
    assert "  self-match 0.500 (untrained 0.250)  " in status(121, **unlabelled).line()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3570, "1 h 0 min"), (4830, "1 h 20 min")]
)
def test_durations_are_rounded_for_people(seconds, text):
    assert duration(seconds) == text


def test_plain_progress_writes_a_line_about_every_ten_seconds_and_at_the_end():
    lines, clock = [], Clock()
    progress = PlainProgress(lines.append, clock=clock)
    for step in range(1, 801):
        clock.now += 0.05  # 40 s in all
        progress.show(status(step, steps_per_epoch=800))
    assert [line.split()[3] for line in lines] == ["200/800", "400/800", "600/800", "800/800"]


def test_plain_progress_writes_a_line_per_epoch_where_epochs_are_slow():
    lines, clock = [], Clock()
    progress = PlainProgress(lines.append, clock=clock)
    for step in range(1, 161):
        clock.now += 0.15  # an epoch takes 6 s
        progress.show(status(step))
    assert [line.split()[3] for line in lines] == ["40/800", "80/800", "120/800", "160/800"]


def test_live_progress_shows_the_line_in_place_and_leaves_the_last_one():
    text = io.StringIO()
    progress = LiveProgress(Console(file=text, force_terminal=True, width=160))
    progress.begin(800)
    progress.show(status(1))
    progress.say("a line [with brackets]")
    progress.show(status(2))
    progress.end()
    assert "a line [with brackets]" in text.getvalue()
    assert text.getvalue().rstrip().endswith(status(2).line())


def test_lines_are_plain_where_there_is_no_terminal(monkeypatch, capsys):
    assert isinstance(console_progress(), PlainProgress)
    console_progress().say("hello")
    assert capsys.readouterr().out == "hello\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert isinstance(console_progress(), LiveProgress)


def test_throughput_counts_this_sitting_and_adds_up_all():
    clock = Clock()
    first = Throughput(clock)
    clock.now = 10.0
    first.update(100, 1.0)
    first.update(100, 2.0)
    assert first.images_per_second == pytest.approx(20)
    assert first.data_wait_share == pytest.approx(0.2)
    second = Throughput(clock)
    second.load_state_dict(first.state_dict())
    clock.now = 20.0
    second.update(600, 1.0)
    assert second.images_per_second == pytest.approx(60)
    assert second.report() == {"seconds": 20.0, "images_per_second": 40.0, "data_wait_share": 0.15}


def lines_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_jsonl_writes_a_line_per_step_with_null_for_what_is_not_finite(tmp_path):
    tracker = JsonLines()
    tracker.start(run_info(tmp_path / "run"))
    tracker.log(1, {"loss": 1.5})
    tracker.log(2, {"loss": math.nan})
    tracker.end(RunSummary(status="finished", step=2))
    assert lines_of(tmp_path / "run") == [{"step": 1, "loss": 1.5}, {"step": 2, "loss": None}]


def test_jsonl_of_a_resumed_run_has_every_step_once(tmp_path):
    for steps in ([2, 4, 6], [4, 6, 8]):
        tracker = JsonLines()
        tracker.start(run_info(tmp_path))
        for step in steps:
            tracker.log(step, {"loss": 1.0})
        with (tmp_path / "log.jsonl").open("a") as file:
            file.write('{"step": 7, "lo')  # a kill in the middle of a line
        expected = [step for step in [2, 4, 6, 8] if step <= steps[-1]]
        whole = (tmp_path / "log.jsonl").read_text().splitlines()[:-1]
        assert [json.loads(line)["step"] for line in whole] == expected


def test_tensorboard_that_is_not_installed_is_an_error_with_the_command(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments):
        if name.startswith(("tensorboard", "torch.utils.tensorboard")):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r'pip install "contrast\[tensorboard\]"'):
        TensorBoard()


def test_tensorboard_writes_an_event_file(tmp_path):
    pytest.importorskip("tensorboard")
    tracker = TensorBoard()
    tracker.start(run_info(tmp_path))
    tracker.log(1, {"loss": 1.5})
    tracker.end(RunSummary(status="finished", step=1))
    assert [path.name.split(".")[0] for path in (tmp_path / "tensorboard").iterdir()] == ["events"]
