"""Features of every encoder stage, computed once and kept: the only thing that probes and kNN look at.

Extraction runs in eval mode without gradients and checks that the representation is bit for bit the same afterwards.
Nothing here is trained, nothing reads a label except to carry it along.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from cl_core.data.files import atomic_path
from cl_core.data.store import Split, to_float
from cl_core.errors import CheckpointError, DataError
from cl_core.types import global_average

FORMAT = "contrast-features/1"
MAX_VALUES = 2048  # per stage, design of the probe; 9,000 in the AlexNet era
MAX_PIXEL_VALUES = 4096  # of raw pixels: 32 x 32 colour images whole, larger ones pooled to 36 x 36
_HALF_ERROR = 1e-3  # relative; rounding to float16 alone stays below 2^-11


@dataclass(frozen=True, kw_only=True)
class Features:
    """What an encoder makes of a split, early stages first.

    probe: {stage: (N, D)}, maps average-pooled to a grid. average: {stage: (N, C)}, global averages. Both float16
    where that loses nothing, else float32. labels: (N,) int64, -1 where there is none. keys: the N names.
    """

    probe: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    labels: Tensor
    keys: list[str]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def dims(self) -> dict[str, int]:
        """{stage: D}, values per image that the probe sees."""
        return {stage: values.shape[1] for stage, values in self.probe.items()}

    def select(self, rows: Tensor) -> Features:
        """The given rows, (M,) int64, in the given order."""
        return Features(
            probe={stage: values[rows] for stage, values in self.probe.items()},
            average={stage: values[rows] for stage, values in self.average.items()},
            labels=self.labels[rows],
            keys=[self.keys[row] for row in rows.tolist()],
        )

    def labelled(self) -> Features:
        """Only the examples that have a label."""
        rows = (self.labels >= 0).nonzero()[:, 0]
        return self if len(rows) == len(self) else self.select(rows)

    def save(self, path: Path) -> None:
        """Write a safetensors file atomically; equal features give equal bytes."""
        tensors = {f"probe/{stage}": values for stage, values in self.probe.items()}
        tensors |= {f"average/{stage}": values for stage, values in self.average.items()}
        names = json.dumps(self.keys).encode()  # as a tensor: the header of the format is limited to 100 MB
        tensors |= {"labels": self.labels, "keys": torch.from_numpy(np.frombuffer(names, dtype=np.uint8).copy())}
        # One metadata entry only: the order in which the format writes several is random.
        metadata = {"features": json.dumps({"format": FORMAT, "stages": list(self.probe)})}
        # Copies, since the format refuses tensors that share memory.
        save_tensors({name: _compact(value).clone() for name, value in tensors.items()}, path, metadata)

    @classmethod
    def load(cls, path: Path) -> Features:
        """Read what `save` wrote, on the CPU. Raises DataError where it is missing, damaged or something else."""
        remedy = "run `contrast run` to compute the features again"
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads(file.metadata()["features"])
            tensors = load_file(path)
            stages, written = header["stages"], header["format"]
            keys = json.loads(tensors["keys"].numpy().tobytes())
            probe, average = ({stage: tensors[f"{kind}/{stage}"] for stage in stages} for kind in ("probe", "average"))
        except FileNotFoundError:
            raise DataError(f"there are no features at {path}; {remedy}") from None
        except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
            raise DataError(f"the features {path} are damaged ({error!r}); delete the file and {remedy}") from error
        if written != FORMAT:
            raise DataError(f"{path} has the format {written!r}, this version reads {FORMAT!r}; {remedy}")
        return cls(probe=probe, average=average, labels=tensors["labels"], keys=keys)


def extract(
    representation: nn.Module,
    split: Split,
    *,
    max_values: int = MAX_VALUES,
    batch_size: int = 500,
    device: torch.device | str = "cpu",
) -> Features:
    """Features of every stage for every image of a split, in float32 arithmetic; tensors of the result on the CPU.

    representation: images (N, C, H, W) in [0, 1] -> {stage: (N, C, H, W) or (N, C)}; moved to the device, its train or
        eval modes are as before afterwards.
    max_values: see `pool`. An empty split gives (0, D) tensors.
    Raises DataError where a stage is not finite or has another shape, or where the representation changed.
    """
    representation.to(device)
    probe: dict[str, list[Tensor]] = {}
    average: dict[str, list[Tensor]] = {}
    with frozen(representation), torch.no_grad():
        for rows, images in _batches(split, batch_size):
            for stage, values in representation(images.to(device)).items():
                kept = values[: len(rows)].float()
                _check(stage, kept, split, rows)
                probe.setdefault(stage, []).append(_compact(pool(kept, max_values)).cpu())
                average.setdefault(stage, []).append(_compact(global_average(kept)).cpu())
    return _joined(probe, average, split)


def raw_pixels(split: Split, *, max_values: int = MAX_PIXEL_VALUES, batch_size: int = 500) -> Features:
    """The yardstick without an encoder: pixels in [0, 1] as the features of one stage, "pixels".

    Whole images where they have at most `max_values` values (3,072 at 32 pixels), larger ones average-pooled to the
    largest square grid that does.
    """
    return extract(_Pixels(), split, max_values=max_values, batch_size=batch_size)


def pool(features: Tensor, max_values: int) -> Tensor:
    """Average-pool to the largest square grid of at most `max_values` values per image: (N, C, H, W) -> (N, C * g * g).

    g is at least 1 and at most the map's shorter side, so more than `max_values` channels stay as they are; (N, C)
    passes through.
    """
    if features.ndim == 2:
        return features
    _, channels, height, width = features.shape
    side = max(1, min(height, width, math.isqrt(max_values // channels)))
    return adaptive_avg_pool2d(features, side).flatten(1)


@contextmanager
def frozen(module: nn.Module, meanwhile: str = "features were computed") -> Iterator[None]:
    """Hold a module in eval mode, restore the modes, and raise DataError if a parameter or buffer has changed.

    meanwhile: what happens inside, for the error.
    """
    modes = {part: part.training for part in module.modules()}
    before = digests(module)
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
    after = digests(module)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        raise DataError(
            f"the frozen {type(module).__name__} changed while {meanwhile}: {', '.join(changed)}; its forward must "
            "leave parameters and batch-norm statistics alone in eval mode"
        )


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically, readable for whom the umask allows it."""
    with atomic_path(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        save_file(tensors, partial, metadata=metadata)  # by way of a file that only its owner may read
        partial.chmod(mode)


def load_weights(module: nn.Module, path: Path, what: str = "encoder") -> None:
    """Fill a module, called `what` in errors, with the weights of a safetensors file.

    Strict: raises CheckpointError naming missing, unexpected and misshapen tensors, or an unreadable file.
    """
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"the weights {path} cannot be read ({error}); run `contrast run` to train again, or `dvc pull`"
        ) from error
    wanted = module.state_dict()
    problems = {
        "missing": sorted(wanted.keys() - state.keys()),
        "unexpected": sorted(state.keys() - wanted.keys()),
        "of another shape": sorted(n for n in wanted.keys() & state.keys() if wanted[n].shape != state[n].shape),
    }
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {_some(names)}" for kind, names in problems.items() if names)
        raise CheckpointError(f"the weights {path} do not fit the {what}: {listed}; use the {what} they were made with")
    module.load_state_dict(state, strict=True)


