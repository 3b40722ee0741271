"""Windowed attention against a mask made pair by pair, and the kernel's tiles, counted."""

import itertools
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attn_course import _triton
from attn_course.dot_product import dot_product_attention
from attn_course.long_sequences import (
    WindowedSelfAttention,
    blocked,
    ops,
    reference,
    tiles,
    windowed_attention,
)
from attn_course.multi_head import MultiHeadAttention
from attn_course.testing import (
    LAYOUTS,
    assert_close,
    assert_unchanged,
    assert_within_budget,
    make_qkv,
    with_layout,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMPLS = ["auto", "reference", "sdpa", "blocked"]
TRITON = pytest.param("triton", marks=pytest.mark.triton)
each_impl = pytest.mark.parametrize("impl", [*IMPLS, TRITON])
#: Interpreted kernels take float64, which shows errors that float32 would hide.
EXACT = torch.float64 if _triton.INTERPRETED else torch.float32

#: Options by name.
PATTERNS: dict[str, dict[str, Any]] = {
    "both": {"window": 3},
    "neighbours": {"window": 1},
    "left": {"window": (4, 0)},
    "right": {"window": (0, 2)},
    "uneven": {"window": (2, 5)},
    "causal": {"window": 5, "is_causal": True},
    "wide": {"window": 100},
    "dilated": {"window": 2, "dilation": 3},
    "dilated causal": {"window": (2, 9), "dilation": 4, "is_causal": True},
    "far apart": {"window": 1, "dilation": 50},
    "block": {"window": 4, "kind": "block"},
    "block causal": {"window": 5, "kind": "block", "is_causal": True},
    "block of one": {"window": 1, "kind": "block"},
    "one block": {"window": 100, "kind": "block"},
}
each_pattern = pytest.mark.parametrize("pattern", PATTERNS)


def sees(i: int, j: int, options: dict[str, Any]) -> bool:
    """The definition, for one pair."""
    window, step = options["window"], options.get("dilation", 1)
    if options.get("is_causal") and j > i:
        return False
    if options.get("kind") == "block":
        return i // window == j // window
    left, right = (window, window) if isinstance(window, int) else window
    return j - i in range(-left * step, right * step + 1, step)


def visible(n: int, m: int, options: dict[str, Any], lens: Tensor | None = None) -> Tensor:
    """``[n, m]``, or ``[batch, 1, n, m]`` with lengths."""
    seen = torch.tensor([[sees(i, j, options) for j in range(m)] for i in range(n)])
    seen = seen.reshape(n, m)
    if lens is None:
        return seen
    per_query = lens.cpu() if lens.ndim == 2 else lens.cpu()[:, None].expand(-1, n)
    return (seen & (torch.arange(m) < per_query[..., None]))[:, None]


def exact(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Output and weights in float64."""
    query, key, value = (x.double() for x in (query, key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (scale * query @ key.mT).masked_fill(~seen.to(query.device), -math.inf)
    top = scores.amax(-1, keepdim=True).detach().clamp_min(-1e300)
    e = torch.exp(scores - top)
    total = e.sum(-1, keepdim=True)
    weights = e / torch.where(total > 0, total, 1.0)
    return weights @ value, weights


def make(
    n: int, m: int, *batch: int, impl: str = "blocked", **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Leaves of the most exact type that ``impl`` takes."""
    dtype = EXACT if impl == "triton" else torch.float64
    usual: dict[str, Any] = {"dtype": dtype, "device": DEVICE, "requires_grad": True}
    query, key, value = make_qkv(batch, n, m, **(usual | options))
    return query, key, value


def compare(
    leaves: tuple[Tensor, ...], impl: str, lens: Tensor | None = None, **options: Any
) -> None:
    """Output and gradients against the oracle."""
    query, key, value = leaves
    pattern = {k: v for k, v in options.items() if k != "scale"}
    output = windowed_attention(query, key, value, impl=impl, valid_lens=lens, **options)
    seen = visible(query.shape[-2], key.shape[-2], pattern, lens)
    expected, _ = exact(query, key, value, seen, options.get("scale"))
    assert_close(output, expected)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    ours = torch.autograd.grad(output, leaves, grad)
    theirs = torch.autograd.grad(expected, leaves, grad.double())
    for name, a, b in zip(("dquery", "dkey", "dvalue"), ours, theirs, strict=True):
        assert_close(a, b.double(), name=name)


# The formula ---------------------------------------------------------------------------


@each_pattern
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("n", [1, 7, 17, 40])
def test_equals_the_mask_made_pair_by_pair(n: int, impl: str, pattern: str) -> None:
    compare(make(n, n, 2, 3), impl, **PATTERNS[pattern])


@each_pattern
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("n", "m"), [(5, 23), (23, 5), (1, 9), (9, 1), (20, 17)])
def test_queries_and_keys_may_differ_in_number(n: int, m: int, impl: str, pattern: str) -> None:
    """Where keys end early, the last queries see nothing: zeros."""
    compare(make(n, m, 2), impl, **PATTERNS[pattern])


@each_pattern
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("per_query", [False, True], ids=["items", "queries"])
def test_valid_lengths(per_query: bool, impl: str, pattern: str) -> None:
    generator = torch.Generator().manual_seed(3)
    shape = (4, 19) if per_query else (4,)
    lens = torch.randint(0, 24, shape, generator=generator)
    lens.view(-1)[:2] = torch.tensor([0, 23])
    compare(make(19, 23, 4, 2), impl, lens.to(DEVICE), **PATTERNS[pattern])


@pytest.mark.triton
@pytest.mark.parametrize(
    ("n", "m", "pattern", "hide"),
    [
        (40, 40, "both", ""),
        (17, 40, "uneven", "items"),
        (40, 17, "causal", "queries"),
        (40, 40, "dilated", "items"),
        (23, 40, "dilated causal", "queries"),
        (37, 37, "block", ""),
        (40, 37, "block causal", "items"),
        (7, 7, "block", "queries"),
        (1, 1, "left", ""),
    ],
)
def test_the_kernel(n: int, m: int, pattern: str, hide: str) -> None:
    lens = None
    if hide:
        shape = (2, n) if hide == "queries" else (2,)
        lens = torch.randint(0, m + 1, shape, generator=torch.Generator().manual_seed(n)).to(DEVICE)
    compare(make(n, m, 2, 1, impl="triton", dim=3), "triton", lens, **PATTERNS[pattern])


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes(seed: int) -> None:
    """Tiles of any height, so that every edge meets every other."""
    draw = random.Random(seed)
    n, m = draw.randint(1, 60), draw.randint(1, 60)
    left, right = draw.randint(0, 20), draw.randint(1, 20)
    leaves = make(n, m, 2)
    lens = None
    if draw.random() < 0.6:
        shape = (2, draw.choice([1, n]))
        lens = torch.randint(0, m + 1, shape, generator=torch.Generator().manual_seed(seed))
    output = blocked.sliding_attention_blocked(
        *leaves, left=left, right=right, scale=0.4, lens=lens, rows=draw.randint(1, 25)
    )
    seen = visible(n, m, {"window": (left, right)}, None if lens is None else lens.expand(2, n))
    expected, _ = exact(*leaves, seen if lens is None else seen[:, 0], 0.4)
    assert_close(output, expected)
    grad = torch.randn_like(output)
    for ours, theirs in zip(
        *(torch.autograd.grad(x, leaves, grad) for x in (output, expected)), strict=True
    ):
        assert_close(ours, theirs)


def test_long_enough_for_many_tiles() -> None:
    options: dict[str, Any] = {"window": (37, 5)}
    assert 300 > 3 * blocked.ROWS
    compare(make(300, 310, 1, 1), "blocked", torch.tensor([287]), **options)
    compare(make(300, 300, 1), "auto", dilation=2, **options)


@each_impl
@pytest.mark.parametrize("scale", [0.0, -1.5, 3])
def test_scales(scale: float, impl: str) -> None:
    for pattern in ("both", "block"):
        compare(make(9, 9, 1, impl=impl), impl, scale=scale, **PATTERNS[pattern])


@each_pattern
def test_the_weights(pattern: str) -> None:
    leaves = make(9, 13, 2, 2)
    lens = torch.tensor([13, 4], device=DEVICE)
    options = PATTERNS[pattern]
    output, weights = windowed_attention(*leaves, valid_lens=lens, need_weights=True, **options)
    expected, exact_weights = exact(*leaves, visible(9, 13, options, lens))
    assert_close(output, expected)
    assert_close(weights, exact_weights)
    hidden = ~visible(9, 13, options, lens).expand(2, 2, 9, 13)
    assert not weights.detach().cpu()[hidden].any()


@each_pattern
def test_gradcheck(pattern: str) -> None:
    leaves = make(4, 5, 2, dim=2, value_dim=1)
    lens = torch.tensor([3, 5])

    def function(*tensors: Tensor) -> Tensor:
        return windowed_attention(*tensors, valid_lens=lens, impl="blocked", **PATTERNS[pattern])

    assert torch.autograd.gradcheck(function, leaves)


# What the chapters before know ------------------------------------------------------------


@pytest.mark.parametrize("impl", IMPLS)
def test_a_window_over_everything_is_plain_attention(impl: str) -> None:
    leaves = make(17, 17, 2, 2)
    for is_causal in (False, True):
        plain = dot_product_attention(*leaves, is_causal=is_causal, impl="reference")
        for options in ({"window": 17}, {"window": 17, "kind": "block"}):
            output = windowed_attention(*leaves, impl=impl, is_causal=is_causal, **options)
            torch.testing.assert_close(output, plain)


@each_impl
def test_a_dilated_window_is_a_plain_one_on_every_rth_position(impl: str) -> None:
    leaves = tuple(x.detach() for x in make(12, 12, 1, impl=impl))
    output = windowed_attention(*leaves, window=(2, 1), dilation=3, impl=impl)
    for first in range(3):
        some = tuple(x[:, first::3] for x in leaves)
        alone = windowed_attention(*some, window=(2, 1), impl="reference")
        torch.testing.assert_close(output[:, first::3], alone)


@each_impl
def test_a_block_is_a_sequence_of_its_own(impl: str) -> None:
    leaves = tuple(x.detach() for x in make(11, 11, 1, impl=impl))
    output = windowed_attention(*leaves, window=4, kind="block", impl=impl)
    for first in range(0, 11, 4):
        some = tuple(x[:, first : first + 4] for x in leaves)
        alone = dot_product_attention(*some, impl="reference")
        torch.testing.assert_close(output[:, first : first + 4], alone)


# Perturb and compare ----------------------------------------------------------------------


@each_pattern
@pytest.mark.parametrize("impl", IMPLS)
def test_what_is_outside_the_window_does_not_matter(impl: str, pattern: str) -> None:
    """Change one key and its value: those who see it answer differently, and nobody else."""
    n = 20
    options = PATTERNS[pattern]
    leaves = tuple(x.detach() for x in make(n, n, 1))
    before = windowed_attention(*leaves, impl=impl, **options)
    for j in (0, 7, n - 1):
        query, key, value = (x.clone() for x in leaves)
        key[:, j], value[:, j] = 50.0, -1e6
        after = windowed_attention(query, key, value, impl=impl, **options)
        for i in range(n):
            same = bool(torch.isclose(before[0, i], after[0, i], rtol=1e-12, atol=1e-12).all())
            assert same != sees(i, j, options), (i, j)


@pytest.mark.parametrize(
    ("pattern", "impl"),
    [
        *itertools.product(["both", "uneven", "causal", "dilated", "block"], IMPLS),
        pytest.param("uneven", "triton", marks=pytest.mark.triton),
        pytest.param("dilated", "triton", marks=pytest.mark.triton),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")  # by the interpreter, of NaN
def test_padding_cannot_leak(pattern: str, impl: str) -> None:
    """Keys that nobody sees and queries that see nobody may hold NaN, the gradient too."""
    n, m = 21, 30
    query, key, value = (x.detach() for x in make(n, m, 2, impl=impl))
    lens = torch.tensor([12, 30], device=DEVICE)
    seen = visible(n, m, PATTERNS[pattern], lens)[:, 0].to(DEVICE)
    nobody, nothing = ~seen.any(1).unsqueeze(-1), ~seen.any(2).unsqueeze(-1)
    assert bool(nobody.any() and nothing.any())
    results = []
    for poison in (0.0, math.nan, math.inf):
        leaves = (
            query.masked_fill(nothing, poison).requires_grad_(),
            key.masked_fill(nobody, poison).requires_grad_(),
            value.masked_fill(nobody, poison).requires_grad_(),
        )
        output = windowed_attention(*leaves, valid_lens=lens, impl=impl, **PATTERNS[pattern])
        grad = torch.ones_like(output)
        if impl != "reference":
            grad = grad.masked_fill(nothing, poison)
        results.append((output.detach(), *torch.autograd.grad(output, leaves, grad)))
    for poisoned in results[1:]:
        for clean, other in zip(results[0], poisoned, strict=True):
            assert torch.equal(clean, other)
    assert not results[0][0].masked_select(nothing).any()
    assert not results[0][1].masked_select(nothing).any()
    assert not any(x.masked_select(nobody).any() for x in results[0][2:])


def test_keys_that_the_lengths_of_queries_hide_cannot_leak() -> None:
    """Below the longest length, but no query that is near may see it."""
    leaves = tuple(x.detach() for x in make(20, 20, 1))
    lens = torch.full((1, 20), 20)
    lens[:, 8:] = 3
    results = []
    for poison in (0.0, math.nan):
        query, key, value = (x.clone() for x in leaves)
        key[:, 14:], value[:, 14:] = poison, poison
        tensors = (query.requires_grad_(), key.requires_grad_(), value.requires_grad_())
        output = windowed_attention(*tensors, window=3, valid_lens=lens, impl="blocked")
        results.append((output, *torch.autograd.grad(output.sin().sum(), tensors)))
    for clean, poisoned in zip(*results, strict=True):
        assert torch.equal(clean, poisoned)


def test_the_gradient_of_an_empty_answer_may_be_nan() -> None:
    leaves = make(9, 9, 1)
    lens = torch.tensor([3])
    results = []
    for poison in (0.0, math.nan):
        output = windowed_attention(*leaves, window=2, valid_lens=lens, impl="blocked")
        grad = torch.ones_like(output)
        grad[:, 5:] = poison  # positions 5 and later see nothing
        results.append(torch.autograd.grad(output, leaves, grad))
    for clean, poisoned in zip(*results, strict=True):
        assert torch.equal(clean, poisoned)


def test_a_gradient_that_is_nan_shows() -> None:
    leaves = make(9, 9, 1)
    output = windowed_attention(*leaves, window=1, impl="blocked")
    grad = torch.zeros_like(output)
    grad[0, 4] = math.nan
    dvalue = torch.autograd.grad(output, leaves, grad)[2]
    assert dvalue[0, 3:6].isnan().all()


# Time and memory --------------------------------------------------------------------------


class _Largest(TorchDispatchMode):
    """Remembers the largest tensor that an operation of PyTorch made."""

    largest = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("impl", ["blocked", "auto", TRITON])
@pytest.mark.parametrize("pattern", ["both", "causal", "dilated", "block causal"])
def test_no_pairs_are_stored(pattern: str, impl: str) -> None:
    n = 100 if impl == "triton" else 2000
    leaves = make(n, n, 1, impl=impl, dim=2, value_dim=2)
    lens = torch.tensor([n - 3], device=DEVICE)
    with _Largest() as seen:
        output = windowed_attention(*leaves, impl=impl, valid_lens=lens, **PATTERNS[pattern])
        torch.autograd.grad(output.sum(), leaves)
    # A byte for each pair would be n^2. The weights of a tile, in each of three groups:
    assert seen.largest <= max(3 * 64 * 70 * 8, 40 * n)
    assert seen.largest < n * n / 2


def test_nothing_but_inputs_is_kept_for_the_backward_pass() -> None:
    leaves = make(400, 400, 1)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        windowed_attention(*leaves, window=9)
    assert kept
    assert {x.untyped_storage().data_ptr() for x in kept} <= {
        x.untyped_storage().data_ptr() for x in leaves
    }


def test_auto_takes_a_mask_where_the_window_spans_the_sequence() -> None:
    def chosen(n: int, window: Any, dilation: int = 1, **options: Any) -> str:
        x = torch.zeros(1, n, 4)
        seen = ops.check_window(window, options.pop("kind", "sliding"), dilation, False)
        return ops._choose("auto", x, x, x, seen, options.get("need_weights", False))

    assert chosen(50, 2) == "auto" and chosen(800, 400) == "auto"
    assert chosen(800, 25) == "blocked" and chosen(4096, (1000, 0)) == "blocked"
    assert chosen(50, 2, dilation=4) == "blocked"
    assert chosen(50, 2, kind="block") == "blocked"
    assert chosen(4096, 25, need_weights=True) == "reference"


# Tiles ------------------------------------------------------------------------------------


@contextmanager
def counted() -> Iterator[list[int]]:
    """The products of tiles that interpreted programs compute: one index of the grid each."""
    builder = _triton.triton.runtime.interpreter.interpreter_builder
    original, programs = builder.create_dot, []

    def create_dot(*args: Any) -> Any:
        programs.append(builder.grid_idx[0])
        return original(*args)

    builder.create_dot = create_dot
    try:
        yield programs
    finally:
        del builder.create_dot


def needed(seen: Tensor, rows: int = 16, columns: int = 16) -> int:
    """How many tiles hold a pair that is allowed, ``[..., n, m]``, asked tile by tile."""
    starts = itertools.product(range(0, seen.shape[-2], rows), range(0, seen.shape[-1], columns))
    return sum(
        int(seen[..., i : i + rows, j : j + columns].flatten(-2).any(-1).sum()) for i, j in starts
    )


COUNTED: dict[str, tuple[int, int, dict[str, Any]]] = {
    "everything": (40, 56, {"window": 100}),
    "causal": (56, 56, {"window": 100, "is_causal": True}),
    "both": (70, 70, {"window": 3}),
    "one past a tile": (65, 65, {"window": (16, 1)}),
    "one short of a tile": (63, 63, {"window": (15, 0)}),
    "left": (64, 64, {"window": (17, 0)}),
    "right": (64, 64, {"window": (0, 17)}),
    "causal window": (80, 80, {"window": 20, "is_causal": True}),
    "more keys": (20, 90, {"window": (3, 30)}),
    "more queries": (90, 20, {"window": (10, 3)}),
}


@pytest.mark.triton
@pytest.mark.skipif(not _triton.INTERPRETED, reason="compiled kernels do not tell")
@pytest.mark.parametrize("lens", [None, [70, 0, 17]], ids=["whole", "ragged"])
@pytest.mark.parametrize("name", COUNTED)
def test_the_kernels_visit_tiles_that_hold_a_pair_and_no_others(
    name: str, lens: list[int] | None
) -> None:
    """Forward, and both kernels of the backward pass: equal, not merely fewer."""
    n, m, options = COUNTED[name]
    batch = 1 if lens is None else len(lens)
    valid = None if lens is None else torch.tensor(lens).clamp(max=m)
    leaves = make(n, m, batch, dim=1, value_dim=1)
    wanted = needed(visible(n, m, options, valid))
    assert tiles(n, m, valid_lens=valid, **options) == wanted
    for owners, products in ((leaves[:1], 3), (leaves[1:], 4)):  # of queries, of keys and values
        tensors = [x if any(x is y for y in owners) else x.detach() for x in leaves]
        with counted() as programs:
            output = windowed_attention(*tensors, impl="triton", valid_lens=valid, **options)
        assert len(programs) == 2 * wanted  # scores, and weights times values
        with counted() as programs:
            torch.autograd.grad(output.sum(), owners)
        assert len(programs) == products * wanted


@pytest.mark.triton
@pytest.mark.skipif(not _triton.INTERPRETED, reason="compiled kernels do not tell")
@pytest.mark.parametrize(
    ("n", "options"),
    [
        (96, {"window": 2, "dilation": 3}),
        (100, {"window": (20, 3), "dilation": 2, "is_causal": True}),
        (80, {"window": 20, "kind": "block"}),
        (66, {"window": 33, "kind": "block", "is_causal": True}),
        (40, {"window": 5, "kind": "block"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("lens", [None, [13, 51]], ids=["whole", "ragged"])
def test_tiles_of_groups(n: int, options: dict[str, Any], lens: list[int] | None) -> None:
    valid = None if lens is None else torch.tensor(lens).clamp(max=n)
    for ragged in (n, n + 1):
        leaves = make(ragged, ragged, 1 if lens is None else 2, dim=1, value_dim=1)
        with counted() as programs:
            windowed_attention(*leaves, impl="triton", valid_lens=valid, **options)
        assert len(programs) == 2 * tiles(ragged, ragged, valid_lens=valid, **options)
    # The same positions, dealt out by hand.
    window, step = options["window"], options.get("dilation", 1)
    if options.get("kind") == "block":
        groups = [range(first, min(first + window, n)) for first in range(0, n, window)]
    else:
        groups = [range(first, n, step) for first in range(step)]
    seen = visible(n, n, options, valid if lens else torch.tensor([n]))[:, 0]
    by_hand = sum(needed(seen[:, list(g)][:, :, list(g)]) for g in groups)
    assert tiles(n, n, valid_lens=valid, **options) == by_hand


@pytest.mark.parametrize("block", [(16, 16), (7, 5), (64, 32), (128, 1)], ids=str)
@pytest.mark.parametrize("name", COUNTED)
def test_tiles_of_any_size(name: str, block: tuple[int, int]) -> None:
    n, m, options = COUNTED[name]
    assert tiles(n, m, block=block, **options) == needed(visible(n, m, options), *block)


@pytest.mark.triton
@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_lies_in_other_tiles_is_not_read() -> None:
    """Queries of the first tile, and NaN in every key that none of them sees."""
    query, key, value = (x.detach() for x in make(16, 90, 1, impl="triton"))
    clean = windowed_attention(query, key, value, window=(3, 20), impl="triton")
    key[:, 16 + 20 :], value[:, 16 + 20 :] = math.nan, math.nan
    output = windowed_attention(query, key, value, window=(3, 20), impl="triton")
    assert torch.equal(output, clean)


# Shapes, types, arguments -----------------------------------------------------------------


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("pattern", ["both", "dilated", "block"])
def test_leading_dimensions(pattern: str, impl: str) -> None:
    """None, one, three, broadcast ones: each like the item alone."""
    options = {"impl": impl} | PATTERNS[pattern]
    query, key, value = (x.detach() for x in make(9, 11, 2, 3))
    lens = torch.tensor([11, 6], device=DEVICE)
    whole = windowed_attention(query, key, value, valid_lens=lens, **options)
    assert whole.shape == (2, 3, 9, 3)
    for b, h in itertools.product(range(2), range(3)):
        item = (x[b, h] for x in (query, key, value))
        alone = windowed_attention(*item, valid_lens=lens[b], **options)
        torch.testing.assert_close(alone, whole[b, h])
    five = windowed_attention(
        query[:, None], key[:, None], value[:, None], valid_lens=lens, **options
    )
    torch.testing.assert_close(five[:, 0], whole)
    leaves = (query[:1].requires_grad_(), key[0, 0].requires_grad_(), value.requires_grad_())
    got = windowed_attention(*leaves, valid_lens=lens, **options)
    want = windowed_attention(*leaves, valid_lens=lens, **(options | {"impl": "reference"}))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(x.sin().sum(), leaves) for x in (got, want)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pattern", ["both", "dilated", "block"])
def test_layouts(pattern: str, layout: str) -> None:
    leaves = tuple(with_layout(x.detach(), layout).requires_grad_() for x in make(17, 17, 2, 2))
    compare(leaves, "blocked", **PATTERNS[pattern])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("impl", ["blocked", "sdpa", TRITON])
@pytest.mark.parametrize("pattern", ["both", "dilated", "block"])
def test_half_precision(pattern: str, impl: str, dtype: torch.dtype) -> None:
    query, key, value = make_qkv((2,), 20, 20, 8, 8, dtype=dtype, device=DEVICE)
    seen = visible(20, 20, PATTERNS[pattern]).to(DEVICE)
    output = windowed_attention(query, key, value, impl=impl, **PATTERNS[pattern])
    assert output.dtype == dtype
    scores = (query @ key.mT / 8**0.5).masked_fill(~seen, -math.inf)
    expected, _ = exact(query, key, value, seen)
    assert_within_budget(output, scores.softmax(-1) @ value, expected)


@pytest.mark.parametrize("spread", [10.0, 100.0])
def test_large_scores(spread: float) -> None:
    query, key, value = (spread * x.detach() for x in make(30, 30, 1))
    output = windowed_attention(query, key, value, window=4, impl="blocked")
    assert_close(output, exact(query, key, value, visible(30, 30, {"window": 4}))[0])


@each_pattern
@pytest.mark.parametrize("impl", IMPLS)
def test_empty_batch_and_no_queries(impl: str, pattern: str) -> None:
    for leaves in (make(6, 6, 0), make(0, 6, 2), make(0, 6, 2, 0)):
        output = windowed_attention(*leaves, impl=impl, **PATTERNS[pattern])
        assert output.shape == (*leaves[0].shape[:-1], 3)
        gradients = torch.autograd.grad(output.sum(), leaves)
        for gradient, leaf in zip(gradients, leaves, strict=True):
            assert gradient.shape == leaf.shape and not gradient.any()


@each_impl
@pytest.mark.parametrize("pattern", ["both", "dilated", "block"])
def test_arguments_are_left_alone(pattern: str, impl: str) -> None:
    leaves = make(9, 9, 2, impl=impl)
    lens = torch.tensor([9, 4], device=DEVICE)
    with assert_unchanged(*leaves, lens):
        windowed_attention(
            *leaves, valid_lens=lens, impl=impl, **PATTERNS[pattern]
        ).sum().backward()


def test_differentiating_twice_is_refused() -> None:
    leaves = make(9, 9, 1)
    squares = windowed_attention(*leaves, window=2, impl="blocked").square()
    (first,) = torch.autograd.grad(squares.sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


X = torch.zeros(2, 6, 4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"window": 0}, ValueError, "window must be at least 1, got 0"),
        ({"window": -2}, ValueError, "window must be at least 1, got -2"),
        ({"window": 0, "kind": "block"}, ValueError, "window must be at least 1, got 0"),
        ({"window": (0, 0)}, ValueError, r"window must reach at least 1 .* got \(0, 0\)"),
        ({"window": (0, 3), "is_causal": True}, ValueError, "to the left, since is_causal"),
        ({"window": (-1, 3)}, ValueError, r"window must hold no number below 0, got \(-1, 3\)"),
        ({"window": (1, -3)}, ValueError, "window must hold no number below 0"),
        ({"window": 2.0}, TypeError, "window must be an integer or a pair .* got 2.0"),
        ({"window": True}, TypeError, "window must be an integer or a pair .* got True"),
        ({"window": None}, TypeError, "window must be an integer or a pair .* got None"),
        ({"window": (1, 2, 3)}, TypeError, "window must be an integer or a pair"),
        ({"window": (1, None)}, TypeError, "window must be an integer or a pair"),
        ({"window": (2, 2), "kind": "block"}, TypeError, "window must be an integer for kind"),
        ({"window": 2, "kind": "local"}, ValueError, "kind must be one of 'sliding', 'block'"),
        ({"window": 2, "dilation": 0}, ValueError, "dilation must be an integer of at least 1"),
        ({"window": 2, "dilation": 1.5}, ValueError, "dilation must be an integer"),
        ({"window": 2, "dilation": 2, "kind": "block"}, ValueError, "dilation belongs to"),
        ({"window": 2, "scale": "1"}, TypeError, "scale must be a number, got str"),
        ({"window": 2, "scale": math.nan}, ValueError, "scale must be finite, got nan"),
        ({"window": 2, "impl": "fast"}, ValueError, "impl must be one of"),
        ({"window": 2, "valid_lens": torch.tensor([7, 1])}, ValueError, r"lie in \[0, 6\]"),
        ({"window": 2, "valid_lens": torch.ones(2)}, TypeError, "valid_lens must hold integers"),
        ({"window": 2, "valid_lens": torch.tensor([1])}, ValueError, "valid_lens must have shape"),
        ({"window": 2, "need_weights": True, "impl": "blocked"}, ValueError, "never stores"),
        ({"window": 2, "need_weights": True, "impl": "sdpa"}, ValueError, "never stores"),
    ],
)  # fmt: skip
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        windowed_attention(X, X, X, **options)


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ((X.long(), X, X), TypeError, "query must hold floating-point"),
        (([1], X, X), TypeError, "query must be a torch.Tensor"),
        ((X[0, 0], X, X), ValueError, "query must have shape"),
        ((X, X[..., :3], X), ValueError, "key must have the width of query, 4, got 3"),
        ((X, X, X[:, :5]), ValueError, "value must have one row for each key, 6, got 5"),
        ((X, X[:, :0], X[:, :0]), ValueError, "key must hold at least one key"),
        ((X, X, X[..., :0]), ValueError, "at least one column"),
        ((X, X.double(), X), ValueError, "key must have the dtype of query"),
        ((X, X.repeat(2, 1, 1)[:3], X), ValueError, "batch dimensions must broadcast"),
    ],
)
def test_bad_tensors(tensors: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        windowed_attention(*tensors, window=2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"block": 16}, TypeError, "block must be a pair"),
        ({"block": (16, 0)}, ValueError, r"block\[1\] must be an integer of at least 1"),
        ({"window": 0}, ValueError, "window must be at least 1"),
        ({"query_len": 0}, ValueError, "query_len must be an integer of at least 1"),
        ({"valid_lens": torch.tensor([[1]])}, ValueError, "valid_lens must have shape"),
        ({"valid_lens": torch.tensor([99])}, ValueError, "valid_lens must lie in"),
    ],
)
def test_bad_tiles(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tiles(**({"query_len": 9, "key_len": 9, "window": 2} | options))


# The layer --------------------------------------------------------------------------------


@each_pattern
def test_the_layer_is_multi_head_attention_with_a_mask(pattern: str) -> None:
    torch.manual_seed(0)
    options = PATTERNS[pattern]
    layer = WindowedSelfAttention(8, 2, **options).double()
    x = torch.randn(2, 19, 8, dtype=torch.float64, requires_grad=True)
    lens = torch.tensor([19, 8])
    mask = visible(19, 19, options)
    expected, weights = layer.heads(x, valid_lens=lens, mask=mask, need_weights=True)
    for found in (layer(x, valid_lens=lens), layer(x, valid_lens=lens, need_weights=True)[0]):
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(
            *(torch.autograd.grad(y.sin().sum(), x, retain_graph=True) for y in (found, expected))
        )
    torch.testing.assert_close(layer(x, valid_lens=lens, need_weights=True)[1], weights)
    torch.testing.assert_close(
        WindowedSelfAttention(8, 2, 18).double().heads(x).shape, layer(x).shape
    )


def test_the_layer_takes_the_weights_of_multi_head_attention() -> None:
    full, layer = MultiHeadAttention(8, 2), WindowedSelfAttention(8, 2, window=30)
    layer.heads.load_state_dict(full.state_dict())
    x = torch.randn(2, 19, 8)
    torch.testing.assert_close(layer(x), full(x))


def test_padding_cannot_leak_from_the_layer() -> None:
    layer = WindowedSelfAttention(8, 2, window=2)
    x, lens = torch.randn(2, 19, 8), torch.tensor([19, 8])
    results = []
    for poison in (0.0, math.nan):
        x = x.clone()
        x[1, 8:] = poison
        layer.zero_grad()
        layer(x, valid_lens=lens)[1, :8].sum().backward()
        gradients = [p.grad.clone() for p in layer.parameters() if p.grad is not None]
        results.append((layer(x, valid_lens=lens), *gradients))
    for clean, poisoned in zip(*results, strict=True):
        assert torch.equal(clean, poisoned)


def test_two_layers_see_twice_as_far() -> None:
    """What a window cannot do at once, depth does: the influence spreads by w a layer."""
    layer = WindowedSelfAttention(8, 2, window=3).double()
    x = torch.randn(1, 40, 8, dtype=torch.float64, requires_grad=True)
    for depth, reach in ((1, 3), (2, 6), (3, 9)):
        y = x
        for _ in range(depth):
            y = layer(y)
        (gradient,) = torch.autograd.grad(y[0, 20].sum(), x)
        felt = gradient[0].abs().amax(-1).nonzero().flatten().tolist()
        assert felt == list(range(20 - reach, 21 + reach))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"window": 0}, ValueError, "window must be at least 1"),
        ({"num_heads": 3}, ValueError, "embed_dim must be a multiple of num_heads"),
        ({"impl": "fast"}, ValueError, "impl must be one of"),
        ({"kind": "local"}, ValueError, "kind must be one of"),
    ],
)
def test_bad_layers(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        WindowedSelfAttention(**({"embed_dim": 8, "num_heads": 2, "window": 2} | options))


def test_bad_inputs_to_the_layer() -> None:
    layer = WindowedSelfAttention(8, 2, window=2)
    x = torch.zeros(2, 6, 8)
    with pytest.raises(ValueError, match=r"x must have shape \[batch, len, 8\], got \[6, 8\]"):
        layer(x[0])
    with pytest.raises(ValueError, match=r"valid_lens must have shape \[2\]"):
        layer(x, valid_lens=torch.ones(2, 6, dtype=torch.long))
    with pytest.raises(ValueError, match="valid_lens must lie in"):
        layer(x, valid_lens=torch.tensor([1, 7]))
    assert "window=2" in repr(layer)


# The definition itself --------------------------------------------------------------------


@each_pattern
@pytest.mark.parametrize(("n", "m"), [(11, 11), (5, 13), (13, 5), (1, 1)])
def test_visible(n: int, m: int, pattern: str) -> None:
    options = dict(PATTERNS[pattern])
    window, is_causal = options.pop("window"), options.pop("is_causal", False)
    kind, dilation = options.pop("kind", "sliding"), options.pop("dilation", 1)
    seen = ops.check_window(window, kind, dilation, is_causal)
    assert torch.equal(reference.visible(n, m, seen), visible(n, m, PATTERNS[pattern]))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pattern", ["uneven", "causal", "dilated", "block"])
def test_compiled_kernels_on_a_gpu(dtype: torch.dtype, pattern: str) -> None:
    leaves = make(300, 413, 2, 4, dim=64, value_dim=64, dtype=dtype)
    lens = torch.tensor([413, 201], device=DEVICE)
    doubles = tuple(x.detach().double().requires_grad_() for x in leaves)
    results = []
    for tensors, impl in ((leaves, "auto"), (leaves, "sdpa"), (doubles, "reference")):
        output = windowed_attention(*tensors, valid_lens=lens, impl=impl, **PATTERNS[pattern])
        results.append((output, *torch.autograd.grad(output.sum(), tensors)))
    for ours, plain, best in zip(*results, strict=True):
        if dtype == torch.float32:
            assert_close(ours, best, rtol=1e-4, atol=1e-4)
        else:
            assert_within_budget(ours, plain, best)
