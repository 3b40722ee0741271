"""What recomputes tanh, the kernel and its blocked stand-in, against brute force in float64."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attn_course import _triton
from attn_course.exercises.launches import watch
from attn_course.scoring import additive_attention, blocked
from attn_course.testing import (
    LAYOUTS,
    LENGTHS,
    assert_close,
    assert_unchanged,
    assert_within_budget,
    make_qkv,
    with_layout,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HOW = [pytest.param("triton", marks=pytest.mark.triton), "blocked"]
#: Beyond it, and the direct form computes tanh; below, products of exponentials do.
LIMIT = 20.0

Leaves = tuple[Tensor, ...]


def attend(how: str) -> Callable[..., Tensor]:
    if how == "blocked":
        return blocked.additive_attention_blocked
    from attn_course.scoring import additive_kernel

    return additive_kernel.additive


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "BLOCK_ELEMENTS", 500)


def make(
    n: int,
    m: int,
    hidden: int,
    value_dim: int,
    *batch: int,
    dtype: torch.dtype = torch.float64,
    spread: float = 1.0,
) -> Leaves:
    """Queries, keys, values and weights, leaves that collect gradients."""
    query, key, value = make_qkv(batch, n, m, hidden, value_dim, dtype=dtype, device=DEVICE)
    weight = torch.randn(hidden, dtype=torch.float64).to(DEVICE, dtype)
    query, key = spread * query, spread * key
    return tuple(tensor.requires_grad_() for tensor in (query, key, value, weight))


def plain(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor, allowed: Tensor | None = None
) -> Tensor:
    """The formula in float64, with the hidden axis; rows without any key are zero."""
    q, k, v, w = (tensor.double() for tensor in (query, key, value, weight))
    score = (torch.tanh(q.unsqueeze(-2) + k.unsqueeze(-3)) * w).sum(-1)
    if allowed is None:
        allowed = torch.ones_like(score, dtype=torch.bool)
    shape = torch.broadcast_shapes(score.shape, allowed.shape)
    allowed = allowed.expand(shape)
    empty = ~allowed.any(-1, keepdim=True)
    score = score.expand(shape).masked_fill(~allowed, -math.inf).masked_fill(empty, 0)
    return score.softmax(-1).masked_fill(empty, 0) @ v


def brute_force(leaves: Leaves) -> Tensor:
    """Loops over Python numbers, no batch."""
    query, key, value, weight = (leaf.tolist() for leaf in leaves)
    rows = []
    for q in query:
        scores = [
            sum(w * math.tanh(a + b) for w, a, b in zip(weight, q, k, strict=True)) for k in key
        ]
        shares = [math.exp(score) for score in scores]
        rows.append(
            [
                sum(s * v[c] for s, v in zip(shares, value, strict=True)) / sum(shares)
                for c in range(len(value[0]))
            ]
        )
    return torch.tensor(rows, dtype=torch.float64)


def compare(
    how: str,
    leaves: Leaves,
    *,
    lens: Tensor | None = None,
    mask: Tensor | None = None,
    layout: str | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> None:
    """Output and all gradients against ``plain`` with the same incoming gradient."""
    m = leaves[1].shape[-2]
    allowed = None if lens is None else torch.arange(m, device=DEVICE) < lens.unsqueeze(-1)
    if mask is not None:
        allowed = mask if allowed is None else allowed & mask
    exact = plain(*leaves, allowed)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(exact.shape, generator=generator, dtype=torch.float64)
    grad = grad.to(DEVICE, leaves[0].dtype)
    if layout is not None:
        grad = with_layout(grad, layout)
    expected = (exact, *torch.autograd.grad(exact, leaves, grad.double()))
    output = attend(how)(*leaves, lens=lens, mask=mask)
    actual = (output, *torch.autograd.grad(output, leaves, grad))
    names = ("output", "dquery", "dkey", "dvalue", "dweight")
    for name, ours, theirs in zip(names, actual, expected, strict=True):
        assert ours.dtype == leaves[0].dtype
        assert_close(ours, theirs.double(), rtol=rtol, atol=atol, name=name)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (17, 9, 5, 3), (3, 20, 7, 6)], ids=str)
def test_equals_brute_force(how: str, shape: tuple[int, ...]) -> None:
    leaves = make(*shape)
    output = attend(how)(*(leaf.detach() for leaf in leaves))
    torch.testing.assert_close(output.cpu(), brute_force(leaves), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", LENGTHS)
def test_lengths_around_the_tiles(how: str, name: str) -> None:
    compare(how, make(*LENGTHS[name], 3, 5))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("spread", [1.0, 9.0])
def test_gradcheck(how: str, spread: float) -> None:
    leaves = make(3, 4, 2, 2, spread=spread)
    mask = torch.tensor([[1, 1, 0, 1], [0] * 4, [1] * 4], device=DEVICE).bool()
    assert torch.autograd.gradcheck(lambda *x: attend(how)(*x, mask=mask), leaves)


@pytest.mark.parametrize("how", HOW)
def test_float32(how: str) -> None:
    compare(how, make(18, 21, 12, 6, dtype=torch.float32), rtol=1e-5, atol=5e-6)


@pytest.mark.triton
def test_wide_rows_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles of queries, keys, units and columns, each with a ragged end."""
    from attn_course.scoring import additive_kernel

    monkeypatch.setattr(additive_kernel, "MAX_COLUMNS", 4)
    compare("triton", make(17, 9, 6, 5))
    compare("triton", make(3, 17, 3, 9))
    compare("triton", make(9, 3, 9, 2))


