"""The GPU kernels: against the formulas in float64, their promises, and how they are launched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course import _triton
from attn_course.testing import (
    LAYOUTS,
    assert_close,
    assert_unchanged,
    assert_within_budget,
    poisoned_padding,
    with_layout,
)
from tests.launches import addresses, interpreted, watch

if not _triton.AVAILABLE:
    pytest.skip(f"kernels cannot run here: {_triton.REASON}", allow_module_level=True)

from attn_course.linformer import attention_kernel, kernel, projection_kernel
from attn_course.linformer.attention_kernel import attend
from attn_course.linformer.projection_kernel import project, project_pair

pytestmark = pytest.mark.triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
F64 = torch.float64
#: What tests compute in: on a GPU there is no double precision.
EXACT = torch.float32 if DEVICE == "cuda" else F64
SCALE = 0.4

Function = Callable[..., Any]


@pytest.fixture(params=[256, 5], ids=lambda programs: f"{programs} programs")
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums in parts of one step each; and in a few parts of some steps, or unsplit."""
    monkeypatch.setattr(kernel, "PROGRAMS", request.param)


def randn(*shape: int, dtype: torch.dtype = EXACT) -> Tensor:
    return torch.randn(*shape, dtype=F64).to(DEVICE, dtype)


def lens_of(*lens: int) -> Tensor:
    return torch.tensor(lens, device=DEVICE)


def run(function: Function, tensors: Sequence[Tensor], *grads: Tensor) -> list[Tensor]:
    """Outputs and gradients; a tensor that comes twice is one leaf."""
    leaves = {id(t): t.detach().requires_grad_() for t in tensors}
    outputs = function(*(leaves[id(t)] for t in tensors))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    found = torch.autograd.grad(outputs, list(leaves.values()), grads)
    return [*(output.detach() for output in outputs), *found]


def check(ours: Sequence[Tensor], theirs: Sequence[Tensor], names: Sequence[str]) -> None:
    tight = EXACT == F64
    for name, a, b in zip(names, ours, theirs, strict=True):
        close = {"rtol": 1e-9, "atol": 1e-10} if tight else {"rtol": 1e-5, "atol": 1e-4}
        assert_close(a, b.cpu().double(), name=name, **close)


# The formulas, with every weight stored


def plain_project(x: Tensor, matrix: Tensor, lens: Tensor | None = None) -> Tensor:
    n = x.shape[2]
    if lens is not None:
        inside = torch.arange(n, device=x.device) < lens.to(x.device)[:, None]  # [batch, n]
        x = torch.where(inside[:, None, :, None], x, 0)
    if matrix.ndim == 2:
        matrix = matrix.expand(x.shape[1], -1, -1)
    return torch.einsum("hkn,bhnd->bhkd", matrix[..., :n], x)


def plain_attend(
    query: Tensor, key: Tensor, value: Tensor, *, lens: Tensor | None = None
) -> Tensor:
    scores = query @ key.mT * SCALE
    if lens is None:
        return scores.softmax(-1) @ value
    m = key.shape[2]
    hidden = torch.arange(m, device=key.device) >= lens.to(key.device)[:, None, None, None]
    weights = scores.masked_fill(hidden, -1e300).softmax(-1).masked_fill(hidden, 0)
    return weights @ value


def double(tensors: Sequence[Tensor]) -> list[Tensor]:
    """In float64; what was one tensor stays one."""
    made = {id(t): t.double() for t in tensors}
    return [made[id(t)] for t in tensors]


# Projection

#: Batch, heads, n, columns of the matrix, k, dim, value_dim.
Shape = tuple[int, int, int, int, int, int, int]
PROJECTIONS: dict[str, Shape] = {
    "one number": (1, 1, 1, 1, 1, 1, 1),
    "one tile": (1, 2, 16, 16, 16, 16, 16),
    "one short": (2, 1, 15, 15, 15, 15, 15),
    "one past": (1, 1, 17, 17, 17, 17, 17),
    "several": (2, 2, 33, 40, 5, 20, 3),
    "shorter than the matrix": (3, 1, 20, 70, 2, 4, 9),
    "long": (1, 1, 65, 65, 18, 1, 2),
    "wide": (1, 1, 5, 6, 3, 128, 80),
}
PAIR_NAMES = ("keys", "values", "dkey", "dvalue", "dE", "dF")


