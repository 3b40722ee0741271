"""The ledger against sums done by hand, and what it must not do: change or hold anything."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from attn_course.long_sequences.ledger import ACTIVATION, INPUT, PARAMETER, memory_ledger

#: Rows, columns.
N, D = 6, 10
NUMBERS = 4 * N * D


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape or (N, D), requires_grad=True)


def what(rows: list[Any]) -> list[tuple[Any, ...]]:
    return [(row.kind, row.shape, row.bytes) for row in rows]


CASES: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    # Keeps its result.
    "softmax": (lambda x: (x + 1).softmax(-1), NUMBERS),
    "exp": (lambda x: x.exp(), NUMBERS),
    # Its argument.
    "square of a sum": (lambda x: (x + 1).square(), NUMBERS),
    # Nothing: gradients pass through.
    "sum": (lambda x: (x + 1).sum(), 0),
    "views": (lambda x: x.t().reshape(-1)[::2].view(2, -1).unsqueeze(1), 0),
    # Both of its arguments; one of them twice is one storage.
    "product": (lambda x: (x + 1) @ (x + 2).T, 2 * NUMBERS),
    "product with itself": (lambda x: (y := x + 1) @ y.T, NUMBERS),
    "a view keeps the whole": (lambda x: (x + 1)[0].square(), NUMBERS),
    "views share": (lambda x: ((y := x + 1)[0] * 1).square() + y[1].square() + y[:, 0].square()[0],
                    NUMBERS + 4 * D),
    # Softmax's result is the product's argument.
    "weights": (lambda x: (x @ x.T).softmax(-1) @ x, 4 * N * N),
    # Its mask, in numbers; nothing where it does nothing.
    "dropout": (lambda x: F.dropout(x, 0.5), NUMBERS),
    "dropout of evaluation": (lambda x: F.dropout(x, 0.5, training=False), 0),
    # The result of tanh, and what both factors were.
    "two kept by one": (lambda x: (x + 1).tanh() * (x + 2), 2 * NUMBERS),
    # An index is kept too, 8 bytes each.
    "maximum": (lambda x: x.max(dim=1).values, 8 * N),
    # Of all a checkpoint keeps its argument.
    "checkpoint": (lambda x: checkpoint(lambda y: y.exp().softmax(-1).square(), x + 1,
                                        use_reentrant=False), NUMBERS),
    "no checkpoint": (lambda x: (x + 1).exp().softmax(-1).square(), 2 * NUMBERS),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_by_hand(name: str) -> None:
    function, expected = CASES[name]
    x = leaf()
    with memory_ledger() as ledger:
        y = function(x)
    assert ledger.total == ledger.held == expected
    assert sum(row.bytes for row in ledger.rows if row.kind == ACTIVATION) == expected
    y.sum().backward()
    assert (ledger.total, ledger.held) == (expected, 0)


@pytest.mark.parametrize("name", CASES)
def test_it_changes_no_number(name: str) -> None:
    function, _ = CASES[name]
    x = leaf()
    torch.manual_seed(1)
    expected = function(x)
    (gradient,) = torch.autograd.grad(expected.square().sum(), x)
    torch.manual_seed(1)
    with memory_ledger():
        y = function(x)
    assert torch.equal(y, expected)
    assert torch.equal(torch.autograd.grad(y.square().sum(), x)[0], gradient)


def test_a_linear_layer_keeps_what_was_there() -> None:
    layer, x = nn.Linear(D, 3), torch.randn(N, D, requires_grad=True)
    with memory_ledger() as ledger:
        y = layer(x)
    assert sorted(what(ledger.rows)) == [
        (INPUT, (N, D), NUMBERS), (PARAMETER, (D, 3), 4 * 3 * D)
    ]  # fmt: skip
    assert (ledger.total, ledger.parameters, ledger.inputs) == (0, 4 * 3 * D, NUMBERS)
    y.sum().backward()
    assert ledger.held == 0 and ledger.parameters == 4 * 3 * D


def test_between_two_layers_lies_an_activation() -> None:
    net = nn.Sequential(nn.Linear(D, 5), nn.ReLU(), nn.Linear(5, 3))
    with memory_ledger() as ledger:
        net(torch.randn(N, D))  # made inside: what autograd keeps of it is its doing
    # The first layer's input, and what ReLU returns, which it and the last layer keep.
    assert ledger.total == NUMBERS + 4 * N * 5
    assert ledger.by_op() == {"linear": NUMBERS, "relu": 4 * N * 5}


def test_an_lstm() -> None:
    """In float64, for which a CPU has no library: four gates, c, tanh(c) and h for each step."""
    hidden, kept = 3, []
    lstm = nn.LSTM(D, hidden).double()
    start = (torch.zeros(1, 1, hidden, dtype=torch.float64),) * 2
    for steps in (7, 14):
        x = torch.randn(steps, 1, D, dtype=torch.float64)
        with memory_ledger() as ledger:
            y, _ = lstm(x, start)
        assert ledger.by_op().keys() == {"lstm"}
        kept.append(ledger.total)
        y.sum().backward()
        assert ledger.held == 0
    assert kept[1] - kept[0] == 7 * 8 * hidden * (4 + 1 + 1 + 1)


def test_fused_attention_keeps_no_weights() -> None:
    n = 64
    x = leaf(1, 1, n, D)
    with memory_ledger() as fused:
        F.scaled_dot_product_attention(x, x, x)
    with memory_ledger() as plain:
        ((x @ x.mT).softmax(-1) @ x).sum()
    assert plain.total == 4 * n * n
    # Its result, and a log-sum-exp for each query.
    assert fused.total == 4 * n * D + 4 * n
    assert fused.inputs == plain.inputs == 4 * n * D


def test_half_precision_counts_half() -> None:
    x = leaf()
    with memory_ledger() as full:
        (x + 1).exp()
    with memory_ledger() as half:
        (x + 1).bfloat16().exp()
    assert full.total == 2 * half.total
    assert half.rows[-1].dtype == torch.bfloat16


def test_the_line_and_the_operation() -> None:
    x = leaf()
    with memory_ledger() as ledger:
        y = x.exp()
        z = F.gelu(y)  # keeps y, which is there
        (z @ z.T).tanh()
    exp, product, tanh = (row for row in ledger.rows if row.kind == ACTIVATION)
    assert [exp.op, product.op, tanh.op] == ["exp", "matmul", "tanh"]
    name, source = exp.line.split("  ")
    assert name.startswith("test_ledger.py:") and source == "y = x.exp()"
    assert product.line.endswith("(z @ z.T).tanh()") and tanh.line == product.line
    assert list(ledger.by_line().items()) == [
        (product.line, NUMBERS + 4 * N * N), (exp.line, NUMBERS)
    ]  # fmt: skip


def test_lines_inside_pytorch_are_passed_over() -> None:
    lstm = nn.LSTM(D, 3)
    with memory_ledger() as ledger:
        lstm(leaf())
    assert {row.line.split("  ")[1] for row in ledger.rows} == {"lstm(leaf())"}


def test_a_cell_of_a_notebook_is_called_one() -> None:
    x = leaf()
    code = compile("x.exp()\ny = x.exp()", "/tmp/ipykernel_17/2718281.py", "exec")
    with memory_ledger() as ledger:
        exec(code, {"x": x})
    assert ledger.rows[-1].line.startswith("cell:2")


class Twice(torch.autograd.Function):
    """Keeps what it returns and what it is given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = 2 * x
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> Tensor:
        x, y = ctx.saved_tensors
        assert torch.equal(2 * x, y)
        return 2 * incoming[0]


