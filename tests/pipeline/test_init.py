"""`contrast init`: everything is there, fitted to the images, and nothing of the user's is overwritten."""

import json
import os
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from cl_core.check import check_project
from cl_core.errors import ConfigError, DataError
from pipelines.dvc_repo import look
from pipelines.project import create as module
from pipelines.project.create import SHEET, Wishes
from pipelines.project.write import STATIC, TEMPLATES
from pipelines.stages import run_stage

ROOT = Path(__file__).parents[2]
UNTRIED = Wishes(trial=False)


def create(folder, images=None, wishes=UNTRIED, **options):
    said = []
    module.create(folder, images, wishes=wishes, say=said.append, **options)
    return said


def fill(folder, count, side=40):
    """Noise under a bright sky, no two alike."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        rng = np.random.default_rng([index, *folder.name.encode()])
        pixels = rng.integers(0, 256, (side, side + 10, 3), dtype=np.uint8)
        pixels[: side // 2] |= 128
        Image.fromarray(pixels).save(folder / f"{index}.png")


def read(path):
    return YAML(typ="safe").load(path.read_text())


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("init") / "digits"
    return folder, create(folder)


def test_a_new_project_has_every_file_and_is_under_git(digits):
    folder, said = digits
    wanted = {*STATIC, "params.yaml", "runs.yaml", "experiments/simclr.yaml", ".gitignore"}
    assert {name for name in files(folder) if not name.startswith((".git/", ".contrast/"))} == wanted
    assert (folder / ".git").is_dir()
    assert said[-2] == f"next      cd {folder} && contrast run"
    assert said[-1].startswith("then      contrast verdict")


def test_a_new_project_passes_the_check_and_its_schemas_are_there(digits):
    folder, _ = digits
    assert any("simclr" in line for line in check_project(folder))
    for path in (folder / "params.yaml", folder / "experiments" / "simclr.yaml"):
        schema = path.read_text().partition("\n")[0].partition("$schema=")[2]
        assert (path.parent / schema).is_file()


@pytest.mark.filterwarnings("ignore:_NoneStep.value will soon raise:DeprecationWarning")  # pygtrie, as DVC uses it
def test_dvc_reads_a_new_project_with_one_stage_per_experiment(digits):
    folder, _ = digits
    names = [stage.name for stage in look(folder).stages]
    per_experiment = [f"{stage}@simclr" for stage in ("views", "pretrain", "embed", "linear_eval", "finetune")]
    assert sorted(names) == sorted(["ingest", *per_experiment, "report"])


PROJECTS = [ROOT, *sorted(path.parent for path in ROOT.glob("benchmarks/*/params.yaml"))]


@pytest.mark.parametrize("folder", PROJECTS, ids=lambda folder: folder.name)
@pytest.mark.parametrize("path", STATIC)
def test_the_projects_of_this_repository_have_the_files_of_a_new_one(digits, folder, path):
    created, _ = digits
    assert (folder / path).read_bytes() == (created / path).read_bytes() == (TEMPLATES / STATIC[path]).read_bytes()


def test_every_setting_is_explained_by_a_comment(digits):
    folder, _ = digits
    for path in (folder / "params.yaml", folder / "experiments" / "simclr.yaml"):
        text = path.read_text()
        assert "$" not in text.partition("\n")[2]  # no placeholder is left
        for key in ("size", "validation", "test", "jobs", "epochs", "batch_size", "temperature"):
            lines = [line for line in text.splitlines() if line.strip().startswith(f"{key}:")]
            assert all("#" in line for line in lines), key


def test_a_project_that_is_there_is_not_overwritten_unless_told_to(digits, tmp_path):
    folder = Path(shutil.copytree(digits[0], tmp_path / "mine"))
    (folder / "params.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds a project already \(dvc.yaml.*--force"):
        create(folder)
    assert (folder / "params.yaml").read_text() == "mine"
    create(folder, force=True)
    assert read(folder / "params.yaml")["experiments"] == ["simclr"]


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("init")
    for name in ("cat", "dog"):
        fill(folder / "photos" / name, 30, side=50)
    return folder / "pets", folder / "photos", create(folder / "pets", folder / "photos")


def test_images_of_one_s_own_are_named_counted_and_sized(pets):
    folder, photos, said = pets
    assert said[0] == "seen      60 images in 2 classes, shorter side 50 pixels; photographs"
    params = read(folder / "params.yaml")
    assert params["data"]["source"] == {"name": "image_folder", "path": str(photos)}
    assert params["data"]["splits"] == {"validation": 6, "test": 12}
    assert read(folder / "experiments" / "simclr.yaml")["train"]["batch_size"] == 16
    assert check_project(folder)


def test_what_is_said_is_what_was_seen_guessed_chosen_how_long_it_takes_and_what_comes_next(pets):
    said = pets[2]
    text = "\n".join(said)
    words = [line.split()[0] for line in said if line[0] != " "]
    assert words == ["seen", "guessed", "chosen", "takes", "note", "look", "made", "wrote", "next", "then"]
    assert 'the row "photographs' in text
    assert "minutes of pretraining" in text
    assert "unlikely to help" in text
    assert "--no-mirror" in text


def test_every_setting_for_own_images_has_its_reason_and_what_was_guessed_is_noted(pets):
    folder, *_ = pets
    text = (folder / "experiments" / "simclr.yaml").read_text()
    assert 'the row "photographs, ' in text
    assert "STARTS.md" in text
    assert text.count("# Guessed: ") == 2
    for key in ("encoder", "views", "epochs", "batch_size", "knn_every", "precision"):
        assert "#" in next(line for line in text.splitlines() if line.strip().startswith(f"{key}:")), key


def test_a_sheet_of_views_is_drawn_before_anything_is_trained_and_kept_out_of_git(pets):
    folder, *_ = pets
    with Image.open(folder / SHEET) as sheet:
        assert sheet.width > 6 * 128  # the original and two views of three epochs
        assert sheet.height > 8 * 128
    status = subprocess.check_output(["git", "-C", folder, "status", "--short", "-uall"], text=True)
    assert SHEET not in status
    assert "params.yaml" in status


def test_answers_change_what_is_written_and_are_not_noted_as_guesses(pets, tmp_path):
    create(tmp_path / "pets", pets[1], Wishes(trial=False, mirror=False, colour=True))
    text = (tmp_path / "pets" / "experiments" / "simclr.yaml").read_text()
    chain = read(tmp_path / "pets" / "experiments" / "simclr.yaml")["views"]["chains"]["augment"]
    assert [spec["name"] for spec in chain] == ["random_resized_crop", "color_jitter"]
    assert "Guessed" not in text
    assert read(tmp_path / "pets" / "params.yaml")["evaluation"]["finetune"]["recipe"]["flip"] == 0.0


def test_images_inside_the_project_are_named_relative_to_it_and_kept_out_of_git(tmp_path):
    fill(tmp_path / "pets" / "photos", 20)
    (tmp_path / "pets" / ".gitignore").write_text("*.tmp")
    said = create(tmp_path / "pets", tmp_path / "pets" / "photos")
    assert "without labels" in said[0]
    assert check_project(tmp_path / "pets")
    assert read(tmp_path / "pets" / "params.yaml")["data"]["source"]["path"] == "photos"
    ignored = (tmp_path / "pets" / ".gitignore").read_text().splitlines()
    assert ignored[0] == "*.tmp"
    assert {"/photos/", "/artifacts/", "/.contrast/", "/views.png"} <= set(ignored)


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "holds no images"),
        (lambda path: (path.mkdir(), (path / "a.png").write_bytes(b"nonsense")), "none of the images"),
    ],
    ids=["missing", "empty", "unreadable"],
)
def test_a_folder_without_images_is_refused_before_anything_is_written(tmp_path, prepare, said):
    prepare(tmp_path / "photos")
    with pytest.raises(DataError, match=said):
        create(tmp_path / "pets", tmp_path / "photos")
    assert not (tmp_path / "pets").exists()


def test_a_project_inside_its_images_is_refused(tmp_path):
    fill(tmp_path / "photos", 3)
    with pytest.raises(ConfigError, match="put it beside them"):
        create(tmp_path / "photos" / "project", tmp_path / "photos")


def test_inside_a_git_repository_no_second_one_is_made(tmp_path):
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    create(tmp_path / "benchmarks" / "mine")
    assert not (tmp_path / "benchmarks" / "mine" / ".git").exists()


@pytest.mark.filterwarnings("ignore:_NoneStep.value will soon raise:DeprecationWarning")  # pygtrie, as DVC uses it
def test_without_git_the_project_works_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    said = create(tmp_path / "mine")
    assert any("git is not installed" in line for line in said)
    assert (tmp_path / "mine" / ".dvc" / "config").read_bytes() == (ROOT / ".dvc" / "config").read_bytes()
    assert len(look(tmp_path / "mine").stages) == 7


def png_that_promises(width, height):
    """A PNG whose header says so and that ends there."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = b"IEND"
    chunks = [header, end]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