def make(shape: Shape, per_head: bool, *, shared: bool, dtype: torch.dtype = EXACT) -> list[Tensor]:
    """Key, value, and their matrices, which may be one."""
    batch, heads, n, columns, k, dim, value_dim = shape
    sizes = (heads, k, columns) if per_head else (k, columns)
    key, value = randn(batch, heads, n, dim, dtype=dtype), randn(batch, heads, n, value_dim)
    matrix = randn(*sizes, dtype=dtype)
    return [key, value.to(dtype), matrix, matrix if shared else randn(*sizes, dtype=dtype)]


def grads_of(shape: Shape, dtype: torch.dtype = EXACT) -> tuple[Tensor, Tensor]:
    batch, heads, _, _, k, dim, value_dim = shape
    return randn(batch, heads, k, dim, dtype=dtype), randn(batch, heads, k, value_dim, dtype=dtype)


def plain_pair(lens: Tensor | None = None) -> Function:
    return lambda key, value, e, f: (plain_project(key, e, lens), plain_project(value, f, lens))


def pair(lens: Tensor | None = None) -> Function:
    return lambda key, value, e, f: project_pair(key, value, e, f, lens)


def test_projection_equals_loops() -> None:
    x, matrix, lens = randn(2, 2, 7, 3), randn(2, 4, 9), [5, 7]
    found = project(x, matrix, lens_of(*lens)).tolist()
    for b in range(2):
        for h in range(2):
            for k in range(4):
                for d in range(3):
                    terms = (matrix[h, k, i].item() * x[b, h, i, d].item() for i in range(lens[b]))
                    assert found[b][h][k][d] == pytest.approx(sum(terms), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "apart"])
@pytest.mark.parametrize("per_head", [True, False], ids=["matrix a head", "one matrix"])
@pytest.mark.parametrize("shape", PROJECTIONS.values(), ids=PROJECTIONS)
def test_projection_forward_and_gradients(
    shape: Shape, per_head: bool, shared: bool, parts: None
) -> None:
    tensors, grads = make(shape, per_head, shared=shared), grads_of(shape)
    theirs = run(plain_pair(), double(tensors), *(g.double() for g in grads))
    check(run(pair(), tensors, *grads), theirs, PAIR_NAMES[: len(theirs)])


@pytest.mark.parametrize("per_head", [True, False])
def test_a_single_sequence(per_head: bool, parts: None) -> None:
    x, _, matrix, _ = make((2, 2, 18, 20, 17, 5, 1), per_head, shared=True)
    g = randn(2, 2, 17, 5)
    theirs = run(plain_project, double([x, matrix]), g.double())
    check(run(project, [x, matrix], g), theirs, ("y", "dx", "dE"))


@pytest.mark.parametrize("shared", [True, False])
def test_a_shared_tile_gives_what_separate_ones_give(shared: bool, parts: None) -> None:
    """To the last bit; and the gradient of one matrix is the sum of two."""
    shape = (1, 2, 33, 33, 5, 17, 3)
    key, value, matrix, _ = make(shape, False, shared=True)
    grads = grads_of(shape)
    ours = run(pair(), [key, value, matrix, matrix], *grads)
    copy = matrix.clone()
    apart = run(pair(), [key, value, matrix, copy], *grads)
    if DEVICE == "cpu":  # on a GPU the two may have other tiles
        assert all(torch.equal(a, b) for a, b in zip(ours[:4], apart[:4], strict=True))
    check(ours, [*apart[:4], apart[4] + apart[5]], PAIR_NAMES[:5])


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("per_head", [True, False])
def test_lengths_and_what_padding_holds(per_head: bool, shared: bool, parts: None) -> None:
    shape, lens = (4, 1 + per_head, 33, 35, 5, 5, 3), lens_of(33, 0, 1, 17)
    tensors, grads = make(shape, per_head, shared=shared), grads_of(shape)
    theirs = run(plain_pair(lens), double(tensors), *(g.double() for g in grads))
    poisoned = [poisoned_padding(t, lens) for t in tensors[:2]] + tensors[2:]
    for matrix in poisoned[2:]:
        matrix[..., 33:] = torch.nan  # columns beyond the sequence
    ours = run(pair(lens), poisoned, *grads)
    check(ours, theirs, PAIR_NAMES[: len(theirs)])
    for output, gradient in zip(ours[:2], ours[2:4], strict=True):
        assert not output[1].any() and not gradient[1].any()
        assert not gradient[2, :, 1:].any() and not gradient[3, :, 17:].any()


