"""Chapter 3's checks: their cases, their mistakes, their oracles and what else they see."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from attn_course import _d2l
from attn_course.exercises import CheckFailed
from attn_course.exercises import seq2seq as checks
from attn_course.exercises import seq2seq_cases as cases
from attn_course.exercises import seq2seq_mistakes as mistakes
from attn_course.scoring import additive_attention
from attn_course.seq2seq import (
    AttentionDecoder,
    Encoder,
    EncoderOutput,
    Seq2Seq,
    UniformAttention,
    beam_search,
)
from tests.exercises.common import PAGES, assert_told_in_numbers, exact, told

PAGE = PAGES["seq2seq"]
ANSWERS, CHECKS = PAGE.answers, PAGE.checks


# Oracles -----------------------------------------------------------------------------


def test_one_step_is_the_package_s_decoder() -> None:
    """With the decoder's own parts as the pieces."""
    decoder = AttentionDecoder(7, 3, 4, 6).double()
    memory, final = torch.randn(2, 5, 6).double(), torch.randn(1, 2, 6).double()
    state = decoder.start(EncoderOutput(memory, (final,)), torch.tensor([5, 5]))
    token = torch.tensor([3, 1])
    embedded, network = decoder.embedding(token), decoder.attention.scoring
    pieces = cases.Pieces(4, 6, 3)
    pieces.W_q, pieces.w_v = network.W_q, network.w_v
    gru = decoder.rnn
    pieces.rnn = lambda x, s: torch.gru_cell(
        x, s, gru.weight_ih_l0, gru.weight_hh_l0, gru.bias_ih_l0, gru.bias_hh_l0
    )
    context, new = cases._decoder_step(
        state.hidden[0][-1], embedded, state.context, state.keys, memory, pieces
    )
    _, after, _ = decoder.step(token, state)
    torch.testing.assert_close(context, after.context)
    torch.testing.assert_close(new, after.hidden[0][-1])


@pytest.mark.parametrize("case", cases._MATTERS_CASES, ids=lambda case: case.name)
def test_what_matters_is_what_the_models_read(case: Any, solved: dict[str, Any]) -> None:
    """The table is known by construction; the models do differ by more than any tolerance."""
    model, source, lens, target = case.inputs.values()
    before = model(source, lens, target)
    for j in range(source.shape[1]):
        changed = source.clone()
        changed[:, j] = torch.where(changed[:, j] == 3, 4, 3)
        moved = (model(changed, lens, target) - before).abs().amax((1, 2))
        expected = cases._matters(**case.inputs)[:, j]
        assert torch.equal(moved > 1e-2, expected) and torch.equal(moved > 1e-9, expected)


def test_the_loss_is_pytorch_s() -> None:
    for case in cases._LOSS_CASES:
        logits, labels, pad = case.inputs.values()
        theirs = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=pad)
        torch.testing.assert_close(cases._masked_loss(**case.inputs), theirs)


def test_uniform_attention_is_the_package_s() -> None:
    for case in cases._UNIFORM_CASES:
        given = exact(case)
        output, weights = cases._uniform(**given)
        theirs = UniformAttention()(
            given["query"],
            given["key"],
            given["value"],
            mask=given["allowed"],
            need_weights=True,
        )
        torch.testing.assert_close((output, weights), theirs)


def test_bleu_is_d2l_s() -> None:
    d2l = pytest.importorskip("d2l") and _d2l.load()
    for (name, texts), k in itertools.product(cases._SENTENCES.items(), (1, 2, 3, 4)):
        ours = cases._bleu(texts[0].split(), texts[1].split(), k).item()
        assert ours == pytest.approx(d2l.bleu(*texts, k), abs=1e-12), (name, k)


def test_the_lecture_s_bleu(solved: dict[str, Any]) -> None:
    wet, calm = "il est mouillé .".split(), "il est calme .".split()
    for bleu in (solved["bleu"], cases._bleu):
        assert f"{float(bleu(wet, calm, 2)):.3f}" == "0.658"
    assert f"{float(mistakes._BLEU_MISTAKES[4].answers[0](wet, calm, 2)):.3f}" == "0.500"


