"""The FlashAttention kernels against a float64 oracle, and against their promises."""

import math
import random
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attn_course import _triton
from attn_course.dot_product import dot_product_attention, ops, reference
from attn_course.exercises.launches import watch
from attn_course.testing import (
    LAYOUTS,
    LENGTHS,
    assert_close,
    assert_unchanged,
    assert_within_budget,
    with_layout,
)
from tests.dot_product import oracle
from tests.dot_product.oracle import COMBINED, hide

pytestmark = pytest.mark.triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: Interpreted kernels take float64, which shows errors that float32 would hide.
EXACT = torch.float64 if _triton.INTERPRETED else torch.float32
NAMES = ("output", "lse", "dquery", "dkey", "dvalue")

Leaves = tuple[Tensor, Tensor, Tensor]


def make(
    n: int,
    m: int,
    dim: int = 4,
    value_dim: int = 3,
    *,
    batch: int = 1,
    heads: int = 1,
    group: int = 1,
    dtype: torch.dtype = EXACT,
    spread: float = 1.0,
) -> Leaves:
    generator = torch.Generator().manual_seed(n * 1000 + m)
    shapes = ((heads, n, dim), (heads // group, m, dim), (heads // group, m, value_dim))
    query, key, value = (
        (spread * torch.randn(batch, *shape, generator=generator, dtype=torch.float64))
        .to(DEVICE, dtype)
        .requires_grad_()
        for shape in shapes
    )
    return query, key, value


def triton(leaves: Leaves, **options: Any) -> tuple[Tensor, Tensor]:
    return dot_product_attention(*leaves, need_lse=True, impl="triton", **options)


def compare(leaves: Leaves, *, layout: str | None = None, tolerance: float | None = None,
            **options: Any) -> None:  # fmt: skip
    """Output, log-sum-exp and all gradients, of both, against the oracle."""
    dropout_p = options.get("dropout_p", 0.0)
    kept = None
    torch.manual_seed(5)
    output, lse = triton(leaves, **options)
    if dropout_p:
        torch.manual_seed(5)  # the seed that the operation drew
        shape = (*leaves[0].shape[:2],)
        kept = reference.dropout_kept(
            int(torch.randint(1 << 31, ())), dropout_p, shape, output.shape[2], leaves[1].shape[2]
        )
    exact, exact_lse = oracle.attention(*leaves, options, kept, dropout_p)
    grad = torch.randn(exact.shape, dtype=torch.float64).to(DEVICE, output.dtype)
    grad_lse = torch.randn(exact_lse.shape, dtype=torch.float64).to(DEVICE, lse.dtype)
    if layout is not None:
        grad = with_layout(grad, layout)
    some = exact_lse.isfinite()
    grad_lse = grad_lse * some
    assert torch.equal(lse.isfinite(), some)
    filled = [x.masked_fill(~some, 0) for x in (lse, exact_lse)]
    ours = torch.autograd.grad((output, filled[0]), leaves, (grad, grad_lse))
    theirs = torch.autograd.grad((exact, filled[1]), leaves, (grad.double(), grad_lse.double()))
    for name, a, b in zip(
        NAMES, (output, filled[0], *ours), (exact, filled[1], *theirs), strict=True
    ):
        assert_close(a, b.double(), name=name, rtol=tolerance, atol=tolerance)
    assert bool((output[~some] == 0).all())
    assert bool((ours[0][~some] == 0).all())


WHERE: dict[str, dict[str, Any]] = {
    "all": {},
    "causal": {"is_causal": True},
    "window": {"window": (5, 3)},
    "left": {"window": (2, None)},
    "shifted": {"is_causal": True, "query_offset": 9, "window": (20, 30)},
    "before": {"is_causal": True, "query_offset": -7, "window": (4, None)},
    "beyond": {"window": (0, 0), "query_offset": 1000},
}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("name", LENGTHS)
def test_lengths_and_bounds(name: str, where: str) -> None:
    compare(make(*LENGTHS[name]), **WHERE[where])


@pytest.mark.parametrize(
    "dims", [(1, 1), (16, 20), (20, 17), (40, 80), (96, 5), (256, 129)], ids=str
)
def test_widths(dims: tuple[int, int]) -> None:
    compare(make(17, 18, *dims), is_causal=True)


@pytest.mark.parametrize("names", COMBINED)
def test_options_combined(names: str) -> None:
    """Two batch items, four heads of queries and two of keys, ragged tiles."""
    leaves = make(18, 35, batch=2, heads=4, group=2)
    compare(leaves, **hide(names, 2, 4, 18, 35))


@pytest.mark.parametrize("seed", range(12))
def test_whatever_comes(seed: int) -> None:
    draw = random.Random(seed)
    n, m, group = draw.randint(1, 40), draw.randint(1, 40), draw.choice([1, 2, 3])
    names = [
        *([draw.choice(["lens", "query_lens"])] if draw.random() < 0.6 else []),
        *(x for x in ("causal", "window", "slopes", "dropout", "scale") if draw.random() < 0.5),
        *([draw.choice(["offset", "behind"])] if draw.random() < 0.5 else []),
        *(["mask"] if draw.random() < 0.3 else []),
    ]
    leaves = make(n, m, draw.randint(1, 20), draw.randint(1, 20), heads=3 * group, group=group)
    options = hide(" ".join(names), 1, 3 * group, n, m)
    if "window" in options:
        sides = (None, draw.randint(0, 20), draw.randint(0, 20))
        options["window"] = (draw.choice(sides), draw.choice(sides))
    compare(leaves, **options)


def test_one_head_of_keys_for_all() -> None:
    compare(make(5, 17, heads=3, group=3), is_causal=True, query_offset=12)


@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True, "query_offset": 1}], ids=["all", "causal"]
)
def test_gradcheck(options: dict[str, Any]) -> None:
    if not _triton.INTERPRETED:
        pytest.skip("needs float64")
    leaves = make(2, 3, 1, 2, heads=2, group=2)
    slopes = torch.tensor([0.3, 0.1])
    lens = torch.tensor([[2, 3]])
    scale = torch.tensor(0.8, dtype=EXACT, requires_grad=True)

    def function(query: Tensor, key: Tensor, value: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        output, lse = triton(
            (query, key, value), scale=scale, valid_lens=lens, bias_slopes=slopes, **options
        )
        return output, lse.masked_fill(lse == -math.inf, 0)

    assert torch.autograd.gradcheck(function, (*leaves, scale))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_inputs_and_of_the_incoming_gradient(layout: str) -> None:
    leaves = tuple(
        with_layout(leaf.detach(), layout).requires_grad_()
        for leaf in make(17, 18, batch=2, heads=4, group=2)
    )
    compare(leaves, layout=layout, is_causal=True)  # type: ignore[arg-type]


def test_heads_side_by_side_need_no_copy() -> None:
    """[batch, len, heads, dim] as a layer leaves it, seen as [batch, heads, len, dim]."""
    leaves = tuple(
        x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
        for x in make(17, 18, batch=2, heads=4)
    )
    compare(leaves, is_causal=True)  # type: ignore[arg-type]


def test_leading_dimensions() -> None:
    """None, one, three, broadcast ones: each like the item alone."""
    query, key, value = (x.detach() for x in make(5, 18, batch=2, heads=3))
    lens = torch.tensor([18, 7], device=DEVICE)
    mask = torch.rand(2, 3, 1, 18, device=DEVICE) > 0.3
    whole = triton((query, key, value), valid_lens=lens, mask=mask)[0]
    for b in range(2):
        items = (query[b], key[b], value[b])
        per_item = dot_product_attention(
            *items, valid_lens=lens[b].expand(3), mask=mask[b], impl="triton"
        )
        torch.testing.assert_close(per_item, whole[b])
        alone = dot_product_attention(
            *(x[0] for x in items), valid_lens=lens[b], mask=mask[b, 0], impl="triton"
        )
        torch.testing.assert_close(alone, whole[b, 0])
    five = dot_product_attention(
        query[:, None], key[:, None], value[:, None], valid_lens=lens, mask=mask[:, None],
        impl="triton",
    )  # fmt: skip
    torch.testing.assert_close(five[:, 0], whole)
    leaves = [query[:1].clone().requires_grad_(), key[0, 0].clone().requires_grad_(), value]
    got = triton(leaves, valid_lens=lens)[0]  # type: ignore[arg-type]
    want = dot_product_attention(*leaves, valid_lens=lens, impl="reference")
    torch.testing.assert_close(got, want)
    gradients = (torch.autograd.grad(x.sin().sum(), leaves[:2]) for x in (got, want))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("scale", [0.0, -2.0, 3])
def test_scales(scale: float) -> None:
    leaves = make(5, 18)
    compare(leaves, scale=scale)
    learned = torch.tensor([float(scale)], device=DEVICE, requires_grad=True)
    output = dot_product_attention(*leaves, scale=learned, impl="triton")
    exact = oracle.attention(*leaves, {"scale": learned.double()})[0]
    assert_close(output, exact)
    for a, b in zip(*(torch.autograd.grad(x.sin().sum(), learned) for x in (output, exact)),
                    strict=True):  # fmt: skip
        torch.testing.assert_close(a, b)


POISONED = [
    "lens",
    "query_lens",
    "window query_lens",
    "mask2 causal",
    "causal behind",
    "window offset",
]


@pytest.mark.filterwarnings("ignore:invalid value")  # by the interpreter, of NaN
@pytest.mark.parametrize("names", POISONED)
def test_padding_cannot_leak(names: str) -> None:
    """Keys that nobody sees and queries that see nobody may hold NaN, the gradient too."""
    n, m = 20, 37
    query, key, value = (x.detach() for x in make(n, m, batch=2))
    options = hide(names, 2, 1, n, m)
    if "query_lens" in names:
        options["valid_lens"][:, :11] = 0
        options["valid_lens"].clamp_(max=33)
    seen = oracle.visible(n, m, 2, 1, options).to(DEVICE)
    nobody, nothing = ~seen.any(2).unsqueeze(-1), ~seen.any(3).unsqueeze(-1)
    assert bool(nobody.any())
    results = []
    for poison in (0.0, math.nan, math.inf):
        leaves = (
            query.masked_fill(nothing, poison).requires_grad_(),
            key.masked_fill(nobody, poison).requires_grad_(),
            value.masked_fill(nobody, poison).requires_grad_(),
        )
        output, lse = triton(leaves, **options)
        grad = torch.ones_like(output).masked_fill(nothing, poison)
        results.append((output, lse, *torch.autograd.grad(output, leaves, grad)))
    for poisoned in results[1:]:
        for name, clean, other in zip(NAMES, results[0], poisoned, strict=True):
            assert torch.equal(clean, other), name
    assert bool((results[0][2].masked_select(nothing) == 0).all())
    assert all(bool((x.masked_select(nobody) == 0).all()) for x in results[0][3:])


def test_padding_in_whole_tiles_cannot_leak() -> None:
    """Past an item's length, where whole tiles of queries pass by unmasked."""
    query, key, value = (x.detach() for x in make(48, 40))
    results = []
    for poison in (0.0, math.nan):
        key[:, :, 21:], value[:, :, 21:] = poison, poison
        leaves = (query.requires_grad_(), key.requires_grad_(), value.requires_grad_())
        output, _ = triton(leaves, valid_lens=torch.tensor([21], device=DEVICE))
        results.append((output.detach(), *torch.autograd.grad(output.sin().sum(), leaves)))
        query, key, value = (x.detach().clone() for x in (query, key, value))
    for clean, poisoned in zip(*results, strict=True):
        assert torch.equal(clean, poisoned)


@pytest.mark.parametrize("dtype", [torch.float32, EXACT])
@pytest.mark.parametrize("spread", [10.0, 100.0])
def test_large_scores(spread: float, dtype: torch.dtype) -> None:
    """Scores of hundreds and of ten thousands: exp overflows and underflows."""
    query, key, value = make(5, 35, spread=spread, dtype=dtype)
    output, lse = triton((query, key, value))
    exact, exact_lse = oracle.attention(query, key, value, {})
    assert_close(output / spread, exact / spread, rtol=1e-3, atol=1e-3)
    assert_close(lse, exact_lse, rtol=1e-5)
    ours, theirs = (torch.autograd.grad(x.sum(), value)[0] for x in (output, exact))
    assert_close(ours, theirs.double(), rtol=2e-3, atol=2e-3)


def test_scores_that_only_grow_and_only_shrink() -> None:
    """The maximum moves in every tile, and in none."""
    for sign in (1.0, -1.0):
        query, key, value = make(3, 50, 1, 2)
        with torch.no_grad():
            query.fill_(1.0)
            key[0, 0, :, 0] = sign * torch.linspace(-60, 60, 50, dtype=key.dtype)
        compare((query, key, value), tolerance=1e-9 if EXACT == torch.float64 else 1e-4, scale=3.0)


@pytest.mark.filterwarnings("ignore:All-NaN slice", "ignore:invalid value")
def test_a_score_of_minus_infinity_is_a_weight_of_zero() -> None:
    query, key, value = (x.detach() for x in make(3, 20, 1, 2))
    query.fill_(1.0)
    expected = triton((query, key[:, :, 17:], value[:, :, 17:]))
    key[:, :, :17] = -math.inf
    for ours, theirs in zip(triton((query, key, value)), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # by the interpreter, of a maximum
def test_what_is_nan_and_seen_shows() -> None:
    query, key, value = (x.detach() for x in make(20, 20))
    query[0, 0, 2] = math.nan
    value[0, 0, 18] = math.nan
    output = triton((query, key, value), is_causal=True)[0][0, 0]
    nan = output.isnan().any(-1)
    assert nan.nonzero().flatten().tolist()[:1] == [2] and bool(nan[18:].all())
    assert not nan[[0, 1]].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
def test_precision(dtype: torch.dtype, is_causal: bool) -> None:
    leaves = make(20, 33, 32, 24, dtype=dtype, heads=2)
    seen = oracle.visible(20, 33, 1, 2, {"is_causal": is_causal}).to(DEVICE)

    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = (query @ key.mT / 32**0.5).masked_fill(~seen, -math.inf)
        return scores.softmax(-1) @ value

    output = dot_product_attention(*leaves, is_causal=is_causal, impl="triton")
    assert output.dtype == dtype
    doubles = tuple(x.detach().double().requires_grad_() for x in leaves)
    exact, low = plain(*doubles), plain(*leaves)
    g = torch.randn(exact.shape, dtype=torch.float64).to(DEVICE, dtype)
    triples = (
        (out, *torch.autograd.grad(out, tensors, g.to(out.dtype)))
        for out, tensors in ((output, leaves), (low, leaves), (exact, doubles))
    )
    for name, ours, theirs, best in zip(
        ("output", "dquery", "dkey", "dvalue"), *triples, strict=True
    ):
        assert ours.dtype == dtype
        if dtype == torch.float32:
            assert_close(ours, best, rtol=2e-5, atol=2e-5, name=name)
        else:
            assert_within_budget(ours, theirs, best, name=name)


def test_known_answers_of_the_counter() -> None:
    """From the tests that come with Salmon et al. (2011), of Philox-4x32-10."""
    cases = [
        ((0, 0, 0, 0), (0, 0), 0x6627E8D5),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, 0x408F276D),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            0xD16CFE09,
        ),
    ]
    for counter, key, expected in cases:
        words = tuple(torch.tensor(word) for word in counter)
        assert int(reference._philox(words, key)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("dropout_p", [1e-9, 0.1, 0.5, 0.9, 1 - 1e-12])
def test_dropout_drops_its_share(dropout_p: float) -> None:
    kept = reference.dropout_kept(3, dropout_p, (2, 2), 64, 64).double()
    sigma = math.sqrt(dropout_p * (1 - dropout_p) / kept.numel())
    assert abs(kept.mean().item() - (1 - dropout_p)) <= 4 * sigma + 1e-9
    spread = 4 * math.sqrt(dropout_p * (1 - dropout_p) / 256) + 1e-9
    for dims in ((0, 1, 2), (0, 1, 3)):  # no key and no query is favoured
        assert float((kept.mean(dims) - (1 - dropout_p)).abs().max()) <= 1.5 * spread


def test_dropout_differs_between_heads_and_seeds_and_not_between_runs() -> None:
    kept = reference.dropout_kept(3, 0.5, (2, 2), 16, 64).flatten(0, 1)
    for a in range(4):
        for b in range(a):
            assert 0.4 < (kept[a] == kept[b]).double().mean().item() < 0.6
    leaves = make(17, 18)
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(dot_product_attention(*leaves, dropout_p=0.5, impl="triton"))
    assert torch.equal(runs[0], runs[1]) and not torch.allclose(runs[0], runs[2])


def test_dropout_spares_the_log_sum_exp() -> None:
    leaves = make(5, 18)
    plain = triton(leaves)[1]
    torch.testing.assert_close(triton(leaves, dropout_p=0.9)[1], plain)


def test_every_element_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is handed out full of NaN, and each slot has one program that writes it."""

    def poisoned(function: Any) -> Any:
        def fill(*args: Any, **kwargs: Any) -> Tensor:
            tensor = function(*args, **kwargs)
            return tensor.fill_(math.nan) if tensor.is_floating_point() else tensor

        return fill

    leaves = make(33, 18, 5, 7, batch=2, heads=4, group=2)
    monkeypatch.setattr(Tensor, "new_empty", poisoned(Tensor.new_empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    for where in ("causal", "window", "beyond"):
        with watch() as forward:
            output, lse = triton(leaves, **WHERE[where])
        with watch() as backward:
            gradients = torch.autograd.grad(output.sum(), leaves)
        assert not any(bool(x.isnan().any()) for x in (output, lse, *gradients))
        rows = 2 * 4 * 33
        sizes = (rows * (7 + 1), rows + sum(leaf.numel() for leaf in leaves))
        for accesses, size in zip((forward, backward), sizes, strict=True):
            if accesses.recorded:
                written = Counter(address for _, some in accesses.stores for address in some)
                assert len(written) == size and set(written.values()) == {1}


@pytest.mark.parametrize("names", ["", "causal offset lens mask slopes", "window query_lens"])
def test_loads_stay_inside(names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from attn_course.dot_product import backward_kernel, kernel

    leaves = make(18, 35, 5, 7, batch=2, heads=4, group=2)
    options = hide(names, 2, 4, 18, 35)
    tensors: list[Tensor] = []

    def spy(function: Any) -> Any:
        def call(*args: Any) -> Any:
            pointers, sizes, meta = function(*args)
            tensors.extend(pointers)
            return pointers, sizes, meta

        return call

    def spy_gradients(*args: Any) -> Any:
        tensors.extend(x for x in args if isinstance(x, Tensor))
        return plain(*args)

    plain = backward_kernel.differentiate
    monkeypatch.setattr(kernel, "common", spy(kernel.common))
    monkeypatch.setattr(backward_kernel, "common", spy(backward_kernel.common))
    monkeypatch.setattr(backward_kernel, "differentiate", spy_gradients)
    with watch() as accesses:
        output = triton(leaves, **options)[0]
        tensors.append(output)
        torch.autograd.grad(output.sum(), leaves)
    # A tensor that is expanded spans what it was expanded from.
    spans = [x if x.is_contiguous() else _base(x) for x in tensors]
    assert not accesses.outside(*spans)


def _base(tensor: Tensor) -> Tensor:
    sizes = [s if stride else 1 for s, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    base = tensor.as_strided(sizes, tensor.stride(), tensor.storage_offset())
    assert base.is_contiguous()
    return base


@pytest.mark.parametrize(
    ("names", "rows"),
    [
        ("causal", lambda first, last: (0, last + 1)),
        ("window", lambda first, last: (max(first - 11, 0), last + 7)),
        ("causal window offset", lambda first, last: (max(first + 5 - 11, 0), last + 6)),
        ("lens", lambda first, last: (0, 29)),
    ],
)
def test_tiles_out_of_sight_are_not_read(names: str, rows: Any) -> None:
    """A program loads the keys that one of its queries may see, and no others."""
    n = m = 80
    query, key, value = (x.detach() for x in make(n, m))
    options = hide(names, 1, 1, n, m)
    if "valid_lens" in options:
        options["valid_lens"] = torch.tensor([29], device=DEVICE)
    with watch() as accesses:
        triton((query, key, value), **options)
    if not accesses.recorded:
        pytest.skip("compiled kernels do not tell")
    size = key.element_size() * key.shape[-1]
    read: dict[int, set[int]] = {tile: set() for tile in range(5)}
    for (program, *_), addresses in accesses.loads:
        # the last queries of a causal mask come first
        tile = 4 - program if "lens" not in names else program
        for address in addresses:
            row = (address - key.data_ptr()) // size
            if 0 <= row < m:
                read[tile].add(row)
    for tile, found in read.items():
        start, stop = rows(16 * tile, 16 * tile + 15)
        assert found == set(range(start, min(stop, m)))


@pytest.mark.parametrize("hidden", ["window", "lens"])
def test_backward_does_not_read_queries_out_of_sight(hidden: str) -> None:
    query, key, value = make(80, 80)
    query = query.detach()
    lens = torch.tensor([29], device=DEVICE)
    options: dict[str, Any] = {"window": (4, 4)} if hidden == "window" else {"valid_lens": lens}
    output = triton((query, key, value), **options)[0]
    with watch() as accesses:
        torch.autograd.grad(output.sum(), (key, value))  # keys and values own the programs
    if not accesses.recorded:
        pytest.skip("compiled kernels do not tell")
    size = query.element_size() * query.shape[-1]
    read: dict[int, set[int]] = {tile: set() for tile in range(5)}
    for (program, *_), addresses in accesses.loads:
        for address in addresses:
            row = (address - query.data_ptr()) // size
            if 0 <= row < 80:
                read[program].add(row)
    for tile, found in read.items():
        seen = range(max(16 * tile - 4, 0), min(16 * tile + 20, 80))
        if hidden == "lens":
            seen = range(80 if 16 * tile < 29 else 0)
        assert found == set(seen)


class _Largest(TorchDispatchMode):
    """Remembers the largest tensor that an operation of PyTorch made."""

    largest = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.untyped_storage().nbytes())
        return result


def test_nothing_of_queries_times_keys_is_stored() -> None:
    leaves = make(100, 101, 2, 2)
    options = hide("causal window offset query_lens slopes dropout", 1, 1, 100, 101)
    with _Largest() as seen:
        output, lse = triton(leaves, **options)
        torch.autograd.grad(output.sum() + lse[lse.isfinite()].sum(), leaves)
    assert 0 < seen.largest < 100 * 101


def test_runs_repeat_bit_for_bit() -> None:
    leaves = make(18, 33, dtype=torch.float32, heads=2)
    runs = []
    for _ in range(2):
        output, lse = triton(leaves, is_causal=True)
        runs.append((output, lse, *torch.autograd.grad(output.square().sum(), leaves)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_one_gradient_alone(wanted: int) -> None:
    leaves = make(5, 18)
    every = torch.autograd.grad(triton(leaves)[0].sin().sum(), leaves)
    one = [leaf.detach().requires_grad_(i == wanted) for i, leaf in enumerate(leaves)]
    (alone,) = torch.autograd.grad(triton(one)[0].sin().sum(), one[wanted])  # type: ignore[arg-type]
    assert torch.equal(alone, every[wanted])


def test_the_log_sum_exp_alone_has_a_gradient() -> None:
    leaves = make(5, 18)
    lse = triton(leaves)[1]
    exact = oracle.attention(*leaves, {})[1]
    pairs = zip(
        *(torch.autograd.grad(x.sin().sum(), leaves[:2]) for x in (lse, exact)), strict=True
    )
    for ours, theirs in pairs:
        assert_close(ours, theirs.double())


def test_empty_batch_and_no_queries() -> None:
    for leaves in (make(3, 4, batch=0), make(0, 4), make(0, 20, heads=2, group=2)):
        output, lse = triton(leaves, is_causal=True)
        assert output.shape == (*leaves[0].shape[:3], 3) and lse.shape == leaves[0].shape[:3]
        gradients = torch.autograd.grad(output.sum() + lse.sum(), leaves)
        for gradient, leaf in zip(gradients, leaves, strict=True):
            assert gradient.shape == leaf.shape and not gradient.any()


def test_arguments_are_left_alone() -> None:
    leaves = make(4, 18, batch=2, heads=2)
    options = hide("lens mask slopes", 2, 2, 4, 18)
    scale = torch.tensor(2.0, device=DEVICE)
    with assert_unchanged(*leaves, scale, *options.values()):
        triton(leaves, scale=scale, **options)[0].sum().backward()


def test_differentiating_twice_is_refused() -> None:
    leaves = make(3, 4)
    squares = triton(leaves)[0].square()
    (first,) = torch.autograd.grad(squares.sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_every_width_has_tiles() -> None:
    from attn_course.dot_product import backward_kernel, kernel

    tables = (kernel.CONFIGS, backward_kernel.DQ_CONFIGS, backward_kernel.DKV_CONFIGS)
    for table in tables:
        assert set(table) == set(_triton.ARCHITECTURES)
        for arch in table:
            for size in (2, 4):
                for width in (
                    (1, 64, 65, 128) if (arch, size) == (75, 4) else (1, 64, 128, 200, 256)
                ):
                    config = kernel.choose(table, arch, size, 1, width)
                    assert config.BLOCK_M >= 16 and config.BLOCK_N >= 16
        with pytest.raises(RuntimeError, match=r"heads of 200 columns, 4 bytes .* \(sm_75\)"):
            kernel.choose(table, 75, 4, 200, 3)
        # The narrowest that fits is found first.
        assert all(list(configs) == sorted(configs) for configs in table.values())


@pytest.mark.parametrize(
    ("tensors", "options", "error", "message"),
    [
        (make(2, 3, 257), {}, ValueError, "up to 256 columns, got 257"),
        (make(2, 3, 2, 300), {}, ValueError, "up to 256 columns, got 300"),
        (make(2, 3), {"need_weights": True}, ValueError, "impl='triton' never stores"),
    ],
    ids=["dim", "value_dim", "weights"],
)
def test_what_the_kernel_cannot_do_is_said(
    tensors: Leaves, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        dot_product_attention(*tensors, impl="triton", **options)


def test_auto_on_a_gpu_takes_the_kernel_for_what_sdpa_cannot_say() -> None:
    query, key, value = make(5, 7)
    lens, mask = torch.tensor([[3] * 5]), torch.ones(5, 7, dtype=torch.bool)

    def beyond(**options: Any) -> bool:
        fields: dict[str, Any] = {
            "lens": None, "mask": None, "low": None, "high": None, "offset": 0, "slopes": None
        }  # fmt: skip
        request = ops._Request(
            query, key, value, (1, 1), 1, 1.0, dropout_p=0.0, **(fields | options)
        )
        return ops._beyond_sdpa(request)

    plain: list[dict[str, Any]] = [{}, {"high": 0}, {"mask": mask}, {"lens": lens[:, :1]}]
    assert not any(beyond(**options) for options in plain)
    more: list[dict[str, Any]] = [{"low": -3}, {"high": 2}, {"slopes": torch.ones(1)}]
    more += [{"lens": lens}, {"high": 0, "mask": mask}, {"high": 0, "lens": lens[:, :1]}]
    assert all(beyond(**options) for options in more)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [32, 64, 80, 128, 256])
@pytest.mark.parametrize("names", ["", "causal", "window offset", "lens slopes", "query_lens mask"])
def test_compiled_kernels_on_a_gpu(dtype: torch.dtype, dim: int, names: str) -> None:
    n, m = 300, 413
    leaves = make(n, m, dim, dim, batch=2, heads=4, group=2, dtype=dtype)
    options = hide(names, 2, 4, n, m)
    doubles = tuple(x.detach().double().requires_grad_() for x in leaves)
    results = []
    for tensors, impl in ((leaves, "triton"), (leaves, "sdpa"), (doubles, "reference")):
        output = dot_product_attention(*tensors, impl=impl, **options)
        grad = torch.ones_like(output)
        results.append((output, *torch.autograd.grad(output, tensors, grad)))
    for ours, plain, exact in zip(*results, strict=True):
        if dtype == torch.float32:
            assert_close(ours, exact, rtol=1e-4, atol=1e-4)
        else:
            assert_within_budget(ours, plain, exact)


@pytest.mark.gpu
def test_dropout_is_the_reference_s_on_a_gpu() -> None:
    compare(make(100, 130, 64, 64, heads=4), tolerance=1e-4, dropout_p=0.3, is_causal=True)


@pytest.mark.gpu
def test_runs_repeat_bit_for_bit_on_a_gpu() -> None:
    leaves = make(1000, 700, 64, 64, heads=8, group=4, dtype=torch.bfloat16)
    runs = []
    for _ in range(5):
        output, lse = triton(leaves, is_causal=True, query_offset=3)
        runs.append((output, lse, *torch.autograd.grad(output.sum(), leaves)))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.gpu
def test_memory_holds_no_pairs_on_a_gpu() -> None:
    leaves = make(8192, 8192, 64, 64, dtype=torch.bfloat16)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    triton(leaves, window=(1000, 0), bias_slopes=torch.ones(1, device="cuda"))[0].sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 20e6  # pairs in bytes: 67e6


@pytest.mark.gpu
def test_offsets_beyond_32_bits_on_a_gpu() -> None:
    """The last head lies more than 2^31 elements in."""
    query = torch.zeros(1, 33, 1 << 20, 64, device="cuda", dtype=torch.bfloat16)
    query[:, -1] = 8.0
    key = torch.zeros(1, 33, 2, 64, device="cuda", dtype=torch.bfloat16)
    key[:, :, 1] = 8.0
    output = dot_product_attention(query, key, key, impl="triton")
    assert bool((output[0, -1] == 8.0).all()) and bool((output[0, 0] == 4.0).all())