def test_gradients_of_padding_are_zero_whatever_comes_in() -> None:
    x, matrix, lens = randn(2, 1, 20, 3), randn(4, 20), lens_of(18, 0)
    _, dx, _ = run(
        lambda x, e: project(x, e, lens), [x, matrix], torch.full_like(randn(2, 1, 4, 3), torch.inf)
    )
    assert not dx[0, :, 18:].any() and not dx[1].any() and bool(dx[0, :, :18].isinf().any())


def test_heads_must_fit() -> None:
    with pytest.raises(ValueError, match=r"projection must have 3 heads, got \[2, 4, 8\]"):
        project(randn(1, 3, 8, 2), randn(2, 4, 8))


def test_an_identity_projects_nothing_away() -> None:
    """k = n: the whole of Linformer is full attention."""
    query, key, value = randn(2, 2, 20, 8), randn(2, 2, 20, 8), randn(2, 2, 20, 5)
    eye = torch.eye(20, dtype=EXACT, device=DEVICE)
    ours = attend(query, *project_pair(key, value, eye, eye), scale=8**-0.5)
    assert_close(
        ours, F.scaled_dot_product_attention(query.double(), key.double(), value.double()).cpu()
    )


# Attention

#: Batch, heads, n, m, dim, value_dim.
ATTENTIONS: dict[str, tuple[int, int, int, int, int, int]] = {
    "one number": (1, 1, 1, 1, 1, 1),
    "one tile": (1, 2, 16, 16, 16, 16),
    "one short": (2, 1, 15, 15, 15, 15),
    "one past": (1, 2, 17, 17, 17, 17),
    "several": (2, 2, 40, 35, 20, 3),
    "one key": (1, 3, 18, 1, 4, 20),
    "many queries": (1, 1, 65, 3, 2, 33),
    "many keys": (1, 1, 3, 130, 2, 2),
    "most keys": (1, 1, 2, 512, 3, 2),
    "wide": (1, 1, 5, 6, 128, 80),
}
ATTEND_NAMES = ("output", "dquery", "dkey", "dvalue")


def make_heads(
    shape: tuple[int, int, int, int, int, int], dtype: torch.dtype = EXACT
) -> tuple[list[Tensor], Tensor]:
    """Query, key, value, and a gradient that comes in."""
    batch, heads, n, m, dim, value_dim = shape
    sizes = ((n, dim), (m, dim), (m, value_dim), (n, value_dim))
    *tensors, g = (randn(batch, heads, *size, dtype=dtype) for size in sizes)
    return tensors, g


def attending(lens: Tensor | None = None, scale: float = SCALE) -> Function:
    return lambda *tensors: attend(*tensors, scale=scale, lens=lens)


@pytest.mark.parametrize("shape", ATTENTIONS.values(), ids=ATTENTIONS)
def test_attention_forward_and_gradients(shape: Any, parts: None) -> None:
    tensors, g = make_heads(shape)
    theirs = run(plain_attend, double(tensors), g.double())
    check(run(attending(), tensors, g), theirs, ATTEND_NAMES)


def test_numbers_of_keys_and_what_the_others_hold(parts: None) -> None:
    lens = lens_of(35, 0, 1, 16)
    tensors, g = make_heads((4, 1, 18, 35, 20, 5))
    theirs = run(
        lambda query, key, value: plain_attend(query, key, value, lens=lens),
        double(tensors),
        g.double(),
    )
    query, *others = tensors
    query, g = query.clone(), g.clone()
    query[1], g[1] = torch.nan, torch.nan  # of the item that has no keys
    poisoned = [query, *(poisoned_padding(t, lens) for t in others)]
    ours = run(attending(lens), poisoned, g)
    check(ours, theirs, ATTEND_NAMES)
    assert all(not tensor[1].any() for tensor in ours)


