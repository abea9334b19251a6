"""Put a method's own questions to it after training: does it cheat, has it collapsed, does it beat a trivial answer?

Small detectors are fitted on training images and judged on validation images; the test split is never read. The method
is bit for bit the same afterwards, and the same method and images give the same findings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from cl_core.data.sampling import SampleRng, mix
from cl_core.data.store import Split, to_float
from cl_core.errors import CollapseError, ConfigError
from cl_core.evaluation.features import frozen
from cl_core.evaluation.linear import reason_to_skip
from cl_core.types import Diagnosis, Finding, Method, Sample

FIT_IMAGES, HELD_OUT_IMAGES = 2000, 1000  # at most; the standard error of an accuracy on 1,000 images is 1.6 points
_STREAM = 0xD1A6


def diagnose(
    method: Method, train: Split, validation: Split, *, seed: int, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Findings as JSON: {"images": {"fit", "held_out"}, "findings": [see `answers`]}.

    Raises ConfigError for a method without questions and for a split without images, DataError where a diagnosis
    changes the method, CollapseError for a figure that is not finite.
    """
    if not method.diagnoses():
        raise ConfigError(f"{type(method).__name__} offers no diagnosis; leave it out of `diagnose` in params.yaml")
    if len(validation) == 0:
        raise ConfigError("the validation split has no images to diagnose with; raise data.splits.validation")
    fit = _sample(train.by_hash(FIT_IMAGES), mix(seed, _STREAM, 0), device)
    held_out = _sample(validation.by_hash(HELD_OUT_IMAGES), mix(seed, _STREAM, 1), device)
    found = answers(method.to(device), fit, held_out)
    return {"images": {"fit": len(fit), "held_out": len(held_out)}, "findings": found}


def answers(method: Method, fit: Sample, held_out: Sample) -> list[dict[str, Any]]:
    """One entry per question: {"name", "question", "state", "text", "figures", "against"}.

    fit, held_out: on the method's device. A question that needs labels has the state "skipped", and the reason as its
    text, where there are none.
    """
    found = []
    for name, diagnosis in method.diagnoses().items():
        with frozen(method, f"diagnosis {name!r} looked at it"), torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(_STREAM)  # for the few networks that draw while they compute
            answer = _answer(diagnosis, fit, held_out)
        _require_finite(name, answer)
        found.append({"name": name, "question": diagnosis.question, **answer})
    return found


def _answer(diagnosis: Diagnosis, fit: Sample, held_out: Sample) -> dict[str, Any]:
    if diagnosis.needs_labels:
        reason = reason_to_skip(fit.labels, held_out.labels)
        if reason:
            return {"state": "skipped", "text": reason, "figures": {}, "against": {}}
        fit, held_out = _labelled(fit), _labelled(held_out)
    finding: Finding = diagnosis.find(fit, held_out)
    return asdict(finding)


def _sample(split: Split, seed: int, device: torch.device | str) -> Sample:
    images = to_float(split.images(np.arange(len(split)))).to(device)
    rows = torch.arange(len(split), device=device)
    return Sample(images=images, labels=torch.from_numpy(split.labels.copy()), rng=SampleRng(seed, 0, rows))


def _labelled(sample: Sample) -> Sample:
    return sample.rows((sample.labels >= 0).nonzero()[:, 0])


def _require_finite(name: str, answer: Mapping[str, Any]) -> None:
    wrong = [key for kind in ("figures", "against") for key, x in answer[kind].items() if not math.isfinite(x)]
    if wrong:
        raise CollapseError(
            f"diagnosis {name!r} gives no number for {', '.join(wrong)}: the weights have diverged; lower optimizer.lr "
            f"and train again"
        )
