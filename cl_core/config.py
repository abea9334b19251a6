"""The sections of params.yaml and experiments/*.yaml as frozen, strict models; each field's docstring is its help.

Knows the sections, not the parts: which method, encoder or loss exists is the registry's business.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

UnitInterval = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]


class Section(BaseModel):
    """Base of all sections: unknown keys and silent conversions are errors, values never change after loading."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class PartSpec(Section):
    """A part by name with its options beside it, e.g. `{name: nt_xent, temperature: 0.5}`."""

    model_config = ConfigDict(
        extra="allow", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
    name: str
    """Name under which a plugin registered the part (`contrast plugins` lists them)."""

    @property
    def options(self) -> dict[str, Any]:
        """The keys beside `name`, checked by the registry against the part's own signature."""
        return dict(self.model_extra or {})


def _once_each(seeds: list[int]) -> list[int]:
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice:
        raise ValueError(f"lists {', '.join(map(str, twice))} twice; keep one")
    return seeds


Seeds = Annotated[
    list[NonNegativeInt], Field(min_length=1, json_schema_extra={"uniqueItems": True}), AfterValidator(_once_each)
]


def _count_or_share(value: int | float) -> int | float:
    if isinstance(value, bool) or value < 0 or (isinstance(value, float) and value >= 1):
        raise ValueError("must be a share of the images in [0, 1) or a whole number of images")
    return value


CountOrShare = Annotated[int | float, AfterValidator(_count_or_share)]


class SplitConfig(Section):
    """How images without a split of their own are divided, by a hash of their key (or group)."""

    validation: CountOrShare = 0.1
    """Share in [0, 1), or number of images, on which hyper-parameters are chosen."""
    test: CountOrShare = 0.2
    """Share in [0, 1), or number of images, read once per result. Unused where the source has a test split."""


class DataConfig(Section):
    """Where the images come from and how they are stored."""

    source: PartSpec
    """Source plugin with its options. `${NAME}` in a text is taken from the environment."""
    size: Annotated[int, Field(ge=8, le=1024)] = 32
    """Side of the square images in pixels."""
    layout: Literal["decoded", "encoded"] = "decoded"
    """decoded stores the squares' pixels, the fastest to train on and 3 * size * size bytes each. encoded stores whole
    images as JPEG files, decoded while training, for large images: random crops then see all of an image."""
    max_shorter_side: PositiveInt | None = None
    """Of encoded: a shorter side of more pixels is scaled down to this. null: twice the size."""
    splits: SplitConfig = SplitConfig()
    subset: PositiveInt | None = None
    """Use only this many training images (smallest key hash) in every stage after ingest; null uses all."""
    max_pixels: PositiveInt = 100_000_000
    """An image file with more pixels is quarantined unread."""
    duplicates: Literal["report", "drop", "fail"] = "report"
    """Near duplicates in different splits: report counts and shows them, drop leaves out those of train (and those of
    validation that are in test), fail stops ingest."""

    @model_validator(mode="after")
    def _side_of_an_encoded_store(self) -> DataConfig:
        if self.max_shorter_side is not None and self.layout == "decoded":
            raise ValueError("max_shorter_side is for the layout encoded; delete it, or set layout: encoded")
        if self.max_shorter_side is not None and self.max_shorter_side < self.size:
            raise ValueError(f"max_shorter_side {self.max_shorter_side} is less than size {self.size}; raise it")
        return self

    @property
    def stored_shorter_side(self) -> int | None:
        """Largest shorter side of the JPEG files in an encoded store; None where the store is decoded."""
        return None if self.layout == "decoded" else self.max_shorter_side or 2 * self.size


class ViewsConfig(Section):
    """Which augmentations make the views: a recipe by name, or chains spelt out."""

    recipe: PartSpec | None = None
    """A paper's chains, e.g. `{name: simclr-cifar}`."""
    chains: dict[Annotated[str, Field(pattern=r"^augment(_[a-z0-9_]+)?$")], list[PartSpec]] = {}
    """Argument of the method (`augment`, `augment_a`, ...) -> list of augmentations in order."""
    materialize: NonNegativeInt = 0
    """Write this many epochs of views to disk and train on them in turn; 0 generates views while training."""
    preview: Annotated[int, Field(ge=1, le=64)] = 8
    """Images shown in preview.png."""

    @model_validator(mode="after")
    def _one_spelling(self) -> ViewsConfig:
        if self.recipe is not None and self.chains:
            raise ValueError("takes a recipe or chains, not both; delete one")
        return self


class LrRule(Section):
    """A learning rate that follows the batch size; the resulting number is printed and stored."""

    base: PositiveFloat
    """Learning rate at the reference batch size."""
    per: PositiveInt = 256
    """Reference batch size."""
    rule: Literal["linear", "sqrt"] = "linear"
    """linear: base * batch / per; sqrt: base * sqrt(batch / per)."""


LearningRate = Annotated[
    Annotated[PositiveFloat, Tag("as-number")] | Annotated[LrRule, Tag("as-rule")],
    Discriminator(lambda value: "as-rule" if isinstance(value, dict | LrRule) else "as-number"),
]


class OptimizerConfig(Section):
    """The optimiser and its learning rate."""

    name: Literal["sgd", "adamw", "lars"] = "sgd"
    lr: LearningRate = LrRule(base=0.06)
    """Peak learning rate as used, or a rule {base, per, rule}."""
    weight_decay: NonNegativeFloat = 1e-4
    """Not applied to biases and norms."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of sgd and lars."""
    nesterov: bool = False
    """Of sgd."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Of adamw."""
    trust_coefficient: PositiveFloat = 1e-3
    """Of lars (eta)."""
    clip: PositiveFloat | None = None
    """Largest norm of the gradient; null does not clip."""

    def peak_lr(self, batch_size: int) -> float:
        """The learning rate after the scaling rule, the number the optimiser sees."""
        if not isinstance(self.lr, LrRule):
            return self.lr
        ratio = batch_size / self.lr.per
        return self.lr.base * (ratio if self.lr.rule == "linear" else ratio**0.5)


class ScheduleConfig(Section):
    """Linear warm-up, then half a cosine."""

    epochs: PositiveInt = 20
    warmup_epochs: NonNegativeFloat = 1.0
    final_lr: UnitInterval = 0.0
    """Share of the peak learning rate that is left at the end."""

    @model_validator(mode="after")
    def _warm_up_ends(self) -> ScheduleConfig:
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs:g} exceeds epochs {self.epochs}; lower it")
        return self


