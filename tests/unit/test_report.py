"""The report and the results table over a synthetic `artifacts/`: what is said, grouped, escaped, refused."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file
from toy_results import curves, few_label_metrics, write_answers

from cl_core.data.files import sha256_file, write_json
from cl_core.data.shards import PixelWriter
from cl_core.data.store import Store
from cl_core.errors import DataError
from cl_core.evaluation.features import Features
from cl_core.report.collect import collect, read_curves
from cl_core.report.distillation import distillations
from cl_core.report.figures import MAX_POINTS, Axis, Level, Line, line_panel, thinned
from cl_core.report.groups import Measured, group_seeds
from cl_core.report.page import write_report
from cl_core.report.plots import curve_plots, label_plot, profiles
from cl_core.report.results import results_table, tables
from cl_core.report.retrieval import choose_queries, nearest, retrieve
from cl_core.report.verdict import verdict
from pipelines.summary import print_results

SIZE = 12
CLASSES = ["zero", "one & two", "<script>alert('class')</script>"]
STAGES = ("stage1", "stage2", "stage3")
Pictures = Callable[[int, np.random.Generator], np.ndarray]


def coloured(label: int, rng: np.random.Generator) -> np.ndarray:
    """A noisy image whose brightest channel is the label's."""
    image = rng.integers(0, 120, (SIZE, SIZE, 3), dtype=np.uint8)
    image[..., label % 3] += 110
    return image


def write_store(
    artifacts: Path,
    *,
    counts: dict[str, int],
    classes: Sequence[str] = tuple(CLASSES),
    picture: Pictures = coloured,
    size: int = SIZE,
    across: Sequence[tuple[str, str]] = (),
    quarantined: int = 0,
) -> None:
    """A dataset as ingest writes it; the keys of a split are train/0000.png and so on."""
    folder = artifacts / "dataset"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    splits: dict[str, Any] = {}
    for split, count in counts.items():
        writer = PixelWriter(folder, split, size)
        labels = [row % len(classes) if classes else -1 for row in range(count)]
        for row, label in enumerate(labels):
            writer.add(f"{split}/{row:04d}.png", label, picture(max(label, 0), rng))
        class_counts = {name: labels.count(k) for k, name in enumerate(classes)}
        splits[split] = {"count": count, "class_counts": class_counts, "shards": writer.close()}
    manifest = {
        "format": "contrast-store/1",
        "layout": "decoded",
        "image_size": size,
        "channels": 3,
        "classes": list(classes),
        "splits": splits,
        "source": {"name": "image_folder", "options": {"root": "photos"}},
        "quarantined": quarantined,
        "duplicates": {"across_splits": [list(pair) for pair in across], "count": len(across)},
        "near_duplicates": {
            "policy": "report",
            "pairs": {"train/validation": 0, "train/test": len(across), "validation/test": 0, "train/train": 0},
            "complete": True,
            "dropped": 0,
            "flat": {"count": 0, "first": []},
        },
    }
    write_json(folder / "manifest.json", manifest)
    listed = [f"train/test,{one},{other},2,0.123,no\n" for one, other in across]
    (folder / "near_duplicates.csv").write_text("kind,key,other,bits,difference,dropped\n" + "".join(listed))
    (folder / "quarantine.csv").write_text("key,reason\n")


def accuracy(top1: float, margin: float = 0.02, balanced: float | None = None) -> Any:
    """A figure of the test split as stages write it."""
    interval = [max(0.0, top1 - margin), min(1.0, top1 + margin)]
    return {"top1": top1, "top1_ci95": interval, "balanced_top1": top1 if balanced is None else balanced}


def linear_metrics(
    top1: float, *, random_init: float = 0.5, knn: float | None = None, stages: Sequence[str] = STAGES
) -> Any:
    """linear_eval/metrics.json whose best stage is the last but one."""
    accuracies = [top1 - 0.08 * abs(len(stages) - 2 - k) for k in range(len(stages))]
    profile = {
        stage: {"dim": 64 * (k + 1), "validation_top1": accuracy - 0.01, "test_top1": accuracy}
        for k, (stage, accuracy) in enumerate(zip(stages, accuracies, strict=True))
    }
    neighbours = {"protocol": "knn/instdisc-v1", "stage": stages[-1], "k": 200, "temperature": 0.1}
    neighbours |= accuracy(top1 - 0.03 if knn is None else knn)
    untrained = {stage: {"dim": 64, "validation_top1": 0.3, "test_top1": random_init - 0.1} for stage in stages}
    untrained[stages[0]]["test_top1"] = random_init
    return {
        "protocol": "linear/lbfgs-v1",
        "best_stage": stages[-2],
        "test": {**accuracy(top1), "top5": 0.99, "n": 300},
        "labels_trained": 1500,
        "labels_chosen": 300,
        "classes": {"imbalance": 1.1, "constant_top1": 0.34},
        "stages": profile,
        "knn": neighbours,
        "knn_best_stage": {**neighbours, "stage": stages[-2], "top1": top1 - 0.01},
        "baselines": {
            "random_init": {
                **accuracy(random_init),
                "knn_top1": 0.4,
                "knn_balanced_top1": 0.4,
                "best_stage": stages[0],
                "stages": untrained,
            },
            "raw_pixels": accuracy(0.55, 0.05),
        },
    }


def finetune_metrics(top1: float) -> Any:
    """finetune/metrics.json with 5 and 50 labels per class and all 1,500."""
    return few_label_metrics(curves(top1))


def write_resolved(artifacts: Path, name: str, *, method: str, seed: int, temperature: float = 0.5) -> None:
    """artifacts/resolved/<name>/pretrain.json and its entry in report.json."""
    provider = {"provider": "contrast", "version": "0.1.0", "source": "ab" * 32}
    parts = [{"kind": "method", "name": method, **provider}, {"kind": "encoder", "name": "resnet8", **provider}]
    config = {
        "seed": seed,
        "subset": 40,
        "method": {"name": method, "options": {"temperature": temperature}},
        "encoder": {"name": "resnet8", "options": {"width": 16}},
        "chains": {"augment": [{"name": "flip", "options": {}}, {"name": "color_jitter", "options": {}}]},
    }
    engine = {"source": "ef" * 32, "torch": "2.11.0", "torchvision": "0.26.0"}
    folder = artifacts / "resolved" / name
    folder.mkdir(parents=True)
    resolved = {"stage": "pretrain", "experiment": name, "config": config, "parts": parts, "engine": engine}
    write_json(folder / "pretrain.json", resolved)
    report = artifacts / "resolved" / "report.json"
    known = json.loads(report.read_text())["config"]["experiments"] if report.is_file() else {}
    experiments = known | {name: f"{method} as published, seed {seed}"}
    write_json(report, {"stage": "report", "config": {"title": "t", "experiments": experiments}, "parts": []})