@pytest.mark.triton
def test_wide_rows_make_tiles_of_fewer_rows() -> None:
    from attn_course.scoring import additive_kernel

    config = additive_kernel.CONFIGS[90]
    for width in (1, 20, 64, 128, 200, 512, 513, 4096):
        for rows in (1, 16, 17, 1000):
            for launch in (
                additive_kernel._forward_launch(config, 3, rows, width),
                additive_kernel._dq_launch(config, 3, rows, width),
                additive_kernel._dkv_launch(config, 3, rows, width, 7),
                additive_kernel._dkv_launch(config, 3, rows, 7, width),
            ):
                blocks, (programs, parts) = launch
                own = blocks["BLOCK_M"] * blocks["BLOCK_N"] // config.pairs
                assert own == 1  # as many pairs whatever the shape
                mine = blocks["BLOCK_N" if "BLOCK_V" in blocks and "UNITS" in blocks else "BLOCK_M"]
                for block in ("BLOCK_V", "BLOCK_H"):
                    assert mine * blocks.get(block, 1) <= config.keep
                assert programs == 3 * math.ceil(rows / mine)
                assert parts == math.ceil(width / min(width, additive_kernel.MAX_COLUMNS))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_inputs_and_of_the_incoming_gradient(how: str, layout: str) -> None:
    leaves = [leaf.detach() for leaf in make(5, 9, 3, 4, 2)]
    laid = [with_layout(leaf, layout).requires_grad_() for leaf in leaves[:3]]
    compare(how, (*laid, leaves[3].requires_grad_()), layout=layout)


@pytest.mark.parametrize("how", HOW)
def test_leading_dimensions_broadcast(how: str) -> None:
    query, key, value, weight = make(3, 5, 2, 2, 2, 3)
    compare(how, (query, key[0, :1], value[0, 0], weight))
    compare(how, (query[:1, :1], key[0, 0], value, weight))
    spaced = torch.randn(4, dtype=torch.float64, device=DEVICE)[::2].requires_grad_()
    compare(how, (query[0, 0], key[0, 0], value[0], spaced))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_lengths_and_masks(how: str, spread: float) -> None:
    leaves = make(17, 9, 2, 2, 2, spread=spread)
    per_item = torch.tensor([[5], [9]], device=DEVICE)
    per_query = torch.randint(0, 10, (2, 17), device=DEVICE)
    per_query[0, :3] = torch.tensor([0, 1, 9], device=DEVICE)
    mask = torch.rand(2, 17, 9, device=DEVICE) > 0.4
    mask[1, 4] = False
    compare(how, leaves, lens=per_query, mask=mask)
    compare(how, leaves, lens=per_item, mask=mask[:, :, :1])
    if spread == 1.0:
        compare(how, leaves, lens=per_item)
        compare(how, leaves, mask=mask[0])


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_nothing_to_attend_to_gives_zeros(how: str, spread: float) -> None:
    leaves = make(3, 9, 2, 2, 3, spread=spread)
    lens = torch.tensor([[0, 9, 0], [2, 0, 1], [0, 0, 0]], device=DEVICE)
    output = attend(how)(*leaves, lens=lens)
    gradients = torch.autograd.grad(output.sin().sum(), leaves)
    empty = lens == 0
    assert bool((output[empty] == 0).all()) and bool((output[~empty] != 0).all())
    assert bool((gradients[0][empty] == 0).all()) and bool((gradients[0][~empty] != 0).any())
    assert all(bool((gradient[2] == 0).all()) for gradient in gradients[:3])
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    mask = torch.zeros(3, 1, 9, dtype=torch.bool, device=DEVICE)
    assert not attend(how)(*leaves, mask=mask).any()


