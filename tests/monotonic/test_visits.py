"""Visit probabilities: every way of computing them against every walk there is."""

import math
import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from attn_course.monotonic import (
    column_scan,
    diagonal_backward,
    diagonal_forward,
    expected_alignment,
    linear_scan,
    log_1mexp,
    logaddexp,
    many_to_many,
    one_to_many,
    row_backward,
    row_forward,
    row_scan,
    serial_backward,
    serial_forward,
    serial_log_backward,
    serial_log_backward_by_sign,
    serial_log_forward,
    squeeze,
)
from tests.monotonic.walks import MODELS, brute_force

OPS = {"many_to_many": many_to_many, "one_to_many": one_to_many}
SIZES = [(1, 1), (1, 2), (2, 1), (1, 6), (6, 1), (2, 2), (3, 4), (4, 3), (3, 6), (6, 3), (6, 6)]
pytestmark = pytest.mark.filterwarnings("ignore:one_to_many has")

#: name -> (model, logits -> phi)
WAYS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "diagonals": ("many_to_many", lambda x: diagonal_forward(x).exp()),
    "row scan": ("many_to_many", lambda x: row_scan(x).exp()),
    "rows": ("one_to_many", lambda x: row_forward(x).exp()),
    "column scan": ("one_to_many", lambda x: column_scan(x).exp()),
}
for _m in MODELS:
    WAYS |= {
        f"serial {_m}": (_m, lambda x, m=_m: serial_forward(x.sigmoid(), model=m)),
        f"serial log {_m}": (_m, lambda x, m=_m: serial_log_forward(x, model=m).exp()),
    }
    for _impl in ("auto", "reference", "scan"):
        WAYS[f"{_impl} {_m}"] = (_m, partial(OPS[_m], impl=_impl))
        WAYS[f"{_impl} log {_m}"] = (
            _m,
            lambda x, m=_m, i=_impl: OPS[m](x, impl=i, log=True).exp(),
        )


def random(*shape: int, spread: float = 2.0) -> Tensor:
    return spread * torch.randn(*shape, dtype=torch.float64)


def mixed_infinite(*shape: int) -> Tensor:
    """A third each: random, p = 0, p = 1."""
    x, kind = random(*shape), torch.randint(3, shape)
    return x.where(kind == 0, torch.where(kind == 1, math.inf, -math.inf))


