"""Files appear whole or not at all."""

import stat

import pytest

from cl_core.data.files import atomic_path, read_json, write_bytes, write_json


def test_a_failed_write_leaves_the_old_file_and_no_leftover(tmp_path):
    path = tmp_path / "a" / "file.txt"
    write_bytes(path, b"old")

    def write_half():
        with atomic_path(path) as partial:
            partial.write_bytes(b"ne")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert path.read_bytes() == b"old"
    assert [item.name for item in path.parent.iterdir()] == ["file.txt"]


def test_files_respect_the_umask_so_that_colleagues_can_read_them(tmp_path):
    path, plain = tmp_path / "a.json", tmp_path / "plain"
    write_json(path, {"b": 1})
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    assert path.read_text() == '{\n  "b": 1\n}\n'
    assert read_json(path) == {"b": 1}


def test_a_value_that_is_not_finite_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
