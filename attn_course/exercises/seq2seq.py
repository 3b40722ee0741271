"""Checks of chapter 3's exercises.

Each check hands a student's function small inputs and holds what comes back against an
oracle in float64 and against what the likely mistakes would answer. Three look further:
3.1 counts calls, 3.6 sees what the search asks for, 3.8 who writes what.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attn_course.exercises.framework import (
    Attempt,
    Case,
    Outcome,
    _is_stub_kernel,
    _short,
    describe,
    exercise,
)
from attn_course.exercises.kernels import device_for, guard, look_at_inputs
from attn_course.exercises.launches import Accesses, watch
from attn_course.exercises.seq2seq_cases import (
    _BACKWARD_CASES,
    _BEAM_CASES,
    _BLEU_CASES,
    _GRADIENT_CASES,
    _LOSS_CASES,
    _MATTERS_CASES,
    _PRECISION_CASES,
    _SHIFT_CASES,
    _STEP_CASES,
    _SUSPECTS,
    _UNIFORM_CASES,
    Pieces,
    Suspect,
    _additive_backward,
    _beam_search,
    _bleu,
    _decoder_step,
    _ids,
    _inputs_and_labels,
    _masked_loss,
    _matters,
    _precision,
    _sentences,
    _uniform,
    _weight_gradient,
)
from attn_course.exercises.seq2seq_mistakes import (
    _BEAM_MISTAKES,
    _BLEU_MISTAKES,
    _CLUES,
    _CONTEXT_MISTAKES,
    _DQUERY_MISTAKES,
    _DWEIGHT_MISTAKES,
    _EXTENDED,
    _FROM_NAN,
    _GRADIENT_MISTAKES,
    _LOSS_MISTAKES,
    _MATTERS_MISTAKES,
    _OUTSIDE,
    _PRECISION_MISTAKES,
    _RACE,
    _SHIFT_MISTAKES,
    _STATE_MISTAKES,
    _TANH_OUTSIDE,
    _TANH_STORED,
    _UNIFORM_OUTPUT_MISTAKES,
    _UNIFORM_WEIGHT_MISTAKES,
)
from attn_course.exercises.several import each_of, parts_of, verify_diagnosis, verify_parts

__all__ = [
    "Pieces",
    "Suspect",
    "check_additive_backward",
    "check_beam_search",
    "check_bleu",
    "check_decoder_step",
    "check_padding",
    "check_teacher_forcing",
    "check_uniform",
    "check_weight_gradient",
    "padded_sentences",
    "suspects",
]


# 3.1 ---------------------------------------------------------------------------------


@exercise("3.1")
def check_decoder_step(
    attempt: Attempt, decoder_step: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    """Check 3.1, one step of a decoder.

    Args:
        attempt: Given by the decorator.
        decoder_step: (state ``[batch, hidden]``, token ``[batch, embed_dim]``, last_context
            ``[batch, memory_dim]``, keys ``[batch, source_len, hidden]``, memory ``[batch,
            source_len, memory_dim]``, pieces) -> the context ``[batch, memory_dim]`` and
            the new state ``[batch, hidden]``.
    """
    pieces = [case.inputs["pieces"].calls for case in _STEP_CASES]
    for calls in pieces:
        calls.clear()
    # The oracle calls the pieces as well, but never W_k.
    both = (_CONTEXT_MISTAKES, _STATE_MISTAKES)
    names = ("the context", "the new state")
    verify_parts(attempt, decoder_step, _STEP_CASES, names, each_of(_decoder_step, 2), both)
    again = sum(calls["W_k"] for calls in pieces)
    if again:
        attempt.fail(
            f"the numbers are right, but W_k was called {again} times in {len(pieces)} steps. The "
            "keys do not change while a sentence is being written: where do you get them without "
            "projecting the memory again at every step?",
            decoder_step,
        )


# 3.2 ---------------------------------------------------------------------------------


def padded_sentences() -> tuple[Tensor, Tensor, Tensor]:
    """A batch to try a translator on.

    Returns:
        ``source`` ``[4, 6]``, ``source_lens`` ``[4]`` and ``target_input`` ``[4, 6]``: ids
        below 10, of which 0 pads, 1 begins and 2 ends a sentence.

    Example:
        >>> source, source_lens, target_input = padded_sentences()
        >>> source_lens
        tensor([6, 3, 4, 2])
    """
    return _sentences([6, 3, 4, 2], [3, 6, 2, 4], seed=7)


def suspects() -> dict[str, Suspect]:
    """Four translators for exercise 3.2, of which one is sound.

    Returns:
        Name -> a model that maps source, source_lens and target_input to logits.

    Example:
        >>> suspects()["A"](*padded_sentences()).shape
        torch.Size([4, 6, 10])
    """
    return {name: Suspect(fault, seed=5) for name, fault in _SUSPECTS.items()}


@exercise("3.2")
def check_padding(
    attempt: Attempt,
    what_matters: Callable[..., Tensor],
    diagnosis: Callable[[], dict[str, str]],
) -> None:
    """Check 3.2, a test that finds leaks.

    Args:
        attempt: Given by the decorator.
        what_matters: (model, source ``[batch, source_len]``, source_lens ``[batch]``,
            target_input ``[batch, target_len]``) -> booleans ``[batch, source_len]``.
        diagnosis: () -> for each of ``suspects()`` the name of its fault, or ``"sound"``.
    """

    def outcome(case: Case) -> Outcome:
        result = attempt.call(what_matters, case.inputs)
        if isinstance(result, Tensor):  # 0 and 1 are as good as booleans
            result = result.double()
        shape = case.inputs["source"].shape
        got = attempt.tensor(what_matters, result, shape, describe(case.inputs))
        return Outcome.of(case, _table, got)

    attempt.judge_each(what_matters, _MATTERS_CASES, outcome, _MATTERS_MISTAKES)
    verify_diagnosis(attempt, diagnosis, _SUSPECTS, _CLUES)


def _table(**inputs: Any) -> Tensor:
    return _matters(**inputs).double()


# 3.3 ---------------------------------------------------------------------------------


@exercise("3.3")
def check_teacher_forcing(
    attempt: Attempt,
    inputs_and_labels: Callable[[Tensor], tuple[Tensor, Tensor]],
    masked_loss: Callable[..., Tensor],
) -> None:
    """Check 3.3, what a decoder reads, what it is asked for, and what counts.

    Args:
        attempt: Given by the decorator.
        inputs_and_labels: (target ``[batch, target_len]``) -> two tensors of integers
            ``[batch, target_len - 1]``.
        masked_loss: (logits ``[batch, len, vocab]``, labels ``[batch, len]``, pad) ->
            ``[]``.
    """
    outcomes = []
    for case in _SHIFT_CASES:
        result = attempt.call(inputs_and_labels, case.inputs)
        parts = parts_of(attempt, inputs_and_labels, result, ("the inputs", "the labels"))
        expected, target = _inputs_and_labels(**case.inputs), case.inputs["target"]
        for part in parts:
            if isinstance(part, Tensor) and part.shape == target.shape:
                attempt.fail(
                    "inputs or labels are as long as the target. One token is never read, and "
                    "another is never asked for: which?",
                    inputs_and_labels,
                )
            if isinstance(part, Tensor) and part.is_floating_point():
                attempt.fail(
                    f"ids came in as {_short(target.dtype)} and go out as {_short(part.dtype)}: "
                    "which word has the number 2.5? Whoever looks words up wants integers.",
                    inputs_and_labels,
                )
        got = [
            attempt.tensor(
                inputs_and_labels,
                part.double() if isinstance(part, Tensor) else part,
                expected[0].shape,
                describe(case.inputs),
            )
            for part in parts
        ]
        outcomes.append(Outcome.of(case, _inputs_and_labels, torch.stack(got)))
    attempt.judge(inputs_and_labels, outcomes, _SHIFT_MISTAKES)
    attempt.verify(masked_loss, _LOSS_CASES, _masked_loss, _LOSS_MISTAKES)
    attempt.gradient(masked_loss, _LOSS_CASES[0].inputs, "logits")


# 3.4 ---------------------------------------------------------------------------------


@exercise("3.4")
def check_uniform(
    attempt: Attempt, uniform_attention: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    """Check 3.4, attention that does not choose.

    Args:
        attempt: Given by the decorator.
        uniform_attention: (query ``[batch, query_len, hidden]``, key ``[batch, key_len,
            hidden]``, value ``[batch, key_len, value_dim]``, weight ``[hidden]``, allowed
            ``[batch, query_len, key_len]``) -> the output ``[batch, query_len, value_dim]``
            and the weights ``[batch, query_len, key_len]``.
    """
    verify_parts(
        attempt,
        uniform_attention,
        _UNIFORM_CASES,
        ("the output", "the weights"),
        each_of(_uniform, 2),
        (_UNIFORM_OUTPUT_MISTAKES, _UNIFORM_WEIGHT_MISTAKES),
        order=(1, 0),
    )


# 3.5 ---------------------------------------------------------------------------------


@exercise("3.5")
def check_bleu(
    attempt: Attempt,
    clipped_precision: Callable[..., float],
    bleu: Callable[..., float],
) -> None:
    """Check 3.5, BLEU by hand.

    Args:
        attempt: Given by the decorator.
        clipped_precision: (predicted, reference, n) -> a number in [0, 1]; the sentences
            are lists of tokens.
        bleu: (predicted, reference, k) -> a number in [0, 1].
    """
    tolerance = {"rtol": 1e-6, "atol": 1e-6}
    for function, cases, oracle, mistakes in (
        (clipped_precision, _PRECISION_CASES, _precision, _PRECISION_MISTAKES),
        (bleu, _BLEU_CASES, _bleu, _BLEU_MISTAKES),
    ):
        attempt.verify(function, cases, oracle, mistakes, **tolerance)


# 3.6 ---------------------------------------------------------------------------------


@exercise("3.6")
def check_beam_search(attempt: Attempt, beam_search: Callable[..., list[int]]) -> None:
    """Check 3.6, beam search.

    Args:
        attempt: Given by the decorator.
        beam_search: (log_probs, width, max_len, penalty) -> the ids of the best sentence;
            ``log_probs`` maps a list of ids to ``[vocab_size]``, and 0 ends a sentence.
    """
    outcomes, past_the_end = [], False
    for case in _BEAM_CASES:
        model, max_len = case.inputs["log_probs"], case.inputs["max_len"]
        model.asked_past_the_end = False
        result = attempt.call(beam_search, case.inputs)
        past_the_end |= model.asked_past_the_end
        if isinstance(result, Tensor):
            result = result.tolist()
        if not isinstance(result, list | tuple) or not all(
            isinstance(token, int) and 0 <= token < model.vocab_size for token in result
        ):
            attempt.fail(
                f"it returned {result!r}; expected the ids of one sentence, a list of integers.",
                beam_search,
            )
        if len(result) > max_len:
            attempt.fail(
                f"it wrote {len(result)} tokens; max_len was {max_len}. Does the loop end in time, "
                "and does each child get a list of its own?",
                beam_search,
            )
        outcomes.append(Outcome.of(case, _beam_search, _ids(result, max_len)))
    if past_the_end and any(not torch.equal(o.got, o.expected) for o in outcomes):
        attempt.fail(_EXTENDED, beam_search)
    note = "(-1 stands where a sentence is over.)"
    attempt.judge(beam_search, outcomes, _BEAM_MISTAKES, note=note)


# 3.7 ---------------------------------------------------------------------------------


@exercise("3.7")
def check_additive_backward(
    attempt: Attempt, additive_backward: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    """Check 3.7, the gradients of additive attention.

    Args:
        attempt: Given by the decorator.
        additive_backward: (query ``[n, h]``, key ``[m, h]``, value ``[m, d_v]``, weight
            ``[h]``, grad ``[n, d_v]``) -> dL/dquery ``[n, h]`` and dL/dweight ``[h]``.
    """
    names, both = ("dquery", "dweight"), (_DQUERY_MISTAKES, _DWEIGHT_MISTAKES)
    oracles = each_of(_additive_backward, 2)
    verify_parts(attempt, additive_backward, _BACKWARD_CASES, names, oracles, both)


# 3.8 ---------------------------------------------------------------------------------


class _Allocations(TorchDispatchMode):
    """Every tensor that PyTorch makes meanwhile, and whether it computes a kernel's tanh.

    New ones get a guarded end, where a store that goes too far does no harm, and what would
    come uninitialised is filled with NaN.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Tensor] = []
        self.tanh = False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        self.tanh |= any(word in str(function) for word in ("tanh", "sigmoid", "aten.exp."))
        # The interpreter makes copies of memory, too, but as bytes.
        if isinstance(result, Tensor) and result.is_floating_point() and result.numel():
            if "empty" in str(function):
                result.fill_(torch.nan)
            if any(word in str(function) for word in ("empty", "zeros", "ones", "full")):
                result = guard(result, str(result.device)).tensor
            self.made.append(result)
        return result