class TrainConfig(Section):
    """The training loop."""

    batch_size: Annotated[int, Field(ge=2)] = 256
    """Images per step."""
    micro_batch: Annotated[int, Field(ge=2)] | None = None
    """Images that pass the network at a time, a divisor of batch_size, for batches that memory does not hold; null lets
    the whole batch pass. The gradient is that of the whole batch; only batch norm takes its statistics from these
    images alone."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto measures once per machine, encoder and shape and keeps the choice."""
    channels_last: Literal["auto", True, False] = "auto"
    compile: Literal["auto", True, False] = "auto"
    """torch.compile for the networks. auto tries it where a run takes more than ten minutes, and keeps the choice."""
    log_every: PositiveInt = 10
    """Steps between logged figures."""
    save_every: PositiveInt = 200
    """Steps between checkpoints."""
    knn_every: NonNegativeInt = 1
    """Epochs between online evaluations (kNN, or health figures where there are no labels), which also come before the
    first step, half way and at the end; 0 turns them off."""
    on_no_gain: Literal["warn", "stop"] = "warn"
    """Where half of the updates have not made the features better than untrained: warn goes on, stop is an error."""
    trackers: list[PartSpec] = []
    """Tracker plugins that also receive the logged figures."""

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> TrainConfig:
        if self.micro_batch is not None and self.batch_size % self.micro_batch:
            raise ValueError(
                f"micro_batch {self.micro_batch} does not divide batch_size {self.batch_size}; use a divisor of it"
            )
        return self


class DistilConfig(Section):
    """Distillation of the fine-tuned classifier on all training images, protocol distil/simclr-v2."""

    budget: PositiveInt | Fraction | Literal["all"]
    """Labels that the teacher was fine-tuned with: one of evaluation.finetune's per_class or fractions."""
    temperature: PositiveFloat = 1.0
    """Divides the logits of both; 1 for a student like its teacher, 0.1 for a smaller one in the paper."""
    labelled_share: UnitInterval = 0.0
    """Share of cross-entropy on the teacher's labels in the loss (1 - alpha in the paper); the rest is distillation."""
    epochs: PositiveInt = 16
    """Passes over all training images."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    lr: LearningRate = LrRule(base=0.2)
    """Peak learning rate as used, or a rule {base, per, rule}."""
    encoder: PartSpec | None = None
    """Encoder of the student, a smaller one for example; null takes the teacher's."""


