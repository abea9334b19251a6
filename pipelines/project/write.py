"""The files of a project from its settings: values for the placeholders of templates/project, each with its reason."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from string import Template

from cl_core.data.files import write_bytes
from pipelines.project.look import Images
from pipelines.project.questions import Answers
from pipelines.project.start import Start
from pipelines.yaml_text import flow

TEMPLATES = Path(__file__).parents[1] / "templates" / "project"
# File of a project -> its template. The suffix keeps DVC from taking the template of dvc.yaml for a pipeline of ours.
STATIC = {  # equal in all projects
    "dvc.yaml": "dvc.yaml.tmpl",
    "prefect.yaml": "prefect.yaml.tmpl",
    ".dvcignore": "dvcignore.tmpl",
    ".dvc/config": "dvc_config.tmpl",
    ".dvc/.gitignore": "dvc_gitignore.tmpl",
}
TABLE = "benchmarks/STARTS.md"


def write_settings(folder: Path, values: Mapping[str, object]) -> None:
    """Write params.yaml and the experiment's file. values: of `values` or `digits`, with `title`."""
    paths = {"params.yaml": "params.yaml.tmpl", f"experiments/{values['experiment']}.yaml": "experiment.yaml.tmpl"}
    for path, template in paths.items():
        write_bytes(folder / path, Template((TEMPLATES / template).read_text()).substitute(values).encode())


def values(images: Images, start: Start, answers: Answers, *, name: str, path: str) -> dict[str, object]:
    """For a folder of images. name: of the images, for the description. path: as the project names it."""
    why, method = start.why, start.method["name"]
    labels = f"{images.count:,} images in {images.classes} classes" if images.classes else f"{images.count:,} images"
    return {
        "experiment": method,
        "about": _about(method),
        "chosen": f'Chosen by the row "{start.row}" of {TABLE}, which says what else was tried.',
        "description": json.dumps(f"{method} on {name}"),
        "source": f"{{name: image_folder, path: {json.dumps(path)}}}  # {labels}",
        "size": start.size,
        "size_why": f"pixels; {why['size']}",
        "layout": f"{start.layout}  # {why['layout']}",
        "splits_why": why["splits"],
        "validation": images.rule.validation,
        "test": images.rule.test,
        "method": flow(start.method),
        "encoder": flow(start.encoder),
        "encoder_why": why["encoder"],
        "loss": "" if start.loss is None else f"\nloss: {flow(start.loss)}{_temperature_why(start)}\n",
        "views": f"{_guesses(answers)}views:  # {why['views']}\n{_views(start)}",
        "optimizer": start.optimizer,
        "lr": f"{start.lr:g}",
        "lr_used": f"{start.lr * start.batch / 256:g}",
        "weight_decay": f"{start.weight_decay:g}",
        "epochs": start.epochs,
        "epochs_why": why["epochs"],
        "warmup": start.warmup,
        "batch": start.batch,
        "batch_why": why["batch"],
        "train": f"""\
  precision: auto  # the fastest on this machine, measured once; fp32 or bf16 fixes it
  compile: false  # auto tries torch.compile where it may pay, which takes a minute
  knn_every: {start.knn_every}  # epochs between points of the curve""",
        "evaluation": _evaluation(start),
        "jobs": start.jobs,
        "jobs_why": why["jobs"],
    }


def digits() -> dict[str, object]:
    """For the embedded digits: fixed, so that every machine gets the same project."""
    views = """\
views:  # no mirroring and no large turns: they make other digits; no colour: there is none
  chains:
    augment:
      - {name: random_resized_crop, scale: [0.4, 1.0]}
      - {name: rotation, degrees: 15}
      - {name: color_jitter, brightness: 0.4, contrast: 0.4, saturation: 0.0, hue: 0.0}
      - {name: gaussian_blur, prob: 0.5}"""
    return {
        "experiment": "simclr",
        "about": _about("simclr"),
        "chosen": "Fixed, so that every machine gets the same project.",
        "source": "{name: digits}  # the 1,797 handwritten digits of scikit-learn, 8x8, enlarged",
        "size": 32,
        "size_why": "pixels",
        "layout": "decoded  # squares of pixels, the fastest to train on",
        "splits_why": "the digits come without splits",
        "validation": 0.1,
        "test": 0.2,
        "description": "SimCLR on the embedded digits",
        "method": "{name: simclr}",
        "encoder_why": "75 thousand parameters, small enough for a CPU",
        "encoder": "{name: resnet8, width: 16}",
        "loss": "\nloss: {name: nt_xent, temperature: 0.2}  # 0.1 to 0.5; lower pushes near neighbours apart harder\n",
        "views": views,
        "optimizer": "sgd",
        "lr": 0.2,
        "lr_used": 0.05,
        "weight_decay": "1e-4",
        "epochs": 25,
        "epochs_why": "about a minute on 2 cores",
        "warmup": 3,
        "batch": 64,
        "batch_why": "of 1,258 training images; small, so that the same time makes more updates (475)",
        "evaluation": """\
  linear:
    l2: [1e-4, 1e-3, 1e-2]  # penalties tried; a longer grid is slower
  knn:
    k: 20  # neighbours of about 126 images per class; the protocol's 200 suits larger sets
  finetune:
    per_class: [1, 4, 12, all]  # labels of each class; how well do so many do?
    draws: 2  # of the smallest budget, fewer of larger ones; few labels depend on which
    recipe: {name: crop-flip, min_scale: 0.4, flip: 0.0}  # mirrored digits are other digits
    lr: [1e-3]  # a grid is better, and costs two to three runs per rate, budget and draw
    supervised_lr: [3e-3]  # of training from scratch, as many as above
    epochs: 6  # passes over all labels; 12 unless said otherwise, and fairer to large label sets
    min_steps: 100  # that few labels get; 200 unless said otherwise""",
        "train": """\
  precision: fp32  # fixed, so that every machine does the same; `auto` takes what is fastest here
  channels_last: true
  knn_every: 5  # epochs""",
        "jobs": 1,
        "jobs_why": "one uses all cores, several share them",
    }


def _about(method: str) -> str:
    """The first sentence of the method's own documentation."""
    from cl_core.registry import load_registry

    return load_registry().get("method", method).summary


def _temperature_why(start: Start) -> str:
    has_one = start.loss is not None and "temperature" in start.loss
    return "  # temperature 0.1 to 0.5; lower pushes near neighbours apart harder" if has_one else ""


def _views(start: Start) -> str:
    if "recipe" in start.views:
        return f"  recipe: {flow(start.views['recipe'])}"
    lines = ["  chains:"]
    for argument, chain in start.views["chains"].items():
        lines += [f"    {argument}:", *(f"      - {flow(operation)}" for operation in chain)]
    return "\n".join(lines)


def _guesses(answers: Answers) -> str:
    """Comments above the views, which follow from the answers."""
    return "".join(f"# Guessed: {line}.\n" for line in answers.told())


def _evaluation(start: Start) -> str:
    settings = start.finetune
    return f"""\
  knn:
    k: {start.k}  # neighbours; a sixth of a class, as half of a class is no longer near
  finetune:
    per_class: {flow(settings["per_class"])}  # labels of each class; how well do so many do?
    draws: {settings["draws"]}  # of the smallest budget, fewer of larger ones; few labels depend on which
    recipe: {flow(settings["recipe"])}
    lr: {flow(settings["lr"])}  # a grid is better, and costs two to three runs per rate, budget and draw
    supervised_lr: {flow(settings["supervised_lr"])}  # of training from scratch, as many as above
    max_steps: {settings["max_steps"]}  # per fine-tuning run; more is fairer to large label sets and slower"""
