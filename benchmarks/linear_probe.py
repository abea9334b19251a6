"""The linear probe over its grid of penalties against scikit-learn's logistic regression with the same objective.

Features like an encoder's: 64 hidden factors of ten classes with three clusters each, mixed to 512 correlated values,
cut at zero and badly scaled; about 80 % can be told apart. Two threads on both sides. scikit-learn gets standardised
float32 features, and is measured with and without starting each penalty from the solution before it.
"""

from __future__ import annotations

import harness

harness.with_peers("threadpoolctl")

import threadpoolctl  # noqa: E402
import torch  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from torch import Tensor  # noqa: E402

from cl_core.config import LinearConfig  # noqa: E402
from cl_core.measures.logistic import fit_classifiers  # noqa: E402

CLASSES, THREADS = 10, 2
GRID = sorted(LinearConfig().l2, reverse=True)
TOLERANCE = 1e-3  # of accuracy: a tenth of a point


def problem(count: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features (count, dim) and labels (count,) of one problem; the seed draws examples, not the problem."""
    rng = torch.Generator().manual_seed(0)
    centres = 0.55 * torch.randn(CLASSES, 3, 64, generator=rng)
    mixing = torch.randn(64, dim, generator=rng) / 8 * torch.arange(1, 65)[:, None] ** -0.5
    shift, scale = 0.3 * torch.randn(dim, generator=rng), torch.randn(dim, generator=rng).exp()
    rng = torch.Generator().manual_seed(seed)
    labels, cluster = torch.randint(CLASSES, (count,), generator=rng), torch.randint(3, (count,), generator=rng)
    factors = centres[labels, cluster] + torch.randn(count, 64, generator=rng)
    noise = 0.3 * torch.randn(count, dim, generator=rng)
    return (3 * factors @ mixing + shift + noise).relu() * scale, labels


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Share of examples whose label has the highest score."""
    return (scores.argmax(dim=1) == labels).float().mean().item()


class Sides:
    """Both sides on one problem; every run leaves its accuracies on the test examples, one per penalty."""

    def __init__(self, count: int, dim: int) -> None:
        self.features, self.labels = problem(count, dim, seed=1)
        self.test, self.test_labels = problem(10_000, dim, seed=2)
        self.accuracies: dict[str, list[float]] = {}

    def ours(self) -> None:
        """Features as they come; standardising them is part of the time."""
        found = list(fit_classifiers(self.features, self.labels, CLASSES, GRID))
        self.accuracies["contrast"] = [accuracy(one.scores(self.test), self.test_labels) for one in found]

    def sklearn(self, *, warm_start: bool) -> None:
        """LogisticRegression(solver="lbfgs"), its default tolerance."""
        std, mean = torch.std_mean(self.features, dim=0, correction=0)
        features, labels = ((self.features - mean) / std).numpy(), self.labels.numpy()
        model = LogisticRegression(solver="lbfgs", max_iter=2000, warm_start=warm_start)
        found = []
        for l2 in GRID:
            model.set_params(C=1 / (l2 * len(features))).fit(features, labels)
            found.append(model.score(((self.test - mean) / std).numpy(), self.test_labels.numpy()))
        self.accuracies["scikit-learn"] = found


def main() -> None:
    """Measure, and compare the accuracy under every penalty."""
    args = harness.arguments(__doc__)
    torch.set_num_threads(THREADS)
    count, dim = (5_000, 128) if args.smoke else (50_000, 512)
    sides = Sides(count, dim)
    peer = harness.named("scikit-learn")
    runs = {
        "contrast": sides.ours,
        peer: lambda: sides.sklearn(warm_start=False),
        f"{peer}, warm start": lambda: sides.sklearn(warm_start=True),
    }
    with threadpoolctl.threadpool_limits(THREADS):
        times = harness.side_by_side(runs, rounds=args.rounds(3), warmup=0)
    claim = f"linear probe, {count:,} x {dim}, {len(GRID)} penalties"
    pairs = [{"contrast": times["contrast"], name: times[name]} for name in list(runs)[1:]]
    rows = [harness.less(claim, pair, unit="s", target=5.0) for pair in pairs]
    check(sides.accuracies)
    protocol = f"{' '.join((__doc__ or '').split())} Test accuracy per penalty {GRID}: "
    shown = "; ".join(f"{name} {[round(100 * x, 2) for x in found]}" for name, found in sides.accuracies.items())
    print(shown)
    harness.finish(__file__, protocol + shown + ".", rows, args)


def check(accuracies: dict[str, list[float]]) -> None:
    """Raise AssertionError where the best accuracies, or those of the penalties that are near it, differ."""
    ours, theirs = accuracies["contrast"], accuracies["scikit-learn"]
    assert abs(max(ours) - max(theirs)) <= TOLERANCE, accuracies
    assert all(abs(a - b) <= 2 * TOLERANCE for a, b in zip(ours, theirs, strict=True)), accuracies


if __name__ == "__main__":
    main()
