"""Any classification dataset of torchvision, by the name of its class in `torchvision.datasets`.

Its own splits are kept: `train=True/False`, or those of `split="train" | "val" | "test"` that it has. Datasets that
read image files hand over the paths, so that ingest verifies each file; the others hand over arrays. Nothing is
downloaded unless `download` says so. For a folder of your own use `image_folder`, which notices changed files.
"""

from __future__ import annotations

import inspect
import operator
import os
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from cl_core.errors import ConfigError, DataError, did_you_mean
from cl_core.examples import Example

#: Values of a dataset's `split` argument that stand for ours, the first that it knows is taken.
_SPLIT_VALUES = {"train": ("train", "trainval"), "validation": ("val", "valid", "validation"), "test": ("test",)}
_ARRAY_MODES = frozenset({"L", "RGB", "RGBA", "I;16"})
_OWN_ARGUMENTS = frozenset({"root", "download", "loader"})


class TorchvisionDataset:
    """A dataset of torchvision by name, such as CIFAR10, MNIST, STL10 or Flowers102.

    dataset: class in torchvision.datasets. root: folder that torchvision keeps it in. download: fetch it if it is not
    there. options: further arguments of the class; a `train` or `split` among them selects that part alone, and
    ingest then draws the splits.
    """

    def __init__(
        self, dataset: str, root: str, download: bool = False, options: Mapping[str, Any] | None = None
    ) -> None:
        self.name = dataset
        self.root = Path(root)
        self.download = download
        self.options = dict(options or {})

    def fingerprint(self) -> dict[str, Any]:
        """Name, options and torchvision's version: equal before and after a download.

        Raises ConfigError for an unknown name or option, DataError where `root` is missing and may not be downloaded.
        """
        accepted = self._accepted()
        if "root" in accepted and not self.download and not self.root.is_dir():
            raise DataError(f"torchvision {self.name}: the folder {self.root} does not exist; {self._remedy()}")
        return {"dataset": self.name, "options": self.options, "torchvision": version("torchvision")}

    def __iter__(self) -> Iterator[Example]:
        """Yield part after part, keys "train/000000" or, for files, their path relative to `root`.

        Raises DataError where the dataset is missing or an item of it is not an image.
        """
        for split, dataset in self._parts():
            names = _class_names(dataset)
            for index in range(len(dataset)):
                image, target = self._item(dataset, index, split)
                key = f"{split}/{index:06d}" if split else f"{index:06d}"
                if isinstance(image, Path):
                    key = Path(os.path.relpath(image, self.root)).as_posix()
                yield Example(key=key, image=image, label=_label(target, names), split=split)

    def _parts(self) -> Iterator[tuple[str | None, Any]]:
        """(split, dataset), one at a time, so that only one part is in memory."""
        accepted = self._accepted()
        if "train" in accepted and "train" not in self.options:
            yield "train", self._open({"train": True})
            yield "test", self._open({"train": False})
        elif "split" in accepted and "split" not in self.options:
            yield from self._parts_by_split()
        else:
            yield None, self._open({})

    def _parts_by_split(self) -> Iterator[tuple[str, Any]]:
        for split, values in _SPLIT_VALUES.items():
            dataset = next((found for found in map(self._open_split, values) if found is not None), None)
            if dataset is not None:
                yield split, dataset
            elif split == "train":
                raise ConfigError(
                    f"torchvision {self.name} has no split called {' or '.join(values)}; name one of its splits in "
                    "`options: {split: ...}`"
                )

    def _open_split(self, value: str) -> Any:
        """The dataset with split=value, or None where it knows no such value."""
        try:
            return self._open({"split": value})
        except ConfigError as error:
            if f"Unknown value '{value}'" in str(error):
                return None
            raise

    def _open(self, part: dict[str, Any]) -> Any:
        accepted = self._accepted()
        arguments = {"root": str(self.root), "download": self.download, "loader": Path} | self.options | part
        arguments = {name: value for name, value in arguments.items() if name in accepted}
        if self.download and "download" in accepted:
            self.root.mkdir(parents=True, exist_ok=True)
        try:
            return self._class()(**arguments)
        except (RuntimeError, OSError) as error:
            raise DataError(f"torchvision {self.name}: {_first_line(error)}; {self._remedy()}") from error
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"torchvision {self.name} refuses its arguments ({_first_line(error)}); correct `options`"
            ) from error

    def _remedy(self) -> str:
        if "download" not in self._accepted():
            return f"torchvision cannot download it: put its files under {self.root} as its documentation says"
        if self.download:
            return f"check the network connection, or put its files under {self.root}"
        return f"set `download: true`, or put its files under {self.root}"

    def _class(self) -> Any:
        from torchvision import datasets

        known = [name for name in datasets.__all__ if inspect.isclass(getattr(datasets, name))]
        if self.name not in known:
            respelt = {name.lower(): name for name in known}.get(self.name.lower(), self.name)
            raise ConfigError(f"torchvision has no dataset called {self.name!r}{did_you_mean(respelt, known)}")
        return getattr(datasets, self.name)

    def _accepted(self) -> set[str]:
        """Arguments of the class. Raises ConfigError for an option that is none of them."""
        accepted = _arguments(self._class())
        for name in self.options:
            if name not in accepted - _OWN_ARGUMENTS:
                free = sorted(accepted - _OWN_ARGUMENTS)
                raise ConfigError(
                    f"torchvision {self.name} takes no option {name!r}{did_you_mean(name, free)}; it takes "
                    f"{', '.join(free)}"
                )
        return accepted

    def _item(self, dataset: Any, index: int, split: str | None) -> tuple[Path | np.ndarray, Any]:
        place = f"torchvision {self.name}: item {index}" + (f" of {split}" if split else "")
        try:
            item = dataset[index]
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{place} cannot be read ({_first_line(error)}); restore its file under root") from error
        image = item[0] if isinstance(item, tuple) else item
        target = item[1] if isinstance(item, tuple) and len(item) == 2 else None
        if isinstance(image, Path):
            return image, target
        if not hasattr(image, "getexif"):
            raise DataError(f"{place} is a {type(image).__name__}, not an image; choose a dataset of single images")
        return _array(image), target


def _arguments(cls: type) -> set[str]:
    """Names of the arguments of a class, with those of its bases as long as **kwargs hands them on."""
    names: set[str] = set()
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters
            names.update(name for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL))
            if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                break
    return names - {"self"}


def _array(image: Any) -> np.ndarray:
    """A Pillow image as an array that ingest takes, upright, in a mode that loses nothing which ingest would keep."""
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode not in _ARRAY_MODES:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    return np.asarray(image)


def _class_names(dataset: Any) -> list[str]:
    """Names by target, [] where the dataset has none. ImageNet gives each class as a tuple of synonyms."""
    names = getattr(dataset, "classes", None) or getattr(dataset, "categories", None) or []
    return [", ".join(name) if isinstance(name, tuple | list) else str(name) for name in names]


def _label(target: Any, names: list[str]) -> str | None:
    """Class name of an integer target; None for the negative (STL10's "unlabeled") and for any other kind."""
    try:
        number = operator.index(target)
    except TypeError:
        return None
    if number < 0:
        return None
    return names[number] if number < len(names) else str(number)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