@pytest.mark.timeout(60)
def test_pipes_devices_loops_bombs_and_broken_files_are_counted_and_passed_over(tmp_path):
    photos = tmp_path / "photos"
    fill(photos, 24)
    os.mkfifo(photos / "pipe.png")
    (photos / "zero.png").symlink_to("/dev/zero")
    (photos / "loop").symlink_to(photos)
    (photos / "self.png").symlink_to("self.png")
    (photos / "bomb.png").write_bytes(png_that_promises(30_000, 30_000))
    (photos / "empty.jpg").touch()
    (photos / "cut.png").write_bytes((photos / "0.png").read_bytes()[:200])
    said = create(tmp_path / "pets", photos)
    assert "31 images" in said[0]
    assert "7 of 31 looked at cannot be read" in said[1]
    assert check_project(tmp_path / "pets")


def test_three_images_are_too_few_to_train_on(tmp_path):
    fill(tmp_path / "photos", 3)
    with pytest.raises(DataError, match="of 3 images 1 are for training"):
        create(tmp_path / "pets", tmp_path / "photos")
    assert not (tmp_path / "pets").exists()


def test_twenty_images_run_to_the_end(tmp_path):
    for name in ("cat", "dog"):
        fill(tmp_path / "photos" / name, 10)
    folder = tmp_path / "pets"
    create(folder, tmp_path / "photos")
    path = folder / "experiments" / "simclr.yaml"
    experiment = read(path)
    experiment["schedule"] = {"epochs": 2, "warmup_epochs": 1}
    YAML(typ="safe").dump(experiment, path)
    params = read(folder / "params.yaml")
    params["evaluation"]["finetune"] |= {"epochs": 1, "min_steps": 2}
    YAML(typ="safe").dump(params, folder / "params.yaml")
    for stage in ("resolve", "ingest", "views", "pretrain", "embed", "linear_eval", "finetune"):
        run_stage(folder, stage, "simclr")
    results = folder / "artifacts" / "runs" / "simclr"
    for stage in ("pretrain", "linear_eval", "finetune"):
        assert "skipped" not in json.loads((results / stage / "metrics.json").read_text())
