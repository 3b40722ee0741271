"""The helpers reject what is wrong, accept what is right, and say where it is."""

import subprocess
import sys

import pytest
import torch

from attn_course.testing import (
    LAYOUTS,
    LENGTHS,
    assert_close,
    assert_unchanged,
    assert_within_budget,
    make_qkv,
    make_valid_lens,
    poisoned_padding,
    with_layout,
)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


# Inputs


def test_qkv_shapes():
    query, key, value = make_qkv((2, 3), query_len=4, key_len=5, dim=6, value_dim=7)
    assert query.shape == (2, 3, 4, 6)
    assert key.shape == (2, 3, 5, 6)
    assert value.shape == (2, 3, 5, 7)
    assert make_qkv(()).query.ndim == 2


def test_qkv_are_the_same_numbers_in_every_dtype():
    exact = make_qkv(dtype=torch.float64, seed=3)
    half = make_qkv(dtype=torch.float16, seed=3)
    assert all(torch.equal(a.half(), b) for a, b in zip(exact, half, strict=True))
    assert not torch.equal(exact.query, make_qkv(dtype=torch.float64, seed=4).query)


def test_qkv_are_leaves_that_collect_gradients():
    qkv = make_qkv(dtype=torch.bfloat16, requires_grad=True)
    assert all(x.is_leaf and x.requires_grad for x in qkv)
    assert not any(x.requires_grad for x in make_qkv())


def test_lengths_are_readable_ids_for_different_cases():
    assert len(set(LENGTHS.values())) == len(LENGTHS)
    assert all(name.isidentifier() for name in LENGTHS)


def test_valid_lens_reach_both_ends():
    lens = make_valid_lens((40, 3), key_len=5)
    assert lens.shape == (40, 3) and lens.dtype == torch.int64
    assert set(lens.flatten().tolist()) == set(range(6))
    assert lens[0, 0] == 5 and lens[-1, -1] == 0
    assert make_valid_lens((1,), 5).tolist() == [5]
    assert make_valid_lens((0,), 5).tolist() == []


def test_padding_is_poisoned_and_nothing_else():
    key = make_qkv((3, 2), key_len=4, requires_grad=True).key
    poisoned = poisoned_padding(key, torch.tensor([4, 0, 1]))
    assert torch.equal(poisoned[0], key[0])
    assert bool(poisoned[1].isnan().all())
    assert torch.equal(poisoned[2, :, :1], key[2, :, :1])
    assert bool(poisoned[2, :, 1:].isnan().all())
    assert poisoned.is_leaf and poisoned.requires_grad
    assert not bool(key.isnan().any()), "the original must stay as it is"


def test_padding_without_a_batch_and_with_another_fill():
    assert poisoned_padding(torch.ones(3, 1), torch.tensor(2), fill=9).tolist() == [[1], [1], [9]]


@pytest.mark.parametrize("lens", [torch.tensor([1]), torch.ones(2, 3, dtype=torch.int64)])
def test_padding_refuses_lengths_that_do_not_fit(lens):
    with pytest.raises(ValueError, match="valid_lens must have shape"):
        poisoned_padding(torch.ones(2, 3, 1), lens)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_not_contiguous(layout):
    key = make_qkv((2,), requires_grad=True).key
    other = with_layout(key, layout)
    assert not other.is_contiguous()
    assert other.shape == key.shape and other.requires_grad and other.is_leaf
    assert torch.equal(other, key[:1].expand_as(key) if layout == "expanded" else key)


def test_layouts_do_what_their_names_say():
    x = torch.rand(3, 4, 5)
    assert with_layout(x, "transposed").stride() == (20, 1, 4)
    assert with_layout(x, "expanded").stride() == (0, 5, 1)
    sliced = with_layout(x, "sliced")
    beside = torch.as_strided(sliced, (3, 8, 10), (80, 10, 1))
    assert int(beside.isnan().sum()) == beside.numel() - x.numel()


