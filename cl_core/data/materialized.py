"""Views written to disk for some epochs, to train on in turn: where generating is the bottleneck, or a set is wanted.

One memory-mapped .npy file per epoch and view, every row of the split in it. Views in [0, 1] are stored as uint8, which
rounds them to 1/255; others (standardised ones) as float16. A step then reads its rows, in whatever order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cl_core.data.files import atomic_path, read_json, sha256_file
from cl_core.errors import DataError
from cl_core.types import Views

_BATCH = 256
_REMEDY = "run the views stage again (`contrast run`)"


class MaterializedViews:
    """The views of K epochs, read from disk. Made by `open`."""

    def __init__(self, epochs: int, files: Mapping[str, np.ndarray]) -> None:
        self.epochs = epochs
        self._files = dict(files)

    @classmethod
    def open(cls, out: Path) -> MaterializedViews | None:
        """The views below the folder of a views stage; None if its plan has none.

        Raises DataError where the plan, or a file that it names, is missing or has another shape.
        """
        if not (out / "plan.json").is_file():
            raise DataError(f"{out} has no plan.json; {_REMEDY}")
        plan = read_json(out / "plan.json")["materialized"]
        if plan is None:
            return None
        files = {name: _mapped(out / "materialized" / name, facts) for name, facts in plan["files"].items()}
        return cls(plan["epochs"], files)

    def views(self, epoch: int, rows: Tensor) -> Views:
        """The views of rows (N,) in an epoch, which counts modulo K; on the CPU, images float32."""
        folder, chosen = f"{_folder(epoch % self.epochs)}/", rows.cpu().numpy()
        names = {
            name.removeprefix(folder).removesuffix(".npy"): name for name in self._files if name.startswith(folder)
        }
        arrays = {name: torch.from_numpy(np.array(self._files[file][chosen])) for name, file in names.items()}
        images = [_decoded(arrays[f"view-{k}"]) for k in range(sum(name.startswith("view-") for name in arrays))]
        extras = {name.removeprefix("extra-"): value for name, value in arrays.items() if name.startswith("extra-")}
        return Views(images=tuple(images), targets=arrays.get("targets"), extras=extras)


def write_epochs(make: Callable[[int, Tensor], Views], count: int, epochs: int, out: Path) -> dict[str, Any]:
    """Write the views of `epochs` epochs of `count` rows below out/materialized; return what plan.json says of them.

    make: (epoch, rows) -> views. Raises DataError where a view leaves the range it had in the first batch.
    """
    files = {}
    for epoch in range(epochs):
        names = _write_epoch(make, count, epoch, out / "materialized" / _folder(epoch))
        files.update({f"{_folder(epoch)}/{name}": facts for name, facts in names.items()})
    return {"epochs": epochs, "rows": count, "files": files}


def _write_epoch(make: Callable[[int, Tensor], Views], count: int, epoch: int, folder: Path) -> dict[str, Any]:
    first = _arrays(make(epoch, torch.arange(min(count, _BATCH))))
    with ExitStack() as stack:
        stored = {}
        for name, example in first.items():
            partial = stack.enter_context(atomic_path(folder / f"{name}.npy"))
            shape = (count, *example.shape[1:])
            stored[name] = np.lib.format.open_memmap(partial, mode="w+", dtype=_dtype_for(name, example), shape=shape)
        for rows in torch.arange(count).split(_BATCH):
            for name, tensor in _arrays(make(epoch, rows)).items():
                stored[name][rows.numpy()] = _encoded(name, tensor, stored[name].dtype)
        for array in stored.values():
            array.flush()
    return {f"{name}.npy": _facts(folder / f"{name}.npy", array) for name, array in stored.items()}


def _facts(path: Path, array: np.ndarray) -> dict[str, Any]:
    return {"dtype": str(array.dtype), "shape": list(array.shape), "sha256": sha256_file(path)}


def _arrays(views: Views) -> dict[str, Tensor]:
    """Every tensor of the views under the name of its file."""
    arrays = {f"view-{number}": view for number, view in enumerate(views.images)}
    if views.targets is not None:
        arrays["targets"] = views.targets
    arrays.update({f"extra-{name}": tensor for name, tensor in views.extras.items()})
    return {name: tensor.detach().cpu() for name, tensor in arrays.items()}


def _dtype_for(name: str, example: Tensor) -> np.dtype[Any]:
    if not name.startswith("view-"):
        return example.numpy().dtype
    in_unit_interval = bool(example.min() >= 0) and bool(example.max() <= 1)
    return np.dtype(np.uint8 if in_unit_interval else np.float16)


def _encoded(name: str, tensor: Tensor, dtype: np.dtype[Any]) -> np.ndarray:
    if not name.startswith("view-"):
        return tensor.numpy()
    low, high = float(tensor.min()), float(tensor.max())
    bound = (0.0, 1.0) if dtype == np.uint8 else (-65504.0, 65504.0)
    if not (low >= bound[0] and high <= bound[1]):
        raise DataError(
            f"{name} has values from {low:g} to {high:g}; as {dtype}, chosen by its first batch, it can only be stored "
            f"from {bound[0]:g} to {bound[1]:g}; set views.materialize to 0"
        )
    return tensor.mul(255).round().to(torch.uint8).numpy() if dtype == np.uint8 else tensor.half().numpy()


def _decoded(stored: Tensor) -> Tensor:
    floats = stored.to(torch.float32)
    return floats.div_(255) if stored.dtype == torch.uint8 else floats


def _mapped(path: Path, facts: Mapping[str, Any]) -> np.ndarray:
    if not path.is_file():
        raise DataError(f"{path} is named in plan.json but missing; {_REMEDY}")
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path} cannot be read ({error}); {_REMEDY}") from error
    found, promised = (str(array.dtype), list(array.shape)), (facts["dtype"], facts["shape"])
    if found != promised:
        raise DataError(f"{path} holds {found[0]} {found[1]}, plan.json says {promised[0]} {promised[1]}; {_REMEDY}")
    return array


def _folder(epoch: int) -> str:
    return f"epoch-{epoch:03d}"