def test_functions_of_ones_own() -> None:
    x = leaf()
    with memory_ledger() as ledger:
        y = Twice.apply(x)
    assert what(ledger.rows) == [(INPUT, (N, D), NUMBERS), (ACTIVATION, (N, D), NUMBERS)]
    assert {row.op for row in ledger.rows} == {"Function"}
    y.sum().backward()
    assert ledger.held == 0


def test_the_most_at_once_counts() -> None:
    """Not the sum of what came one after the other."""
    x = leaf()
    with memory_ledger() as ledger:
        for size in (1, 3, 2):
            y = torch.cat([x] * size).exp().sum()
            y.backward()
            assert ledger.held == 0
    assert ledger.total == 3 * NUMBERS
    assert what(ledger.rows) == [(ACTIVATION, (3 * N, D), 3 * NUMBERS)]


def test_a_loss_that_is_kept_keeps_its_graph() -> None:
    """As a sum over validation batches does, without no_grad."""
    x = leaf()
    with memory_ledger() as ledger:
        losses = [x.exp().sum() for _ in range(5)]
    assert ledger.held == ledger.total == 5 * NUMBERS
    del losses[:2]
    assert ledger.held == 3 * NUMBERS
    with memory_ledger() as careful, torch.no_grad():
        losses = [x.exp().sum() for _ in range(5)]
    assert careful.total == 0 and careful.rows == []