def write_pretraining(artifacts: Path, name: str, *, steps: int = 40, trivial: float = 5.54) -> None:
    """Views, weights, card, curves and times of an experiment."""
    views, pretrain = (artifacts / "runs" / name / stage for stage in ("views", "pretrain"))
    views.mkdir(parents=True)
    pretrain.mkdir(parents=True)
    write_json(views / "plan.json", {"chains": {}})
    figures = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.2], "range": [0.0, 1.0], "near_constant": 0.0125}
    statistics = {"images": 40, "near_constant_below_std": 0.02, "raw": figures, "views": [figures, figures]}
    write_json(views / "statistics.json", statistics)
    Image.fromarray(np.full((40, 120, 3), 90, dtype=np.uint8)).save(views / "preview.png")
    save_file({"conv.weight": torch.zeros(4, 3)}, pretrain / "encoder.safetensors")
    training = {"steps": 400, "peak_lr": 0.06, "precision": "fp32", "channels_last": True}
    card = {"training": training, "trivial": {"loss": trivial, "effective_rank": None}}
    write_json(pretrain / "encoder.json", card)
    write_json(pretrain / "timing.json", {"seconds": 372.4, "images_per_second": 2310.7, "data_wait_share": 0.012})
    with (pretrain / "curves.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "epoch", "loss", "lr", "temperature", "knn_top1", "feature_std", "effective_rank"])
        for step in range(1, steps + 1):
            knn = 0.3 + 0.3 * step / steps if step % 10 == 0 else ""
            writer.writerow([step * 10, step // 10, 3 + 2.5 / step, 0.06, 0.5, knn, 0.9, 20 + step / 4])


def write_features(artifacts: Path, name: str, *, counts: dict[str, int], classes: int = len(CLASSES)) -> None:
    """Features in which the class is visible, and noise."""
    generator = torch.Generator().manual_seed(7)
    folder = artifacts / "runs" / name / "embed"
    folder.mkdir(parents=True)
    for split, count in counts.items():
        labels = torch.arange(count) % classes if classes else torch.full((count,), -1)
        average = torch.randn(count, 8, generator=generator)
        average[:, :classes] += 2.0 * torch.nn.functional.one_hot(labels.clamp(min=0), max(classes, 1))[:, :classes]
        stages = {"stage1": average.flip(1).contiguous(), "stage3": average}
        keys = [f"{split}/{row:04d}.png" for row in range(count)]
        Features(probe=stages, average=stages, labels=labels, keys=keys).save(folder / f"{split}.safetensors")
    write_json(folder / "embed.json", {"stages": {"stage1": 8, "stage3": 8}})


COUNTS = {"train": 60, "validation": 12, "test": 24}


def write_experiment(artifacts: Path, name: str, *, method: str, seed: int, top1: float, **linear: Any) -> None:
    """A complete experiment."""
    write_resolved(artifacts, name, method=method, seed=seed)
    write_pretraining(artifacts, name)
    write_features(artifacts, name, counts=COUNTS)
    write_metrics(artifacts, name, linear_metrics(top1, **linear), finetune_metrics(top1))
    write_answers(artifacts, name, finetune_metrics(top1), seed=seed)


def write_metrics(artifacts: Path, name: str, linear: Any, finetune: Any) -> None:
    """The two metrics files."""
    for stage, metrics in (("linear_eval", linear), ("finetune", finetune)):
        folder = artifacts / "runs" / name / stage
        folder.mkdir(parents=True)
        write_json(folder / "metrics.json", metrics)


def write_findings(artifacts: Path, name: str) -> None:
    """A trained method, and what was found in it."""
    folder = artifacts / "runs" / name
    save_file({"head.weight": torch.zeros(2, 2)}, folder / "pretrain" / "method.safetensors")
    wrong = {
        "name": "colours",
        "question": "Does it take more than <colours>?",
        "state": "warning",
        "text": "colours alone find most; set `prob: 0.8`",
        "figures": {"colours": 0.4123},
        "against": {"chance": 1 / 255},
    }
    skipped = {"name": "projection", "question": "Is h better?", "state": "skipped", "text": "there are no labels"}
    write_json(
        folder / "diagnose" / "findings.json",
        {
            "method_sha256": sha256_file(folder / "pretrain" / "method.safetensors"),
            "images": {"fit": 2000, "held_out": 1000},
            "findings": [wrong, skipped],
        },
    )


EXPERIMENTS = ["simclr", "simclr-seed1", "byol", "unlabelled", "jigsaw"]


def write_project(artifacts: Path) -> Path:
    """Two seeds of simclr, a byol, one that was trained but not judged, and a jigsaw that was never run."""
    write_store(artifacts, counts=COUNTS, across=[("train/0001.png", "test/0002.png")], quarantined=3)
    write_experiment(artifacts, "simclr", method="simclr", seed=0, top1=0.7)
    write_experiment(artifacts, "simclr-seed1", method="simclr", seed=1, top1=0.72)
    write_experiment(artifacts, "byol", method="byol", seed=0, top1=0.51)
    write_resolved(artifacts, "unlabelled", method="rotation", seed=0)
    write_pretraining(artifacts, "unlabelled")
    write_features(artifacts, "unlabelled", counts=COUNTS)
    skipped = {"skipped": "the dataset has no labels"}
    write_metrics(artifacts, "unlabelled", skipped, skipped)
    write_findings(artifacts, "simclr-seed1")
    return artifacts


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("project") / "artifacts")


@pytest.fixture(scope="module")
def page(project: Path) -> str:
    out = write_report(
        project, project / "report" / "index.html", experiments=EXPERIMENTS, title="Digits & <b>more</b>"
    )
    return out.read_text()


def text_of(page: str) -> str:
    """What a reader sees: no style sheet, no tags, entities resolved, single spaces."""
    body = re.sub(r"<style.*?</style>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", body)))


def test_headline_says_what_was_done_and_which_was_best(page: str) -> None:
    text = text_of(page)
    assert "4 of 5 experiments on image_folder (96 images in 3 classes): encoders pretrained and judged" in text
    assert (
        "Highest in the linear probe: simclr with 71.0 %. It gained 21.0 points by linear probe (71.0 against 50.0 "
        "untrained) and 28.0 by kNN (68.0 against 40.0 untrained)." in text
    )


def lead_of(artifacts: Path, names: list[str]) -> str:
    page = write_report(artifacts, artifacts / "report.html", experiments=names).read_text()
    return text_of(page[page.index('<p class="lead">') : page.index('<dl class="facts">')]).strip()


def test_labels_saved_lead_and_what_was_gained_or_lost_follows(tmp_path: Path) -> None:
    write_store(tmp_path, counts=COUNTS)
    write_experiment(tmp_path, "hands", method="simclr", seed=0, top1=0.495, knn=0.28)
    lead = lead_of(tmp_path, ["hands"])
    assert lead.startswith("With 15 labels hands reaches ")
    assert (
        "hands lost 12.0 points by kNN (28.0 against 40.0 untrained); no difference shown by linear probe (49.5 "
        "against 50.0 untrained); raw pixels do 5.5 points better."
    ) in lead
    write_experiment(tmp_path, "good", method="byol", seed=0, top1=0.7)
    page = write_report(tmp_path, tmp_path / "report.html", experiments=["hands", "good"]).read_text()
    lead = lead_of(tmp_path, ["hands", "good"])
    assert lead.startswith("With 15 labels good reaches ")
    assert "Highest in the linear probe: good with 70.0 %. It gained 20.0" in lead
    assert "Worse than the untrained encoder: hands." in text_of(page)
    assert '<span class="state worse"' in page


