"""Chapter 4's checks: their cases, their mistakes, their oracles and what else they see."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from attn_course import _d2l
from attn_course.exercises import CheckFailed
from attn_course.exercises import multi_head_cases as cases
from attn_course.exercises import multi_head_mistakes as mistakes
from attn_course.exercises.framework import _exact
from attn_course.exercises.kernels import BEHIND
from attn_course.multi_head import MultiHeadAttention, merge_heads, split_heads
from tests.exercises.common import PAGES, assert_told_in_numbers, exact, told

PAGE = PAGES["multi_head"]
ANSWERS, CHECKS = PAGE.answers, PAGE.checks


# Oracles -----------------------------------------------------------------------------


def test_splitting_and_merging_are_the_package_s() -> None:
    for one, other in zip(cases._SPLIT_CASES, cases._MERGE_CASES, strict=True):
        x, heads = one.inputs["x"], other.inputs["heads"]
        assert torch.equal(split_heads(**one.inputs), heads)
        assert torch.equal(merge_heads(heads), x) and torch.equal(cases._merge(heads), x)


def test_splitting_is_d2l_s() -> None:
    d2l = pytest.importorskip("d2l") and _d2l.load()
    for case in cases._SPLIT_CASES:
        theirs = d2l.MultiHeadAttention(4, case.inputs["num_heads"], 0.0)
        heads = theirs.transpose_qkv(case.inputs["x"])
        assert torch.equal(heads, cases._split(**case.inputs).flatten(0, 1))


def test_a_mask_gives_every_head_the_sentence_s_own_keys() -> None:
    """Attention over the batch of heads is attention of each sentence, cut to its length."""
    for case in cases._MASK_CASES:
        lens, num_heads, query_len, key_len = case.inputs.values()
        q, k = (torch.randn(len(lens), num_heads, n, 3) for n in (query_len, key_len))
        mask = cases._mask_of(**case.inputs).bool()
        found = F.scaled_dot_product_attention(
            q.flatten(0, 1), k.flatten(0, 1), k.flatten(0, 1), attn_mask=mask
        ).reshape(q.shape)
        for b, length in enumerate(lens.tolist()):
            if length:
                seen = k[b, :, :length]
                expected = F.scaled_dot_product_attention(q[b], seen, seen)
                torch.testing.assert_close(found[b], expected)


def test_the_count_is_the_layer_s() -> None:
    for case in cases._COUNT_CASES:
        layer = MultiHeadAttention(**case.inputs)
        assert sum(p.numel() for p in layer.parameters()) == cases._count(**case.inputs)


def test_the_error_is_what_a_regression_leaves() -> None:
    torch.manual_seed(0)
    for case in cases._FETCH_CASES:
        weights, asked, variance = case.inputs.values()
        values = variance**0.5 * torch.randn(40_000, len(weights), dtype=torch.float64)
        pooled = (values @ weights.double())[:, None] * torch.randn(8, dtype=torch.float64)
        best = torch.linalg.pinv(pooled) @ values[:, asked]
        left = (values[:, asked] - pooled @ best).square().mean()
        expected = cases._fetch_error(_exact(weights), asked, variance)
        assert left.item() == pytest.approx(expected.item(), rel=0.03)


@pytest.mark.parametrize("facts", [1, 2, 3, 5])
def test_the_floor_is_reached_and_never_beaten(facts: int) -> None:
    generator = torch.Generator().manual_seed(facts)
    asked, floor = torch.arange(facts), cases._floor(facts, 2.0)
    for _ in range(50):
        weights = (3 * torch.randn(7, generator=generator, dtype=torch.float64)).softmax(0)
        assert cases._fetch_error(weights, asked, 2.0) >= floor
        weights = torch.where(torch.arange(7) < facts, weights, 0)
        torch.testing.assert_close(cases._fetch_error(weights, asked, 2.0), floor)


def test_pruning_is_the_package_s() -> None:
    for case in cases._PRUNE_CASES:
        given = exact(case)
        layer = MultiHeadAttention(len(given["W_o"]), given["num_heads"], bias=False).double()
        state = {f"{name}.weight": given[name] for name in ("W_q", "W_k", "W_v", "W_o")}
        layer.load_state_dict(state)
        with layer.without_heads(*given["off"]):
            torch.testing.assert_close(cases._prune(**given), layer(given["x"]))


@pytest.mark.parametrize("bias", [True, False])
def test_the_state_is_pytorch_s(bias: bool, solved: dict[str, Any]) -> None:
    """Names and shapes are those of its layer, and outputs are the same."""
    theirs = nn.MultiheadAttention(6, 2, bias=bias, batch_first=True)
    state = cases._state(6, 1, bias)
    assert {n: x.shape for n, x in state.items()} == {
        n: x.shape for n, x in theirs.state_dict().items()
    }
    theirs.load_state_dict(state)
    x = torch.randn(2, 3, 6)
    for convert in (cases._from_torch, solved["from_torch"]):
        ours = MultiHeadAttention(6, 2, bias=bias)
        ours.load_state_dict(convert(state))
        torch.testing.assert_close(ours(x), theirs(x, x, x)[0])


def test_a_copied_state_is_the_same() -> None:
    state = cases._state(4, 2)
    again = copy.deepcopy(state)
    assert repr(again) == repr(state) and "in_proj_weight [12, 4]" in repr(state)
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_the_kernels_answers_are_pytorch_s() -> None:
    for case in cases._FLASH_CASES:
        query, key, value, scale, _ = (_exact(x) for x in case.inputs.values())
        expected = F.scaled_dot_product_attention(query[None], key[None], value[None], scale=scale)
        torch.testing.assert_close(cases._flash(query, key, value, scale, 16), expected[0])
        torch.testing.assert_close(mistakes._stream()(query, key, value, scale, 16), expected[0])


def test_the_kernels_cases_are_hard_enough() -> None:
    """Exponentials overflow, and the maximum comes first here and last there."""
    spans = {}
    for case in cases._FLASH_CASES:
        query, key, _, scale, block = (_exact(x) for x in case.inputs.values())
        tiles = (scale * query @ key.T).split(block, 1)
        spans[case.name] = [tile.amax(1) for tile in tiles]
        assert max(query.shape[0], key.shape[0]) <= 40
    assert torch.stack(spans["large scores"]).amin() > 1000
    first, *rest = spans["the largest scores in the first tile"]
    assert (first - torch.stack(rest).amax(0)).amin() > 800
    *before, _ = spans["the largest scores in the last tiles"]
    assert (torch.stack(before[1:]) > before[0]).all()
    loud = torch.stack(spans["one loud query"]).amax(0)
    assert loud[2] - loud[3] > 800
    shapes = {
        (len(c.inputs["key"]) % 16 > 0, c.inputs["key"].shape[1] < 16) for c in cases._FLASH_CASES
    }
    assert shapes == set(itertools.product((True, False), repeat=2)) - {(False, True)}


# What a check sees besides numbers ---------------------------------------------------


def test_messages_do_not_depend_on_what_ran_before() -> None:
    assert_told_in_numbers(CHECKS["4.5"], lambda x, *rest: x)


def test_the_checks_leave_the_random_numbers_alone(solved: dict[str, Any]) -> None:
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    for number in ("4.1", "4.2", "4.3", "4.4", "4.5", "4.6"):
        CHECKS[number](*(solved[name] for name in PAGE.arguments(number)))
    assert torch.equal(torch.randn(2), expected)


def test_every_other_order_of_the_packed_matrices_is_told(solved: dict[str, Any]) -> None:
    for letters in itertools.permutations("qkv"):
        convert = ANSWERS._loaded("".join(letters))
        if letters == ("q", "k", "v"):
            CHECKS["4.6"](convert)
            continue
        with pytest.raises(CheckFailed, match="q, k and v are mixed up"):
            CHECKS["4.6"](convert)


def test_a_state_is_described_in_a_line() -> None:
    """A message names the tensors, and does not print their numbers."""
    message = told(CHECKS["4.6"], ANSWERS._loaded("vqk"))
    assert "state = {in_proj_weight [18, 6], out_proj.weight [6, 6]" in message
    assert "tensor(" not in message


def test_a_wrong_stride_stays_within_guarded_memory() -> None:
    """What lies behind it is Python's own: a kernel that is interpreted would end it."""
    for case in (*cases._TILE_CASES, *cases._FLASH_CASES):
        (n, dim), m, block = case.inputs["query"].shape, len(case.inputs["key"]), 16
        width = max(n, m, cases._padded_width(dim))  # of a row, if one is taken for another
        rows = -(-max(n, m) // block) * block
        assert rows * width + block <= min(n, m) * dim + BEHIND


@pytest.mark.triton
def test_what_the_kernel_s_check_sees_without_a_record(
    solved: dict[str, Any], without_record: None
) -> None:
    """As on a GPU: the numbers, and what stands around them."""
    names = PAGE.arguments("4.7")
    right = [solved[name] for name in names]
    CHECKS["4.7"](*right)
    unseen = ("reads past the end", "reads beyond", "owns the", "Each program", "0 times NaN")
    for name, function, fragment in ANSWERS.WRONG["4.7"]:
        if fragment.startswith(unseen) or "other=" in fragment:
            continue  # they show nothing, or something else
        functions = [function if function.__name__ == n else solved[n] for n in names]
        with np.errstate(all="ignore"):
            assert fragment in told(CHECKS["4.7"], *functions), name


# The page ----------------------------------------------------------------------------


def test_the_reference_of_4_5_is_pytorch_s(solved: dict[str, Any]) -> None:
    x, (W_q, W_k, W_v, W_o) = torch.randn(2, 4, 6), torch.randn(4, 6, 6)
    theirs = nn.MultiheadAttention(6, 3, bias=False, batch_first=True)
    packed = {"in_proj_weight": torch.cat([W_q, W_k, W_v]), "out_proj.weight": W_o}
    theirs.load_state_dict(packed)
    output = solved["multi_head"](x, W_q, W_k, W_v, W_o, 3)
    torch.testing.assert_close(output, theirs(x, x, x)[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output, solved["pruned"](x, W_q, W_k, W_v, W_o, 3, []))
