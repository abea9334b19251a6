"""Questions to every method that compares embeddings of two views: collapse, colours as a shortcut, h against z.

A method opts in with one line, `return embedding_diagnoses(self, self.projector)`, or `contrastive_diagnoses`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_core.measures.diagnostics import alignment_uniformity, collapse_figures
from cl_core.measures.logistic import linear_accuracy
from cl_core.types import Diagnosis, Finding, Method, Sample
from plugins.methods.detectors import SOLVED, UNSOLVED, beyond, found, gathered

MIN_STD, MIN_RANK = 0.1, 2.0  # of unit embeddings, as for the collapse monitor: std times sqrt(D), effective rank
# Of views beyond chance, among 255 others. On 512 images of CIFAR-10 colours find 52 % after crops alone, 32 % if some
# are made grey, 47 % with jitter of strength 0.1, 13 % with 0.5, and 8 % with both.
COLOUR_LEAK = 0.25
FEW = 0.1  # of the prototypes that could be in use
_RIDGE = 1e-3  # of the variance of colour statistics within pairs, where some do not vary

Network = Callable[[Tensor], Tensor]


def embedding_diagnoses(method: Method, projector: Network) -> dict[str, Diagnosis]:
    """Questions to a method whose first two views are of one image each.

    projector: h (N, out_dim) of the encoder -> z (N, D), on which the loss acts.
    """
    embed = _embedding(method, projector)
    return {
        "collapse": Diagnosis(
            question="Do different images get different embeddings?",
            find=lambda fit, held_out: collapse(method, embed, held_out),
        ),
        "projection": Diagnosis(
            question="Is the encoder's output h at least as good a representation as the projection z?",
            find=lambda fit, held_out: projection(lambda x: method.encoder(x).float(), embed, fit, held_out),
            needs_labels=True,
        ),
    }


def contrastive_diagnoses(method: Method, projector: Network) -> dict[str, Diagnosis]:
    """`embedding_diagnoses`, and the question to methods that learn to find an image's other view among others."""
    colours_only = Diagnosis(
        question="Does it take more than colours to find the other view of an image?",
        find=lambda fit, held_out: colours(method, _embedding(method, projector), fit, held_out),
    )
    return {**embedding_diagnoses(method, projector), "colours": colours_only}


def _embedding(method: Method, projector: Network) -> Network:
    return lambda images: projector(method.encoder(images)).float()


def collapse(method: Method, embed: Network, held_out: Sample) -> Finding:
    """Spread of z over held-out images, and alignment and uniformity of their views."""
    z = gathered(held_out, lambda part: embed(part.images))
    spread = collapse_figures(z)
    figures = spread | alignment_uniformity(*_pair(gathered(held_out, lambda part: _views(method, part, embed))))
    std, rank = spread["feature_std"], spread["effective_rank"]
    return found(
        not (std >= MIN_STD and rank >= MIN_RANK),
        warning="the embeddings have collapsed: different images look all but the same",
        fine=f"they spread over about {rank:.0f} of {min(z.shape)} dimensions",
        figures=figures,
        against={"least feature_std": MIN_STD, "least effective_rank": MIN_RANK},
    )


def colours(method: Method, embed: Network, fit: Sample, held_out: Sample) -> Finding:
    """How often mean and deviation of the channels find the other view of an image, against how often z does.

    Differences are measured in units of how much the statistics differ between views of one image, on the images to fit
    on: the best linear metric where both are normal (Chen et al. 2020, arXiv:2002.05709, section 3.1, on why crops
    without jitter of colours can be told by their histograms).
    """
    a, b = _pair(gathered(fit, lambda part: _views(method, part, channel_statistics)))
    whiten = _whitening(a - b)
    trivial, chance = _matched(held_out, lambda part: _views(method, part, channel_statistics) @ whiten)
    network, _ = _matched(held_out, lambda part: F.normalize(_views(method, part, embed), dim=2))
    solved = beyond(network, chance)
    shares = f"colours alone find {trivial:.0%} of the views, the network {network:.0%}"
    return found(
        solved < SOLVED or beyond(trivial, chance) > COLOUR_LEAK,
        warning=UNSOLVED if solved < SOLVED else f"{shares}; strengthen the jitter of colours",
        fine=shares,
        figures={"colours": trivial, "network": network},
        against={"chance": chance, "leak above": COLOUR_LEAK},
    )