def test_dataset_warnings_name_the_leak_and_the_quarantine(page: str) -> None:
    text = text_of(page)
    assert "1 pair of near duplicates lies in different splits, 1 of the images an exact copy" in text
    assert "3 files were left out as unreadable" in text


def test_near_duplicates_are_counted_and_shown_as_pairs_with_their_splits(page: str) -> None:
    section = re.search(r'<section id="leakage".*?</section>', page, flags=re.DOTALL).group()
    assert "<dt>train and test</dt><dd>1</dd>" in section
    described = re.findall(r'alt="([^"]*)"', section)
    assert [text.partition(",")[0] for text in described] == ["train image train/0001.png", "test image test/0002.png"]
    assert "pixels differ by 0.12" in text_of(section)
    assert "second look" not in section


def test_a_second_look_names_what_an_encoder_confuses_or_why_it_can_tell_nothing(tmp_path: Path) -> None:
    write_store(tmp_path, counts=COUNTS)
    for name in ("seeing", "blind"):
        write_experiment(tmp_path, name, method=name, seed=0, top1=0.7)
    found = {"count": 40, "first": [["train/0003.png", "test/0001.png", 0.9912]]}
    head = {"stage": "stage3", "min_cosine": 0.98}
    write_json(tmp_path / "runs/seeing/embed/look_alikes.json", {**head, "pairs": {"train/test": found}})
    skipped = "an image of test has on average more than one in train above 0.98"
    write_json(tmp_path / "runs/blind/embed/look_alikes.json", {**head, "skipped": skipped})
    page = write_report(tmp_path, tmp_path / "report.html", experiments=["seeing", "blind"]).read_text()
    section = text_of(re.search(r'<section id="leakage".*?</section>', page, flags=re.DOTALL).group())
    assert "seeing pairs with a cosine above 0.98: train and test 40." in section
    assert "cosine 0.991" in section
    assert "blind cannot tell copies from other images: an image of test has" in section


def test_a_dataset_from_before_near_duplicates_were_looked_for_says_how_to_catch_up(tmp_path: Path) -> None:
    write_store(tmp_path, counts=COUNTS)
    manifest = json.loads((tmp_path / "dataset" / "manifest.json").read_text())
    del manifest["near_duplicates"]
    write_json(tmp_path / "dataset" / "manifest.json", manifest)
    with pytest.raises(DataError, match="written before near duplicates were looked for; run `contrast run`"):
        write_report(tmp_path, tmp_path / "report.html", experiments=[])


def test_seeds_share_a_row_with_mean_and_standard_deviation(page: str) -> None:
    row = next(row for row in rows_of(page, "results") if row[0].startswith("simclr"))
    assert row[0] == "simclr 2 seeds (0, 1) simclr, resnet8 (width=16)"
    assert row[2:] == [
        "71.0 \u00b1 1.4",
        "stage2 kNN there 70.0",
        "68.0 \u00b1 1.4",
    ]


def test_single_run_shows_its_interval_and_each_seed_is_listed_too(page: str) -> None:
    rows = {row[0]: row for row in rows_of(page, "results")}
    assert rows["byol byol, resnet8 (width=16)"][2] == "51.0 49.0 to 53.0"
    assert rows["simclr-seed1 seed 1 simclr, resnet8 (width=16)"][2] == "72.0 70.0 to 74.0"


def test_yardsticks_that_all_experiments_share_stand_once(page: str) -> None:
    rows = rows_of(page, "results")
    encoder = "resnet8 (width=16)"
    none = "\u2013"
    assert [row for row in rows if row[0].startswith("random init")] == [
        [f"random init {encoder}", encoder, "50.0", "", "40.0"]
    ]
    assert [row for row in rows if row[0].startswith("raw pixels")] == [["raw pixels", "", "55.0", "", none]]
    few = rows_of(page, "labels")
    assert [[cell.split()[0] for cell in row[2:]] for row in few if row[0].startswith("random init")] == [
        ["38.0", "43.0", "50.5"]
    ]
    assert [row[:2] for row in few if row[0].startswith("supervised")] == [
        [f"supervised, same labels {encoder}", "from scratch"]
    ]


