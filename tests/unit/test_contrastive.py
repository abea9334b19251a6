"""The general contrastive objective: its closed forms, the methods that are settings of it, and what it bounds."""

import math
import re
import runpy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from cl_core.errors import ConfigError
from plugins.losses import DCL, DCLW, InfoNCE, NTXent, SupCon
from plugins.losses.contrastive import contrastive_loss
from plugins.losses.scores import MLP, Bilinear, Cosine, Dot, Gaussian

TOY = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "gaussian_toy.py"))
N, D = 6, 5
TEMPERATURE = 0.3


def embeddings(seed=0, count=N):
    torch.manual_seed(seed)
    return torch.randn(count, D, dtype=torch.float64), torch.randn(count, D, dtype=torch.float64)


def joined():
    """Scores of all 2N embeddings with each other, who is a sibling, who is oneself."""
    z = torch.cat(embeddings())
    itself = torch.eye(2 * N, dtype=torch.bool)
    return Cosine(TEMPERATURE)(z, z), itself.roll(N, dims=1), itself


def test_equal_scores_cost_log_of_the_candidates_and_perfect_ones_nothing():
    positives = torch.eye(3, 9, dtype=torch.bool)
    torch.testing.assert_close(contrastive_loss(torch.zeros(3, 9), positives), torch.full((3,), math.log(9)))
    assert contrastive_loss(torch.eye(3, 9) * 1000, positives).abs().max() == 0
    assert contrastive_loss(torch.randn(4, 1), torch.ones(4, 1, dtype=torch.bool)).abs().max() < 1e-6


def test_a_term_of_the_anchor_alone_changes_nothing():
    torch.manual_seed(0)
    scores, positives = torch.randn(4, 7, dtype=torch.float64), torch.eye(4, 7, dtype=torch.bool)
    shifted = scores + torch.randn(4, 1, dtype=torch.float64)
    torch.testing.assert_close(contrastive_loss(shifted, positives), contrastive_loss(scores, positives))


def test_the_gradient_is_the_softmax_less_the_answer():
    torch.manual_seed(0)
    scores = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    positives = torch.eye(4, 7, dtype=torch.bool)
    contrastive_loss(scores, positives).sum().backward()
    torch.testing.assert_close(scores.grad, scores.detach().softmax(dim=1) - positives.double())


def test_it_is_the_loop_over_anchors_positives_and_candidates():
    torch.manual_seed(0)
    scores = torch.randn(5, 6, dtype=torch.float64)
    positives, negatives = torch.rand(5, 6) < 0.3, torch.rand(5, 6) < 0.5
    positives[0], positives[1, 0] = False, True
    negatives &= ~positives
    found = contrastive_loss(scores, positives, negatives)
    for i in range(5):
        mine = [j for j in range(6) if positives[i, j]]
        total = sum(math.exp(scores[i, j]) for j in range(6) if positives[i, j] or negatives[i, j])
        terms = [math.log(total) - float(scores[i, j]) for j in mine]
        assert float(found[i]) == pytest.approx(sum(terms) / len(terms) if terms else 0)


def test_nt_xent_is_a_setting():
    scores, sibling, itself = joined()
    loss = contrastive_loss(scores, sibling, ~sibling & ~itself).mean()
    torch.testing.assert_close(loss, NTXent(TEMPERATURE)(*embeddings()))


def test_dcl_and_dclw_are_settings():
    scores, sibling, itself = joined()
    z_a, z_b = embeddings()
    negatives = ~sibling & ~itself
    plain = contrastive_loss(scores, sibling, negatives, decoupled=True).mean()
    torch.testing.assert_close(plain, DCL(temperature=TEMPERATURE)(z_a, z_b))
    pull = (F.cosine_similarity(z_a, z_b) / 0.5).exp()
    weight = (2 - N * pull / pull.sum()).repeat(2)
    weighted = contrastive_loss(scores, sibling, negatives, decoupled=True, weight=weight).mean()
    torch.testing.assert_close(weighted, DCLW(temperature=TEMPERATURE, sigma=0.5)(z_a, z_b))


