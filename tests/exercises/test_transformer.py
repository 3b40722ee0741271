"""Chapter 6's checks: their cases, their oracles and what else they see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from attn_course.dot_product import dot_product_attention
from attn_course.exercises import CheckFailed
from attn_course.exercises import transformer_cases as cases
from attn_course.transformer import label_smoothing_loss
from tests.exercises.common import PAGES, assert_told_in_numbers, told

PAGE = PAGES["transformer"]
ANSWERS, CHECKS = PAGE.answers, PAGE.checks


# Oracles -----------------------------------------------------------------------------


def test_the_mask_is_pytorch_s() -> None:
    for case in cases._CAUSAL_CASES:
        lens, n = case.inputs.values()
        later = nn.Transformer.generate_square_subsequent_mask(n).isneginf()
        padding = torch.arange(n) >= lens[:, None]
        expected = ~(later | padding[:, None])
        assert torch.equal(cases._causal(lens, n).bool(), expected)


def test_the_blocks_are_pytorch_s() -> None:
    """Its encoder layer, without attention's part: a feed-forward network and a norm."""
    for norm_first, block in ((False, cases._post_norm), (True, cases._pre_norm)):
        layer = nn.TransformerEncoderLayer(4, 1, 7, 0.0, norm_first=norm_first).double().eval()
        x = torch.randn(2, 3, 4, dtype=torch.float64)

        def feed_forward(x: torch.Tensor, layer: Any = layer) -> torch.Tensor:
            return layer.linear2(layer.linear1(x).relu())

        def attention(x: torch.Tensor, layer: Any = layer) -> torch.Tensor:
            return layer.self_attn(x, x, x, need_weights=False)[0]

        ours = block(block(x, attention, layer.norm1), feed_forward, layer.norm2)
        torch.testing.assert_close(ours, layer(x))


@pytest.mark.parametrize("case", cases._LEAK_CASES, ids=lambda case: case.name)
def test_decoders_leak_as_they_are_said_to(case: Any) -> None:
    """By the whole Jacobian in evaluation mode, and by more than any tolerance."""
    model, x = case.inputs["model"].eval(), case.inputs["x"]
    n = x.shape[1]
    before = model(x)
    for i in range(n):
        for j in range(n):
            changed = x.clone()
            changed[:, j] += torch.randn(2, 4).double()
            moved = (model(changed) - before)[:, i].abs().max()
            expected = j <= i or bool(cases._sees(model, n, False)[i, j])
            assert moved > 1e-3 if expected else moved == 0, (i, j)
    model.train(model.came_training)


def test_decoders_in_training_have_their_masks_and_dropout() -> None:
    for hole in ("no mask in evaluation", "a hole in evaluation"):
        assert not cases._HOLES[hole](6, True).triu(1).any()
        assert cases._HOLES[hole](6, False).triu(1).any()
    model = cases.Decoder("sound", 0.5, 1, True)
    x = torch.randn(1, 4, 4)
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


def test_lens_make_a_decoder_sound(solved: dict[str, Any]) -> None:
    """Several new tokens after some cached ones: as the full layer with a causal mask."""
    query, key, value = torch.randn(3, 2, 7, 4, dtype=torch.float64)
    full = dot_product_attention(query, key, value, is_causal=True)
    for cached, new in ((0, 7), (4, 3), (6, 1)):
        lens = solved["self_attention_lens"](2, new, cached, False)
        torch.testing.assert_close(lens.double(), cases._lens_allowed(2, new, cached, False))
        part = dot_product_attention(query[:, cached:], key, value, valid_lens=lens)
        torch.testing.assert_close(part, full[:, cached:])


def test_smoothing_is_the_package_s_and_without_it_pytorch_s() -> None:
    for case in cases._SMOOTH_LOSS_CASES:
        logits, labels, smoothing, pad = case.inputs.values()
        ours = cases._smooth_loss(**case.inputs)
        theirs = label_smoothing_loss(logits, labels, smoothing=smoothing, pad=pad)
        torch.testing.assert_close(ours, theirs)
        if smoothing == 0:
            torch.testing.assert_close(ours, F.cross_entropy(logits.mT, labels, ignore_index=pad))
    for case in cases._SMOOTH_CASES:
        labels, _, _, pad = case.inputs.values()
        sums = cases._smooth(**case.inputs).sum(-1)
        torch.testing.assert_close(sums, (labels != pad).double())


def test_decoding_is_the_full_layer_with_a_causal_mask() -> None:
    for case in cases._CACHE_CASES[:2]:
        tokens, _, maps = case.inputs.values()
        x = tokens.transpose(0, 1) + maps.positions[: len(tokens)]
        full = F.scaled_dot_product_attention(maps.W_q(x), maps.W_k(x), maps.W_v(x), is_causal=True)
        torch.testing.assert_close(cases._decode(**case.inputs), full.transpose(0, 1))


def test_beams_go_on_from_their_parents(solved: dict[str, Any]) -> None:
    """Step and reordering together, against the sentences that the beams have written."""
    tokens, parents, maps = cases._CACHE_CASES[2].inputs.values()
    keys = values = tokens.new_zeros(tokens.shape[1], 0, tokens.shape[2])
    for x, kept, expected in zip(
        tokens, parents, cases._decode(tokens, parents, maps), strict=True
    ):
        output, keys, values = solved["cached_step"](x, keys, values, maps)
        torch.testing.assert_close(output, expected)
        if kept is not None:
            keys, values = solved["reorder"](keys, values, torch.tensor(kept))


