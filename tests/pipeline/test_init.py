"""`contrast init`: everything is there, sized to the images, and nothing of the user's is overwritten."""

import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from ruamel.yaml import YAML

from cl_core.check import check_project
from cl_core.errors import ConfigError, DataError
from pipelines.dvc_repo import look
from pipelines.project import STATIC, TEMPLATES, create
from pipelines.sizing import Images, Machine, measure, settings

ROOT = Path(__file__).parents[2]
LAPTOP = Machine(cores=2, gpus=0)
WORKSTATION = Machine(cores=16, gpus=2)


def fill(folder, count, side=40):
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.new("RGB", (side + 10, side), (index * 5 % 256, 0, 0)).save(folder / f"{index}.png")


def read(path):
    return YAML(typ="safe").load(path.read_text())


def images(**changes):
    return Images(**{"count": 5000, "train": 3500, "classes": 4, "side": 64, "has_splits": False, **changes})


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("init") / "digits"
    return folder, create(folder)


def test_a_new_project_has_every_file_and_is_under_git(digits):
    folder, said = digits
    wanted = {*STATIC, "params.yaml", "experiments/simclr.yaml", ".gitignore"}
    assert {name for name in files(folder) if not name.startswith((".git/", ".contrast/"))} == wanted
    assert (folder / ".git").is_dir()
    assert said[-1] == f"next: cd {folder} && contrast run"


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


def test_images_of_one_s_own_are_named_counted_and_sized(tmp_path):
    for name in ("cat", "dog"):
        fill(tmp_path / "photos" / name, 30, side=50)
    folder = tmp_path / "pets"
    said = create(folder, tmp_path / "photos")
    assert said[0] == "images: 60 in 2 classes, shorter side 50 pixels"
    params = read(folder / "params.yaml")
    assert params["data"]["source"] == {"name": "image_folder", "path": str(tmp_path / "photos")}
    assert params["data"]["size"] == 48
    assert read(folder / "experiments" / "simclr.yaml")["train"]["batch_size"] == 8
    assert check_project(folder)


def test_images_inside_the_project_are_named_relative_to_it_and_kept_out_of_git(tmp_path):
    fill(tmp_path / "pets" / "photos", 20)
    (tmp_path / "pets" / ".gitignore").write_text("*.tmp")
    said = create(tmp_path / "pets", tmp_path / "pets" / "photos")
    assert "without labels" in said[0]
    assert read(tmp_path / "pets" / "params.yaml")["data"]["source"]["path"] == "photos"
    ignored = (tmp_path / "pets" / ".gitignore").read_text().splitlines()
    assert ignored[0] == "*.tmp"
    assert {"/photos/", "/artifacts/", "/.contrast/"} <= set(ignored)


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


def test_a_measured_folder_is_counted_by_split_and_class(tmp_path):
    from cl_core.types import Example

    fill(tmp_path, 1, side=30)
    there = {"image": tmp_path / "0.png"}
    examples = [Example(key=str(k), label="ab"[k % 2], split=("train", "test")[k % 5 == 0], **there) for k in range(10)]
    expected = Images(count=10, train=8, classes=2, side=30, has_splits=True)
    assert measure(examples, tmp_path) == expected


@pytest.mark.parametrize("train", [1, 3, 7, 100, 3500, 10**6])
@pytest.mark.parametrize("machine", [LAPTOP, WORKSTATION], ids=["laptop", "workstation"])
def test_a_batch_always_leaves_several_steps_per_epoch_or_is_the_smallest_allowed(train, machine):
    batch = settings(images(train=train), machine)["batch"]
    assert batch == 2 or batch * 4 <= train
    assert batch in (2, 4, 8, 16, 32, 64, 128, 256, 512)


def test_a_gpu_gets_a_larger_encoder_images_and_one_job_each():
    large = images(side=500)
    small, big = settings(large, LAPTOP), settings(large, WORKSTATION)
    assert "resnet8" in small["encoder"]
    assert "resnet18" in big["encoder"]
    assert small["size"] < big["size"]
    assert (small["jobs"], big["jobs"]) == (1, 2)


def test_more_images_mean_fewer_epochs():
    epochs = [settings(images(train=train), LAPTOP)["epochs"] for train in (500, 5000, 50000)]
    assert epochs == sorted(epochs, reverse=True)
    assert epochs[0] > epochs[-1]


def test_tiny_images_are_not_stored_smaller_than_32_pixels():
    assert settings(images(side=8), LAPTOP)["size"] == 32
