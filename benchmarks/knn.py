"""kNN classification against lightly's `knn_predict`, which its benchmarks call on batches of 128 or 256 queries.

Random features around ten class centres, k = 200, two threads on both sides. lightly gets normalised features and the
bank transposed once, as its classifier keeps it; ours normalises inside. Memory is what the process grows by.
"""

from __future__ import annotations

import harness

harness.with_peers("lightly==1.6.0")

import torch  # noqa: E402
from lightly.utils.benchmarking import knn_predict as theirs  # noqa: E402
from torch.nn.functional import normalize  # noqa: E402

from cl_core.measures.knn import knn_predict  # noqa: E402

CLASSES, K, THREADS, BATCH = 10, 200, 2, 256
ALIKE = 0.999  # share of queries that must get the same answer: sums in another order turn a few ties


def main() -> None:
    """Measure speed and memory, and compare the answers."""
    args = harness.arguments(__doc__)
    torch.set_num_threads(THREADS)
    generator = torch.Generator().manual_seed(0)
    size, count, dim = (8_000, 1_000, 128) if args.smoke else (50_000, 10_000, 512)
    centres = torch.randn(CLASSES, dim, generator=generator)
    labels = torch.randint(CLASSES, (size,), generator=generator)
    bank = 0.15 * centres[labels] + torch.randn(size, dim, generator=generator)
    kinds = torch.randint(CLASSES, (count,), generator=generator)
    query = 0.15 * centres[kinds] + torch.randn(count, dim, generator=generator)
    answers: dict[str, torch.Tensor] = {}

    def ours() -> None:
        answers["contrast"] = knn_predict(query, bank, labels, CLASSES, K).argmax(dim=1)

    def lightly() -> None:
        transposed = normalize(bank, dim=1).T.contiguous()
        batches = normalize(query, dim=1).split(BATCH)
        found = [theirs(batch, transposed, labels, CLASSES, K)[:, 0] for batch in batches]
        answers["lightly"] = torch.cat(found)

    grown = harness.memory_growth(ours)
    times = harness.side_by_side({"contrast": ours, harness.named("lightly"): lightly}, rounds=args.rounds(7))
    same = (answers["contrast"] == answers["lightly"]).float().mean().item()
    assert same >= ALIKE, same
    print(f"same answer for {same:.2%} of the queries")
    claim = f"kNN, {count:,} queries, bank {size:,} x {dim}, k = {K}"
    rows = [
        harness.faster(claim, times, per="queries", count=count, target=1.5),
        harness.within(f"{claim}: memory", [grown], 600, unit="MiB"),
    ]
    protocol = f"{' '.join((__doc__ or '').split())} lightly in batches of {BATCH}; same answer for {same:.2%}."
    harness.finish(__file__, protocol, rows, args)


if __name__ == "__main__":
    main()
