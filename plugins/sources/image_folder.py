"""Image files of a folder, whatever of the three usual layouts it has.

    flat and unlabelled     photos/a.jpg  photos/b.png
    class folders           photos/cat/1.jpg  photos/dog/tricks/2.jpg      (the first folder is the class)
    splits above either     photos/train/...  photos/val/...  photos/test/...

Nothing is dropped in silence: a file that is neither an image by its suffix nor a usual companion of images (hidden
files, annotations, checksums) is yielded all the same, and ingest writes it to the quarantine list; so is a link that
leads back to a folder above it, in place of what it would repeat without end. A layout that can be read in two ways is
refused. No file is opened here.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cl_core.errors import DataError
from cl_core.examples import Example

_IMAGE = re.compile(
    r".*\.(jpe?g|jpe|jfif|mpo|png|gif|bmp|tiff?|webp|avif|jp2|j2k|jpx|ppm|pgm|pbm|pnm)", re.IGNORECASE | re.DOTALL
)
#: Files that lie beside images in ordinary datasets and are not meant as images.
_COMPANION = re.compile(
    r".*\.(txt|csv|tsv|jsonl?|xml|ya?ml|md|rst|html|pdf|parquet|log|py|sh|md5|sha256|dvc)"
    r"|thumbs\.db|desktop\.ini|licen[cs]e|readme",
    re.IGNORECASE | re.DOTALL,
)
_IGNORED_FOLDERS = frozenset({"__MACOSX", "__pycache__"})
_SPLIT_FOLDERS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


class ImageFolder:
    """The images of a folder: flat, in class folders, or in train/ val/ test/ above either.

    path: the folder. Keys are paths relative to it. Links are followed. Hidden files and folders are left out.
    group: a regular expression that is searched in each key; what it matches, or its first parenthesis, names the group
        (patient, video) whose images stay together in splits, label draws and folds: `(patient[0-9]+)_` for example. A
        key that it does not match is by itself. Raises DataError where it is no regular expression.
    """

    def __init__(self, path: str, group: str | None = None) -> None:
        self.root = Path(path)
        try:
            self.group = None if group is None else re.compile(group)
        except re.error as error:
            raise DataError(f"image_folder: group {group!r} is no regular expression ({error}); correct it") from None

    def fingerprint(self) -> dict[str, Any]:
        """Digest over relative names, sizes and modification times (about 0.5 s for 60,000 files).

        Raises DataError where the folder is missing, empty or ambiguous.
        """
        self._split_folders()
        digest, count = hashlib.sha256(), 0
        for key, entry in _walk(self.root):
            status = entry.stat(follow_symlinks=not _is_broken(entry))
            digest.update(f"{key}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
            count += 1
        return {"files": count, "sha256": digest.hexdigest()}

    def __iter__(self) -> Iterator[Example]:
        """Yield paths, folder by folder in the order of their names. Raises DataError as `fingerprint` does."""
        split_of = self._split_folders()
        for key, entry in _walk(self.root):
            folders = key.split("/")[:-1]
            split = split_of.get(folders[0]) if folders else None
            if split is not None:
                folders = folders[1:]
            label = folders[0] if folders else None
            yield Example(key=key, image=Path(entry.path), label=label, split=split, group=self._group_of(key))

    def _group_of(self, key: str) -> str | None:
        found = self.group.search(key) if self.group else None
        return found[1 if found.re.groups else 0] or None if found else None

    def _split_folders(self) -> dict[str, str]:
        """{folder: split}, empty where the layout has no splits. Refuses what can be read in two ways."""
        self._check_folder()
        images, folders = _level(self.root)
        if not images and not folders and next(_walk(self.root), None) is None:
            raise DataError(
                f"image_folder: {self.root} holds no images; put image files (.jpg, .png, .tif, ...) or class folders "
                "into it, or point `path` at the folder that holds them"
            )
        split_of = {name: _SPLIT_FOLDERS[name.lower()] for name in folders if name.lower() in _SPLIT_FOLDERS}
        if not split_of:
            _check_unmixed(self.root, images, folders)
            return {}
        self._check_splits(split_of, images, [name for name in folders if name not in split_of])
        for name in split_of:
            _check_unmixed(self.root / name, *_level(self.root / name))
        return split_of

    def _check_folder(self) -> None:
        if not self.root.exists():
            raise DataError(
                f"image_folder: the folder {self.root} does not exist; set `path` to the folder that holds the images "
                "(a relative path starts at the project folder)"
            )
        if not self.root.is_dir():
            raise DataError(f"image_folder: {self.root} is a file, not a folder; set `path` to the folder it lies in")

    def _check_splits(self, split_of: dict[str, str], images: list[str], others: list[str]) -> None:
        if others or images:
            strays = f"the folder {others[0]!r}" if others else f"the image {images[0]!r}"
            raise DataError(
                f"image_folder: {self.root} holds the split folder(s) {_listed(split_of)} and beside them {strays}, so "
                "its layout is ambiguous; move everything into the split folders, or, if these are names of classes, "
                "put all the class folders into one new folder train/"
            )
        for split in set(split_of.values()):
            rivals = [name for name in split_of if split_of[name] == split]
            if len(rivals) > 1:
                raise DataError(
                    f"image_folder: {_listed(rivals)} in {self.root} would all be the {split} split; keep or merge "
                    "them into one"
                )
        if "train" not in split_of.values():
            raise DataError(
                f"image_folder: {self.root} holds {_listed(split_of)} but no train/ folder; add train/, or point "
                "`path` at one of them to have splits drawn from it"
            )


def _walk(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every file that counts, as (POSIX path relative to the folder, entry), each folder in the order of its names."""
    yield from _walk_level(str(folder), "", frozenset())


