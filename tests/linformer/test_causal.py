"""The block-wise form: what it computes, and that no bit of the future comes through."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from attn_course import _triton
from attn_course.linformer import causal, causal_linformer_attention
from attn_course.testing import assert_close, assert_unchanged, poisoned_padding
from tests.launches import interpreted

TRITON = pytest.param("triton", marks=[pytest.mark.triton, interpreted])
each_impl = pytest.mark.parametrize("impl", ["auto", "reference", "sdpa", TRITON])
WIDTH, SLOTS = 4, 2


def make(length: int, *, heads: int = 2, own: bool = False, **options: Any) -> list[Tensor]:
    options = {"dtype": torch.float64, "requires_grad": True} | options
    x = [torch.randn(2, heads, length, 4, **options) for _ in range(3)]
    shape = (heads, SLOTS, WIDTH) if own else (SLOTS, WIDTH)
    return [*x, *(torch.randn(shape, **options) for _ in range(2))]


def exact(query: Tensor, key: Tensor, value: Tensor, E: Tensor, F_: Tensor, lens: Tensor) -> Tensor:
    """Query by query: gather what it may see, and average it."""
    rows = []
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            e, f = (m if m.ndim == 2 else m[h] for m in (E, F_))
            for i in range(query.shape[2]):
                keys, values = [], []
                for start in range(0, i - i % WIDTH, WIDTH):
                    if start < lens[b]:
                        end = min(start + WIDTH, int(lens[b]))
                        keys.append(e[:, : end - start] @ key[b, h, start:end])
                        values.append(f[:, : end - start] @ value[b, h, start:end])
                own = slice(i - i % WIDTH, min(i + 1, int(lens[b])))
                keys.append(key[b, h, own])
                values.append(value[b, h, own])
                k, v = torch.cat(keys), torch.cat(values)
                if len(k) == 0:
                    rows.append(value.new_zeros(value.shape[-1]))
                    continue
                rows.append((k @ query[b, h, i] / math.sqrt(query.shape[-1])).softmax(0) @ v)
    return torch.stack(rows).reshape(*query.shape[:-1], value.shape[-1])


@each_impl
@pytest.mark.parametrize("length", [1, 4, 5, 11])
@pytest.mark.parametrize("own", [False, True])
def test_is_what_it_says(impl: str, length: int, own: bool) -> None:
    leaves = make(length, own=own)
    output = causal_linformer_attention(*leaves, block_len=WIDTH, impl=impl)
    expected = exact(*leaves, torch.full((2,), length))
    assert_close(output, expected)
    grad = torch.linspace(-1, 2, output.numel(), dtype=torch.float64).view_as(output)
    ours, theirs = (
        torch.autograd.grad(x, leaves, grad, allow_unused=True) for x in (output, expected)
    )
    for mine, other, leaf in zip(ours, theirs, leaves, strict=True):
        mine, other = (torch.zeros_like(leaf) if g is None else g for g in (mine, other))
        assert_close(mine, other)


@each_impl
@pytest.mark.parametrize("scale", [0.3, 2])
def test_scores_are_multiplied_by_what_is_asked_for(impl: str, scale: float) -> None:
    query, *others = make(7)
    output = causal_linformer_attention(query, *others, scale=scale, impl=impl)
    default = causal_linformer_attention(query * scale * 4**0.5, *others, impl="reference")
    assert_close(output, default)


@each_impl
@pytest.mark.parametrize("lens", [torch.tensor([6, 0]), torch.tensor([3, 9])])
def test_padding(impl: str, lens: Tensor) -> None:
    """Also of queries past the length: all implementations let them see the same."""
    leaves = make(11, requires_grad=False)
    real = (torch.arange(11) < lens[:, None])[:, None, :, None]
    expected = exact(leaves[0] * real, *leaves[1:], lens)
    for i in range(3):
        leaves[i] = poisoned_padding(leaves[i], lens)
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    output = causal_linformer_attention(*leaves, valid_lens=lens, impl=impl)
    assert_close(output, expected)
    assert (output[lens == 0] == 0).all()
    (output * real).sum().backward()
    assert all(bool(x.grad is not None and x.grad.isfinite().all()) for x in leaves)


@each_impl
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_bit_of_the_future_comes_through(impl: str, dtype: torch.dtype) -> None:
    """Whatever comes after position i, all outputs up to i stay as they are, bit for bit."""
    length = 13
    query, key, value, E, F_ = make(length, dtype=dtype, requires_grad=False)
    before = causal_linformer_attention(query, key, value, E, F_, impl=impl)
    for i in (0, 2, 3, 4, 7, 8, 11):
        later = [x.clone() for x in (query, key, value)]
        for x in later:
            x[..., i + 1 :, :] = 50 * torch.randn_like(x[..., i + 1 :, :])
        after = causal_linformer_attention(*later, E, F_, impl=impl)
        assert torch.equal(after[..., : i + 1, :], before[..., : i + 1, :])
        assert not torch.equal(after[..., i + 1 :, :], before[..., i + 1 :, :])


@pytest.mark.parametrize("impl", ["sdpa", "reference"])
def test_the_past_comes_through_all_of_it(impl: str) -> None:
    query, key, value, E, F_ = make(13)
    output = causal_linformer_attention(query, key, value, E, F_, impl=impl)
    (grad,) = torch.autograd.grad(output[..., -1, :].sum(), value)
    assert (grad.abs().sum((0, 1, 3)) > 0).all()


def test_weights() -> None:
    leaves = make(11)
    output, weights = causal_linformer_attention(*leaves, need_weights=True)
    assert weights.shape == (2, 2, 11, 2 * SLOTS + 11)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    assert (weights[..., :WIDTH, : 2 * SLOTS] == 0).all()  # no block is over yet
    assert_close(output, causal_linformer_attention(*leaves))


@pytest.mark.parametrize("impl", ["reference", "sdpa"])
def test_dropout(impl: str) -> None:
    leaves = make(11)
    torch.manual_seed(0)
    some = [causal_linformer_attention(*leaves, dropout_p=0.5, impl=impl) for _ in range(800)]
    mean = torch.stack(some).mean(0)
    assert not torch.equal(some[0], some[1])
    torch.testing.assert_close(mean, causal_linformer_attention(*leaves), atol=0.5, rtol=0.2)


def test_the_kernel_is_taken_on_a_gpu_where_it_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton, "AVAILABLE", True)
    gpu: Any = SimpleNamespace(is_cuda=True, dtype=torch.float16)
    assert causal._choose("auto", gpu, 0.0, False) == "triton"
    assert causal._choose("auto", gpu, 0.1, False) == "sdpa"  # it has no dropout
    assert causal._choose("auto", gpu, 0.0, True) == "reference"
    gpu.dtype = torch.float64
    assert causal._choose("auto", gpu, 0.0, False) == "sdpa"
    monkeypatch.setattr(_triton, "AVAILABLE", False)
    gpu.dtype = torch.float32
    assert causal._choose("auto", gpu, 0.0, False) == "sdpa"


def test_nothing_is_changed() -> None:
    leaves, lens = make(11, requires_grad=False), torch.tensor([5, 11])
    with assert_unchanged(*leaves, lens):
        causal_linformer_attention(*leaves, valid_lens=lens)


def test_bad_input() -> None:
    query, key, value, E, F_ = make(11)
    with pytest.raises(ValueError, match="block_len must be the columns of key_projection, 4"):
        causal_linformer_attention(query, key, value, E, F_, block_len=5)
    with pytest.raises(ValueError, match="query must have a position for each key, 11, got 10"):
        causal_linformer_attention(query[..., :10, :], key, value, E, F_)
    with pytest.raises(ValueError, match=r"key_projection must have .* pass key_projection.mT"):
        causal_linformer_attention(query, key, value, E.mT, F_)
    with pytest.raises(ValueError, match="impl must be one of"):
        causal_linformer_attention(query, key, value, E, F_, impl="blocked")
    with pytest.raises(ValueError, match="need_weights=True asks"):
        causal_linformer_attention(query, key, value, E, F_, impl="sdpa", need_weights=True)