def test_it_holds_no_tensor() -> None:
    x = leaf()
    with memory_ledger() as ledger:
        y = x.exp()
        inside, result = weakref.ref(y), y.sum()
        del y
    assert ledger.held == NUMBERS
    result.backward()
    del result
    gc.collect()
    assert inside() is None
    assert not [thing for thing in gc.get_referents(*vars(ledger).values()) if thing is x]
    gone = weakref.ref(x)
    del x
    gc.collect()
    assert gone() is None
    assert str(ledger)  # which needs none


def test_no_cycle_keeps_a_graph() -> None:
    """A result that its own node keeps is freed at once, without the garbage collector."""
    x = leaf()
    gc.disable()
    try:
        with memory_ledger() as ledger:
            y = x.exp()
        del y
        assert ledger.held == 0
    finally:
        gc.enable()


def test_memory_that_is_used_again_is_a_row_of_its_own() -> None:
    x = leaf()
    with memory_ledger() as ledger:
        for _ in range(20):
            x.exp()
        y = x.exp()
    assert ledger.total == NUMBERS and ledger.held == NUMBERS
    assert y.shape == (N, D)


def test_what_was_freed_inside_is_no_input_any_more() -> None:
    """A new tensor may get the place of an old one, and is not to be taken for it."""
    x = leaf()
    old = [torch.randn(N, D) for _ in range(50)]
    with memory_ledger() as ledger:
        old.clear()
        new = [x.exp() for _ in range(50)]
    assert ledger.total == 50 * NUMBERS and ledger.inputs == 0
    assert len(new) == 50


def test_a_parameter_whose_storage_was_replaced() -> None:
    layer = nn.Linear(D, 3, bias=False)
    x = leaf()
    with memory_ledger() as ledger:
        layer.weight.data = torch.randn(3, D)
        kept = [x.exp() for _ in range(50)]
    assert ledger.total == 50 * NUMBERS and len(kept) == 50


def test_nested() -> None:
    x = leaf()
    with memory_ledger() as outer:
        a = x.exp()
        with memory_ledger() as inner:
            b = a.tanh()
            assert inner.held == NUMBERS
        c = b.sigmoid()
    assert (outer.total, inner.total) == (3 * NUMBERS, NUMBERS)
    assert [row.op for row in outer.rows] == ["exp", "tanh", "sigmoid"]
    assert [row.op for row in inner.rows] == ["tanh"]
    c.sum().backward()
    assert outer.held == inner.held == 0


def test_what_was_made_outside_the_inner_block_is_its_input() -> None:
    x = leaf()
    with memory_ledger() as outer:
        y = x + 1
        with memory_ledger() as inner:
            y.square()
    assert (inner.total, inner.inputs) == (0, NUMBERS)
    assert (outer.total, outer.inputs) == (NUMBERS, 0)


def test_hooks_of_others_inside_go_first() -> None:
    x, seen = leaf(), []

    def pack(tensor: Tensor) -> Tensor:
        seen.append(tensor.shape)
        return tensor

    with memory_ledger() as ledger:
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            x.exp()
        x.tanh()
    assert len(seen) == 1 and [row.op for row in ledger.rows] == ["tanh"]