def test_large_scores_and_equal_ones() -> None:
    """A softmax of scores of +-1e4 picks; of equal scores it averages."""
    query, key, value = randn(1, 1, 3, 2), randn(1, 1, 5, 2), randn(1, 1, 5, 4)
    query[..., 0], key[..., 0] = 100.0, torch.tensor([-100.0, 0.0, 100.0, 99.0, -50.0])
    ours = run(
        attending(scale=1.0),
        [query, key, value],
        torch.ones_like(query[..., :1]).expand(1, 1, 3, 4),
    )
    assert_close(ours[0], value[:, :, 2:3].expand(1, 1, 3, 4).cpu().double())
    assert all(bool(t.isfinite().all()) for t in ours)
    zero = torch.zeros_like(query)
    assert_close(attend(zero, key, value, scale=1.0)[0, 0, 0], value.mean(2)[0, 0].cpu().double())


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_what_is_not_a_number_stays_with_its_query() -> None:
    (query, key, value), _ = make_heads((1, 2, 20, 6, 5, 4))
    for number in (torch.nan, torch.inf):
        query[0, 1, 17, 2] = number
        output = attend(query, key, value, scale=SCALE)
        assert (~output.isfinite().all(-1)).nonzero().tolist() == [[0, 1, 17]]


REFUSED = [
    (513, 4, 4, "513 keys of 4 columns"),
    (4, 129, 4, "4 keys of 129 columns"),
    (4, 4, 129, "4 keys of 129 columns"),
]


@pytest.mark.parametrize(("m", "dim", "value_dim", "message"), REFUSED)
def test_what_does_not_fit_is_refused(m: int, dim: int, value_dim: int, message: str) -> None:
    (query, key, value), _ = make_heads((1, 1, 2, m, dim, value_dim))
    with pytest.raises(RuntimeError, match=f"up to 512 keys of 128 columns.* got {message}"):
        attend(query, key, value, scale=1.0)


def test_a_sequence_that_is_too_wide_is_refused() -> None:
    with pytest.raises(RuntimeError, match="heads of up to 128 columns, got 129 of"):
        project(randn(1, 1, 3, 129), randn(2, 3))


# Of both

OPERATIONS: dict[str, tuple[Function, Callable[[torch.dtype], list[Tensor]], Function]] = {
    "project": (
        project,
        lambda dtype: [randn(2, 2, 20, 5, dtype=dtype), randn(2, 17, 21, dtype=dtype)],
        plain_project,
    ),
    "pair": (
        lambda key, value, e: project_pair(key, value, e, e),
        lambda dtype: make((2, 1, 20, 20, 3, 17, 5), False, shared=True, dtype=dtype)[:3],
        lambda key, value, e: (plain_project(key, e), plain_project(value, e)),
    ),
    "attend": (
        attending(),
        lambda dtype: make_heads((2, 1, 20, 17, 18, 5), dtype)[0],
        plain_attend,
    ),
}


@pytest.fixture(params=OPERATIONS)
def operation(request: pytest.FixtureRequest) -> tuple[Function, Any, Function]:
    return OPERATIONS[request.param]