def rows_of(page: str, css_class: str) -> list[list[str]]:
    """Texts of the body cells of all tables of a class."""
    tables = re.findall(rf'<table class="{css_class}">(.*?)</table>', page, flags=re.DOTALL)
    bodies = [body for table in tables for body in re.findall(r"<tbody.*?</tbody>", table, flags=re.DOTALL)]
    rows = [row for body in bodies for row in re.findall(r"<tr\b.*?</tr>", body, flags=re.DOTALL)]
    return [[text_of(cell).strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", row, flags=re.DOTALL)] for row in rows]


def test_skipped_and_missing_experiments_are_named_with_reason_and_command(page: str) -> None:
    text = text_of(page)
    assert "unlabelled : linear_eval skipped: the dataset has no labels" in text
    assert "unlabelled : finetune skipped: the dataset has no labels" in text
    assert (
        "jigsaw : no output of resolve, views, pretrain, embed, linear_eval, finetune; run contrast run jigsaw" in text
    )


def test_verdicts_of_diagnoses_are_told_with_their_figures(page: str) -> None:
    section = text_of(page[page.index('<section id="diagnoses"') : page.index('<section id="provenance"')])
    assert "simclr-seed1 judged on 1,000 images" in section
    assert "warning Does it take more than <colours>? Colours alone find most; set prob: 0.8 . colours 0.412" in section
    assert "chance 0.00392" in section
    assert "skipped Is h better? There are no labels." in section


def test_without_diagnoses_there_is_no_such_section(project: Path, tmp_path: Path) -> None:
    artifacts = Path(shutil.copytree(project, tmp_path / "artifacts"))
    method = artifacts / "runs" / "simclr-seed1" / "pretrain" / "method.safetensors"
    save_file({"head.weight": torch.ones(2, 2)}, method)  # trained again: the findings are of another network
    page = write_report(artifacts, tmp_path / "index.html", experiments=EXPERIMENTS).read_text()
    assert "diagnoses" not in page


def test_text_of_users_is_never_markup(page: str) -> None:
    assert "<script" not in page
    assert "<b>more</b>" not in page
    assert "Digits &amp; &lt;b&gt;more&lt;/b&gt;" in page
    assert "&lt;script&gt;alert(&#39;class&#39;)&lt;/script&gt;" in page


def test_experiment_called_like_markup_is_escaped_in_text_figures_and_attributes(tmp_path: Path) -> None:
    name = 'a"><i>$x$&'
    write_store(tmp_path, counts=COUNTS)
    write_experiment(tmp_path, name, method="<u>", seed=0, top1=0.7, stages=["<em>", "$\\alpha$"])
    page = write_report(tmp_path, tmp_path / "index.html", experiments=[name]).read_text()
    assert "<i>" not in page
    assert "<u>" not in page
    assert "<em>" not in page
    assert "a&#34;&gt;&lt;i&gt;$x$&amp;" in page
    assert ">$\\alpha$</text>" in page, "matplotlib must not typeset a dollar sign"


def test_page_asks_nothing_of_the_network(page: str) -> None:
    targets = re.findall(r"(?:src|href|action|data|poster|srcset)\s*=\s*[\"']?([^\"'\s>]*)", page)
    targets += re.findall(r"url\(([^)]*)\)", page)
    assert len(targets) > 20
    assert [target for target in targets if not target.startswith(("data:", "#"))] == []
    assert "@import" not in page
    assert re.findall(r"https?://[^\s\"<]*", page) == []
    assert "default-src 'none'" in page


def test_ids_are_unique_and_every_reference_has_its_target(page: str) -> None:
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    references = re.findall(r'href="#([^"]*)"', page) + re.findall(r"url\(#([^)]*)\)", page)
    references += re.findall(r'aria-labelledby="([^"]*)"', page)
    assert set(references) <= set(ids)


def test_every_picture_is_described(page: str) -> None:
    pictures = re.findall(r"<img [^>]*>", page) + re.findall(r'<svg class="plot"[^>]*>', page)
    assert len(pictures) > 60
    assert all(re.search(r'(alt|aria-label)="[^"]+"', picture) for picture in pictures)
    assert 'aria-label="Loss of byol: from 5.5 to 3.06; constant predictor: 5.54"' in page


def test_profile_table_holds_every_stage_of_trained_and_untrained_encoders(page: str) -> None:
    table = re.search(r"<caption>Test top-1 in percent</caption>.*?</table>", page, flags=re.DOTALL).group()
    rows = [text_of(row).split() for row in re.findall(r"<tr>.*?</tr>", table, flags=re.DOTALL)]
    assert rows == [
        ["experiment", "stage1", "stage2", "stage3"],
        ["simclr", "63.0", "71.0", "63.0"],
        ["byol", "43.0", "51.0", "43.0"],
        ["random", "init,", "resnet8", "(width=16)", "50.0", "40.0", "40.0"],
    ]


def test_views_are_shown_with_their_operations_and_statistics(page: str) -> None:
    text = text_of(page)
    assert "augment: flip, color_jitter" in text
    assert "view 1 0.40, 0.50, 0.60 0.20, 0.20, 0.20 0.00, 1.00 1.2 %" in text
    assert page.count('alt="Training images and their views') == 3, "one preview per group, not per seed"


def test_neighbours_are_marked_by_symbol_and_counted(page: str) -> None:
    text = text_of(page)
    same, shown = map(int, re.search(r"(\d+) of (\d+) neighbours share the query's class", text).groups())
    assert shown == 64
    assert 0 < same < 64
    first = re.search(r'<table class="retrieval">.*?</table>', page, flags=re.DOTALL).group()
    assert first.count("\u2713") == same == first.count('class="frame same"')
    assert first.count("\u2717") == 64 - same == first.count('class="frame other"')


def test_provenance_holds_versions_hashes_time_and_the_whole_configuration(page: str, project: Path) -> None:
    text = text_of(page)
    weights = project / "runs" / "byol" / "pretrain" / "encoder.safetensors"
    assert f"{weights.stat().st_size} bytes, sha256 {sha256_file(weights)}" in text
    assert sha256_file(project / "dataset" / "manifest.json") in text
    assert "6 min 12 s, 2,311 images/s, 1.2 % of it waiting for data" in text
    assert "torchvision 0.26.0" in text
    assert "encoder resnet8 contrast 0.1.0 abababababab" in text
    assert '"temperature": 0.5' in text
    assert "byol as published, seed 0" in text


def test_same_inputs_give_the_same_bytes_and_times_can_be_left_out(project: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(project, copy)
    for timing in copy.glob("runs/*/pretrain/timing.json"):
        write_json(timing, {"seconds": 99999.0, "images_per_second": 1.0, "data_wait_share": 0.9})
    names = ["simclr", "byol"]
    first = write_report(project, tmp_path / "a.html", experiments=names, timing=False).read_bytes()
    second = write_report(copy, tmp_path / "b.html", experiments=names, timing=False).read_bytes()
    assert first == second
    assert b"waiting for data" not in first


def test_results_table_has_one_row_per_group_and_says_what_is_missing(project: Path) -> None:
    rows = results_table(project, EXPERIMENTS)
    assert [row["experiment"] for row in rows] == ["simclr, 2 seeds (0, 1)", "byol", "unlabelled", "jigsaw"]
    assert len({tuple(row) for row in rows}) == 1
    assert rows[0]["linear top-1 %"] == "71.0 \u00b1 1.4"
    assert rows[1]["linear top-1 %"] == "51.0 (49.0 to 53.0)"
    assert rows[1]["fine-tuned, 50 per class"] == "41.0 (38.0 to 44.0)"
    assert rows[1]["best of both, 50 per class"] == rows[1]["frozen probe, 50 per class"] == "46.0 (43.0 to 49.0)"
    assert (
        rows[1]["protocols"]
        == "linear/lbfgs-v1, knn/instdisc-v1(k=200), T=0.1, finetune/lpft-v2, chosen on the same labels"
    )
    assert (
        rows[2]["verdict"]
        == "linear_eval skipped: the dataset has no labels; finetune skipped: the dataset has no labels"
    )
    assert rows[3]["verdict"].endswith("run `contrast run jigsaw`")


def test_terminal_summary_puts_experiments_beside_their_yardsticks_in_80_columns(project: Path) -> None:
    terminal = io.StringIO()
    print_results(project, EXPERIMENTS, Console(file=terminal, width=80))
    lines = [line.strip() for line in terminal.getvalue().splitlines()]
    cells = [re.split(r"\s{2,}", line) for line in lines]
    assert ["byol", "51.0 (49.0 to 53.0)", "stage2", "48.0"] in cells
    assert ["random init", "50.0", "40.0"] in cells
    assert ["byol", "frozen probe", "41.0", "46.0", "53.5"] in cells
    assert ["fine-tuned", "31.0", "41.0", "56.0"] in cells
    assert ["best of both", "41.0", "46.0", "56.0"] in cells
    assert ["supervised", "from scratch", "36.0", "48.0", "66.0"] in cells
    assert not any(line.startswith("balanced") for line in lines)
    assert "unlabelled: linear_eval skipped: the dataset has no labels" in lines
    last = next(number for number, line in enumerate(lines) if line.startswith("5 per class: 15 labels; "))
    first = next(number for number, line in enumerate(lines) if line.startswith("top-1 accuracy"))
    assert lines[0].startswith(
        "simclr: gained 21.0 points by linear probe (71.0 against 50.0 untrained) and 28.0 by kNN"
    )
    sentence = "byol: gained 8.0 points by kNN (48.0 against 40.0 untrained); no difference shown by linear probe (51.0"
    assert lines[1].startswith(sentence)
    gains = [line for line in lines if " gained " in line and not line.startswith(("simclr: ", "byol: "))]
    assert gains[0].startswith(
        "simclr gained 21.0 points by linear probe (71.0 against 50.0 untrained) and 28.0 by kNN"
    )
    assert gains[1].startswith("byol gained 8.0 points by kNN (48.0 against 40.0 untrained); no difference shown by")
    assert lines.index(gains[0]) > first, "the verdict is what a run ends with"
    assert max(len(line) for line in lines[first:last] if not line.startswith("finetune/")) <= 80
    assert "\u2026" not in terminal.getvalue()


@pytest.mark.parametrize(
    ("top1", "knn", "state", "sentence"),
    [
        (
            0.70,
            0.67,
            "better",
            "gained 20.0 points by linear probe (70.0 against 50.0 untrained) and 27.0 by kNN (67.0 ",
        ),
        (
            0.70,
            0.39,
            "better",
            "gained 20.0 points by linear probe (70.0 against 50.0 untrained); no difference shown by ",
        ),
        (
            0.70,
            0.28,
            "mixed",
            "lost 12.0 points by kNN (28.0 against 40.0 untrained), but gained 20.0 by linear probe (",
        ),
        (
            0.51,
            0.41,
            "undecided",
            "shows no difference from random init: 51.0 against 50.0 untrained by linear probe, 41",
        ),
        (
            0.51,
            0.48,
            "undecided",
            "gained 8.0 points by kNN (48.0 against 40.0 untrained); no difference shown by linear ",
        ),
        (
            0.49,
            0.28,
            "worse",
            "lost 12.0 points by kNN (28.0 against 40.0 untrained); no difference shown by linear probe",
        ),
        (
            0.40,
            0.39,
            "worse",
            "lost 10.0 points by linear probe (40.0 against 50.0 untrained); no difference shown by kNN",
        ),
        (
            0.40,
            0.48,
            "mixed",
            "lost 10.0 points by linear probe (40.0 against 50.0 untrained), but gained 8.0 by kNN (48",
        ),
        (
            0.40,
            0.28,
            "worse",
            "lost 10.0 points by linear probe (40.0 against 50.0 untrained) and 12.0 by kNN (28.0 again",
        ),
    ],
)
def test_verdict_is_clear_only_outside_the_intervals_and_a_loss_leads(
    tmp_path: Path, top1: float, knn: float, state: str, sentence: str
) -> None:
    write_metrics(tmp_path, "x", linear_metrics(top1, knn=knn), {"skipped": "no"})
    (group,) = group_seeds(collect(tmp_path, ["x"]))
    found = verdict(group)
    assert found.state == state
    assert found.text.startswith(sentence)
    assert ("raw pixels do" in found.text) == (top1 < 0.55)


def test_one_seed_inside_its_interval_leaves_the_group_undecided(tmp_path: Path) -> None:
    for seed, top1 in ((0, 0.7), (1, 0.515)):
        write_resolved(tmp_path, f"x-{seed}", method="simclr", seed=seed)
        write_metrics(tmp_path, f"x-{seed}", linear_metrics(top1), {"skipped": "no"})
    (group,) = group_seeds(collect(tmp_path, ["x-0", "x-1"]))
    assert verdict(group).state == "undecided"


def test_a_loss_of_several_seeds_is_one_although_a_lucky_seed_reaches_the_untrained_value(tmp_path: Path) -> None:
    for seed, top1 in ((0, 0.38), (1, 0.41), (2, 0.49)):
        write_resolved(tmp_path, f"x-{seed}", method="simclr", seed=seed)
        write_metrics(tmp_path, f"x-{seed}", linear_metrics(top1, knn=0.4), {"skipped": "no"})
    (group,) = group_seeds(collect(tmp_path, ["x-0", "x-1", "x-2"]))
    assert verdict(group).state == "worse"


def unbalanced_metrics() -> Any:
    """Of a set whose largest class is 62 % of the test images."""
    metrics = linear_metrics(0.7)
    metrics["test"]["balanced_top1"] = 0.61
    metrics["classes"] = {"imbalance": 3.3, "constant_top1": 0.62}
    metrics["knn"]["balanced_top1"] = 0.52
    metrics["baselines"]["random_init"] |= {"balanced_top1": 0.33, "knn_balanced_top1": 0.31}
    return metrics


def test_balanced_accuracy_stands_beside_accuracy_where_classes_are_unbalanced(tmp_path: Path) -> None:
    finetune = finetune_metrics(0.6)
    finetune["budgets"]["50"]["competitors"]["random_init"]["balanced_top1"] = 0.25
    write_metrics(tmp_path, "x", unbalanced_metrics(), finetune)
    write_pretraining(tmp_path, "x")
    terminal = io.StringIO()
    print_results(tmp_path, ["x"], Console(file=terminal, width=80))
    cells = [re.split(r"\s{2,}", line.strip()) for line in terminal.getvalue().splitlines()]
    assert ["balanced", "61.0", "52.0"] in cells
    assert ["balanced", "33.0", "31.0"] in cells
    assert "a constant answer gets 62.0 %" in terminal.getvalue()
    (row,) = results_table(tmp_path, ["x"])
    assert (row["linear balanced %"], row["kNN balanced %"]) == ("61.0", "52.0")
    write_store(tmp_path, counts=COUNTS)
    page = write_report(tmp_path, tmp_path / "report.html", experiments=["x"]).read_text()
    assert rows_of(page, "results")[0][2] == "70.0 68.0 to 72.0 balanced 61.0"
    assert "Classes are unbalanced: a constant answer gets 62.0 %" in text_of(page)
    random_init = next(row for row in rows_of(page, "labels") if row[0].startswith("random init"))
    assert random_init[3].endswith("balanced 25.0")


def test_balanced_classes_keep_their_narrow_tables(page: str, project: Path) -> None:
    assert "balanced" not in text_of(page).replace("Balanced accuracy", "").partition("labels top-1 balanced F1")[0]
    assert not any("balanced" in column for row in results_table(project, EXPERIMENTS) for column in row)


def test_the_frozen_encoder_stands_first_among_those_who_compete_on_few_labels(page: str) -> None:
    rows = rows_of(page, "labels")
    byol = [row for row in rows if row[0] == "byol"]
    assert [row[1] for row in byol] == ["frozen probe", "fine-tuned", "best of both"]
    assert [cell.split()[0] for cell in byol[0][2:]] == ["41.0", "46.0", "53.5"]
    yardsticks = [
        (re.split(r"[ ,]", row[0])[0], row[1]) for row in rows if row[0].startswith(("random", "raw", "supervised"))
    ]
    assert yardsticks == [("random", "frozen probe"), ("raw", "probe"), ("supervised", "from scratch")]


def write_remarks(artifacts: Path, name: str, *texts: str) -> None:
    path = artifacts / "runs" / name / "pretrain" / "encoder.json"
    card = json.loads(path.read_text())
    card["training"]["remarks"] = [{"step": 200 + k, "text": text} for k, text in enumerate(texts)]
    write_json(path, card)


def test_remarks_of_a_run_stand_beside_its_verdict_and_the_last_one_on_the_terminal(tmp_path: Path) -> None:
    write_store(tmp_path, counts=COUNTS)
    write_experiment(tmp_path, "x", method="simclr", seed=0, top1=0.495, knn=0.28)
    write_remarks(tmp_path, "x", "half <of> the updates have brought nothing", "training has brought nothing")
    page = write_report(tmp_path, tmp_path / "report.html", experiments=["x"]).read_text()
    summary = text_of(page[page.index('id="summary"') : page.index('id="results"')])
    assert "Said while x trained: At step 200 of 400: half <of> the updates have brought nothing." in summary
    terminal = io.StringIO()
    print_results(tmp_path, ["x"], Console(file=terminal, width=80))
    assert "x: at step 201 of 400: training has brought nothing" in terminal.getvalue().splitlines()


def test_online_curves_begin_with_the_untrained_encoder_and_a_line_across(tmp_path: Path) -> None:
    write_pretraining(tmp_path, "x")
    path = tmp_path / "runs" / "x" / "pretrain" / "curves.csv"
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, "0,0,,,,0.27,,", *lines]) + "\n")
    groups = group_seeds(collect(tmp_path, ["x"]))
    (main, _), *_ = curve_plots(groups).values()
    knn = next(plot for plot in main if plot.title.startswith("Online kNN"))
    assert "from 27.0 % to 60.0 %; untrained: 27.0 %" in knn.svg
    assert ">untrained<" in knn.svg
    assert all("untrained" not in plot.svg for plot in main if plot is not knn)