def projection(encode: Network, embed: Network, fit: Sample, held_out: Sample) -> Finding:
    """Linear probes on h and z: the head should keep to itself what the loss throws away."""

    def probe(network: Network) -> float:
        seen = [gathered(sample, lambda part: network(part.images)) for sample in (fit, held_out)]
        return linear_accuracy(seen[0], fit.labels, seen[1], held_out.labels)

    h, z = probe(encode), probe(embed)
    margin = len(held_out) ** -0.5  # about two standard errors of an accuracy
    return found(
        z > h + margin,
        warning="the projection z is the better one: the encoder leaves work to the head that is thrown away",
        fine="h is better" if h > z + margin else "neither is clearly better",
        figures={"h": h, "z": z},
    )


def assignments(scores: Network, held_out: Sample) -> Finding:
    """Perplexity of the prototypes that are nearest to the images: 1 where all fall into one cluster.

    scores: images -> (N, K), higher where a prototype is nearer.
    """
    values = gathered(held_out, lambda part: scores(part.images))
    shares = F.one_hot(values.argmax(dim=1), values.shape[1]).double().mean(dim=0)
    perplexity, most = float(torch.special.entr(shares).sum().exp()), min(values.shape)
    return found(
        perplexity < FEW * most,
        warning="the images fall into a few clusters: lower method.epsilon, or take fewer prototypes",
        fine="the images are spread over many clusters",
        figures={"perplexity": perplexity},
        against={"one cluster": 1, "most": most},
    )


def opinions(beliefs: Network, held_out: Sample) -> Finding:
    """What the teacher's output says of an image, in nats: entropy of its mean less its mean entropy.

    beliefs: images -> (N, K), rows sum to 1. Both ways to collapse, the same even distribution for all images and the
    same prototype for all, say nothing.
    """
    p = gathered(held_out, lambda part: beliefs(part.images)).double()
    of_mean, of_each = torch.special.entr(p.mean(dim=0)).sum(), torch.special.entr(p).sum(dim=1).mean()
    told, uniform = float(of_mean - of_each), math.log(p.shape[1])
    return found(
        told < math.log(2),
        warning="the teacher says the same of all images: "
        + ("it has no opinion" if of_each > uniform / 2 else "all go to one prototype"),
        fine="the teacher tells images apart",
        figures={"told": told, "teacher entropy": of_each, "entropy of the mean": of_mean},
        against={"two groups": math.log(2), "no opinion": uniform, "one prototype": 0},
    )


def channel_statistics(images: Tensor) -> Tensor:
    """Mean and deviation of every channel: (N, C, H, W) -> (N, 2 C)."""
    deviation, mean = torch.std_mean(images.float(), dim=(2, 3), correction=0)
    return torch.cat([mean, deviation], dim=1)


def siblings_found(a: Tensor, b: Tensor) -> float:
    """Share of the 2N rows of a and b, (N, D) each, to which no other row is as near as their sibling."""
    distance = torch.cdist(*2 * [torch.cat([a, b]).double()]).fill_diagonal_(torch.inf)
    sibling = torch.arange(len(distance), device=a.device).roll(len(a))[:, None]
    nearest_other = distance.scatter(1, sibling, torch.inf).amin(dim=1)
    return float((distance.gather(1, sibling)[:, 0] < nearest_other).double().mean())


def _views(method: Method, part: Sample, look: Network) -> Tensor:
    """What `look` makes of the first two views: (N, 2, D)."""
    return torch.stack([look(view) for view in method.make_views(part.images, part.rng).images[:2]], dim=1)


def _pair(both: Tensor) -> tuple[Tensor, Tensor]:
    return both[:, 0], both[:, 1]


def _matched(sample: Sample, look: Callable[[Sample], Tensor]) -> tuple[float, float]:
    """Share of views that find their sibling among those of a part of the sample, and chance."""
    right = chance = 0.0
    for part in sample.parts():
        share = len(part) / len(sample)
        right += share * siblings_found(*_pair(look(part)))
        chance += share / (2 * len(part) - 1)
    return right, chance


def _whitening(differences: Tensor) -> Tensor:
    """(N, D) -> (D, D) that gives them unit covariance; directions in which they do not vary count most."""
    covariance = differences.double().T @ differences.double() / len(differences)
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors / (values + _RIDGE * values.mean()).clamp(min=1e-12).sqrt()).to(differences)