def _walk_level(folder: str, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    here = above | {_identity(folder)}
    for entry in _entries(folder):
        key = prefix + _text(entry.name)
        if _is_folder(entry) and _identity(entry.path) not in here:
            yield from _walk_level(entry.path, key + "/", here)
        elif not _COMPANION.fullmatch(entry.name):
            yield key, entry


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """Entries that are not hidden, sorted by name."""
    try:
        with os.scandir(folder) as found:
            entries = [e for e in found if not e.name.startswith(".") and e.name not in _IGNORED_FOLDERS]
    except PermissionError as error:
        raise DataError(
            f"image_folder: the folder {folder} may not be read; give yourself the permission (chmod u+rx)"
        ) from error
    return sorted(entries, key=lambda entry: entry.name)


def _level(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the images directly in a folder and of its folders that are not empty."""
    entries = _entries(str(folder))
    inside = [e for e in entries if _is_folder(e) and _identity(e.path) != _identity(str(folder))]
    images = [e.name for e in entries if not _is_folder(e) and _IMAGE.fullmatch(e.name)]
    folders = [e.name for e in inside if next(_walk(Path(e.path)), None) is not None]
    return images, folders


def _check_unmixed(folder: Path, images: list[str], folders: list[str]) -> None:
    if images and folders:
        raise DataError(
            f"image_folder: {folder} holds images ({images[0]!r}, {len(images)} in all) beside the folder(s) "
            f"{_listed(folders)}, so it is unclear whether these are classes; move the images into class folders of "
            "their own, or keep images or folders only"
        )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(folder: str) -> tuple[int, int]:
    status = Path(folder).stat()
    return status.st_dev, status.st_ino


def _is_broken(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)  # noqa: PTH110 - Path() is slow, and this runs per file


def _text(name: str) -> str:
    """The name as text that can be written: bytes that are not UTF-8 become \\xNN."""
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")


def _listed(names: Iterable[str]) -> str:
    known = sorted(names)
    return ", ".join(known[:5]) + (f" and {len(known) - 5} more" if len(known) > 5 else "")