def test_gradients_of_the_norm_are_finite_differences(solved: dict[str, Any]) -> None:
    for case in cases._NORM_BACKWARD_CASES:
        x, weight, grad, eps = case.inputs.values()
        for k, (leaf, place) in enumerate(((x, (0, 1)), (weight, (1,)))):
            moved = []
            for step in (1e-6, -1e-6):
                other = leaf.clone()
                other[place] += step
                a, w = (other, weight) if k == 0 else (x, other)
                moved.append((F.layer_norm(a, a.shape[1:], w, eps=eps) * grad).sum())
            slope = (moved[0] - moved[1]) / 2e-6
            for backward in (cases._norm_backward, solved["layer_norm_backward"]):
                torch.testing.assert_close(
                    backward(**case.inputs)[k][place], slope, rtol=1e-5, atol=1e-7
                )


def test_causal_attention_is_pytorch_s() -> None:
    for case in cases._CAUSAL_KERNEL_CASES:
        query, key, value, _, _ = case.inputs.values()
        theirs = F.scaled_dot_product_attention(query[None], key[None], value[None], is_causal=True)
        torch.testing.assert_close(cases._causal_attention(**case.inputs), theirs[0])


def test_the_tiles_needed_are_those_that_hold_a_visible_key() -> None:
    for n, block_m, block_n in ((13, 4, 4), (16, 8, 4), (22, 4, 8), (7, 16, 16), (40, 16, 8)):
        for tile in range(-(-n // block_m)):
            last = min((tile + 1) * block_m, n) - 1
            visible = {j // block_n for j in range(last + 1)}
            assert cases._needed(tile, n, block_m, block_n) == len(visible)
    # the prediction of 6.8
    assert [cases._needed(tile, 40, 16, 8) for tile in range(3)] == [2, 4, 5]


# What a check sees besides numbers ---------------------------------------------------


def test_messages_do_not_depend_on_what_ran_before() -> None:
    assert_told_in_numbers(CHECKS["6.6"], lambda x, weight, grad, eps: (x * grad, weight, weight))


def test_the_check_of_leaks_leaves_the_random_numbers_alone(solved: dict[str, Any]) -> None:
    functions = [solved[name] for name in PAGE.arguments("6.3")]
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    CHECKS["6.3"](*functions)
    assert torch.equal(torch.randn(2), expected)


def test_a_model_left_in_another_mode_does_not_spoil_the_next_attempt(
    solved: dict[str, Any],
) -> None:
    functions = [solved[name] for name in PAGE.arguments("6.3")]
    for _ in range(2):
        with pytest.raises(CheckFailed, match="came in training mode"):
            CHECKS["6.3"](lambda model, x: model.eval() and None, functions[1])
    CHECKS["6.3"](*functions)


@pytest.mark.parametrize("answer", [2.0, "none", [1], np.array([1, 2]), torch.tensor(1.0)])
def test_a_position_that_is_none(answer: Any, solved: dict[str, Any]) -> None:
    with pytest.raises(CheckFailed, match="expected the first position that sees its future"):
        CHECKS["6.3"](lambda model, x: answer, solved["self_attention_lens"])


def test_positions_cannot_be_overwritten(solved: dict[str, Any]) -> None:
    """An answer that spoils what it was lent spoils nothing for the next."""
    reorder = solved["reorder"]

    def greedy(x: Any, keys: Any, values: Any, maps: Any) -> Any:
        maps.positions[:] = 0
        return solved["cached_step"](x, keys, values, maps)

    for step in (greedy, solved["cached_step"]):
        CHECKS["6.5"](step, reorder)


@pytest.mark.triton
@pytest.mark.parametrize("number", ["6.7", "6.8"])
def test_what_the_kernels_checks_see_without_a_record(
    number: str, solved: dict[str, Any], without_record: None
) -> None:
    """As on a GPU: the numbers, and what stands around them."""
    (name,) = PAGE.arguments(number)
    CHECKS[number](solved[name])
    unseen = ("load", "that no query", "an output that is not", "is never written")
    one_each = {fragment: function for _, function, fragment in ANSWERS.WRONG[number]}
    for fragment, function in one_each.items():
        if not any(part in fragment for part in unseen):
            with np.errstate(all="ignore"):
                assert fragment in told(CHECKS[number], function)


@pytest.mark.triton
def test_loads_of_the_future_are_counted() -> None:
    (function,) = [f for name, f, _ in ANSWERS.WRONG["6.8"] if name == "the future loaded"]
    # Tiles of four, 13 keys: the three programs before the last need 4, 8 and 12 keys.
    message = told(CHECKS["6.8"], function)
    assert "there are 15 loads of a key" in message
    assert "program 0 reads keys up to number 12, and its last query is number 3" in message


@pytest.mark.triton
def test_a_mean_far_from_zero_tells_one_look_from_two(solved: dict[str, Any]) -> None:
    """The case is far enough for the one, and not too far for the other."""
    (function,) = [f for name, f, _ in ANSWERS.WRONG["6.7"] if name == "one look at the row"]
    with pytest.raises(CheckFailed, match="Seen with a mean far from zero"):
        CHECKS["6.7"](function)
    x = cases._SHIFTED_CASE.inputs["x"]
    once = x.square().mean(1) - x.mean(1).square()
    assert ((once - x.double().var(1, correction=0)).abs() > 0.1).any()