def test_an_exception_inside() -> None:
    x = leaf()
    with memory_ledger() as outer:
        with pytest.raises(ZeroDivisionError), memory_ledger() as ledger:
            y = x.exp()
            raise ZeroDivisionError
        assert ledger.total == NUMBERS
        z = y.tanh()  # no longer the inner one's
    assert ledger.total == NUMBERS and outer.total == 2 * NUMBERS
    w = z.sigmoid()  # nobody's
    assert outer.total == 2 * NUMBERS
    w.sum().backward()
    assert ledger.held == outer.held == 0


@pytest.mark.parametrize("function", [torch.square, torch.exp])
def test_what_was_changed_in_place_is_found_out(function: Any) -> None:
    """Its argument or its result: without the ledger PyTorch would say so as well."""
    x = leaf()
    with memory_ledger():
        argument = x + 1
        result = function(argument)
    (argument if function is torch.square else result).add_(1)
    with pytest.raises(RuntimeError, match=r"changed in place: of shape \[6, 10\], kept by test_"):
        result.sum().backward()


def test_gradients_of_gradients() -> None:
    x = leaf().detach().double().requires_grad_()
    with memory_ledger() as ledger:
        assert torch.autograd.gradgradcheck(lambda y: y.exp().tanh(), x[:2, :2])
    assert ledger.total > 0


def test_the_table() -> None:
    layer, x = nn.Linear(D, D), leaf()
    with memory_ledger() as ledger:
        y = layer(x)
        parts = [y.exp() for _ in range(3)]
        z = y.softmax(-1)
    lines = str(ledger).splitlines()
    assert lines[0].split() == ["bytes", "share", "tensors", "kept", "by", "line"]
    assert lines[1].split()[:4] == ["720", "B", "75.0%", "3"]
    assert "3 x [6, 10] float32" in lines[1] and "exp" in lines[1]
    assert lines[2].split()[:3] == ["240", "B", "25.0%"] and "softmax" in lines[2]
    assert lines[3].split(maxsplit=2)[:2] == ["960", "B"]
    assert "400 B of parameters and 240 B of inputs" in lines[4]
    short = ledger.table(limit=1).splitlines()
    assert len(short) == 5 and short[2].split() == ["240", "B", "25.0%", "1", "smaller"]
    assert len(parts) == 3 and z.shape == y.shape


def test_an_empty_table() -> None:
    with memory_ledger() as ledger:
        torch.ones(3).exp()
    assert "0 B kept for the backward pass" in str(ledger)


def test_large_numbers_are_readable() -> None:
    with memory_ledger() as ledger:
        torch.empty(3_000_000, device="meta", requires_grad=True).exp()
    assert "12.0 MB" in str(ledger)


def test_sparse_tensors_do_not_stop_it() -> None:
    x = leaf(N, N)
    matrix = torch.eye(N).to_sparse()
    with memory_ledger() as ledger:
        y = torch.sparse.mm(matrix, x)
    y.sum().backward()
    assert ledger.held == 0


def test_lazy_parameters_elsewhere_do_not_stop_it() -> None:
    lazy = nn.LazyLinear(3)
    with memory_ledger() as ledger:
        leaf().exp()
    assert isinstance(lazy.weight, nn.UninitializedParameter)
    assert what(ledger.rows) == [(ACTIVATION, (N, D), NUMBERS)]


def test_there_is_no_peak_on_a_cpu() -> None:
    with memory_ledger() as ledger:
        leaf().exp()
    if not torch.cuda.is_available():
        assert ledger.peak is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_peak_on_a_gpu() -> None:
    size = 1 << 20
    x = torch.randn(size, device="cuda", requires_grad=True)
    with memory_ledger() as outer:
        big = torch.empty(8 * size, device="cuda")
        del big
        with memory_ledger() as inner:
            y = x.exp()
    assert inner.peak == 4 * size and outer.peak == 32 * size
    y.sum().backward()