def incoming(function: Function, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Random gradients for what a function returns."""
    outputs = function(*(t.detach() for t in tensors))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [randn(*output.shape, dtype=output.dtype) for output in outputs]


def test_float32_against_float64(operation: Any) -> None:
    function, inputs, plain = operation
    tensors = inputs(torch.float32)
    grads = incoming(plain, tensors)
    theirs = run(plain, double(tensors), *(g.double() for g in grads))
    for a, b in zip(run(function, tensors, *grads), theirs, strict=True):
        assert a.dtype == torch.float32
        assert_close(a, b.cpu(), rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(operation: Any, dtype: torch.dtype) -> None:
    function, inputs, plain = operation
    tensors = inputs(dtype)
    grads = incoming(plain, tensors)
    low = run(plain, tensors, *grads)
    oracle = run(plain, double(tensors), *(g.double() for g in grads))
    for ours, *theirs in zip(run(function, tensors, *grads), low, oracle, strict=True):
        assert ours.dtype == dtype
        assert_within_budget(ours, *theirs)


def test_half_precision_is_added_up_in_float32(parts: None) -> None:
    """In float16 2048 + 1 is 2048."""
    x = torch.ones(1, 1, 101, 1, dtype=torch.float16, device=DEVICE)
    matrix = torch.ones(1, 101, dtype=torch.float16, device=DEVICE)
    matrix[0, 0] = 2048
    assert project(x, matrix).item() == 2148


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_do_not_matter(operation: Any, layout: str) -> None:
    function, inputs, plain = operation
    tensors = [
        with_layout(t, layout if t.ndim > 2 or layout != "expanded" else "sliced")
        for t in inputs(EXACT)
    ]
    grads = [with_layout(g, layout) for g in incoming(plain, tensors)]
    theirs = run(plain, double([t.contiguous() for t in tensors]), *(g.double() for g in grads))
    check(run(function, tensors, *grads), theirs, [str(i) for i in range(len(theirs))])


def test_heads_as_a_layer_splits_them(operation: Any) -> None:
    """``[batch, len, heads, dim]`` in memory, and so the gradients."""
    function, inputs, plain = operation

    def turned(x: Tensor) -> Tensor:
        return x.transpose(1, 2).contiguous().transpose(1, 2) if x.ndim == 4 else x

    tensors = [turned(t) for t in inputs(EXACT)]
    grads = [turned(g) for g in incoming(plain, tensors)]
    theirs = run(plain, double(tensors), *(g.double() for g in grads))
    check(run(function, tensors, *grads), theirs, [str(i) for i in range(len(theirs))])


def test_gradients_that_are_one_number(operation: Any) -> None:
    """As ``sum`` gives them: strides of 0 everywhere."""
    function, inputs, plain = operation
    tensors = inputs(EXACT)
    one = torch.ones((), dtype=EXACT, device=DEVICE)
    grads = [one.expand(g.shape) for g in incoming(plain, tensors)]
    theirs = run(plain, double(tensors), *(g.double() for g in grads))
    check(run(function, tensors, *grads), theirs, [str(i) for i in range(len(theirs))])


@pytest.mark.skipif(DEVICE == "cuda", reason="needs double precision")
def test_gradcheck(operation: Any) -> None:
    function, inputs, _ = operation
    leaves = [t.requires_grad_() for t in inputs(F64)]
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


def test_one_argument_alone_can_need_a_gradient(operation: Any) -> None:
    function, inputs, plain = operation
    tensors = inputs(EXACT)
    grads = incoming(plain, tensors)
    everything = run(function, tensors, *grads)[-len(tensors) :]
    for i, expected in enumerate(everything):
        some = [t.detach().requires_grad_(i == j) for j, t in enumerate(tensors)]
        outputs = function(*some)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        (found,) = torch.autograd.grad(outputs, some[i], grads)
        assert torch.equal(found, expected)


def test_the_kernels_differentiate_once_and_say_so(operation: Any) -> None:
    function, inputs, _ = operation
    leaves = [t.requires_grad_() for t in inputs(EXACT)]
    outputs = function(*leaves)
    output = outputs[0] if isinstance(outputs, tuple) else outputs
    grads = torch.autograd.grad(output.square().sum(), leaves, create_graph=True, allow_unused=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grads[0].sum().backward()


def test_one_of_two_outputs_may_go_unused() -> None:
    key, value, matrix, _ = make((1, 1, 20, 20, 3, 4, 5), False, shared=True)
    leaves = [t.requires_grad_() for t in (key, value, matrix)]
    keys, _ = project_pair(leaves[0], leaves[1], leaves[2], leaves[2])
    g = randn(*keys.shape)
    dkey, dvalue, dmatrix = torch.autograd.grad(keys, leaves, g)
    check([dkey, dmatrix], run(plain_project, double([key, matrix]), g.double())[1:], "km")
    assert not dvalue.any()


def test_empty_batches_and_sequences(parts: None) -> None:
    empty = [(0, 2, 5, 6, 3, 4, 2), (2, 0, 5, 6, 3, 4, 2), (2, 2, 0, 6, 3, 4, 2)]
    for shape in empty:
        tensors, grads = make(shape, False, shared=False), grads_of(shape)
        for a, b in zip(
            run(pair(), tensors, *grads), run(plain_pair(), tensors, *grads), strict=True
        ):
            assert a.shape == b.shape and not a.any()
    for batch, n in ((0, 5), (2, 0)):
        tensors, g = make_heads((batch, 2, n, 3, 4, 2))
        found = run(attending(), tensors, g)
        for a, b in zip(found, run(plain_attend, tensors, g), strict=True):
            assert a.shape == b.shape and not a.any()


def test_arguments_are_left_alone(operation: Any) -> None:
    function, inputs, plain = operation
    tensors = inputs(EXACT)
    grads = incoming(plain, tensors)
    lens = lens_of(3, 0, 2)
    with assert_unchanged(*tensors, *grads, lens=lens):
        run(function, tensors, *grads)
        attend(*make_heads((3, 1, 2, 4, 2, 2))[0], scale=1.0, lens=lens)
        project(randn(3, 1, 4, 2), randn(2, 4), lens)


def test_every_element_is_written(
    operation: Any, parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is handed out full of NaN; none may come back."""
    function, inputs, plain = operation
    tensors = inputs(EXACT)
    grads = incoming(plain, tensors)
    allocate = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda self, *a, **k: allocate(self, *a, **k).fill_(torch.nan)
    )
    for tensor in run(function, tensors, *grads):
        assert bool(tensor.isfinite().all())