def test_supcon_is_a_setting():
    scores, _, itself = joined()
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    same = (labels.repeat(2)[:, None] == labels.repeat(2)) & ~itself
    loss = contrastive_loss(scores, same, ~same & ~itself).mean()
    torch.testing.assert_close(loss, SupCon(TEMPERATURE)(*embeddings(), labels))


def test_info_nce_is_cpc_in_one_direction_and_symmetric_in_both():
    z_a, z_b = embeddings()
    own = torch.eye(N, dtype=torch.bool)
    score = Bilinear(D).double()
    forth = contrastive_loss(score(z_a, z_b), own).mean()
    back = contrastive_loss(score(z_a, z_b).T, own).mean()
    torch.testing.assert_close(InfoNCE(score, symmetric=False)(z_a, z_b), forth)
    torch.testing.assert_close(InfoNCE(score)(z_a, z_b), (forth + back) / 2)
    torch.testing.assert_close(InfoNCE(score)(z_b, z_a), InfoNCE(Transposed(score))(z_a, z_b))
    with pytest.raises(ConfigError, match="more than one image"):
        InfoNCE(score)(z_a[:1], z_b[:1])


class Transposed(torch.nn.Module):
    def __init__(self, score):
        super().__init__()
        self.score = score

    def forward(self, anchors, candidates):
        return self.score(candidates, anchors).T


@pytest.mark.parametrize(
    "score", [Dot(2.0), Cosine(0.5), Gaussian(0.7), Bilinear(D), MLP(D)], ids=lambda s: type(s).__name__
)
def test_a_score_looks_at_one_pair_at_a_time(score):
    score = score.double()
    anchors, candidates = embeddings()
    whole = score(anchors, candidates[:4])
    assert whole.shape == (N, 4)
    for i, j in ((0, 0), (2, 3), (5, 1)):
        torch.testing.assert_close(whole[i, j], score(anchors[i : i + 1], candidates[j : j + 1])[0, 0])


def test_scores_follow_their_formulas():
    a, b = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]])
    assert float(Dot(2.0)(a, b)) == pytest.approx(1.5)
    assert float(Cosine(0.5)(a, b)) == pytest.approx(1.2)
    assert float(Gaussian(2.0)(a, b)) == pytest.approx(-(4 + 16) / 8)
    assert float(Bilinear(2)(a, b).detach()) == pytest.approx(3 / math.sqrt(2))


def test_the_gaussian_score_is_the_cosine_on_the_sphere_up_to_a_constant():
    a, b = (F.normalize(z, dim=1) for z in embeddings())
    torch.testing.assert_close(Gaussian(0.6)(a, b), Cosine(0.36)(a, b) - 1 / 0.36)


# Correlated Gaussians, of which everything is known


@pytest.mark.parametrize(("dim", "count", "expected"), [(1, 16, 0.760), (4, 16, 2.23), (4, 128, 3.02), (10, 16, 2.75)])
def test_the_bound_is_tight_for_many_candidates_and_never_above_their_log(dim, count, expected):
    found = TOY["bound"](TOY["DensityRatio"](0.9), count, dim, 0.9, batches=600)
    assert found == pytest.approx(expected, abs=0.03)
    assert found <= min(TOY["information"](dim, 0.9), math.log(count)) + 0.03


def test_the_example_shows_a_learned_score_within_five_hundredths_of_a_nat_of_the_best_one(capsys):
    TOY["main"]()
    information, few, best, many, learned = (
        float(re.search(r": (\d\.\d+) nats", line)[1]) for line in capsys.readouterr().out.splitlines()
    )
    assert information == pytest.approx(-math.log(1 - 0.9**2), abs=1e-3)
    assert few < best < many < information
    assert learned == pytest.approx(best, abs=0.05)


@pytest.mark.parametrize(("loss", "pairs", "candidates"), [(InfoNCE(Dot()), 8, 8), (NTXent(), 8, 15)])
def test_equal_embeddings_cost_the_log_of_the_candidates_that_a_loss_counts(loss, pairs, candidates):
    equal = torch.ones(pairs, D)
    assert loss.candidates(pairs) == candidates
    assert loss(equal, equal).item() == pytest.approx(math.log(candidates), rel=1e-5)
