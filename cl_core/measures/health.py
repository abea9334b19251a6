"""How healthy features are where no image has a label: do views of an image find each other, how much room is filled?

Takes features, returns figures; makes no views and touches no model. Comparable between encoders of one width and one
input only, and none of them is an accuracy: which to believe is shown by experiments whose accuracy is known.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cl_core.measures.diagnostics import effective_rank, entropy_rank, log_mean_potential

RIDGE = 1e-4  #: delta of LiDAR, on the scale of the features' variance
FIRST_INDEX, LAST_INDEX = 11, 50  #: of the eigenvalues, largest first from 1, whose decay alpha-ReQ fits
_FEWEST_INDICES = 5  # below which there is no slope to speak of: features of at least 15 values
_NOTHING = 1e-12  # of the largest eigenvalue: what is left of a direction that rounding alone fills


@torch.no_grad()
def self_match(first: Tensor, second: Tensor) -> float:
    """Share of images whose nearest neighbour among all images' second views is their own second view, in [0, 1].

    first, second: (N, D) features of two views of the same N >= 1 images, any float type and scale; cosine. 1/N is
    chance, and what features get that are all equal. The self-consistency of CLID (Lu et al. 2023), with k = 1.
    """
    similarity = normalize(first.double(), dim=1) @ normalize(second.double(), dim=1).T  # (N, N)
    own = torch.arange(len(first), device=first.device)
    return int((similarity.argmax(dim=1) == own).sum()) / len(first)


@torch.no_grad()
def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance of two views of an image on the unit sphere, in [0, 4], lower is better.

    first, second: (N, D), any float type and scale. 2 for views that have nothing in common (Wang & Isola 2020,
    arXiv:2005.10242, section 4.1.1, alpha = 2).
    """
    return float((normalize(first.double(), dim=1) - normalize(second.double(), dim=1)).square().sum(dim=1).mean())


@torch.no_grad()
def uniformity(features: Tensor) -> float:
    """log of the mean of exp(-2 * squared distance) over pairs of images on the unit sphere, lower is better.

    features: (N, D), any float type and scale. 0 where all are equal, about -4 where they are spread evenly in
    many dimensions (Wang & Isola 2020, arXiv:2005.10242, section 4.1.2, t = 2).
    """
    return log_mean_potential(normalize(features.double(), dim=1))


@torch.no_grad()
def lidar(views: Tensor, ridge: float = RIDGE) -> float:
    """How many directions tell images apart rather than views: between 1 and min(N - 1, D), NaN if not finite.

    views: (V, N, D) features of V >= 2 views of N images, an image's views being a class. exp of the entropy of the
    normalised eigenvalues of (S_w + ridge I)^-1/2 S_b (S_w + ridge I)^-1/2, S_w the covariance within images and S_b
    that between their means (LiDAR, Thilak et al. 2024, arXiv:2312.04000, equations 1 and 2, whose epsilon keeps log 0
    away). Views that bear no signal still leave 1/V of their variance to the means: compare at equal V and D.
    1 where all images are equal.
    """
    views = views.double()
    if not torch.isfinite(views).all():
        return float("nan")
    centres = views.mean(dim=0)  # (N, D)
    within = (views - centres).flatten(0, 1)
    s_w = within.T @ within / len(within) + ridge * torch.eye(views.shape[2], dtype=views.dtype, device=views.device)
    # With S_w = L L', the matrix of the paper has the eigenvalues of L^-1 S_b L^-T, which are squared singular values.
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(s_w), (centres - centres.mean(dim=0)).T, upper=False)
    return entropy_rank(torch.linalg.svdvals(whitened).square())


@torch.no_grad()
def alpha_req(features: Tensor) -> float | None:
    """Minus the slope of log eigenvalue against log index of the covariance; about 1 is best (Agrawal et al. 2022).

    features: (N, D), centred here. Least squares over the eigenvalues FIRST_INDEX to LAST_INDEX, largest first, or as
    many as there are; the paper names no range. Below 1 the features are too rough, above it they fill few directions.
    None where fewer than 5 of these eigenvalues are above rounding, or where features are not finite.
    """
    features = features.double()
    if not torch.isfinite(features).all():
        return None
    values = torch.linalg.svdvals(features - features.mean(dim=0)).square()  # N times the eigenvalues
    values = values[values > _NOTHING * values[:1]][FIRST_INDEX - 1 : LAST_INDEX]
    if len(values) < _FEWEST_INDICES:
        return None
    x = torch.arange(FIRST_INDEX, FIRST_INDEX + len(values), dtype=values.dtype, device=values.device).log()
    x = x - x.mean()
    return -float(x @ values.log() / x.square().sum())


def room_figures(features: Tensor) -> dict[str, float]:
    """`rankme`, `alpha_req` (left out where it is None) and `uniformity` of images as they are, (N, D).

    rankme: exp of the entropy of the normalised singular values, in [1, min(N, D)], of features neither centred nor
    normalised (RankMe, Garrido et al. 2023, arXiv:2210.02885, equation 1).
    """
    decay = alpha_req(features)
    room = {"rankme": effective_rank(features), "uniformity": uniformity(features)}
    return {name: value for name, value in (room | {"alpha_req": decay}).items() if value is not None}


def view_figures(first: Tensor, second: Tensor) -> dict[str, float]:
    """`self_match`, first as the share that monitors judge by, and `alignment` of two views, (N, D) each."""
    return {"self_match": self_match(first, second), "alignment": alignment(first, second)}


def health_figures(whole: Tensor, views: Tensor) -> dict[str, float]:
    """All figures of this module that are numbers: of whole images (N, D) and of V >= 2 views (V, N, D).

    The first two views are those of `view_figures`. A figure that is not finite is left out.
    """
    found = view_figures(views[0], views[1]) | room_figures(whole) | {"lidar": lidar(views)}
    return {name: value for name, value in found.items() if math.isfinite(value)}