def test_tables_never_mix_protocol_ids(tmp_path: Path) -> None:
    other = linear_metrics(0.6)
    other["knn"]["k"] = 50
    for name, metrics in (("a", linear_metrics(0.7)), ("b", other), ("c", linear_metrics(0.5))):
        write_metrics(tmp_path, name, metrics, finetune_metrics(0.6))
    found = tables(group_seeds(collect(tmp_path, ["a", "b", "c"])))
    assert [[group.label for group in table.groups] for table in found] == [["a", "c"], ["b"]]
    assert found[1].protocols == (
        "linear/lbfgs-v1",
        "knn/instdisc-v1(k=50), T=0.1",
        "finetune/lpft-v2, chosen on the same labels",
    )


def test_experiment_without_fine_tuning_joins_the_table_of_its_other_protocols(tmp_path: Path) -> None:
    write_metrics(tmp_path, "a", linear_metrics(0.7), {"skipped": "too few labels"})
    write_metrics(tmp_path, "b", linear_metrics(0.6), finetune_metrics(0.6))
    (table,) = tables(group_seeds(collect(tmp_path, ["a", "b"])))
    assert table.protocols[2] == "finetune/lpft-v2, chosen on the same labels"
    assert table.rows[0].uses == ()


def test_experiments_that_differ_in_more_than_the_seed_are_not_averaged(tmp_path: Path) -> None:
    for name, seed, temperature in (("run-s0", 0, 0.5), ("run-s1", 1, 0.5), ("cold", 2, 0.1)):
        write_resolved(tmp_path, name, method="simclr", seed=seed, temperature=temperature)
        write_metrics(tmp_path, name, linear_metrics(0.6 + seed / 100), finetune_metrics(0.6))
    groups = group_seeds(collect(tmp_path, ["run-s0", "cold", "run-s1"]))
    assert [(group.label, group.seeds) for group in groups] == [("run", "2 seeds (0, 1)"), ("cold", "")]


