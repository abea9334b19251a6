"""The queue against a deque: what stays, in which order, and what resume needs."""

from __future__ import annotations

from collections import deque

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from plugins.methods.queue import Queue


def queue(size: int = 7, dim: int = 4, seed: int = 0) -> Queue:
    torch.manual_seed(seed)
    return Queue(size, dim)


def batches(*sizes: int, dim: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, dim, generator=generator) for size in sizes]


def oldest_first(memory: Queue) -> Tensor:
    return memory.vectors.roll(-memory.pointer, 0)


@pytest.mark.parametrize("sizes", [(3,), (7,), (3, 3, 3, 3), (5, 6, 2), (2, 17, 1), (14,)])
def test_queue_keeps_the_newest_and_drops_the_oldest(sizes):
    memory = queue()
    book = deque(memory.vectors.clone(), maxlen=7)
    for batch in batches(*sizes):
        memory.push(batch)
        book.extend(F.normalize(batch, dim=1))
        torch.testing.assert_close(oldest_first(memory), torch.stack(list(book)), atol=1e-6, rtol=1e-6)


def test_pointer_wraps_round_the_end():
    memory, pointers = queue(), []
    for batch in batches(3, 3, 3, 7):
        memory.push(batch)
        pointers.append(memory.pointer)
    assert pointers == [3, 6, 2, 2]


def test_queue_is_full_when_no_random_vector_is_left():
    memory = queue()
    start, full = memory.vectors.clone(), []
    for batch in batches(3, 3, 1):
        memory.push(batch)
        full.append((memory.is_full, bool((memory.vectors == start).all(dim=1).any())))
    assert full == [(False, True), (False, True), (True, False)]


def test_vectors_have_unit_length_from_the_start_and_whatever_is_pushed():
    memory = queue()
    torch.testing.assert_close(memory.vectors.norm(dim=1), torch.ones(7))
    for batch in (batches(3)[0] * 100, batches(3)[0].bfloat16() / 100):
        memory.push(batch)
        assert memory.vectors.dtype == torch.float32
        torch.testing.assert_close(memory.vectors.norm(dim=1), torch.ones(7))


def test_random_start_points_everywhere():
    vectors = queue(4000, 8).vectors
    assert vectors.mean(dim=0).abs().max() < 0.03
    torch.testing.assert_close(vectors.T @ vectors / 4000, torch.eye(8) / 8, atol=0.02, rtol=0)


def test_queue_holds_no_gradient_and_no_parameters():
    memory = queue()
    memory.push(batches(3)[0].requires_grad_())
    assert not memory.vectors.requires_grad
    assert list(memory.parameters()) == []


def test_state_dict_brings_vectors_and_pointer_back():
    first, second = queue(seed=0), queue(seed=1)
    first.push(batches(5)[0])
    second.load_state_dict(first.state_dict())
    for memory in (first, second):
        memory.push(batches(4)[0])
    assert first.pointer == second.pointer == 2
    assert torch.equal(first.vectors, second.vectors)
