"""Pooled pictures against the full matrix, binned by loops over Python numbers."""

import math
import subprocess
import sys
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from attn_course import _triton
from attn_course.heatmaps import pooled, pooled_weights
from attn_course.heatmaps.pooled import bin_edges, pooled_weights_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRITON = pytest.param("triton", marks=pytest.mark.triton)
IMPLS = ["reference", TRITON]
# (queries, keys, columns, bins): the interpreter's tiles are 16 wide.
SHAPES = [
    (1, 1, 1, (1, 1)),
    (17, 63, 2, (1, 1)),
    (63, 17, 3, (5, 4)),
    (9, 9, 5, (9, 9)),
    (16, 33, 20, (3, 2)),
    (63, 19, 1, (2, 19)),
    (1, 63, 4, (1, 7)),
]


def ids(shape: tuple[int, int, int, tuple[int, int]]) -> str:
    n, m, d, bins = shape
    return f"n{n}-m{m}-d{d}-bins{bins[0]}x{bins[1]}"


def inputs(n: int, m: int, d: int, *batch: int) -> tuple[Tensor, Tensor]:
    def make(rows: int) -> Tensor:
        return torch.randn(*batch, rows, d, dtype=torch.float64, device=DEVICE)

    return make(n), make(m)


def brute_force(
    query: Tensor,
    key: Tensor,
    bins: tuple[int, int],
    score: str,
    *,
    scale: float | None = None,
    width: list[float] | None = None,
    weight: list[float] | None = None,
    lens: list[int] | None = None,
    is_causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    slope: float = 0.0,
) -> Tensor:
    """The picture of one matrix, without a batch: every weight, then every bin."""
    q, k = query.double().tolist(), key.double().tolist()
    n, m, d = len(q), len(k), len(q[0])
    scale = 1 / math.sqrt(d) if scale is None else scale
    width = width or [1.0] * d
    picture = [[0.0] * bins[1] for _ in range(bins[0])]
    for i in range(n):
        if score == "dot":
            s = [scale * sum(a * b for a, b in zip(q[i], k[j], strict=True)) for j in range(m)]
        elif score == "additive":
            assert weight is not None
            s = [
                sum(w * math.tanh(a + b) for a, b, w in zip(q[i], k[j], weight, strict=True))
                for j in range(m)
            ]
        else:
            s = [
                -sum(((a - b) / w) ** 2 for a, b, w in zip(q[i], k[j], width, strict=True)) / 2
                for j in range(m)
            ]
        seen = [j for j in range(m) if lens is None or j < lens[i]]
        seen = [j for j in seen if not is_causal or j <= i]
        left, right = window or (None, None)
        seen = [j for j in seen if left is None or i - j <= left]
        seen = [j for j in seen if right is None or j - i <= right]
        if not seen:
            continue
        s = [x - slope * abs(i - j) for j, x in enumerate(s)]
        largest = max(s[j] for j in seen)
        total = sum(math.exp(s[j] - largest) for j in seen)
        (b,) = [b for b in range(bins[0]) if b * n // bins[0] <= i < (b + 1) * n // bins[0]]
        mine = (b + 1) * n // bins[0] - b * n // bins[0]
        for j in seen:
            (c,) = [c for c in range(bins[1]) if c * m // bins[1] <= j < (c + 1) * m // bins[1]]
            picture[b][c] += math.exp(s[j] - largest) / total / mine
    return torch.tensor(picture, dtype=torch.float64, device=query.device)


@pytest.mark.parametrize("score", ["dot", "gaussian"])
@pytest.mark.parametrize("shape", SHAPES, ids=ids)
@pytest.mark.parametrize("impl", IMPLS)
def test_equals_the_binned_full_matrix(impl: str, shape: Any, score: str) -> None:
    n, m, d, bins = shape
    query, key = inputs(n, m, d)
    picture = pooled_weights(query, key, bins=bins, score=score, impl=impl)
    torch.testing.assert_close(picture, brute_force(query, key, bins, score), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(picture.sum(-1), torch.ones_like(picture[:, 0]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=ids)
@pytest.mark.parametrize("impl", IMPLS)
def test_additive_equals_the_binned_full_matrix(impl: str, shape: Any) -> None:
    n, m, d, bins = shape
    query, key = inputs(n, m, d)
    weight = torch.randn(2 * d, dtype=torch.float64, device=DEVICE)[::2]
    picture = pooled_weights(query, key, bins=bins, score="additive", weight=weight, impl=impl)
    exact = brute_force(query, key, bins, "additive", weight=weight.tolist())
    torch.testing.assert_close(picture, exact, rtol=1e-6, atol=1e-9)
    single = pooled_weights(
        query.float(), key.float(), bins=bins, score="additive", weight=weight.float(), impl=impl
    )
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("error:overflow")
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("size", [50.0, 1e4, math.inf])
def test_additive_units_may_saturate(impl: str, size: float) -> None:
    query, key = (tensor.float() for tensor in inputs(18, 20, 3))
    weight = torch.tensor([2.0, -1.0, 0.5], device=DEVICE)
    query[3, 0], query[4, 0], key[5, 1], key[6, 2] = size, -size, size, -size
    picture = pooled_weights(query, key, bins=(18, 5), score="additive", weight=weight, impl=impl)
    exact = brute_force(query, key, (18, 5), "additive", weight=weight.tolist())
    torch.testing.assert_close(picture.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_additive_with_lengths_batches_and_poisoned_padding(impl: str) -> None:
    query, key = inputs(18, 17, 3, 2)
    weight = torch.randn(3, dtype=torch.float64, device=DEVICE)
    lens = torch.tensor([6, 17], device=DEVICE)
    key[0, 6:] = torch.nan
    before = query.clone(), key.clone(), weight.clone()
    picture = pooled_weights(
        query, key, bins=(4, 5), score="additive", weight=weight, valid_lens=lens, impl=impl
    )
    for item, length in enumerate(lens.tolist()):
        exact = brute_force(
            query[item], key[item], (4, 5), "additive", weight=weight.tolist(), lens=[length] * 18
        )
        torch.testing.assert_close(picture[item], exact, rtol=1e-6, atol=1e-9)
    for tensor, copy in zip((query, key, weight), before, strict=True):
        assert torch.equal(tensor.nan_to_num(), copy.nan_to_num())


@pytest.mark.parametrize("impl", IMPLS)
def test_float32_is_near_float64(impl: str) -> None:
    query, key = inputs(33, 47, 8)
    exact = brute_force(query, key, (4, 5), "dot")
    picture = pooled_weights(query.float(), key.float(), bins=(4, 5), impl=impl)
    assert picture.dtype == torch.float32
    torch.testing.assert_close(picture.double(), exact, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("impl", IMPLS)
def test_half_precision_is_computed_and_returned_in_float32(impl: str) -> None:
    query, key = (tensor.to(torch.float16) for tensor in inputs(9, 12, 3))
    picture = pooled_weights(query, key, bins=3, impl=impl)
    assert picture.dtype == torch.float32
    exact = brute_force(query, key, (3, 3), "dot")
    torch.testing.assert_close(picture.double(), exact, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("impl", IMPLS)
def test_batches_broadcast_and_layouts_do_not_matter(impl: str) -> None:
    query, _ = inputs(18, 1, 3, 2, 1)
    _, key = inputs(1, 17, 3, 2)  # broadcasts along the first dimension
    query = query.transpose(-1, -2).contiguous().transpose(-1, -2)[..., ::2, :]
    before = query.clone(), key.clone()
    picture = pooled_weights(query, key, bins=(2, 3), impl=impl)
    assert picture.shape == (2, 2, 2, 3)
    for i in range(2):
        for j in range(2):
            exact = brute_force(query[i, 0], key[j], (2, 3), "dot")
            torch.testing.assert_close(picture[i, j], exact, rtol=1e-6, atol=1e-9)
    assert torch.equal(query, before[0]) and torch.equal(key, before[1])


@pytest.mark.parametrize("impl", IMPLS)
def test_an_empty_batch_gives_an_empty_picture(impl: str) -> None:
    query, key = inputs(4, 5, 2, 0)
    assert pooled_weights(query, key, bins=2, impl=impl).shape == (0, 2, 2)


@pytest.mark.parametrize("impl", IMPLS)
def test_far_away_queries_still_sum_to_one(impl: str) -> None:
    # exp(-50^2/2) is zero even in float64, for every key.
    key = torch.linspace(0, 1, 20, device=DEVICE).unsqueeze(-1)
    query = torch.tensor([[50.0], [-50.0], [1e4]], device=DEVICE)
    picture = pooled_weights(query, key, bins=(3, 4), score="gaussian", impl=impl)
    exact = brute_force(query, key, (3, 4), "gaussian")
    torch.testing.assert_close(picture.double(), exact, rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(picture.sum(-1), torch.ones(3, device=DEVICE))


@pytest.mark.parametrize("impl", IMPLS)
def test_equal_keys_far_away_share_the_weight(impl: str) -> None:
    # Scores near -5e7, where float32 counts in steps of 4: log 20 would be rounded away.
    key = torch.zeros(20, 1, device=DEVICE)
    query = torch.full((3, 1), 1e4, device=DEVICE)
    picture = pooled_weights(query, key, bins=(1, 4), score="gaussian", impl=impl)
    torch.testing.assert_close(picture, torch.full((1, 4), 0.25, device=DEVICE))


@pytest.mark.parametrize("impl", IMPLS)
def test_large_scores_do_not_overflow(impl: str) -> None:
    query, key = inputs(20, 20, 2)
    query, key = 100 * query.float(), key.float()
    picture = pooled_weights(query, key, bins=4, scale=1.0, impl=impl)
    exact = brute_force(query, key, (4, 4), "dot", scale=1.0)
    torch.testing.assert_close(picture.double(), exact, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("impl", IMPLS)
def test_scale_and_width(impl: str) -> None:
    query, key = inputs(19, 21, 2)
    picture = pooled_weights(query, key, bins=(3, 4), scale=-2.5, impl=impl)
    exact = brute_force(query, key, (3, 4), "dot", scale=-2.5)
    torch.testing.assert_close(picture, exact, rtol=1e-6, atol=1e-9)
    for width in (0.3, torch.tensor(0.3), torch.tensor([0.3, 2.0])):
        listed = width.tolist() if isinstance(width, Tensor) else width
        exact = brute_force(
            query,
            key,
            (3, 4),
            "gaussian",
            width=listed if isinstance(listed, list) else [listed] * 2,
        )
        picture = pooled_weights(query, key, bins=(3, 4), score="gaussian", width=width, impl=impl)
        torch.testing.assert_close(picture, exact, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("impl", IMPLS)
def test_valid_lens_hide_keys_even_if_they_are_nan(impl: str) -> None:
    query, key = inputs(18, 35, 2, 3)
    lens = torch.tensor([35, 20, 1], device=DEVICE)
    for item, length in enumerate(lens.tolist()):
        key[item, length:] = torch.nan
    picture = pooled_weights(query, key, bins=(4, 5), valid_lens=lens, impl=impl)
    for item, length in enumerate(lens.tolist()):
        exact = brute_force(query[item], key[item], (4, 5), "dot", lens=[length] * 18)
        torch.testing.assert_close(picture[item], exact, rtol=1e-6, atol=1e-9)


@pytest.mark.filterwarnings("error:invalid value")  # -inf - -inf, which a GPU would not report
@pytest.mark.parametrize("impl", IMPLS)
def test_valid_lens_per_query_make_a_causal_picture(impl: str) -> None:
    query, key = inputs(20, 20, 2)
    lens = torch.arange(20, device=DEVICE)  # the first query sees nothing: a row of zeros
    picture = pooled_weights(query, key, bins=5, valid_lens=lens, impl=impl)
    exact = brute_force(query, key, (5, 5), "dot", lens=lens.tolist())
    torch.testing.assert_close(picture, exact, rtol=1e-6, atol=1e-9)
    assert picture[0].sum().item() == pytest.approx(3 / 4)
    none = pooled_weights(query, key, bins=5, valid_lens=torch.zeros_like(lens), impl=impl)
    assert torch.equal(none, torch.zeros_like(none))


MASKS: dict[str, dict[str, Any]] = {
    "causal": {"is_causal": True},
    "causal-window": {"is_causal": True, "window": (17, 40)},
    "band": {"window": (3, 18)},
    "left": {"window": (5, None)},
    "right": {"window": (None, 20)},
    "diagonal": {"window": (0, 0)},
}
# More queries than keys, fewer, as many; bins that tiles of 16 do not meet.
MASKED = [(63, 19, (4, 3)), (19, 61, (3, 4)), (37, 37, (1, 1)), (33, 20, (2, 10))]


@pytest.mark.parametrize("shape", MASKED, ids=lambda s: f"n{s[0]}-m{s[1]}-bins{s[2][0]}x{s[2][1]}")
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("impl", IMPLS)
def test_masks_equal_the_binned_full_matrix(impl: str, mask: dict[str, Any], shape: Any) -> None:
    n, m, bins = shape
    query, key = inputs(n, m, 2)
    picture = pooled_weights(query, key, bins=bins, impl=impl, **mask)
    exact = brute_force(query, key, bins, "dot", **mask)
    torch.testing.assert_close(picture, exact, rtol=1e-6, atol=1e-9)
    assert torch.equal(picture == 0, exact == 0)  # what nobody may see is zero, not small


@pytest.mark.parametrize("impl", IMPLS)
def test_masks_of_other_scores(impl: str) -> None:
    query, key = inputs(35, 20, 3)
    weight = torch.randn(3, dtype=torch.float64, device=DEVICE)
    for score, more in (("gaussian", {}), ("additive", {"weight": weight})):
        picture = pooled_weights(
            query, key, bins=(3, 4), score=score, is_causal=True, window=(9, 9), impl=impl, **more
        )
        listed = {name: tensor.tolist() for name, tensor in more.items()}
        exact = brute_force(query, key, (3, 4), score, is_causal=True, window=(9, None), **listed)
        torch.testing.assert_close(picture, exact, rtol=1e-6, atol=1e-9)


@pytest.mark.filterwarnings("error:invalid value")
@pytest.mark.parametrize("mask", ["causal", "band", "left"])
@pytest.mark.parametrize("impl", IMPLS)
def test_masks_and_lengths_both_hide(impl: str, mask: str) -> None:
    query, key = inputs(36, 20, 2, 3, 1)
    lens = torch.tensor([20, 7, 0], device=DEVICE)
    for item, length in enumerate(lens.tolist()):
        key[item, 0, length:] = torch.nan
    each = torch.randint(0, 21, (3, 36), device=DEVICE)
    for valid_lens in (lens, torch.minimum(each, lens[:, None])):
        listed = valid_lens.reshape(3, -1).expand(3, 36).tolist()
        picture = pooled_weights(
            query, key, bins=(4, 3), valid_lens=valid_lens, impl=impl, **MASKS[mask]
        )
        for item in range(3):
            exact = brute_force(
                query[item, 0], key[item, 0], (4, 3), "dot", lens=listed[item], **MASKS[mask]
            )
            torch.testing.assert_close(picture[item, 0], exact, rtol=1e-6, atol=1e-9)
        assert torch.equal(picture[2], torch.zeros_like(picture[2]))


@pytest.mark.parametrize("impl", IMPLS)
def test_queries_beyond_the_window_of_every_key_are_rows_of_zeros(impl: str) -> None:
    query, key = inputs(40, 10, 2)
    picture = pooled_weights(query, key, bins=(40, 2), window=(4, 0), impl=impl)
    ones = (torch.arange(40, device=DEVICE) < 14).double()  # query 13 still sees key 9
    torch.testing.assert_close(picture.sum(-1), ones)
    assert torch.equal(picture[14:], torch.zeros_like(picture[14:]))


@pytest.mark.parametrize("impl", IMPLS)
def test_a_window_wider_than_everything_hides_nothing(impl: str) -> None:
    query, key = inputs(17, 20, 2)
    whole = pooled_weights(query, key, bins=4, impl=impl)
    for side in (20, 10**30):
        picture = pooled_weights(query, key, bins=4, window=(side, side), impl=impl)
        torch.testing.assert_close(picture, whole)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("impl", IMPLS)
def test_slopes_hold_the_weights_near(impl: str, is_causal: bool) -> None:
    query, key = inputs(18, 33, 2, 2, 3)
    slopes = torch.tensor([0.0, 0.5, 0.125], device=DEVICE)  # of another precision
    picture = pooled_weights(
        query, key[:1], bins=(2, 5), bias_slopes=slopes, is_causal=is_causal, impl=impl
    )
    for item in range(2):
        for head, slope in enumerate(slopes.tolist()):
            exact = brute_force(
                query[item, head], key[0, head], (2, 5), "dot", slope=slope, is_causal=is_causal
            )
            torch.testing.assert_close(picture[item, head], exact, rtol=1e-6, atol=1e-9)


def test_the_reference_looks_at_what_is_seen_only(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    original = pooled._scores

    def spy(*args: Any) -> Tensor:
        scores = original(*args)
        looked.append(scores.numel())
        return scores

    monkeypatch.setattr(pooled, "_scores", spy)
    few = partial(pooled_weights_reference, block_elements=1 << 14)
    monkeypatch.setattr(pooled, "pooled_weights_reference", few)
    query, key = inputs(1000, 1000, 1)
    for options, pairs in (
        ({"is_causal": True}, 1000 * 1001 // 2),
        ({"window": (10, 5)}, 1000 * 16),
        ({"window": (200, 200)}, 1000 * 401 - 200 * 201),
        ({"valid_lens": torch.tensor(30, device=DEVICE)}, 1000 * 30),
        ({"valid_lens": torch.arange(1000, device=DEVICE)}, 1000 * 999 // 2),
    ):
        looked.clear()
        pooled_weights(query, key, bins=3, impl="reference", **options)  # type: ignore[arg-type]
        assert pairs - 1000 * 16 <= sum(looked) < 1.1 * pairs + 1000 * 64, options
        assert max(looked) <= 1 << 14, options


@pytest.mark.triton
@pytest.mark.skipif(not _triton.INTERPRETED, reason="counts calls of an interpreted function")
def test_the_kernels_look_at_what_is_seen_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from attn_course.heatmaps import kernel

    tiles = 0
    original = kernel._scores

    def spy(*args: Any, **kwargs: Any) -> Any:
        nonlocal tiles
        tiles += 1
        return original(*args, **kwargs)

    monkeypatch.setattr(kernel, "_scores", spy)
    query, key = inputs(56, 64, 1)  # the last tile of queries is half empty
    for options, once in (
        ({}, 16),
        ({"is_causal": True}, 1 + 2 + 3 + 4),
        ({"window": (16, 0)}, 1 + 3 * 2),
        ({"window": (0, 1)}, 2 + 2 + 2 + 1),
        ({"valid_lens": torch.tensor(17, device=DEVICE)}, 4 * 2),
        ({"valid_lens": torch.tensor(0, device=DEVICE)}, 0),
    ):
        tiles = 0
        pooled_weights(query, key, bins=(1, 4), impl="triton", **options)  # type: ignore[arg-type]
        assert tiles == 2 * once, options  # both passes


@pytest.mark.parametrize("budget", [1, 40, 1 << 20])
def test_the_size_of_the_blocks_does_not_matter(budget: int) -> None:
    query, key = inputs(23, 17, 3, 2)
    lens = torch.randint(0, 18, (2, 23), device=DEVICE)
    args: dict[str, Any] = {
        "bins": (4, 3),
        "score": "dot",
        "spans": (torch.zeros(23, dtype=torch.long, device=DEVICE), lens),
    }
    whole = pooled_weights_reference(query, key, **args)
    parts = pooled_weights_reference(query, key, **args, block_elements=budget)
    torch.testing.assert_close(parts, whole)
    args |= {"score": "additive", "weight": torch.randn(3, dtype=torch.float64, device=DEVICE)}
    whole = pooled_weights_reference(query, key, **args)
    parts = pooled_weights_reference(query, key, **args, block_elements=budget)
    torch.testing.assert_close(parts, whole)


def test_the_reference_never_holds_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    original = pooled._scores

    def spy(*args: Any) -> Tensor:
        nonlocal largest
        scores = original(*args)
        largest = max(largest, scores.numel())
        return scores

    monkeypatch.setattr(pooled, "_scores", spy)
    query, key = inputs(2000, 2000, 1)
    pooled_weights(query, key, bins=3, impl="reference")
    assert 0 < largest <= pooled.BLOCK_ELEMENTS < 2000 * 2000
    query, key = inputs(300, 500, 50)  # counting the hidden axis
    largest = 0
    pooled_weights(query, key, bins=3, score="additive", weight=key[0], impl="reference")
    assert 0 < largest * 50 <= pooled.BLOCK_ELEMENTS < 300 * 500 * 50


@pytest.mark.triton
def test_programs_that_share_a_bin_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from attn_course.heatmaps import kernel

    query, key = inputs(63, 20, 2, 2)
    for enough in (1, 12, 100_000):
        monkeypatch.setattr(kernel, "ENOUGH_PROGRAMS", enough)
        picture = pooled_weights(query, key, bins=(2, 1), impl="triton")
        exact = pooled_weights(query, key, bins=(2, 1), impl="reference")
        torch.testing.assert_close(picture, exact, rtol=1e-6, atol=1e-9)


@pytest.mark.triton
def test_shares_cover_every_tile_once() -> None:
    from attn_course.heatmaps import kernel

    for rows in (1, 15, 16, 17, 63, 512, 65_536):
        for slots in (1, 3, 1000, 16_384):
            each, splits = kernel._share(rows, 16, slots)
            assert each % 16 == 0 and (splits - 1) * each < rows <= splits * each


@pytest.mark.triton
def test_the_kernels_write_every_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Tensor.new_empty
    filled = 0

    def poisoned(self: Tensor, *size: int, **kwargs: Any) -> Tensor:
        nonlocal filled
        filled += 1
        return original(self, *size, **kwargs).fill_(torch.nan)

    monkeypatch.setattr(Tensor, "new_empty", poisoned)
    query, key = inputs(37, 21, 2, 2)
    picture = pooled_weights(query, key, bins=(5, 3), impl="triton")
    assert filled >= 2 and not picture.isnan().any()


@pytest.mark.triton
def test_runs_repeat_bit_for_bit() -> None:
    query, key = inputs(40, 40, 2)
    first, second = (pooled_weights(query, key, bins=3, impl="triton") for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("impl", IMPLS)
def test_the_picture_carries_no_graph(impl: str) -> None:
    query, key = (tensor.requires_grad_() for tensor in inputs(5, 6, 2))
    assert not pooled_weights(query, key, bins=2, impl=impl).requires_grad


def test_bins_are_contiguous_and_nearly_equal() -> None:
    for length in (1, 2, 17, 63):
        for bins in range(1, length + 1):
            edges = bin_edges(length, bins)
            sizes = [b - a for a, b in pairwise(edges)]
            assert edges[0] == 0 and edges[-1] == length
            assert max(sizes) - min(sizes) <= 1 and max(sizes) == -(-length // bins)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"bins": 0}, r"bins must lie in \[1, 6\], the number of queries, got 0"),
        ({"bins": (2, 8)}, r"bins must lie in \[1, 7\], the number of keys, got 8"),
        ({"bins": 2.0}, r"bins must be an integer or \(q_bins, k_bins\), got 2.0"),
        ({"bins": True}, "bins must be an integer"),
        ({"bins": (1, 2, 3)}, "bins must be an integer"),
        ({"bins": 2, "score": "cosine"}, "score must be one of 'dot', 'gaussian', 'additive', got"),
        ({"bins": 2, "impl": "cuda"}, "impl must be one of 'auto', 'reference', 'triton'"),
        ({"bins": 2, "width": 2.0}, "width is for score='gaussian', got 2.0"),
        ({"bins": 2, "scale": math.inf}, "scale must be finite, got inf"),
        ({"bins": 2, "score": "gaussian", "scale": 1.0}, "scale is for score='dot', got 1.0"),
        ({"bins": 2, "score": "gaussian", "width": 0.0}, "width must be positive and finite"),
        (
            {"bins": 2, "score": "gaussian", "width": torch.ones(2)},
            r"width must have shape \[\] or \[3\], got \[2\]",
        ),
        ({"bins": 2, "score": "additive"}, "score='additive' needs weight, .* got None"),
        ({"bins": 2, "weight": torch.ones(3)}, "weight is for score='additive', got one with"),
        (
            {"bins": 2, "score": "additive", "weight": torch.ones(2)},
            r"weight must have shape \[3\], the columns of query, got \[2\]",
        ),
        (
            {"bins": 2, "score": "additive", "weight": torch.ones(3).double()},
            "weight must have the dtype of query",
        ),
        (
            {"bins": 2, "score": "additive", "weight": torch.ones(3), "scale": 2.0},
            "scale is for score='dot', got 2.0 with score='additive'",
        ),
        (
            {"bins": 2, "score": "additive", "weight": torch.ones(3), "width": 2.0},
            "width is for score='gaussian', got 2.0 with score='additive'",
        ),
        ({"bins": 2, "valid_lens": torch.tensor(9)}, r"valid_lens must lie in \[0, 7\]"),
        ({"bins": 2, "window": (2, -1)}, r"window must hold no number below 0, got \(2, -1\)"),
        (
            {"bins": 2, "bias_slopes": torch.ones(1), "score": "gaussian"},
            "bias_slopes is for score='dot', got one with score='gaussian'",
        ),
        (
            {"bins": 2, "bias_slopes": torch.ones(1)},
            r"bias_slopes must hold a number for each head, none here, got shape \[1\]",
        ),
    ],
)
def test_bad_arguments_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pooled_weights(torch.zeros(6, 3), torch.zeros(7, 3), **kwargs)


@pytest.mark.parametrize("window", [3, (1, 2, 3), (1.0, 2), (True, None)])
def test_a_window_is_two_integers(window: Any) -> None:
    with pytest.raises(TypeError, match="window must"):
        pooled_weights(torch.zeros(6, 3), torch.zeros(7, 3), bins=1, window=window)


def test_slopes_are_one_number_a_head() -> None:
    query = torch.zeros(2, 3, 6, 1)
    with pytest.raises(ValueError, match=r"for each head, \[3\], got shape \[2\]"):
        pooled_weights(query, query, bins=1, bias_slopes=torch.ones(2))
    with pytest.raises(TypeError, match="bias_slopes must hold floating-point"):
        pooled_weights(query, query, bins=1, bias_slopes=torch.ones(3, dtype=torch.long))


def test_bad_tensors_are_named() -> None:
    with pytest.raises(ValueError, match=r"query and key must have the same .* got 3 and 2"):
        pooled_weights(torch.zeros(6, 3), torch.zeros(7, 2), bins=1)
    with pytest.raises(ValueError, match="at least one, got 0 and 0"):
        pooled_weights(torch.zeros(6, 0), torch.zeros(7, 0), bins=1)
    with pytest.raises(
        ValueError, match=r"query must have shape \[..., query_len, dim\], got \[6\]"
    ):
        pooled_weights(torch.zeros(6), torch.zeros(7, 2), bins=1)
    with pytest.raises(TypeError, match="key must hold floating-point numbers"):
        pooled_weights(torch.zeros(6, 2), torch.zeros(7, 2).long(), bins=1)
    with pytest.raises(ValueError, match="batch dimensions must broadcast"):
        pooled_weights(torch.zeros(2, 6, 2), torch.zeros(3, 7, 2), bins=1)


def test_triton_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton, "AVAILABLE", False)
    monkeypatch.setattr(_triton, "REASON", "no wheel for this system")
    with pytest.raises(RuntimeError, match="no wheel for this system"):
        pooled_weights(torch.zeros(2, 1), torch.zeros(2, 1), bins=1, impl="triton")
    assert pooled_weights(torch.zeros(2, 1), torch.zeros(2, 1), bins=1).item() == 1


def test_importing_heatmaps_imports_neither_kernel_nor_pyplot() -> None:
    code = (
        "import sys, attn_course.heatmaps;"
        "assert 'attn_course.heatmaps.kernel' not in sys.modules;"
        "assert 'matplotlib.pyplot' not in sys.modules;"
        "assert 'ipywidgets' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