def test_groups_that_begin_alike_keep_their_full_names(tmp_path: Path) -> None:
    for name, seed, temperature in (("a0", 0, 0.5), ("a1", 1, 0.5), ("a2", 0, 0.1), ("a3", 1, 0.1)):
        write_resolved(tmp_path, name, method="simclr", seed=seed, temperature=temperature)
        write_metrics(tmp_path, name, linear_metrics(0.6), finetune_metrics(0.6))
    groups = group_seeds(collect(tmp_path, ["a0", "a1", "a2", "a3"]))
    assert [group.label for group in groups] == ["a0, a1", "a2, a3"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "linear_eval/metrics.json",
            '{"protocol": ',
            r"linear_eval/metrics\.json is damaged: Expecting value.*dvc repro linear_eval@byol",
        ),
        (
            "linear_eval/metrics.json",
            '{"protocol": "p"}',
            r"damaged: labels_trained: Field required; .*linear_eval@byol",
        ),
        ("finetune/metrics.json", "[]", r"finetune/metrics\.json is damaged: the file: .*dvc repro finetune@byol"),
        ("pretrain/curves.csv", "step,loss\n1,0.5\n2\n", r"curves\.csv is damaged: .*shorter.*dvc repro pretrain@byol"),
        ("pretrain/curves.csv", "step,loss\n1,much\n", r"curves\.csv is damaged: could not convert.*'much'"),
        ("pretrain/encoder.json", "[1]", r"encoder\.json is damaged: holds a list where an object belongs"),
    ],
)
def test_damaged_file_is_named_with_the_command_that_makes_it_again(
    tmp_path: Path, file: str, content: str, message: str
) -> None:
    write_pretraining(tmp_path, "byol")
    path = tmp_path / "runs" / "byol" / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        results_table(tmp_path, ["byol"])


def test_report_without_a_dataset_says_how_to_ingest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="contrast run"):
        write_report(tmp_path, tmp_path / "index.html", experiments=["a"])
    assert not (tmp_path / "index.html").exists()


def test_unlabelled_images_are_retrieved_without_a_verdict_on_them(tmp_path: Path) -> None:
    write_store(tmp_path, counts=COUNTS, classes=())
    write_resolved(tmp_path, "a", method="simclr", seed=0)
    write_pretraining(tmp_path, "a")
    write_features(tmp_path, "a", counts=COUNTS, classes=0)
    write_metrics(tmp_path, "a", {"skipped": "no labels"}, {"skipped": "no labels"})
    page = write_report(tmp_path, tmp_path / "index.html", experiments=["a"]).read_text()
    assert "have no labels of two classes" in page
    assert page.count('<table class="retrieval">') == 1
    assert "neighbours share" not in page
    assert "\u2713" not in page.partition("<main>")[2].replace("A tick", "")
    assert "No experiment has been evaluated" in page


def test_without_labels_the_verdict_says_so_and_gives_what_was_measured_instead(tmp_path: Path) -> None:
    write_store(tmp_path, counts=COUNTS, classes=())
    write_resolved(tmp_path, "a", method="simclr", seed=0)
    write_pretraining(tmp_path, "a")
    path = tmp_path / "runs" / "a" / "pretrain" / "encoder.json"
    card = json.loads(path.read_text())
    card["training"]["final"] = {"self_match": 0.067, "untrained": {"self_match": 0.086}}
    write_json(path, card)
    write_metrics(tmp_path, "a", {"skipped": "no labels"}, {"skipped": "no labels"})
    terminal = io.StringIO()
    print_results(tmp_path, ["a"], Console(file=terminal, width=100))
    said = "a cannot be judged without labels; self-match is 6.7 against 8.6 untrained."
    assert said in terminal.getvalue().splitlines()


