"""Splitting and merging heads, element by element."""

from typing import Any

import pytest
import torch

from attn_course.multi_head import merge_heads, split_heads


@pytest.mark.parametrize("num_heads", [1, 2, 3, 6])
def test_each_head_gets_its_slice_of_every_position(num_heads: int) -> None:
    x = torch.randn(2, 5, 6)
    heads = split_heads(x, num_heads)
    width = 6 // num_heads
    assert heads.shape == (2, num_heads, 5, width)
    for head in range(num_heads):
        assert torch.equal(heads[:, head], x[..., head * width : (head + 1) * width])
    assert torch.equal(merge_heads(heads), x)


def test_a_reshape_alone_mixes_heads_and_positions() -> None:
    """What is left when the transpose is forgotten, on either way."""
    x = torch.arange(12).reshape(1, 3, 4)
    assert not torch.equal(split_heads(x, 2), x.reshape(1, 2, 3, 2))
    heads = split_heads(x, 2)
    assert not torch.equal(merge_heads(heads), heads.reshape(1, 3, 4))


def test_any_leading_dimensions() -> None:
    for batch in ((), (2,), (2, 3), (0,)):
        x = torch.randn(*batch, 5, 8)
        assert split_heads(x, 4).shape == (*batch, 4, 5, 2)
        assert torch.equal(merge_heads(split_heads(x, 4)), x)


def test_splitting_copies_nothing() -> None:
    x = torch.randn(2, 5, 6)
    assert split_heads(x, 3).data_ptr() == x.data_ptr()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: split_heads(torch.zeros(2, 6), 4), ValueError, "divide the width of x, 6, got 4"),
        (lambda: split_heads(torch.zeros(2, 6), 0), ValueError, "num_heads must .* got 0"),
        (lambda: split_heads(torch.zeros(6), 2), ValueError, r"x must have shape .* got \[6\]"),
        (lambda: split_heads([1.0], 1), TypeError, "x must be a torch.Tensor"),
        (lambda: merge_heads(torch.zeros(2, 6)), ValueError, r"x must have shape .*num_heads"),
        (lambda: merge_heads(None), TypeError, "x must be a torch.Tensor, got NoneType"),
    ],
)
def test_bad_input_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
