"""What stages write as JSON, as the report reads it: one frozen record per file or part of a file.

Keys that the report does not use are ignored; a value out of range makes the file damaged.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from cl_core.ranges import UnitInterval

RANDOM_INIT = "random_init"  #: the yardstick of every linear result: the same encoder and input before training
SUPERVISED = "supervised"  #: the yardstick of few labels: the same network trained on them from scratch


class Record(BaseModel):
    """Base of the records that stages write: values never change, keys that the report does not use are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Top1(Record):
    """Top-1 accuracy on the test split, a share in [0, 1], with its 95 % bootstrap interval."""

    top1: UnitInterval
    top1_ci95: tuple[UnitInterval, UnitInterval]


class Accuracy(Top1):
    """With its mean over the classes, in which every class counts alike."""

    balanced_top1: UnitInterval


class SplitAccuracy(Accuracy):
    """Of `n` images."""

    top5: UnitInterval | None = None
    n: PositiveInt


class Classes(Record):
    """How many times as many images the largest class has as the smallest; the test accuracy of a constant answer."""

    imbalance: PositiveFloat
    constant_top1: UnitInterval


class StageProbe(Record):
    """Linear probe of one encoder stage; dim is the number of values per image."""

    dim: PositiveInt
    validation_top1: UnitInterval
    test_top1: UnitInterval


class Knn(Accuracy):
    """Weighted nearest neighbours on one stage."""

    protocol: str
    stage: str
    k: PositiveInt
    temperature: float


class Baseline(Record):
    """A yardstick under the same protocol; `stages` and the best of them for one that has stages."""

    top1: UnitInterval
    top1_ci95: tuple[UnitInterval, UnitInterval] | None = None
    best_stage: str = ""
    balanced_top1: UnitInterval
    knn_top1: UnitInterval | None = None
    knn_balanced_top1: UnitInterval | None = None
    stages: dict[str, StageProbe] = {}


class LinearResult(Record):
    """linear_eval/metrics.json.

    knn is of the last stage, knn_best_stage of the best one where that is another. classes_without_training_images
    counts the test images that can only be errors. labels_trained: of the fit; labels_chosen: of validation.
    """

    protocol: str
    labels_trained: PositiveInt
    labels_chosen: NonNegativeInt
    best_stage: str
    test: SplitAccuracy
    classes: Classes
    stages: dict[str, StageProbe]
    knn: Knn
    knn_best_stage: Knn | None = None
    classes_without_training_images: dict[str, int] = {}
    baselines: dict[str, Baseline] = {}


class FewLabelFigures(Record):
    """What a classifier does on the test split.

    ece: expected calibration error over 15 equal-mass bins. brier: sum over classes, in [0, 2]. log_loss: in nats. Both
    after the temperature was scaled.
    """

    top1: UnitInterval
    balanced_top1: UnitInterval
    macro_f1: UnitInterval
    ece: UnitInterval
    brier: NonNegativeFloat
    log_loss: NonNegativeFloat


class Draw(FewLabelFigures):
    """One draw of the labels, and what was chosen for it; None where there was nothing to choose.

    mix: share of the fine-tuned weights, 0 for the frozen probe. use: which use "best" has picked.
    """

    selection_loss: NonNegativeFloat | None = None
    temperature: PositiveFloat | None = None
    stage: str | None = None
    l2: PositiveFloat | None = None
    lr: PositiveFloat | None = None
    steps: NonNegativeInt | None = None
    mix: UnitInterval | None = None
    use: str | None = None


class Competitor(FewLabelFigures):
    """Means over the draws of a budget; top1_ci95 by bootstrap over test images and draws."""

    top1_ci95: tuple[UnitInterval, UnitInterval]
    draws: Annotated[list[Draw], Field(min_length=1)]


class BudgetResult(Record):
    """All competitors with so many labels, by their names in `budgets`.

    labels_trained: labelled images that any fit saw. labels_chosen: further ones that a choice saw. same_as: the
    smaller budget that selects the same labels, where the dataset is that small.
    """

    labels_trained: PositiveInt
    labels_chosen: NonNegativeInt
    per_class: PositiveFloat
    same_as: str | None = None
    competitors: dict[str, Competitor]


class FinetuneResult(Record):
    """finetune/metrics.json. selection: "labels" where choices are made inside the labels, or "validation"."""

    protocol: str
    selection: str
    budgets: dict[str, BudgetResult]


class HealthFigures(Record):
    """Of one stage or of the embedding, `dim` values per image; None where there is no number."""

    dim: PositiveInt
    self_match: UnitInterval | None = None
    rankme: PositiveFloat | None = None
    lidar: PositiveFloat | None = None
    alpha_req: float | None = None
    alignment: float | None = None
    uniformity: float | None = None


class MethodHealth(Record):
    """Of every stage, early to late, and of the embedding where the method has one."""

    stages: dict[str, HealthFigures]
    embedding: HealthFigures | None = None


class HealthResult(Record):
    """embed/health.json: what `images` images of a split and `views` crops of each show without a label."""

    protocol: str
    input: str
    split: str
    images: PositiveInt
    views: PositiveInt
    trained: MethodHealth
    untrained: MethodHealth


class Finding(Record):
    """One answer in diagnose/findings.json; "skipped" where a question needs what the images lack."""

    name: str
    question: str
    state: Literal["fine", "warning", "skipped"]
    text: str
    figures: dict[str, float] = {}
    against: dict[str, float] = {}


class Findings(Record):
    """diagnose/findings.json. method_sha256: of the method.safetensors that was looked at."""

    method_sha256: str
    images: dict[str, PositiveInt]
    findings: list[Finding]


class DistilResult(Record):
    """distil/metrics.json: a student taught on `n_images`, its teacher, and supervised training on its labels."""

    protocol: str
    fraction: float
    n_labels: PositiveInt
    n_images: PositiveInt
    student: Top1
    teacher: Top1
    supervised_same_labels: Top1


class Remark(Record):
    """What an observer said of a run while it trained."""

    step: int
    text: str


class Part(Record):
    """Who provides a part: the distribution, its version, and the digest of the part's source."""

    kind: str
    name: str
    provider: str = ""
    version: str = ""
    source: str = ""


class Spec(Record):
    """A part as it was configured, defaults filled in."""

    name: str
    options: dict[str, Any] = {}

    @property
    def title(self) -> str:
        """Name with its options: "resnet8 (width=16)"."""
        options = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name} ({options})" if options else self.name


class Resolved(Record):
    """artifacts/resolved/<experiment>/<stage>.json, the complete input of a stage."""

    config: dict[str, Any] = {}
    parts: list[Part] = []
    engine: dict[str, Any] = {}


class ViewFigures(Record):
    """One view over a sample: mean and deviation per channel, range of values, share of near-constant views."""

    mean: list[float]
    std: list[float]
    range: tuple[float, float]
    near_constant: UnitInterval


class ViewStatistics(Record):
    """views/statistics.json: the raw images and every view of `images` of them."""

    images: int
    near_constant_below_std: float
    raw: ViewFigures
    views: list[ViewFigures]


class MethodFacts(Record):
    """What encoder.json says of the method: when it was published, what it belongs to, what it cost.

    yardstick: uses labels or trains nothing, so that others are held against it. units: encoder passes (forward and
    backward on one image), per training image and over the run.
    """

    year: int | None = None
    family: str = ""
    yardstick: bool = False
    units_per_image: NonNegativeFloat | None = None
    units: NonNegativeFloat | None = None


class PanelFile(Record):
    """One entry of pretrain/panels/panels.json."""

    title: str
    caption: str = ""
    file: str