def test_encoder_of_an_older_dataset_and_classes_without_training_images_are_pointed_out(tmp_path: Path) -> None:
    write_store(tmp_path, counts=COUNTS)
    write_pretraining(tmp_path, "a")
    write_json(tmp_path / "runs" / "a" / "pretrain" / "encoder.json", {"dataset": "0" * 64})
    write_metrics(
        tmp_path, "a", linear_metrics(0.6) | {"classes_without_training_images": {"rare": 3}}, {"skipped": "x"}
    )
    text = text_of(write_report(tmp_path, tmp_path / "index.html", experiments=["a"]).read_text())
    assert "a : pretrained on another state of the dataset; run contrast run a to catch up" in text
    assert "a : no training image of rare, so 3 test images can only be errors" in text


def test_budgets_that_select_the_same_labels_are_one_point_and_named(tmp_path: Path) -> None:
    metrics = finetune_metrics(0.6)
    metrics["budgets"]["50"] = metrics["budgets"]["5"] | {"same_as": "5"}
    write_metrics(tmp_path, "a", linear_metrics(0.6), metrics)
    (group,) = group_seeds(collect(tmp_path, ["a"]))
    (table,) = tables([group])
    assert [(budget.title, budget.labels) for budget in table.budgets] == [
        ("5 per class", "15 labels"),
        ("50 per class", "15 labels, as at 5 per class"),
        ("all", "1,500 labels"),
    ]
    assert ">5, 50</text>" in label_plot(group, (0.0, 1.0)).svg or ">5, 50<" in label_plot(group, (0.0, 1.0)).svg


def test_several_draws_are_a_mean_with_deviation_and_labels_to_choose_by_are_counted(tmp_path: Path) -> None:
    spread = {"frozen": {"5": [0.5, 0.6, 0.7], "all": 0.9}, "fine_tuned": {"5": [0.5, 0.5, 0.5], "all": 0.92}}
    metrics = few_label_metrics(spread, counts={"5": 15, "all": 1500}, chosen=120)
    write_store(tmp_path, counts=COUNTS)
    write_pretraining(tmp_path, "x")
    write_metrics(tmp_path, "x", linear_metrics(0.7), metrics)
    page = write_report(tmp_path, tmp_path / "report.html", experiments=["x"]).read_text()
    assert rows_of(page, "labels")[0] == ["x", "frozen probe", "60.0 \u00b1 10.0", "90.0 87.0 to 93.0"]
    assert "5 per class 15 labels, 120 to choose" in text_of(page)
    assert "finetune/lpft-v2, chosen on validation" in text_of(page)
    assert rows_of(page, "further")[0] == [
        "x",
        "frozen probe",
        "5 per class",
        "60.0",
        "60.0",
        "59.0",
        "5.0",
        "0.400",
        "0.700",
    ]


def test_choices_made_on_other_labels_are_another_table(tmp_path: Path) -> None:
    for name, chosen in (("a", 0), ("b", 120)):
        metrics = few_label_metrics(curves(0.6), chosen=chosen)
        write_metrics(tmp_path, name, linear_metrics(0.6), metrics)
    assert len(tables(group_seeds(collect(tmp_path, ["a", "b"])))) == 2


def distil_metrics(top1: float) -> Any:
    """distil/metrics.json of a student."""
    figures = {
        name: {"top1": value, "top1_ci95": [value - 0.02, value + 0.02]}
        for name, value in (("student", top1), ("teacher", 0.55), ("supervised_same_labels", 0.42))
    }
    return {"protocol": "distil/simclr-v2", "fraction": 0.1, "n_labels": 150, "n_images": 1500, **figures}


def write_distilled(artifacts: Path, name: str, top1: float, *, temperature: float = 1.0) -> None:
    """Settings and result of a distillation of an experiment that is there, and its name in report.json."""
    student = {"name": "resnet8", "options": {"width": 8}}
    config = {"distil": {"temperature": temperature}, "student": student}
    write_json(artifacts / "resolved" / name / "distil.json", {"config": config, "parts": []})
    write_json(artifacts / "runs" / name / "distil" / "metrics.json", distil_metrics(top1))
    report = artifacts / "resolved" / "report.json"
    content = json.loads(report.read_text())
    content["config"]["distil"] = [*content["config"].get("distil", []), name]
    write_json(report, content)


def test_a_student_stands_beside_its_teacher_and_supervised_training_with_its_interval(tmp_path: Path) -> None:
    write_store(tmp_path, counts=COUNTS)
    write_experiment(tmp_path, "v1", method="simclr", seed=0, top1=0.7)
    write_experiment(tmp_path, "v2", method="simclr2", seed=0, top1=0.72)
    write_distilled(tmp_path, "v2", 0.6)
    page = write_report(tmp_path, tmp_path / "index.html", experiments=["v1", "v2"]).read_text()
    labels = "10 % 150 labels, 1,500 images"
    figures = ["60.0 58.0 to 62.0", "55.0 53.0 to 57.0", "42.0 40.0 to 44.0"]
    assert rows_of(page, "distillation") == [["v2 student resnet8 (width=8)", labels, *figures]]
    assert "Protocols: distil/simclr-v2" in page
    said = "distilled on 1,500 images from 10 % of the labels: student 60.0 (58.0 to 62.0), teacher 55.0, supervised"
    terminal = io.StringIO()
    print_results(tmp_path, ["v1", "v2"], Console(file=terminal, width=80))
    assert f"v2: {said} on the same labels 42.0" in terminal.getvalue()
    first, second = results_table(tmp_path, ["v1", "v2"])
    assert "distilled" not in first["verdict"]
    assert said in second["verdict"]


def test_students_of_several_seeds_are_averaged_where_they_were_taught_alike(tmp_path: Path) -> None:
    for seed in range(3):
        write_resolved(tmp_path, f"x-{seed}", method="simclr", seed=seed)
        write_metrics(tmp_path, f"x-{seed}", linear_metrics(0.6), finetune_metrics(0.6))
    for seed, temperature in ((0, 1.0), (1, 1.0), (2, 4.0)):
        write_distilled(tmp_path, f"x-{seed}", 0.5 + seed / 100, temperature=temperature)
    groups = group_seeds(collect(tmp_path, ["x-0", "x-1", "x-2"]))
    assert [group.label for group in groups] == ["x"]
    found = [(one.group.label, str(one.student)) for one in distillations(groups)]
    assert found == [("x-0, x-1", "50.5 \u00b1 0.7"), ("x-2", "52.0 (50.0 to 54.0)")]