class ExperimentConfig(Section):
    """One file of experiments/: what is trained and how."""

    extends: Name | None = None
    """Another experiment whose settings hold where this file says nothing, e.g. the same with another temperature."""
    description: str = ""
    """One line for the report."""
    seed: NonNegativeInt | None = None
    """Overrides the seed of params.yaml."""
    seeds: Seeds | None = None
    """Seeds to run the whole experiment with, e.g. `[0, 1, 2]`, each with stages of its own; tables and plots show
    their mean. The run of `seed` is called like the experiment, another one EXPERIMENT-s1. null: `seed` alone."""
    labels: Fraction | None = None
    """Share of the labelled training images, the same number of every class, that pretraining gets to see, and nothing
    else; only for methods that learn from labels. Epochs count these images."""
    method: PartSpec
    encoder: PartSpec
    loss: PartSpec | None = None
    score: PartSpec | None = None
    """How the loss compares two embeddings, where it asks for that."""
    views: ViewsConfig = ViewsConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    distil: DistilConfig | None = None
    """How the fine-tuned classifier is distilled, where `distil` of params.yaml names this experiment."""


class LinearConfig(Section):
    """Linear probe, protocol linear/lbfgs-v1."""

    l2: Annotated[list[PositiveFloat], Field(min_length=1)] = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    """Grid of L2 penalties on the mean loss, chosen on validation."""
    max_values: PositiveInt = 2048
    """Stage features are average-pooled to the largest square grid with at most this many values."""
    max_iter: PositiveInt = 200
    """Iterations of L-BFGS per penalty."""


class KnnConfig(Section):
    """Weighted nearest neighbours, protocol knn/instdisc-v1."""

    k: PositiveInt = 200
    temperature: PositiveFloat = 0.1