@exercise("3.8")
def check_weight_gradient(
    attempt: Attempt, kernel: Any, weight_gradient: Callable[..., Tensor]
) -> None:
    """Check 3.8, a gradient in parts.

    Args:
        attempt: Given by the decorator.
        kernel: A ``@triton.jit`` function that ``weight_gradient`` launches.
        weight_gradient: (query ``[n, h]``, key ``[m, h]``, slope ``[n, m]``, block) ->
            ``[h]``.
    """
    device = device_for(attempt, kernel)
    if _is_stub_kernel(kernel):
        with attempt.watching(kernel, {}):
            raise NotImplementedError

    def outcome(case: Case) -> Outcome:
        (n, m), h = case.inputs["slope"].shape, case.inputs["query"].shape[1]
        seen = f"Seen with {n} queries, {m} keys, {h} hidden units, block = {case.inputs['block']}."
        given = {k: guard(v, device) for k, v in case.inputs.items() if isinstance(v, Tensor)}
        allocations = _Allocations()
        with attempt.watching(weight_gradient, case.inputs), allocations, watch() as accesses:
            result = weight_gradient(*(g.tensor for g in given.values()), case.inputs["block"])
        largest = max((tensor.numel() for tensor in allocations.made), default=0)
        if largest >= n * m * h:
            attempt.fail(f"{_TANH_STORED.format(largest)}\n{seen}", weight_gradient)
        inputs = [guarded.tensor for guarded in given.values()]
        _look_at(attempt, kernel, accesses, [*inputs, *allocations.made], seen)
        look_at_inputs(attempt, weight_gradient, list(given.values()), seen)
        if allocations.tanh:
            attempt.fail(f"{_TANH_OUTSIDE}\n{seen}", weight_gradient)
        if isinstance(result, Tensor) and result.ndim == 2 and result.shape[1] == h:
            attempt.fail(
                f"it returned shape {list(result.shape)}: the parts of the programs, still apart. "
                f"What is the gradient of one weight that served all of them?\n{seen}",
                weight_gradient,
            )
        got = attempt.tensor(weight_gradient, result, [h], describe(case.inputs))
        if bool(got.isnan().any()):
            attempt.fail(f"the answer is NaN. {_FROM_NAN}\n{seen}", weight_gradient)
        return Outcome.of(case, _weight_gradient, got)

    attempt.judge_each(weight_gradient, _GRADIENT_CASES, outcome, _GRADIENT_MISTAKES)


def _look_at(
    attempt: Attempt, kernel: Any, accesses: Accesses, known: list[Tensor], seen: str
) -> None:
    """Fail unless programs read and write known memory, each slot one program's own."""
    if not accesses.recorded:
        return
    if not accesses.stores:
        attempt.fail(
            f"nothing is stored: is the kernel launched, and does it store its part?\n{seen}",
            kernel,
        )
    if accesses.outside(*(tensor for tensor in known if tensor.is_contiguous())):
        attempt.fail(f"{_OUTSIDE}\n{seen}", kernel)
    spans = [(t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()) for t in known]
    stored = {address for _, addresses in accesses.stores for address in addresses}
    if any(not any(start <= a < stop for start, stop in spans) for a in stored):
        attempt.fail(
            "a program writes past the end of a tensor: which units of the tile exist, and where "
            f"do you tell `tl.store`?\n{seen}",
            kernel,
        )
    owner: dict[int, tuple[int, ...]] = {}
    for program, addresses in accesses.stores:
        for address in addresses:
            first = owner.setdefault(address, program)
            if first != program:
                numbers = [p if any(p[1:]) else p[0] for p in (first, program)]
                attempt.fail(f"{_RACE.format(*numbers)}\n{seen}", kernel)