def test_a_distillation_that_was_taken_off_the_list_is_no_result_and_one_that_has_not_run_is_missing(
    tmp_path: Path,
) -> None:
    write_experiment(tmp_path, "a", method="simclr", seed=0, top1=0.7)
    write_distilled(tmp_path, "a", 0.6)
    metrics = tmp_path / "runs" / "a" / "distil" / "metrics.json"
    metrics.rename(tmp_path / "kept.json")
    assert collect(tmp_path, ["a"])[0].missing == ("distil",)
    write_json(metrics, {"skipped": "the dataset has no labels"})
    assert collect(tmp_path, ["a"])[0].skipped == {"distil": "the dataset has no labels"}
    (tmp_path / "kept.json").rename(metrics)
    assert len(distillations(group_seeds(collect(tmp_path, ["a"])))) == 1
    report = tmp_path / "resolved" / "report.json"
    content = json.loads(report.read_text())
    content["config"]["distil"] = []
    write_json(report, content)
    (experiment,) = collect(tmp_path, ["a"])
    assert (experiment.distil.result, experiment.missing) == (None, ())


def test_random_init_of_other_seeds_is_told_apart(tmp_path: Path) -> None:
    for name, random_init in (("a", 0.40), ("b", 0.42)):
        write_resolved(tmp_path, name, method=name, seed=0)
        write_metrics(tmp_path, name, linear_metrics(0.6, random_init=random_init), {"skipped": "x"})
    groups = group_seeds(collect(tmp_path, ["a", "b"]))
    (profile,) = profiles(groups)
    assert [label for label, _ in profile.yardsticks] == [
        "random init, resnet8 (width=16); for a",
        "random init, resnet8 (width=16); for b",
    ]
    assert "random init of resnet8; for b, best stage" in profile.plot.svg
    (table,) = tables(groups)
    assert [row.note for row in table.yardsticks if row.label == "random init"] == [
        "resnet8 (width=16); for a",
        "resnet8 (width=16); for b",
    ]


def test_empty_project_still_gives_a_page_that_says_what_to_run(tmp_path: Path) -> None:
    write_store(tmp_path, counts=COUNTS)
    text = text_of(write_report(tmp_path, tmp_path / "index.html", experiments=["a"]).read_text())
    assert "0 of 1 experiment on image_folder" in text
    assert "No experiment has been pretrained yet." in text
    assert "run contrast run a" in text


def test_features_of_other_images_are_refused(tmp_path: Path) -> None:
    write_store(tmp_path, counts={"train": 10, "validation": 4, "test": 4})
    write_features(tmp_path, "a", counts=COUNTS)
    embed = tmp_path / "runs" / "a" / "embed"
    with pytest.raises(DataError, match=r"which is no test image of the store; make them again with `contrast run a`"):
        retrieve(Store.open(tmp_path / "dataset"), embed, "contrast run a")


def test_panels_of_the_method_are_shown_and_only_from_their_own_folder(tmp_path: Path) -> None:
    write_store(tmp_path, counts=COUNTS)
    write_pretraining(tmp_path, "a")
    panels = tmp_path / "runs" / "a" / "pretrain" / "panels"
    panels.mkdir()
    Image.new("RGB", (8, 8)).save(panels / "tiles.png")
    write_json(panels / "panels.json", [{"title": "Tiles", "caption": "Nine <tiles>.", "file": "tiles.png"}])
    page = write_report(tmp_path, tmp_path / "index.html", experiments=["a"]).read_text()
    assert "<figcaption><strong>Tiles.</strong> Nine &lt;tiles&gt;.</figcaption>" in page
    write_json(panels / "panels.json", [{"title": "Tiles", "file": "../encoder.json"}])
    with pytest.raises(DataError, match=r"panels\.json is damaged: lists '\.\./encoder\.json'"):
        write_report(tmp_path, tmp_path / "index.html", experiments=["a"])


def test_nearest_equals_a_loop_over_cosines() -> None:
    generator = torch.Generator().manual_seed(0)
    query, bank = torch.randn(3, 5, generator=generator), torch.randn(11, 5, generator=generator) * 7
    values, rows = nearest(query, bank, 4)
    for q in range(3):
        cosines = [float(query[q] @ b / (query[q].norm() * b.norm())) for b in bank]
        expected = sorted(range(11), key=lambda k: -cosines[k])[:4]
        assert rows[q].tolist() == expected
        assert values[q].tolist() == pytest.approx([cosines[k] for k in expected], abs=1e-6)


def test_queries_are_spread_over_classes_and_do_not_depend_on_order() -> None:
    keys = [f"image{k}" for k in range(30)]
    labels = [0] * 20 + [1] * 8 + [2] * 2
    chosen = choose_queries(keys, labels, 8)
    assert [labels[row] for row in chosen] == [0, 0, 0, 1, 1, 1, 2, 2]
    again = choose_queries(keys[::-1], labels[::-1], 8)
    assert {keys[row] for row in chosen} == {keys[::-1][row] for row in again}
    assert sorted(choose_queries(keys[:3], labels[:3], 8)) == [0, 1, 2]


def test_empty_cells_and_infinite_figures_are_gaps(tmp_path: Path) -> None:
    path = tmp_path / "curves.csv"
    path.write_text("step,loss,knn_top1\n1,0.5,\n2,nan,0.25\n3,inf,\n")
    assert read_curves(path, "again") == {
        "step": [1.0, 2.0, 3.0],
        "loss": [0.5, None, None],
        "knn_top1": [None, 0.25, None],
    }


def test_long_curves_are_averaged_in_windows() -> None:
    x, y = thinned(range(1000), [2.0] * 500 + [4.0] * 500)
    assert len(x) == len(y) <= MAX_POINTS
    assert x[:2] == [2.0, 7.0]
    assert (y[0], y[-1]) == (2.0, 4.0)
    assert thinned([1, 2, 3], [5.0, None, 7.0]) == ([1, 3], [5.0, 7.0])


def test_figure_takes_its_colours_and_font_from_the_page() -> None:
    lines = [Line([0, 1], [0.2, 0.4], series=1, markers=True)]
    svg = line_panel("p", "a < b", lines, x=Axis("step"), y=Axis("top-1", percent=True), levels=[Level(0.3, "chance")])
    assert svg.startswith('<svg class="plot" role="img" aria-label="a &lt; b" viewBox=')
    assert "var(--series-1)" in svg
    assert "font-family" not in svg
    assert "<style" not in svg
    assert {"#010101", "#010102", "#010103"} & set(re.findall(r"#[0-9a-f]{6}\b", svg)) == set()
    assert ">chance</text>" in svg
    assert all(identity.startswith("p-") for identity in re.findall(r'\bid="([^"]*)"', svg))


def test_spread_of_a_mean_is_the_sample_standard_deviation() -> None:
    values = (0.41, 0.44, 0.5)
    mean = sum(values) / 3
    deviation = (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
    assert str(Measured(values)) == f"{100 * mean:.1f} \u00b1 {100 * deviation:.1f}"
    assert str(Measured((0.5,), (0.45, 0.55))) == "50.0 (45.0 to 55.0)"