def spy_on_limit(monkeypatch: pytest.MonkeyPatch, limit: float) -> None:
    """Move the limit between the two forms; compiled kernels keep theirs."""
    from attn_course.scoring import additive_kernel

    if not _triton.INTERPRETED:
        pytest.skip("the limit is compiled into the kernels")
    monkeypatch.setattr(additive_kernel, "NEAR_LIMIT", limit)


@pytest.mark.triton
@pytest.mark.parametrize("limit", [-1.0, 1e9])
def test_either_form_alone_is_right(limit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    spy_on_limit(monkeypatch, limit)
    leaves = make(17, 9, 4, 3, spread=3.0)
    compare("triton", leaves)
    single = tuple(leaf.detach().float().requires_grad_() for leaf in leaves)
    compare("triton", single, rtol=2e-5, atol=2e-5)


@pytest.mark.triton
def test_the_tile_decides_which_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the limit products of exponentials, above it the direct form, tile by tile."""
    from attn_course.scoring import additive_kernel

    leaves = make(2, 17, 1, 1, spread=0.01)
    query, key, value, weight = (leaf.detach().clone() for leaf in leaves)
    query[0], key[12] = 8.0, LIMIT  # the second tile of keys, of 8, is beyond the limit
    used = []
    original = _triton.tl.max

    def spy(tensor: Any, axis: int) -> Any:
        result = original(tensor, axis)
        if not axis and tensor.dtype.is_floating():
            used.append(float(result.handle.data.item()))
        return result

    if not _triton.INTERPRETED:
        pytest.skip("compiled kernels do not tell")
    monkeypatch.setattr(additive_kernel.tl, "max", spy)
    attend("triton")(query, key, value, weight)
    near = [q + k <= LIMIT for q, k in zip(used[::2], used[1::2], strict=True)]
    assert near == [True, False, True]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("size", [9.9, 10.1, 100.0])
def test_large_numbers_that_cancel(how: str, size: float) -> None:
    """q = size and k near -size: tanh is nowhere near its ends, float32 included."""
    query, key, value, weight = make(17, 9, 4, 3, dtype=torch.float32)
    with torch.no_grad():
        query, key = (0.1 * query + size).float(), (0.1 * key - size).float()
    leaves = (query.requires_grad_(), key.requires_grad_(), value, weight)
    compare(how, leaves, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [40.0, 90.0, 1e4, 1e30, math.inf])
def test_saturated_units_have_no_slope(how: str, size: float, dtype: torch.dtype) -> None:
    """exp(2 * 90) is infinite in float32: no inf * 0 and no inf / inf may come of it."""
    query, key, value, weight = make(3, 9, 4, 2, dtype=dtype)
    with torch.no_grad():
        key[:, 0], key[:, 1], query[1] = size, -size, 0.0
        query[2, 2:] = torch.tensor([size, -size], dtype=dtype)
    output = attend(how)(query, key, value, weight)
    gradients = torch.autograd.grad(output.sin().sum(), (query, key, value, weight))
    clamped = [x.detach().double().clamp(-40, 40) for x in (query, key)]
    exact = plain(*clamped, value.detach(), weight.detach())
    assert_close(output, exact, rtol=1e-5, atol=1e-6)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert max(gradients[1][:, :2].abs().max(), gradients[0][2, 2:].abs().max()) < 1e-15
    assert bool((gradients[0][1, 2:] != 0).all())


@pytest.mark.parametrize("how", HOW)
def test_large_scores(how: str) -> None:
    """Scores of +-1000: exp overflows and underflows, the softmax does not."""
    query, key, value, weight = make(5, 20, 1, 2)
    with torch.no_grad():
        weight.fill_(1000.0)
        key[:, 0] = torch.linspace(-3, 3, 20)
    compare(how, (query, key, value, weight), rtol=1e-8, atol=1e-8)


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # by the interpreter, of a maximum
@pytest.mark.triton
def test_nan_stays_with_its_query_and_key() -> None:
    """What is NaN and may be seen shows, where it is seen only."""
    query, key, value, weight = (leaf.detach() for leaf in make(17, 20, 3, 2))
    query[2, 1] = torch.nan
    output = attend("triton")(query, key, value, weight)
    assert bool(output[2].isnan().all()) and not output[torch.arange(17) != 2].isnan().any()


@pytest.mark.triton
@pytest.mark.parametrize("columns", [2, 512])
def test_every_element_is_written_once(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is handed out full of NaN, and each slot has one program that writes it."""
    from attn_course.scoring import additive_kernel

    def poisoned(make: Any) -> Any:
        def fill(*args: Any, **kwargs: Any) -> Tensor:
            tensor = make(*args, **kwargs)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        return fill

    monkeypatch.setattr(additive_kernel, "MAX_COLUMNS", columns)
    leaves = make(17, 18, 5, 3, 2)
    monkeypatch.setattr(Tensor, "new_empty", poisoned(Tensor.new_empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    with watch() as forward:
        output = attend("triton")(*leaves)
    with watch() as backward:
        gradients = torch.autograd.grad(output.sum(), leaves)
    assert not any(bool(tensor.isnan().any()) for tensor in (output, *gradients))
    tiles = 2 * 2  # of queries, in all items
    sizes = (2 * 17 * (3 + 1), sum(leaf.numel() for leaf in leaves[:3]) + tiles * 5)
    for accesses, size in zip((forward, backward), sizes, strict=True):
        if accesses.recorded:
            written = Counter(address for _, where in accesses.stores for address in where)
            assert len(written) == size and set(written.values()) == {1}


@pytest.mark.triton
def test_loads_stay_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with lengths and a mask, no program reads past a tensor."""
    from attn_course.scoring import additive_kernel

    leaves = make(5, 11, 3, 3, 2)
    lens = torch.tensor([[3], [11]], device=DEVICE)
    mask = torch.rand(2, 5, 11, device=DEVICE) > 0.3
    tensors: list[Tensor] = []
    original = additive_kernel._common

    def spy(*args: Any) -> Any:
        inputs, sizes, meta = original(*args)
        tensors.extend(inputs)
        return inputs, sizes, meta

    monkeypatch.setattr(additive_kernel, "_common", spy)
    with watch() as accesses:
        attend("triton")(*leaves, lens=lens, mask=mask)
    assert len(tensors) == 10
    assert not accesses.outside(*tensors)


@pytest.mark.parametrize("how", HOW)
def test_runs_repeat_bit_for_bit(how: str) -> None:
    leaves = make(18, 17, 3, 4, dtype=torch.float32)
    runs = []
    for _ in range(2):
        output = attend(how)(*leaves)
        runs.append((output, *torch.autograd.grad(output.square().sum(), leaves)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("wanted", [0, 1, 2, 3])
def test_one_gradient_alone(how: str, wanted: int) -> None:
    leaves = make(4, 5, 3, 2)
    every = torch.autograd.grad(attend(how)(*leaves).sin().sum(), leaves)
    one = [leaf.detach().requires_grad_(i == wanted) for i, leaf in enumerate(leaves)]
    (alone,) = torch.autograd.grad(attend(how)(*one).sin().sum(), one[wanted])
    assert torch.equal(alone, every[wanted])


@pytest.mark.parametrize("how", HOW)
def test_empty_batch_and_no_queries(how: str) -> None:
    for shape in ((3, 4, 2, 5, 0), (0, 4, 2, 5)):
        leaves = make(*shape)
        output = attend(how)(*leaves)
        assert output.shape == (*shape[4:], shape[0], 5)
        gradients = torch.autograd.grad(output.sum(), leaves)
        assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("how", HOW)
def test_arguments_are_left_alone(how: str) -> None:
    leaves = make(4, 5, 2, 2, 3)
    lens = torch.tensor([[1], [5], [0]], device=DEVICE)
    mask = torch.rand(3, 4, 5, device=DEVICE) > 0.5
    with assert_unchanged(*leaves, lens=lens, mask=mask):
        attend(how)(*leaves, lens=lens, mask=mask).sum().backward()


@pytest.mark.parametrize("elements", [1, 63, 10_000])
def test_the_size_of_the_blocks_does_not_matter(elements: int) -> None:
    leaves = make(7, 5, 3, 2, 2)
    lens = torch.randint(0, 6, (2, 7), device=DEVICE)
    whole = plain(*leaves, torch.arange(5, device=DEVICE) < lens.unsqueeze(-1))
    parts = blocked.additive_attention_blocked(*leaves, lens=lens, block_elements=elements)
    torch.testing.assert_close(parts, whole)


def test_blocks_hold_no_more_than_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    original = blocked._blocks

    def spy(*args: Any) -> Any:
        nonlocal largest
        for block in original(*args):
            largest = max(largest, block.hidden.numel())
            yield block

    monkeypatch.setattr(blocked, "_blocks", spy)
    monkeypatch.setattr(blocked, "BLOCK_ELEMENTS", 3000)
    leaves = make(40, 20, 10, 2, 2)
    attend("blocked")(*leaves).sum().backward()
    assert 1500 < largest <= 3000 < 2 * 40 * 20 * 10


@pytest.mark.parametrize("impl", ["reference", pytest.param("triton", marks=pytest.mark.triton)])
def test_padding_cannot_leak(impl: str) -> None:
    """Through the public operation: what nobody attends to may hold NaN and infinity."""
    query, key, value, weight = make(5, 20, 2, 2, 2)
    lens = torch.tensor([3, 17], device=DEVICE)
    hidden = (torch.arange(20, device=DEVICE) >= lens[:, None])[..., None]
    results = []
    for poison in (0.0, torch.nan, math.inf):
        leaves = [query, key.detach().masked_fill(hidden, poison).requires_grad_()]
        leaves += [value.detach().masked_fill(hidden, poison).requires_grad_(), weight]
        output = additive_attention(*leaves, valid_lens=lens, impl=impl)
        results.append((output, *torch.autograd.grad(output.sin().sum(), leaves)))
    for poisoned in results[1:]:
        for clean, other in zip(results[0], poisoned, strict=True):
            assert torch.equal(clean, other)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_a_gpu(dtype: torch.dtype) -> None:
    leaves = tuple(leaf.detach().to(dtype) for leaf in make(300, 500, 128, 64))
    exact = additive_attention(*(leaf.double() for leaf in leaves), impl="reference")
    query, key, value, weight = leaves
    scores = torch.tanh(query.unsqueeze(-2) + key.unsqueeze(-3)) @ weight
    actual = additive_attention(*leaves, impl="triton")
    assert_within_budget(actual, scores.softmax(-1) @ value, exact)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "shape", [(1, 37, 64, 128), (100, 130, 128, 128), (70, 50, 600, 520), (65, 65, 20, 1)], ids=str
)
@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_compiled_kernels_on_a_gpu(shape: tuple[int, ...], spread: float) -> None:
    leaves = make(*shape, 2, spread=spread)
    lens = torch.randint(0, shape[1] + 1, (2, shape[0]), device=DEVICE)
    mask = torch.rand(2, shape[0], shape[1], device=DEVICE) > 0.3
    compare("triton", leaves, lens=lens, mask=mask)
    single = tuple(leaf.detach().float().requires_grad_() for leaf in leaves)
    compare("triton", single, lens=lens, mask=mask, rtol=2e-4, atol=2e-4)


@pytest.mark.gpu
def test_runs_repeat_bit_for_bit_on_a_gpu() -> None:
    leaves = make(1000, 700, 96, 40, dtype=torch.float32)
    runs = []
    for _ in range(5):
        output = attend("triton")(*leaves)
        runs.append((output, *torch.autograd.grad(output.sum(), leaves)))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.gpu
def test_memory_has_neither_hidden_axis_nor_pairs_on_a_gpu() -> None:
    leaves = make(4096, 4096, 128, 128, dtype=torch.float32)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    additive_attention(*leaves, impl="triton").sum().backward()
    # the inputs are 2 MB each; the pairs 67 MB, and 8.6 GB with the hidden axis
    assert torch.cuda.max_memory_allocated() - before < 50e6


@pytest.mark.gpu
def test_offsets_beyond_32_bits_on_a_gpu() -> None:
    """The last batch item lies more than 2^31 elements in."""
    batch, n, hidden = 33, 1 << 20, 64
    query = torch.zeros(batch, n, hidden, device="cuda")
    query[-1] = 5.0
    key = torch.tensor([[0.0] * hidden, [-5.0] * hidden], device="cuda")
    value = torch.tensor([[0.0], [5.0]], device="cuda")
    output = attend("triton")(query, key, value, torch.ones(hidden, device="cuda"))
    assert bool((output < 1e-6).all())


@pytest.mark.gpu
def test_more_batch_items_than_a_short_grid_axis_holds_on_a_gpu() -> None:
    compare("triton", make(1, 3, 2, 1, 70_000))