class FinetuneConfig(Section):
    """Few labels: how many, how often drawn, and how the encoder is fine-tuned on them.

    Where a default says "the protocol's", it is in `cl_core.evaluation.fine_tuning`.
    """

    protocol: Literal["lpft-v2", "simclr-v1"] = "lpft-v2"
    """lpft-v2: from the frozen probe's head, then everything, then weights in between. simclr-v1: the paper's."""
    per_class: list[PositiveInt | Literal["all"]] = [1, 4, 16, 64, "all"]
    """Budgets in labels per class; `all` is every label."""
    fractions: list[Fraction] = []
    """Budgets as shares of the labelled training images, class-balanced, beside those per class."""
    draws: PositiveInt = 5
    """How often the smallest budget is drawn; larger ones less often, as the square root of their labels grows."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Parts that the given labels are divided into, to choose by the part that was held out."""
    recipe: PartSpec = PartSpec(name="crop-flip")
    """Augmentation of the labelled images: crop and flip."""
    lr: Annotated[list[PositiveFloat], Field(min_length=1)] | None = None
    """Grid of learning rates of the pretrained encoder; null takes the protocol's."""
    supervised_lr: Annotated[list[PositiveFloat], Field(min_length=1)] | None = None
    """The same for training from scratch; as many as `lr`, or one of the two is tuned better. Null: the protocol's."""
    layer_decay: Fraction = 1.0
    """Factor on the learning rate from each stage of the encoder to the one before it; of lpft-v2."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    epochs: PositiveInt = 12
    """Passes over the labels at most. simclr-v1 makes twice as many at 1 % and below."""
    min_steps: PositiveInt = 200
    """Steps that small budgets get at least; they stop earlier where selection no longer improves."""
    max_steps: PositiveInt = 2000
    """Steps that large budgets get at most."""

    @property
    def budgets(self) -> tuple[str, ...]:
        """Their names, as results have them."""
        return *map(str, self.per_class), *(str(float(share)) for share in self.fractions)

    @model_validator(mode="after")
    def _has_budgets(self) -> FinetuneConfig:
        if not self.per_class and not self.fractions:
            raise ValueError("there is no budget; name labels per class, `per_class: [4, all]`, or shares, `fractions`")
        if self.lr and self.supervised_lr and len(self.lr) != len(self.supervised_lr):
            raise ValueError(
                f"lr has {len(self.lr)} rates and supervised_lr {len(self.supervised_lr)}; give both as many, or the "
                "comparison favours one of them"
            )
        return self


class EvaluationConfig(Section):
    """How representations are judged; the same for all experiments, so that tables compare."""

    linear: LinearConfig = LinearConfig()
    knn: KnnConfig = KnnConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    selection: Literal["labels", "validation"] = "labels"
    """What choices for few labels are made on: labels, by cross-validation inside the given ones, so that 12 labels are
    12; or the validation split, whose labels are then counted too."""
    batch_size: PositiveInt = 500
    """Images per forward pass when features are computed."""


def _figure(value: str) -> str:
    if not re.fullmatch(r"linear|knn|few_labels \S+|metrics\.\w+", value):
        raise ValueError(
            "must be linear, knn, `few_labels BUDGET` with a budget of evaluation.finetune, or metrics.NAME with a "
            "figure that both methods log"
        )
    return value


class ClaimConfig(Section):
    """One sentence that the results either bear out or do not; only the report reads it."""

    claim: Annotated[str, Field(min_length=1)]
    """The sentence, for example "SimCLR loses points without colour jitter"."""
    better: Name
    """The experiment that should have the higher figure."""
    worse: Name
    """The experiment it is held against. Where both have several seeds, all of them count."""
    figure: Annotated[str, AfterValidator(_figure)] = "linear"
    """linear, knn, `few_labels 4` for the best use of so many labels, or metrics.NAME for a figure logged in training
    (mean over its last tenth)."""
    source: str = ""
    """Where the sentence comes from."""

    @property
    def kind(self) -> str:
        """The figure without its argument: linear, knn, few_labels or metrics."""
        return re.split(r"[ .]", self.figure, maxsplit=1)[0]

    @property
    def argument(self) -> str:
        """The budget or the name behind it, "" where there is none."""
        return re.split(r"[ .]", f"{self.figure} ", maxsplit=1)[1].strip()


class RunConfig(Section):
    """How `contrast run` drives the stages, and on what; no result depends on it but for rounding."""

    jobs: PositiveInt = 1
    """Stages that may run side by side."""
    retries: NonNegativeInt = 1
    """How often a failed stage is tried again."""
    decode_threads: PositiveInt | None = None
    """Threads that decode the images of an encoded store; null: one per core that a stage gets."""
    devices: PositiveInt = 1
    """Processes of a machine that pretrain together, each on a GPU of its own where there are any; they share the
    batch."""
    num_nodes: PositiveInt = 1
    """Machines that pretrain together; each has to start the stage (docs/scale.md)."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """How several devices keep the weights: ddp, which auto is, whole on each; fsdp, a piece of them on each, for
    networks that do not fit."""
    task_runner: Literal["threads", "dask"] = "threads"
    """What runs the stages: this process, or the workers of a Dask cluster (docs/scale.md)."""


class PluginsConfig(Section):
    """Which installed plugins are left out."""

    block: list[str] = []
    """Entry-point names that are not loaded."""


class ParamsConfig(Section):
    """params.yaml: what all experiments share."""

    title: str = "contrast"
    """Heading of the report."""
    experiments: Annotated[list[Name], Field(min_length=1)]
    """Names of the files experiments/<name>.yaml that take part."""
    diagnose: list[Name]
    """Those of them whose trained method is searched for shortcuts and collapse; `diagnose: []` for none."""
    distil: list[Name]
    """Those of them whose fine-tuned classifier is distilled; `distil: []` for none."""
    seed: NonNegativeInt = 0
    data: DataConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    run: RunConfig = RunConfig()
    plugins: PluginsConfig = PluginsConfig()
    claims: list[ClaimConfig] = []
    """What the report checks the results for."""

    @model_validator(mode="after")
    def _unique(self) -> ParamsConfig:
        for key, names in (("experiments", self.experiments), ("diagnose", self.diagnose), ("distil", self.distil)):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{key} lists {', '.join(twice)} twice; keep one")
        return self