@pytest.mark.parametrize(
    "layout, shape", [("other", (2, 2)), ("expanded", (2, 2)), ("sliced", (2,))]
)
def test_layouts_refuse(layout, shape):
    with pytest.raises(ValueError, match="layout must be one of"):
        with_layout(torch.ones(shape), layout)


# assert_close


def test_close_accepts_what_rounding_explains():
    oracle = torch.randn(50, 50, dtype=torch.float64) * 100
    assert_close(oracle.float(), oracle)
    assert_close(oracle.clone(), oracle)
    assert_close(torch.empty(0, 3), oracle[:0, :3])


def test_close_says_where_how_much_and_how_many():
    actual = torch.zeros(2, 3)
    actual[0, 1], actual[1, 2] = 0.25, -0.5
    message = (
        r"^dQ: error 0\.5 at \[1, 2\]: got -0\.5, expected 0; "
        r"2 of 6 elements are over the limit \(atol=1e-05, rtol=1e-05\)\.$"
    )
    with pytest.raises(AssertionError, match=message):
        assert_close(actual, torch.zeros(2, 3, dtype=torch.float64), name="dQ")


def test_close_finds_a_small_error_beside_a_large_allowed_one():
    # 1e6 may be wrong by 10, 0 only by 1e-5.
    with pytest.raises(AssertionError, match=r"error 0\.001 at \[1\].* 1 of 2"):
        assert_close(torch.tensor([1e6 + 5, 1e-3]), double(1e6, 0.0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_close_refuses_nan_and_infinity(bad):
    with pytest.raises(AssertionError, match=r"error inf at \[1\]: got -?(nan|inf), expected 1"):
        assert_close(torch.tensor([1.0, bad]), double(1.0, 1.0))


def test_close_knows_infinities():
    inf = float("inf")
    assert_close(torch.tensor([inf, -inf]), double(inf, -inf))
    for wrong in (torch.tensor([inf, inf]), torch.tensor([inf, -1e30])):
        with pytest.raises(AssertionError, match=r"\[1\]"):
            assert_close(wrong, double(inf, -inf))


def test_close_takes_tolerances_from_the_call_only(monkeypatch):
    monkeypatch.setenv("ATOL", "1")
    off = torch.tensor([1.0 + 5e-5])
    with pytest.raises(AssertionError):
        assert_close(off, double(1.0))
    assert_close(off, double(1.0), atol=1e-4)
    assert_close(off, double(1.0), rtol=1e-4)
    with pytest.raises(AssertionError):
        assert_close(torch.tensor([1.0 + 1e-6]), double(1.0), rtol=0, atol=0)
    with pytest.raises(AssertionError):
        assert_close(double(1.0 + 1e-8), double(1.0))


def test_close_refuses_another_shape_even_if_it_broadcasts():
    with pytest.raises(AssertionError, match=r"has shape \[1, 2\], expected \[2\]"):
        assert_close(torch.ones(1, 2), double(1.0, 1.0))


def test_close_refuses_a_bad_oracle():
    with pytest.raises(TypeError, match=r"oracle for y must be float64, got torch\.float32"):
        assert_close(torch.ones(1), torch.ones(1), name="y")
    with pytest.raises(ValueError, match="holds NaN"):
        assert_close(torch.ones(1), double(float("nan")))
    with pytest.raises(TypeError, match="assert_within_budget"):
        assert_close(torch.ones(1).half(), double(1.0))


# assert_within_budget

HALVES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", HALVES)
def test_budget_accepts_a_rounded_oracle_and_the_plain_path(dtype):
    query, key, _ = make_qkv((2,), 9, 16, dim=16, dtype=dtype)
    oracle = torch.softmax(query.double() @ key.double().mT, -1)
    plain = torch.softmax(query @ key.mT, -1)
    assert_within_budget(oracle.to(dtype), plain, oracle)
    assert_within_budget(plain, plain, oracle)
    assert_within_budget(oracle.to(dtype), oracle.to(dtype), oracle)
    assert_within_budget(plain[:0], plain[:0], oracle[:0])


@pytest.mark.parametrize("dtype", HALVES)
def test_budget_is_twice_the_plain_error_plus_one_rounding(dtype):
    # The plain error is 2 eps, and one rounding near 4, the largest number, 2 eps.
    eps = torch.finfo(dtype).eps
    oracle = double(4.0, 1.0)
    plain = torch.tensor([4.0, 1 + 2 * eps], dtype=dtype)
    assert_within_budget(torch.tensor([4.0, 1 + 6 * eps], dtype=dtype), plain, oracle)
    message = r"error .* at \[1\]: .* 1 of 2 .* limit \(.* = 2 x .* \+ .* \(one rounding\)\)"
    with pytest.raises(AssertionError, match=message):
        assert_within_budget(torch.tensor([4.0, 1 + 7 * eps], dtype=dtype), plain, oracle)


def test_budget_is_not_widened_by_infinite_scores():
    inf = float("inf")
    oracle = double(-inf, 1.0)
    plain = oracle.half()
    assert_within_budget(plain, plain, oracle)
    with pytest.raises(AssertionError, match=r"at \[1\]"):
        assert_within_budget(torch.tensor([-inf, 1.1]).half(), plain, oracle)
    with pytest.raises(AssertionError, match=r"at \[0\]"):
        assert_within_budget(torch.tensor([-1e4, 1.0]).half(), plain, oracle)


def test_budget_refuses_nan():
    ones = torch.ones(2).half()
    with pytest.raises(AssertionError, match=r"error inf at \[0\]: got nan"):
        assert_within_budget(torch.tensor([float("nan"), 1.0]).half(), ones, double(1.0, 1.0))


def test_budget_refuses_to_judge_by_a_plain_path_that_overflows():
    ones = torch.ones(1).half()
    with pytest.raises(ValueError, match="no budget"):
        assert_within_budget(ones, ones / 0, double(1.0))


@pytest.mark.parametrize("actual, plain", [
    (torch.float32, torch.float32),
    (torch.float16, torch.bfloat16),
    (torch.float16, torch.float32),
])  # fmt: skip
def test_budget_refuses_other_dtypes(actual, plain):
    with pytest.raises(TypeError, match="both be float16 or both bfloat16"):
        assert_within_budget(torch.ones(1, dtype=actual), torch.ones(1, dtype=plain), double(1.0))


# assert_unchanged


def test_unchanged_accepts_reading_and_nan():
    x = torch.tensor([1.0, float("nan")])
    with assert_unchanged(x, lens=torch.tensor([1])):
        _ = x * 2


@pytest.mark.parametrize("change, message", [
    (lambda x: x[1].mul_(2), r"x was changed in 1 of 3 elements, first at \[1\]: 2 became 4\."),
    (lambda x: x.fill_(float("nan")), r"3 of 3 elements, first at \[0\]: 1 became nan"),
    (lambda x: x.resize_(2), r"x was torch.float32 \[3\] and became torch.float32 \[2\]"),
])  # fmt: skip
def test_unchanged_names_the_change(change, message):
    x = torch.tensor([1.0, 2.0, 3.0])
    with pytest.raises(AssertionError, match=message), assert_unchanged(torch.ones(1), x=x):
        change(x)


def test_unchanged_numbers_arguments_and_sees_nan_go():
    x = torch.tensor([float("nan")])
    with pytest.raises(AssertionError, match="argument 2 was changed"):
        with assert_unchanged(torch.ones(1), x):
            x.zero_()


def test_unchanged_lets_other_errors_through():
    x = torch.ones(1)
    with pytest.raises(KeyError), assert_unchanged(x):
        x.zero_()
        raise KeyError


def test_importing_it_needs_torch_only():
    code = (
        "import sys, attn_course.testing\n"
        "print([m for m in ('triton', 'pytest', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
