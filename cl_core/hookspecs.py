"""Every way to extend contrast, on one page.

A plugin is any module with functions marked `@hookimpl`, named by an entry point in the group `cl_core`. Implement
only the hooks you need and take only the arguments you need. Arguments must not have default values: pluggy never
fills those. "Return ..." hooks provide parts, "Look at ..." hooks observe; nothing edits its arguments.

A part is a plain class or function. The typed keyword arguments of its factory are its options in YAML, checked
strictly; bounds are annotations (`cl_core.types.UnitInterval`, pydantic's `PositiveFloat`,
`Annotated[int, Field(ge=1)]`). A factory may be given as a "module:attribute" string, so that listing plugins need
not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from cl_core.types import RunInfo, RunSummary

PROJECT = "cl_core"  #: pluggy project name and entry-point group

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Factories = Mapping[str, str | Callable[..., Any]]


@hookspec
def register_sources() -> Factories:  # type: ignore[empty-body]
    """Return {name: factory} of `cl_core.types.Source`s: iterables of Example with a `fingerprint()`."""


@hookspec
def register_augmentations() -> Factories:  # type: ignore[empty-body]
    """Return {name: factory} of callables `(images, rng) -> images` on (N, C, H, W) floats in [0, 1].

    The input is left untouched, parameters are drawn per sample, randomness comes only from `rng` (a SampleRng).
    """


@hookspec
def register_recipes() -> Factories:  # type: ignore[empty-body]
    """Return {name: function} that gives the chains of a paper.

    function(**options) -> {argument of the method: [{"name": augmentation, **its options}, ...]}, for example
    {"augment": [...]} or {"augment_a": [...], "augment_b": [...]}.
    """


@hookspec
def register_encoders() -> Factories:  # type: ignore[empty-body]
    """Return {name: factory} of nn.Modules with `forward(images) -> (N, D)`, an int `out_dim` == D and
    `stages(images) -> {stage: (N, C, H, W) or (N, C)}`, early to late.

    The factory gets `in_channels` (int, default 3) and `width_mult` (float, default 1: scales the channels of every
    layer) from methods that need other input or a narrower net, and `image_size` (int, the side of the images in
    pixels), if it asks for them; other keywords are options.
    """


@hookspec
def register_losses() -> Factories:  # type: ignore[empty-body]
    """Return {name: factory} of callables that a method receives as `loss`.

    For a contrastive loss: `loss(z_a, z_b) -> scalar`, z_a and z_b (N, D) the projections of two views, not normalised.
    A loss may ask for a `score`, a part of its own. One whose anchors each choose one among candidates (InfoNCE) may
    offer `candidates(pairs) -> int`, their number for a batch of so many pairs; methods then log `information_bound`,
    log(candidates) - loss.
    """


@hookspec
def register_scores() -> Factories:  # type: ignore[empty-body]
    """Return {name: factory} of callables that a loss receives as `score`.

    `score(anchors, candidates)`, (N, D) and (M, D) -> (N, M), higher where the two are likelier to belong together; one
    value depends on one pair alone. Modules with weights are trained along.
    """


@hookspec
def register_methods() -> Factories:  # type: ignore[empty-body]
    """Return {name: Method subclass}.

    A method asks for parts by argument name: `encoder`, or `encoder_factory(*, in_channels=3, width_mult=1.0)` where it
    needs other nets than that; `loss`; `augment` or any `augment_*`; `image_size`, the side of the images in pixels.
    Every other keyword is an option.
    """


@hookspec
def register_trackers() -> Factories:  # type: ignore[empty-body]
    """Return {name: factory} of objects with `start(run)`, `log(step, metrics)` and `end(summary)`.

    Named under `train.trackers` of an experiment; several may run at once.
    """


@hookspec
def on_run_start(run: RunInfo) -> None:
    """Look at a pretraining run that is about to start or to continue."""


@hookspec
def on_log(step: int, metrics: Mapping[str, float]) -> str | None:
    """Look at the numbers of a logged step, those of the untrained encoder at step 0; raise a ContrastError to stop the
    run. A text returned is shown to whoever waits and kept with the run, each line as a remark of its own.

    What is remarked must follow from the numbers and `RunInfo` alone: a run that was stopped and goes on is the same.
    """


@hookspec
def on_run_end(summary: RunSummary) -> None:
    """Look at how a run ended. Called once for every on_run_start, whatever happened."""