@pytest.mark.parametrize("way", WAYS)
def test_phi_is_the_sum_over_all_walks(way: str) -> None:
    model, visit = WAYS[way]
    for size in SIZES:
        for x in (random(*size), random(*size, spread=8), torch.zeros(size).double()):
            torch.testing.assert_close(visit(x), brute_force(x, model), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_certain_steps(way: str) -> None:
    """Probabilities of exactly 0 and 1."""
    model, visit = WAYS[way]
    for size in SIZES:
        for _ in range(3):
            x = mixed_infinite(*size)
            assert not x.isnan().any()
            torch.testing.assert_close(visit(x), brute_force(x, model), rtol=1e-10, atol=1e-12)


def loss_weights(model: str, size: tuple[int, int], log: bool) -> Tensor:
    c = random(*size)
    i, j = torch.arange(size[0])[:, None], torch.arange(size[1])
    return c.where(i >= j, 0.0) if log and model == "one_to_many" else c


def weighted_loss(phi: Tensor, c: Tensor) -> Tensor:
    return (phi.where(c != 0, 0.0) * c).sum()


def oracle_gradient(x: Tensor, c: Tensor, model: str, log: bool) -> Tensor:
    x = x.detach().requires_grad_()
    phi = brute_force(x, model)
    phi = phi.where(c != 0, 1.0).log() if log else phi
    (grad,) = torch.autograd.grad(weighted_loss(phi, c), x, allow_unused=True)
    return torch.zeros_like(x) if grad is None else grad


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_gradients_are_those_of_all_walks(model: str, log: bool, size: tuple[int, int]) -> None:
    x, c = random(*size), loss_weights(model, size, log)
    expected = oracle_gradient(x, c, model, log)
    found = {}
    for impl in ("reference", "scan"):
        given = x.clone().requires_grad_()
        weighted_loss(OPS[model](given, impl=impl, log=log), c).backward()
        found[impl] = given.grad
    if log:
        F = serial_log_forward(x, model=model)
        found["serial"] = serial_log_backward(x, F, c, model=model)
        found["by sign"] = serial_log_backward_by_sign(x, F, c, model=model)
        fronts = diagonal_backward if model == "many_to_many" else row_backward
        found["fronts"] = fronts(x, F, c)
    else:
        p = x.sigmoid()
        grad_p = serial_backward(p, serial_forward(p, model=model), c, model=model)
        found["serial"] = grad_p * p * (1 - p)
    for name, grad in found.items():
        torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("impl", ["reference", "scan"])
@pytest.mark.parametrize("log", [False, True])
def test_gradcheck(model: str, impl: str, log: bool) -> None:
    lens = {"row_lens": torch.tensor([5, 3]), "column_lens": torch.tensor([2, 3])}
    for options in ({}, lens):
        x = random(2, 2, 5, 3).requires_grad_()

        def visit(x: Tensor, options: dict[str, Tensor] = options) -> Tensor:
            phi = OPS[model](x, impl=impl, log=log, **options)
            return phi.where(phi > -math.inf, 0.0)

        assert torch.autograd.gradcheck(visit, x)
    with pytest.raises(RuntimeError, match=r"does not require grad|twice"):
        (grad,) = torch.autograd.grad(OPS[model](x, impl=impl).sum(), x, create_graph=True)
        grad.sum().backward()


def test_pytorch_differentiates_the_serial_reference() -> None:
    x = random(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: serial_forward(x.sigmoid()), x)


def test_rows_sum_to_one_less_what_is_lost() -> None:
    phi = one_to_many(random(50, 20))
    assert (phi.sum(1) <= 1 + 1e-12).all() and phi[:20].sum(1).allclose(torch.ones(20).double())
    phi = many_to_many(random(20, 20))
    anti = [torch.stack([phi[i, t - i] for i in range(t + 1)]).sum().item() for t in range(20)]
    assert anti == pytest.approx([1] * 20)  # before the edge nothing is lost
    late = [sum(phi[i, t - i].item() for i in range(t - 19, 20)) for t in range(20, 39)]
    assert all(a >= b for a, b in zip([1.0, *late], late, strict=False)) and late[-1] < 0.9


@pytest.mark.parametrize("size", SIZES)
def test_expected_alignment_is_raffels(size: tuple[int, int]) -> None:
    """Equation 9, its products written out."""
    stop = random(*size).sigmoid()
    before = [1.0] + [0.0] * (size[1] - 1)
    rows = []
    for p in stop.tolist():
        before = [
            p[j] * sum(before[k] * math.prod(1 - q for q in p[k:j]) for k in range(j + 1))
            for j in range(size[1])
        ]
        rows.append(before)
    expected = torch.tensor(rows, dtype=torch.float64)
    x = -stop.logit()
    for impl in ("scan", "reference"):
        torch.testing.assert_close(expected_alignment(x, impl=impl), expected)
        torch.testing.assert_close(expected_alignment(x, impl=impl, log=True).exp(), expected)
    given = x.clone().requires_grad_()
    assert torch.autograd.gradcheck(expected_alignment, given)


@pytest.mark.parametrize("function", [many_to_many, one_to_many, expected_alignment])
@pytest.mark.parametrize("impl", ["reference", "scan"])
@pytest.mark.parametrize("log", [False, True])
def test_lengths_cut_the_grid(function: Callable[..., Tensor], impl: str, log: bool) -> None:
    full = random(3, 2, 6, 5)
    rows, columns = torch.tensor([6, 4, 0]), torch.tensor([5, 2, 3])
    x = full.clone()
    for item in range(3):
        x[item, :, rows[item] :] = math.nan
        x[item, :, :, columns[item] :] = math.nan
    x.requires_grad_()
    phi = function(x, row_lens=rows, column_lens=columns, impl=impl, log=log)
    for item in range(3):
        r, c = int(rows[item]), int(columns[item])
        rest = phi[item].detach().clone()
        if r:
            cut = function(full[item, :, :r, :c], impl=impl, log=log)
            torch.testing.assert_close(phi[item, :, :r, :c], cut)
            rest[:, :r, :c] = -math.inf if log else 0
        assert (rest == (-math.inf if log else 0)).all()
    phi.where(phi > -math.inf, 0.0).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    assert (x.grad[x.isnan()] == 0).all()


@pytest.mark.parametrize("model", MODELS)
def test_one_length_is_enough(model: str) -> None:
    x = random(2, 4, 3)
    phi = OPS[model](x, row_lens=torch.tensor([2, 4]))
    torch.testing.assert_close(phi[0, :2], OPS[model](x[0, :2]))
    torch.testing.assert_close(OPS[model](x[0], column_lens=torch.tensor(2))[:, :2],
                               OPS[model](x[0, :, :2]))  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_precision(model: str, log: bool, dtype: torch.dtype) -> None:
    """Only input and output are rounded."""
    x = random(2, 40, 30).to(dtype)
    found = OPS[model](x, log=log)
    assert found.dtype == dtype
    expected = OPS[model](x.double(), log=log)
    tolerance = {"rtol": 3 * torch.finfo(dtype).eps, "atol": 1e-5 if log else 1e-7}
    if dtype == torch.float32:
        tolerance["rtol"] = 1e-5
    torch.testing.assert_close(found.double(), expected, **tolerance)


@pytest.mark.parametrize("model", MODELS)
def test_batches_of_any_shape(model: str) -> None:
    x = random(2, 3, 4, 5)
    together = OPS[model](x)
    assert torch.equal(together[1, 2], OPS[model](x[1, 2]))
    assert torch.equal(OPS[model](x.mT.contiguous().mT), together)
    assert torch.equal(OPS[model](x[:, :, ::2, ::2]), OPS[model](x[:, :, ::2, ::2].contiguous()))
    assert OPS[model](x[:0]).shape == (0, 3, 4, 5)
    assert OPS[model](x[:0], log=True, impl="reference").shape == (0, 3, 4, 5)
    grown = random(1, 4, 5).expand(3, 4, 5)
    torch.testing.assert_close(OPS[model](grown)[2], OPS[model](grown[0]))


def test_one_nan_stays_in_its_item() -> None:
    x = random(3, 4, 5)
    x[1, 0, 0] = math.nan
    for function in (many_to_many, one_to_many):
        for log in (False, True):
            phi = function(x, log=log)
            assert not phi[0].isnan().any() and not phi[2].isnan().any() and phi[1].isnan().any()


def test_squeeze() -> None:
    x = torch.cat((random(50, spread=10), torch.tensor([math.inf, -math.inf, 0.0]).double()))
    soft, hard = squeeze(x, epsilon=0.01), squeeze(x, epsilon=0.01, how="hard")
    torch.testing.assert_close(soft.sigmoid(), x.sigmoid() * 0.98 + 0.01)
    torch.testing.assert_close(hard.sigmoid(), x.sigmoid().clamp(0.01, 0.99))
    assert torch.equal(soft.sign(), x.sign()) and torch.equal(hard.sign(), x.sign())
    assert torch.autograd.gradcheck(squeeze, random(5).requires_grad_())


def test_helpers() -> None:
    x = -torch.logspace(-15, 2.8, 60, dtype=torch.float64)
    expected = [math.log(-math.expm1(v)) if v > -1 else math.log1p(-math.exp(v)) for v in x]
    torch.testing.assert_close(
        log_1mexp(x), torch.tensor(expected, dtype=x.dtype), rtol=1e-13, atol=0
    )
    assert log_1mexp(torch.zeros(())) == -math.inf
    assert torch.autograd.gradcheck(log_1mexp, torch.tensor([-3.0, -0.5]).double().requires_grad_())
    a, b, c = random(3, 5)
    torch.testing.assert_close(logaddexp(a, b, c), torch.stack((a, b, c)).logsumexp(0))
    expected = [b[0]]
    for j in range(1, 5):
        expected.append(torch.logaddexp(expected[-1] + a[j], b[j]))
    torch.testing.assert_close(linear_scan(a, b), torch.stack(expected))


def test_unreachable_columns_are_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"5 columns and only 3 rows.*from 3 on") as caught:
        phi = one_to_many(random(3, 5))
    assert caught[0].filename == __file__ and (phi[:, 3:] == 0).all()
    with pytest.warns(UserWarning, match="4 columns and only 2 rows"):
        one_to_many(random(2, 6, 4), row_lens=torch.tensor([6, 2]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one_to_many(random(2, 3, 4), column_lens=torch.tensor([3, 2]))
        many_to_many(random(3, 5))


def test_probabilities_are_told_from_logits() -> None:
    probs = torch.rand(2, 4, 5)
    for function in (many_to_many, one_to_many, expected_alignment):
        with pytest.raises(ValueError, match=r"look like probabilities.*probs\.logit\(\)"):
            function(probs)
        function(probs, validate=False)
        function(probs.logit())
        function(torch.zeros(4, 5)), function(torch.ones(4, 5)), function(torch.rand(3, 5))
    padded = probs.clone()
    padded[:, :, 4:] = -7  # padding tells nothing
    with pytest.raises(ValueError, match="probabilities"):
        many_to_many(padded, column_lens=torch.tensor([4, 4]))


@pytest.mark.parametrize(
    ("error", "match", "logits", "options"),
    [
        (TypeError, "logits must be a torch.Tensor", [[0.0]], {}),
        (TypeError, "logits must hold floating-point", torch.ones(2, 2, dtype=torch.long), {}),
        (ValueError, r"logits must have shape \[\.\.\., I, J\]", torch.zeros(3), {}),
        (ValueError, "at least 1", torch.zeros(2, 0, 3), {}),
        (ValueError, "impl must be one of", torch.zeros(2, 2), {"impl": "cuda"}),
        (TypeError, "row_lens must be", torch.zeros(1, 2, 2), {"row_lens": [2]}),
        (TypeError, "integers", torch.zeros(1, 2, 2), {"row_lens": torch.ones(1)}),
        (ValueError, r"shape \[3\]", torch.zeros(3, 2, 2), {"row_lens": torch.tensor([2])}),
        (ValueError, r"\[0, 4\], got 5", torch.zeros(1, 2, 4), {"column_lens": torch.tensor([5])}),
        (ValueError, r"\[0, 2\], got -1", torch.zeros(1, 2, 4), {"row_lens": torch.tensor([-1])}),
    ],
)
def test_bad_input(error: type, match: str, logits: Tensor, options: dict[str, Tensor]) -> None:
    for function in (many_to_many, one_to_many, expected_alignment):
        with pytest.raises(error, match=match):
            function(logits, **options)


def test_squeeze_refuses() -> None:
    with pytest.raises(ValueError, match="epsilon"):
        squeeze(torch.zeros(2), epsilon=0.5)
    with pytest.raises(ValueError, match="how must be"):
        squeeze(torch.zeros(2), how="medium")