def test_runs_repeat(operation: Any) -> None:
    function, inputs, plain = operation
    tensors = inputs(torch.float32)
    grads = incoming(plain, tensors)
    first, second = (run(function, tensors, *grads) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# What the kernels touch, seen through the interpreter


@interpreted
def test_no_two_programs_write_the_same_slot(
    operation: Any, parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does one write twice: nothing depends on who comes first."""
    function, inputs, plain = operation
    tensors = inputs(EXACT)
    grads = incoming(plain, tensors)
    with watch(monkeypatch) as touched:
        run(function, tensors, *grads)
    assert len(touched.writes) == 3  # launches: forward, and two backward
    for writes in touched.writes:
        assert writes and max(writes.values()) == 1
    assert max(map(len, touched.programs)) > 1


@interpreted
@pytest.mark.parametrize("shared", [True, False])
def test_a_shared_matrix_is_read_once_for_both(
    shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each item reads it: two items, two times. Keys and values once each, in all cases."""
    key, value, matrix, _ = make((2, 1, 33, 33, 16, 7, 5), False, shared=True)
    other = matrix if shared else matrix.clone()
    with watch(monkeypatch) as touched:
        project_pair(key, value, matrix, other)
    reads = sum(touched.reads, Counter())
    assert {reads[a] for a in addresses(matrix)} == {2}
    assert {reads[a] for a in addresses(other)} == {2}
    assert {reads[a] for a in (*addresses(key), *addresses(value))} == {1}
    assert len(touched.reads) == (1 if shared else 2)


@interpreted
def test_padding_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of the sequence, nor what the matrix holds for it."""
    x, matrix, lens = randn(2, 1, 40, 3), randn(4, 40), lens_of(17, 5)
    leaves = [t.requires_grad_() for t in (x, matrix)]
    grad = randn(2, 1, 4, 3)
    with watch(monkeypatch) as touched:
        torch.autograd.grad(project(leaves[0], leaves[1], lens), leaves, grad)
    for reads in touched.reads:
        for b, length in enumerate((17, 5)):
            assert reads.keys().isdisjoint(addresses(x[b, :, length:]))
        assert reads.keys().isdisjoint(addresses(matrix[:, 17:]))
    # A tile of 16 positions past the length reads no gradient: two tiles do, and one.
    per_tile = [
        {reads[a] for a in addresses(grad[b])} for reads in touched.reads[1:] for b in (0, 1)
    ]
    assert [{2}, {1}] in (per_tile[:2], per_tile[2:])


@interpreted
def test_keys_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program reads all keys and values once; every query is read once."""
    (query, key, value), _ = make_heads((1, 1, 33, 20, 7, 5))
    with watch(monkeypatch) as touched:
        attend(query, key, value, scale=1.0)
    (reads,) = touched.reads
    programs = len(touched.programs[0])
    assert programs == 3  # tiles of 16 queries
    assert {reads[a] for a in (*addresses(key), *addresses(value))} == {programs}
    assert {reads[a] for a in addresses(query)} == {1}


# How the kernels are launched


def test_only_what_is_needed_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[str] = []

    def tell(name: str) -> None:
        original = getattr(projection_kernel, name)

        def call(*arguments: Any) -> Any:
            launched.append(name)
            return original(*arguments)

        monkeypatch.setattr(projection_kernel, name, call)

    names = ("sequence_gradients", "matrix_gradient")
    for name in names:
        tell(name)
    for needed, expected in zip((True, False), names, strict=True):
        launched.clear()
        x, matrix = randn(1, 1, 5, 2), randn(3, 5)
        (x if needed else matrix).requires_grad_()
        project(x, matrix).sum().backward()
        assert launched == [expected]


@interpreted
def test_frozen_keys_need_no_second_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    (query, key, value), _ = make_heads((1, 1, 5, 3, 2, 2))
    with watch(monkeypatch) as touched:
        attend(query.requires_grad_(), key, value, scale=1.0).sum().backward()
    assert len(touched.writes) == 2


def test_parts_of_a_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "PROGRAMS", 8)
    assert kernel.split(1, 1) == (1, 1)
    assert kernel.split(100, 1) == (8, 13)
    assert kernel.split(9, 1) == (5, 2)  # not 8 parts of 2, of which 3 would be empty
    assert kernel.split(100, 9) == (1, 100)
    assert kernel.split(0, 1) == (1, 0) == kernel.split(0, 0)
    for count in range(1, 40):
        parts, steps = kernel.split(count, 2)
        assert parts * steps >= count > (parts - 1) * steps and parts <= 4


def test_slots_are_float32_unless_there_is_one() -> None:
    half = torch.zeros(2, dtype=torch.float16)
    assert kernel.slots(half, 1, 3).dtype == torch.float16
    assert kernel.slots(half, 2, 3).dtype == torch.float32
    assert kernel.slots(half.double(), 2, 3).dtype == torch.float64
    many = torch.full((3, 2), 2048.0)
    assert kernel.add_up(many + torch.tensor([0.0, 1.0]), torch.float16).tolist() == [6144, 6148]
    one = half[None]
    assert kernel.add_up(one, torch.float16).data_ptr() == one.data_ptr()


def test_tiles_are_for_a_type_and_a_width(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel.choose(kernel.FWD_CONFIGS, 90, 2, 64) == kernel.FWD_CONFIGS[90][2, 64]
    assert kernel.choose(kernel.FWD_CONFIGS, 90, 2, 65) == kernel.FWD_CONFIGS[90][2, 128]
    with pytest.raises(RuntimeError, match=r"float32 and half precision.* got 4 of 8 bytes"):
        kernel.choose(kernel.FWD_CONFIGS, 90, 8, 4)
    choose = attention_kernel.whole_rows
    config = choose(attention_kernel.FWD_CONFIGS, 90, 2, 100, (20, 64))
    assert (config.BLOCK_N, config.BLOCK_D) == (128, 64)
    fitted = attention_kernel.fit(config, 20, 64)
    assert (fitted["BLOCK_D"], fitted["BLOCK_V"]) == (32, 64)
    assert choose(attention_kernel.FWD_CONFIGS, 90, 2, 129, (20, 64)).BLOCK_N == 256
    with pytest.raises(RuntimeError, match=r"128 keys on sm_75.*got 129 keys of 64 columns"):
        choose(attention_kernel.FWD_CONFIGS, 75, 2, 129, (20, 64))
    with pytest.raises(RuntimeError, match="8 bytes each, for sm_90"):
        choose(attention_kernel.FWD_CONFIGS, 90, 8, 4, (4, 4))
    columns = attention_kernel.whole_columns
    config = columns(attention_kernel.DKV_CONFIGS, 90, 4, 5, (65, 3))
    assert attention_kernel.fit(config, 65, 3)["BLOCK_D"] == 128 and config.BLOCK_N == 16


def test_double_precision_is_for_the_interpreter_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "INTERPRETED", False)
    monkeypatch.setattr(attention_kernel, "INTERPRETED", False)
    x = torch.zeros(1, 1, 2, 4, dtype=F64)
    with pytest.raises(RuntimeError, match=r"float32 and half precision, .* got 4 of 8 bytes"):
        kernel.tiles(kernel.FWD_CONFIGS, x)
    configs = attention_kernel.FWD_CONFIGS
    with pytest.raises(RuntimeError, match="float32 or half precision"):
        attention_kernel.tiles(attention_kernel.whole_rows, configs, x, x)
    single = attention_kernel.tiles(attention_kernel.whole_rows, configs, x.float(), x.float())
    assert single == configs[75][4][0]._replace(BLOCK_N=16)


def test_float32_products_are_exact_unless_less_is_allowed() -> None:
    x = torch.zeros(1, 1, 2, 4)
    before = torch.get_float32_matmul_precision()
    try:
        for allowed, expected in (("highest", "ieee"), ("high", "tf32"), ("medium", "tf32")):
            torch.set_float32_matmul_precision(allowed)
            assert kernel.common(x, (x,), None)["PRECISION"] == expected
            assert attention_kernel.common(x, x, None)["PRECISION"] == expected
            assert kernel.common(x.half(), (x.half(),), None)["PRECISION"] == "ieee"
            assert attention_kernel.common(x.half(), x, None)["PRECISION"] == "ieee"
    finally:
        torch.set_float32_matmul_precision(before)


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("per_head", [True, False])
@pytest.mark.parametrize(
    "shape",
    [(2, 4, 4096, 4096, 128, 64, 64), (3, 2, 1000, 1100, 77, 40, 128), (1, 1, 65, 65, 512, 16, 8)],
    ids=str,
)
def test_projection_on_a_gpu(dtype: torch.dtype, per_head: bool, shape: Shape) -> None:
    tensors, grads = make(shape, per_head, shared=True, dtype=dtype), grads_of(shape, dtype)
    tensors[2:] = [tensors[2] / shape[2] ** 0.5] * 2
    lens = torch.arange(1, shape[0] + 1, device=DEVICE) * shape[2] // shape[0]
    oracle = run(plain_pair(lens), double(tensors), *(g.double() for g in grads))
    low = run(plain_pair(lens), tensors, *grads)
    compare_on_a_gpu(run(pair(lens), tensors, *grads), low, oracle, PAIR_NAMES)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("m", [1, 128, 200, 512])
@pytest.mark.parametrize("widths", [(64, 64), (40, 128), (128, 80)], ids=str)
def test_attention_on_a_gpu(dtype: torch.dtype, m: int, widths: tuple[int, int]) -> None:
    tensors, g = make_heads((2, 3, 1000, m, *widths), dtype)
    oracle = run(plain_attend, double(tensors), g.double())
    low = run(plain_attend, tensors, g)
    compare_on_a_gpu(run(attending(), tensors, g), low, oracle, ATTEND_NAMES)


def compare_on_a_gpu(
    ours: list[Tensor], low: list[Tensor], oracle: list[Tensor], names: Sequence[str]
) -> None:
    for name, a, b, c in zip(names, ours, low, oracle, strict=False):
        if a.dtype == torch.float32:
            assert (a - c).abs().max() <= 1e-5 * max(1.0, c.abs().max().item()), name
        else:
            assert_within_budget(a, b, c.cpu(), name=name)


@pytest.mark.gpu
def test_runs_repeat_bit_for_bit_on_a_gpu() -> None:
    shape = (2, 4, 1 << 16, 1 << 16, 128, 64, 64)
    tensors, grads = (
        make(shape, False, shared=True, dtype=torch.float16),
        grads_of(shape, torch.float16),
    )
    query = randn(2, 4, 1 << 16, 64, dtype=torch.float16)
    first = run(pair(), tensors, *grads)
    g = randn(2, 4, 1 << 16, 64, dtype=torch.float16)
    heads = [query, first[0], first[1]]
    output = run(attending(), heads, g)
    for _ in range(4):
        again = run(pair(), tensors, *grads), run(attending(), heads, g)
        for a, b in zip([*first, *output], [*again[0], *again[1]], strict=True):
            assert torch.equal(a, b)


@pytest.mark.gpu
def test_offsets_beyond_32_bits_on_a_gpu() -> None:
    """The last positions lie more than 2^31 elements in."""
    n = (1 << 31) // 64 + 100
    x = torch.zeros(1, 1, n, 64, device=DEVICE, dtype=torch.float16)
    x[..., -1, :] = 1
    matrix = torch.ones(16, n, device=DEVICE, dtype=torch.float16)
    assert bool((project(x, matrix) == 1).all())
    value = torch.eye(64, device=DEVICE, dtype=torch.float16)[None, None, :16]
    output = attend(x, 30 * value, value, scale=1.0)
    assert bool((output[..., -1, :16] == 0.0625).all())


@pytest.mark.gpu
def test_memory_grows_as_the_sequence_on_a_gpu() -> None:
    """Beside outputs and gradients, slots: a number that does not depend on n."""

    def peak(n: int) -> int:
        shape = (1, 4, n, n, 128, 64, 64)
        tensors = make(shape, False, shared=True, dtype=torch.float16)
        leaves = [t.requires_grad_() for t in tensors[:3]]
        query = randn(1, 4, n, 64, dtype=torch.float16).requires_grad_()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        keys, values = project_pair(leaves[0], leaves[1], leaves[2], leaves[2])
        attend(query, keys, values, scale=0.1).sum().backward()
        return torch.cuda.max_memory_allocated() - before

    small, large = peak(1 << 14), peak(1 << 16)
    assert large < 4.2 * small