class _Pixels(nn.Module):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"pixels": images}


def _some(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _batches(split: Split, batch_size: int) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Rows and images as floats; one black image without a row for an empty split, whose stages have shapes too."""
    if len(split) == 0:
        yield np.zeros(0, dtype=np.int64), torch.zeros(1, split.channels, split.image_size, split.image_size)
    for start in range(0, len(split), batch_size):
        rows = np.arange(start, min(start + batch_size, len(split)))
        yield rows, to_float(split.images(rows))


def _joined(probe: dict[str, list[Tensor]], average: dict[str, list[Tensor]], split: Split) -> Features:
    # torch.cat promotes to float32 where one batch did not fit float16.
    return Features(
        probe={stage: torch.cat(parts) for stage, parts in probe.items()},
        average={stage: torch.cat(parts) for stage, parts in average.items()},
        labels=torch.from_numpy(split.labels.copy()),
        keys=list(split.keys),
    )


def _check(stage: str, values: Tensor, split: Split, rows: np.ndarray) -> None:
    if values.ndim not in {2, 4}:
        raise DataError(f"stage {stage!r} has the shape {tuple(values.shape)}; a stage gives (N, C, H, W) or (N, C)")
    bad = (~torch.isfinite(values)).flatten(1).any(dim=1).nonzero()[:, 0]
    if len(bad):
        raise DataError(
            f"stage {stage!r} gives NaN or infinity for {len(bad)} images, the first {split.keys[rows[bad[0]]]!r}; "
            "the weights have diverged: lower optimizer.lr and train again"
        )


def _compact(values: Tensor) -> Tensor:
    """Floats as float16, unless that overflows or rounds by more than a thousandth; anything else as it is."""
    if values.dtype != torch.float32:
        return values
    half = values.half()
    error: Any = (half.float() - values).norm() <= _HALF_ERROR * values.norm()
    return half if error else values


def digests(module: nn.Module) -> dict[str, str]:
    """{name: sha256 of the bytes} of every parameter and buffer."""
    tensors: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: _digest(tensor.detach()) for name, tensor in tensors.items()}


def _digest(tensor: Tensor) -> str:
    flat = tensor.cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()
