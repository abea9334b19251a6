"""How views are made of these images: a paper's recipe, or its chain without what the images or the answers forbid."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipelines.project.look import Images
from pipelines.project.measured import Row, Spec
from pipelines.project.questions import Answers


def views_for(row: Row, images: Images, answers: Answers) -> tuple[dict[str, Any], str]:
    """The section `views`, and why: {"recipe": Spec} or {"chains": {"augment": [Spec, ...]}}."""
    plain = row.rotation == 0 and not row.quarter_turns
    if plain and answers.mirror.holds and _has_free_colours(images, answers):
        recipe = {"name": "simclr-cifar", "min_scale": row.scale, **_side(row)}
        return {"recipe": recipe}, "the paper's crop, mirror, colour"
    return {"chains": {"augment": list(_chain(row, images, answers))}}, "; ".join(_reasons(row, images, answers))


def _has_free_colours(images: Images, answers: Answers) -> bool:
    """Whether there are colours that say nothing by themselves."""
    return not (answers.colour.holds or images.is_grey or images.kind == "drawings")


def _chain(row: Row, images: Images, answers: Answers) -> Iterator[Spec]:
    yield {"name": "random_resized_crop", "scale": [row.scale, 1.0], **_side(row), "interpolation": "bicubic"}
    if row.rotation:
        paper = {"fill": 1.0} if images.background == "bright" else {}
        yield {"name": "rotation", "degrees": row.rotation, **paper}
    if answers.mirror.holds and row.quarter_turns:
        yield {"name": "quarter_turns"}
    if answers.mirror.holds:
        yield {"name": "horizontal_flip"}
    if not row.strength:
        return
    light = round((0.4 if answers.colour.holds else 0.8) * row.strength, 3)
    if _has_free_colours(images, answers):  # SimCLR, appendix A: 0.8, 0.8, 0.8 and 0.2 times the strength
        hue = round(0.2 * row.strength, 3)
        yield {"name": "color_jitter", "brightness": light, "contrast": light, "saturation": light, "hue": hue}
        yield {"name": "grayscale", "prob": 0.2}
    else:
        yield {"name": "color_jitter", "brightness": light, "contrast": light, "saturation": 0.0, "hue": 0.0}


def _side(row: Row) -> dict[str, int]:
    return {} if row.view is None else {"size": row.view}


def _reasons(row: Row, images: Images, answers: Answers) -> Iterator[str]:
    yield f"for {images.look}"
    if row.quarter_turns and answers.mirror.holds:
        yield "turned too, as there is no up"
    if not answers.mirror.holds:
        yield f"not mirrored: {answers.mirror.why}"
    if answers.colour.holds:
        yield f"hues are kept: {answers.colour.why}"
    elif not _has_free_colours(images, answers):
        yield "light only, no colours"
