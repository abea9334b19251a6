"""The conformance kit: one `check_*` per kind of part, for a plugin author to call in one line.

Our own contract tests run these over every registered part, installed third-party ones included. A failed check is an
AssertionError that says what is wrong and what to do.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cl_core.data.sampling import SampleRng
from cl_core.errors import ContrastError
from cl_core.evaluation.diagnose import answers
from cl_core.evaluation.features import frozen
from cl_core.types import (
    Augmentation,
    Example,
    Method,
    RunInfo,
    RunSummary,
    Sample,
    Source,
    StepOutput,
    Views,
    global_average,
)

TOLERANCE = 1e-5  # pixels and features may round differently in another batch size


def sample_images(count: int = 8, size: int = 32, channels: int = 3) -> Tensor:
    """Smooth random images (count, channels, size, size) in [0, 1], the same every time."""
    rng = SampleRng(0, 0, torch.arange(count))
    coarse = rng.uniform(shape=(channels, 4, 4))
    return nn.functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)


def check_source(source: Source) -> None:
    """Examples with unique keys in a stable order, and a fingerprint that is JSON and stable."""
    first, again = (list(islice(iter(source), 50)) for _ in range(2))
    assert first, "yields no example; raise DataError in fingerprint() where there is nothing to yield"
    keys = [example.key for example in first]
    assert len(set(keys)) == len(keys), "yields a key twice; keys name images and decide their split"
    assert keys == [example.key for example in again], "yields another order the second time; sort before yielding"
    for example in first:
        _check_example(example)
    fingerprint = source.fingerprint()
    assert json.dumps(dict(fingerprint)) == json.dumps(dict(source.fingerprint())), (
        "fingerprint() changes from call to call; derive it from the images alone"
    )


def check_augmentation(augment: Augmentation, size: int = 32) -> None:
    """Same rng, same result, in any batch; input untouched; floats in [0, 1]; any batch size."""
    images = sample_images(size=size)
    before = images.clone()
    rows = torch.arange(len(images))
    first, again = (augment(images, SampleRng(0, 0, rows)) for _ in range(2))
    assert torch.equal(images, before), "modified its input in place; return a new tensor"
    assert torch.isfinite(first).all(), "returned values that are not finite"
    assert torch.equal(first, again), "not a function of rng; draw every random number from it"
    assert first.dtype == images.dtype, f"returned {first.dtype}; keep the input's {images.dtype}"
    assert first.ndim == 4 and len(first) == len(images), f"returned {tuple(first.shape)}; keep (N, C, H, W)"
    assert 0 <= float(first.min()) and float(first.max()) <= 1, "left [0, 1]; clamp the result"
    alone = augment(images[3:4], SampleRng(0, 0, rows[3:4]))
    assert len(alone) == 1, "does not work on a batch of one"
    assert torch.allclose(alone[0], first[3], atol=TOLERANCE), (
        "treats an image differently in another batch; draw parameters per sample, never per batch"
    )


def check_recipe(chains: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """A mapping of method arguments to lists of {"name": augmentation, **options}."""
    assert chains, "gives no chain; return {'augment': [...]} or {'augment_a': [...], ...}"
    for argument, specs in chains.items():
        assert argument == "augment" or argument.startswith("augment_"), f"{argument!r} is no augment argument"
        assert specs and all("name" in spec for spec in specs), f"{argument} needs a list of {{'name': ..., options}}"
    json.dumps(chains)


def check_encoder(encoder: nn.Module, size: int = 32, channels: int = 3) -> None:
    """Pooled features of the declared width, stages early to late, gradients, batch-independent in eval mode."""
    images = sample_images(4, size, channels)
    out_dim, stages = getattr(encoder, "out_dim", None), getattr(encoder, "stages", None)
    assert isinstance(out_dim, int), "needs an int `out_dim`, the width of forward's output"
    assert callable(stages), "needs `stages(images) -> {stage: features}`"
    features = encoder.train()(images)
    assert features.shape == (4, out_dim), f"forward gives {tuple(features.shape)}, out_dim promises (4, {out_dim})"
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    if trained:
        features.square().sum().backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained), "no gradient arrives"
    encoder.eval()
    before = copy.deepcopy(encoder.state_dict())
    with torch.no_grad():
        pooled, alone, maps = encoder(images), encoder(images[:1]), stages(images)
    _assert_same_state(before, encoder.state_dict(), "changes its state in eval mode")
    assert torch.allclose(pooled[:1], alone, atol=1e-4), "an image's features depend on its batch in eval mode"
    assert isinstance(maps, dict) and maps, "stages() must return a non-empty dict"
    for name, stage in maps.items():
        assert stage.ndim in {2, 4} and len(stage) == 4, f"stage {name} is {tuple(stage.shape)}; want (N, C[, H, W])"
        assert torch.isfinite(global_average(stage)).all(), f"stage {name} is not finite"


def check_loss(loss: Any, dim: int = 16) -> None:
    """Finite scalar with a gradient for both views, indifferent to the order of the batch, inputs untouched."""
    rng = SampleRng(1, 0, torch.arange(8))
    z_a, z_b = (rng.normal(shape=(dim,)).requires_grad_() for _ in range(2))
    before = z_a.detach().clone(), z_b.detach().clone()
    value = loss(z_a, z_b)
    assert value.ndim == 0 and torch.isfinite(value), f"must be a finite scalar, got {value}"
    value.backward()
    for name, z in (("first", z_a), ("second", z_b)):
        assert z.grad is not None and torch.isfinite(z.grad).all(), f"no finite gradient for the {name} view"
    assert torch.equal(z_a, before[0]) and torch.equal(z_b, before[1]), "modified its input"
    order = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    shuffled = loss(z_a[order], z_b[order])
    assert torch.allclose(value, shuffled, rtol=1e-4), "depends on the order of the batch"
    equal = torch.ones(8, dim)
    assert torch.isfinite(loss(equal, equal)), "is not finite where all embeddings are equal"


def check_score(score: Any, dim: int = 16) -> None:
    """A finite (N, M) of which every value depends on one anchor and one candidate alone, with gradients for both."""
    rng = SampleRng(1, 0, torch.arange(6))
    anchors, candidates = (rng.normal(shape=(dim,)).requires_grad_() for _ in range(2))
    values = score(anchors, candidates[:4])
    assert values.shape == (6, 4), f"gives {tuple(values.shape)} for 6 anchors and 4 candidates; give (N, M)"
    assert torch.isfinite(values).all(), "is not finite"
    alone = score(anchors[2:3], candidates[3:4])[0, 0]
    assert torch.allclose(values[2, 3], alone, atol=TOLERANCE), "scores a pair differently in another batch"
    values.square().sum().backward()
    for name, z in (("anchors", anchors), ("candidates", candidates)):
        assert z.grad is not None and torch.isfinite(z.grad).all(), f"no finite gradient for the {name}"


def check_method(method: Method, size: int = 32) -> None:
    """Views only from rng, a finite loss with gradients, all state in `state_dict`, an honest representation.

    Of a method that does not train only views, units and representation are checked.
    """
    images = sample_images(size=size)
    _check_views(method, images)
    units = method.units(_views(method, images, torch.arange(len(images))).areas(size))
    assert np.isfinite(units) and units >= 0, f"units() gives {units}; give passes of the encoder per image"
    if not method.trains:
        _check_representation(method, images)
        return
    output = _step(method.train(), images, step=0, update=False)
    assert output.loss.ndim == 0 and torch.isfinite(output.loss), f"the loss must be a finite scalar, got {output.loss}"
    assert not any(value.requires_grad for value in output.metrics.values()), "metrics carry a gradient; detach them"
    assert output.embedding is None or not output.embedding.requires_grad, "the embedding carries a gradient; detach it"
    output.loss.backward()
    grads = [p.grad for p in method.representation().parameters() if p.requires_grad]
    assert any(grad is not None and grad.abs().sum() > 0 for grad in grads), "no gradient reaches the encoder"
    _check_groups(method)
    _check_resume(method, images)
    _check_representation(method, images)
    _check_embedding(method, images)
    _check_diagnoses(method, images)
    assert all(np.isfinite(value) for value in method.trivial().values()), "trivial() gives a value that is not finite"


def check_tracker(tracker: Any, directory: Path) -> None:
    """Takes a run from start to end without writing outside its directory."""
    tracker.start(RunInfo(experiment="check", directory=directory, total_steps=2, config={}))
    tracker.log(1, {"loss": 1.0})
    tracker.log(2, {"loss": 0.5})
    tracker.end(RunSummary(status="finished", step=2, metrics={"loss": 0.5}))
    assert any(directory.rglob("*")), "wrote nothing below run.directory"


def _check_example(example: Example) -> None:
    assert isinstance(example.key, str) and example.key, f"key must be a text, got {example.key!r}"
    assert example.split in {None, "train", "validation", "test"}, f"split must be a known name, got {example.split!r}"
    assert isinstance(example.image, bytes | Path | np.ndarray), f"image is {type(example.image).__name__}"
    if isinstance(example.image, np.ndarray):
        assert example.image.dtype in (np.uint8, np.uint16), f"arrays are uint8 or uint16, got {example.image.dtype}"


def _views(method: Method, images: Tensor, rows: Tensor) -> Views:
    return method.make_views(images, SampleRng(0, 0, rows))


def _tensors(views: Views) -> list[Tensor]:
    optional = [tensor for tensor in (views.targets,) if tensor is not None]
    return [*views.images, *optional, *views.extras.values()]


def _check_views(method: Method, images: Tensor) -> None:
    before, rows = images.clone(), torch.arange(len(images))
    first, again = _tensors(_views(method, images, rows)), _tensors(_views(method, images, rows))
    assert torch.equal(images, before), "make_views modified its input"
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), "views are not a function of rng"
    assert all(len(tensor) == len(images) for tensor in first), "every tensor of Views has the N samples first"
    alone = _tensors(_views(method, images[2:3], rows[2:3]))
    same = (torch.allclose(a[0].float(), b[2].float(), atol=1e-4) for a, b in zip(alone, first, strict=True))
    assert all(same), "a sample's views depend on its batch"


def _step(method: Method, images: Tensor, step: int, update: bool = True) -> StepOutput:
    torch.manual_seed(step)
    views = method.make_views(images, SampleRng(0, step, torch.arange(len(images))))
    labels = torch.arange(len(images)) % 2
    output: StepOutput = method(Views(**{**vars(views), "labels": labels}) if method.uses_labels else views)
    if update:
        groups = [{"params": group.params, "lr": 0.01 * group.lr_mult} for group in method.parameter_groups()]
        optimizer = torch.optim.SGD(groups)
        method.zero_grad(set_to_none=True)
        output.loss.backward()
        optimizer.step()
        method.after_update((step + 1) / 10)
    return output


def _check_groups(method: Method) -> None:
    grouped = [id(parameter) for group in method.parameter_groups() for parameter in group.params]
    trainable = {id(parameter) for parameter in method.parameters() if parameter.requires_grad}
    assert len(grouped) == len(set(grouped)), "parameter_groups() lists a parameter twice"
    assert set(grouped) == trainable, "parameter_groups() must list every trainable parameter and no frozen one"


def _check_resume(method: Method, images: Tensor) -> None:
    """A step after loading the state equals the step without interruption, bit for bit."""
    method = copy.deepcopy(method)
    _step(method, images, step=1)
    resumed = copy.deepcopy(method)
    _step(resumed, images, step=5)  # a different history, to be overwritten by the state
    resumed.load_state_dict(method.state_dict())
    outputs = [_step(model, images, step=2) for model in (method, resumed)]
    assert torch.equal(outputs[0].loss, outputs[1].loss), "a resumed step differs; register all state as buffers"
    _assert_same_state(method.state_dict(), resumed.state_dict(), "a resumed step leaves another state")


def _check_representation(method: Method, images: Tensor) -> None:
    representation = method.representation().eval()
    before = copy.deepcopy(method.state_dict())
    with torch.no_grad():
        stages = representation(images)
    _assert_same_state(before, method.state_dict(), "representation() changes the method in eval mode")
    assert stages and all(len(features) == len(images) for features in stages.values()), "one row per image and stage"
    model = method.fine_tune_model().eval()
    assert model(images).shape == (len(images), model.out_dim), "fine_tune_model() breaks its promise of out_dim"
    method.train()


def _check_embedding(method: Method, images: Tensor) -> None:
    with frozen(method, "project() looked at images"), torch.no_grad():
        z = method.project(images)
    shape = None if z is None else tuple(z.shape)
    assert shape is None or shape[:-1] == (len(images),), f"project() gives the shape {shape}; give (N, D) or None"


def _check_diagnoses(method: Method, images: Tensor) -> None:
    """The same finite answers every time, from a method that stays as it is."""
    labels = torch.arange(len(images)) % 2
    fit, held_out = (
        Sample(images=images, labels=labels, rng=SampleRng(seed, 0, torch.arange(len(images)))) for seed in (1, 2)
    )
    try:
        first, again = (answers(method, fit, held_out) for _ in range(2))
    except ContrastError as error:
        raise AssertionError(str(error)) from error
    assert first == again, "a diagnosis answers otherwise the second time; draw from the rng of its samples"
    for answer in first:
        assert answer["state"] in {"fine", "warning", "skipped"}, f"{answer['name']}: no state is {answer['state']!r}"
        assert answer["figures"] and answer["text"], f"{answer['name']}: a finding needs a sentence and figures"


def _assert_same_state(before: Mapping[str, Tensor], after: Mapping[str, Tensor], message: str) -> None:
    changed = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
    assert not changed, f"{message}: {', '.join(changed[:3])}"