def translator(seed: int) -> Seq2Seq:
    torch.manual_seed(seed)
    model = Seq2Seq(Encoder(6, 4, 5), AttentionDecoder(5, 4, 5, 10)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 3
    return model


@pytest.mark.parametrize("width, penalty", [(1, 0.0), (2, 0.7), (3, 0.0), (4, 1.0)])
def test_beam_search_is_the_package_s(width: int, penalty: float, solved: dict[str, Any]) -> None:
    for seed in range(4):
        model, source, lens = translator(seed), torch.tensor([[3, 4, 2]]), torch.tensor([3])

        def log_probs(prefix: list[int]) -> torch.Tensor:
            target_input = torch.tensor([[1, *prefix]])
            return model(source, lens, target_input)[0, -1].log_softmax(0)  # noqa: B023

        theirs = beam_search(
            model, source, lens, bos=1, eos=0, max_len=6, width=width, length_penalty=penalty
        )
        with torch.no_grad():
            ours = solved["beam_search"](log_probs, width, 6, penalty)
        n = int(theirs.lengths[0])
        assert [token for token in ours if token] == theirs.tokens[0, :n].tolist()


@pytest.mark.parametrize("penalty", [0.0, 0.8])
def test_a_beam_without_bounds_finds_the_best_sentence(penalty: float) -> None:
    for seed in range(3):
        model = cases.NextToken(3, seed, 1.0, 0.0)
        sentences = [[0], *([a, 0] for a in (1, 2)), *itertools.product((1, 2), (1, 2), range(3))]

        def score(ids: Any) -> float:
            total = sum(model(ids[:i])[token].item() for i, token in enumerate(ids))  # noqa: B023
            return total / ((5 + len(ids)) / 6) ** penalty

        best = max(sentences, key=score)
        found = cases._beam_search(model, 1000, 3, penalty)
        assert found.tolist() == cases._ids(best, 3).tolist()


def test_the_table_of_probabilities_is_one() -> None:
    model = cases.NextToken(5, 3, 1.0, 0.5)
    for prefix in ([], [1], [2, 3], [4, 4, 4]):
        torch.testing.assert_close(model(prefix).exp().sum().item(), 1.0)
        assert torch.equal(model(prefix), model(tuple(prefix)))
    assert not model.asked_past_the_end
    model([1, 0])
    assert model.asked_past_the_end


def test_gradients_are_the_package_s() -> None:
    for case in cases._BACKWARD_CASES:
        query, key, value, weight, grad = case.inputs.values()
        query, weight = query.clone().requires_grad_(), weight.clone().requires_grad_()
        output = additive_attention(query, key, value, weight, impl="reference")
        theirs = torch.autograd.grad(output, (query, weight), grad)
        torch.testing.assert_close(cases._additive_backward(**case.inputs), theirs)


def test_two_exercises_make_one_gradient(solved: dict[str, Any]) -> None:
    """3.8's sum over 3.7's slopes is 3.7's dweight."""
    for case in cases._BACKWARD_CASES:
        query, key, value, weight, grad = case.inputs.values()
        _, p, dp = mistakes._pieces_of_backward(query, key, value, weight, grad)
        dweight = cases._weight_gradient(query, key, mistakes._slope(p, dp), block=4)
        torch.testing.assert_close(dweight, cases._additive_backward(**case.inputs)[1])


# What a check sees besides numbers ---------------------------------------------------


def test_messages_do_not_depend_on_what_ran_before() -> None:
    assert_told_in_numbers(CHECKS["3.7"], lambda query, key, value, weight, grad: (query, weight))


def test_the_checks_leave_the_random_numbers_alone() -> None:
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    checks.suspects()
    checks.padded_sentences()
    assert torch.equal(torch.randn(2), expected)


def test_a_counter_of_calls_starts_anew(solved: dict[str, Any]) -> None:
    """A wrong attempt before must not spoil the right one."""
    again = next(row[1] for row in ANSWERS.WRONG["3.1"] if "reprojected" in row[0])
    with pytest.raises(CheckFailed, match="called 4 times in 4 steps"):
        CHECKS["3.1"](again)
    CHECKS["3.1"](solved["decoder_step"])


@pytest.mark.parametrize("fault", mistakes._CLUES)
def test_every_wrong_diagnosis_is_told(fault: str, solved: dict[str, Any]) -> None:
    for name, truth in cases._SUSPECTS.items():
        if fault == truth:
            continue
        said = solved["diagnosis"]() | {name: fault}
        message = told(CHECKS["3.2"], solved["what_matters"], lambda said=said: said)
        assert mistakes._CLUES[truth] in message


def test_a_diagnosis_in_other_words(solved: dict[str, Any]) -> None:
    for said, part in (
        ({"A": "sound"}, "the keys A, B, C, D"),
        (solved["diagnosis"]() | {"B": "healthy"}, "'healthy' of B; expected one of \"sound\""),
        (solved["diagnosis"]() | {"B": []}, "[] of B; expected one of"),
    ):
        assert part in told(CHECKS["3.2"], solved["what_matters"], lambda said=said: said)


def test_new_memory_is_filled_and_its_end_guarded() -> None:
    with checks._Allocations() as allocations:
        room, zeros = torch.empty(3, 5), torch.ones(2).new_zeros(4)
    assert room.isnan().all() and (zeros == 0).all()
    assert {tensor.data_ptr() for tensor in (room, zeros)} <= {
        tensor.data_ptr() for tensor in allocations.made
    }
    behind = room.as_strided((8,), (1,), 15)
    behind.fill_(7)  # is nobody else's
    assert (zeros == 0).all()


@pytest.mark.triton
def test_what_the_kernel_s_check_sees_without_a_record(
    solved: dict[str, Any], without_record: None
) -> None:
    """As on a GPU: the numbers, and what PyTorch makes."""
    CHECKS["3.8"](solved["weight_gradient_kernel"], solved["weight_gradient"])
    unseen = ("reads past the end", "two programs write", "nothing is stored", "writes past")
    for name, function, fragment in ANSWERS.WRONG["3.8"]:
        if not fragment.startswith(unseen) and "without other=" not in name:
            functions = [
                function if function.__name__ == n else solved[n] for n in PAGE.arguments("3.8")
            ]
            assert fragment in told(CHECKS["3.8"], *functions), name


# The page ----------------------------------------------------------------------------


def test_the_words_of_3_2_are_those_of_its_check(solved: dict[str, Any]) -> None:
    for fault in mistakes._CLUES:
        assert f'"{fault}"' in inspect.getsource(solved["diagnosis"]) or fault in (
            solved["diagnosis"].__doc__
        )
