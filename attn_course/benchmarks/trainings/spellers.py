"""Spellers: what chapter 10 trains on letters, how they decode, and how they are judged."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attn_course._validation import check_choice
from attn_course.benchmarks.trainings.common import Record
from attn_course.data import Letters, letters
from attn_course.data.letters import delayed
from attn_course.monotonic import HardState, MonotonicMultiheadAttention, best_path
from attn_course.multi_head import MultiHeadAttention

#: How many letters there are, and how long sources are: the source's sizes.
NUM_LETTERS, LENGTH = 10, 32


class Task(NamedTuple):
    """One of the source's two tasks.

    Attributes:
        repeats: How often a target says each letter.
        mode: Of ``MonotonicMultiheadAttention``.
    """

    repeats: int
    mode: str


#: Each run becomes three letters; or one, so that each letter of the source belongs to one target.
TASKS = {"many": Task(3, "many_to_many"), "one": Task(1, "one_query_per_key")}


class SpellerState(NamedTuple):
    """Where hard decoding stands.

    Attributes:
        walk: Of the attention.
        memory: Of the recurrent layer; ``None`` without one.
    """

    walk: HardState
    memory: Any


class Speller(nn.Module):
    """Reads letters and the target so far, and says the next letter of the target.

    Queries are made of the target, keys of the source, and the next letter is read from the
    query and from what it found. Without recurrence a query knows one letter, the last of the
    target.

    Args:
        task: A key of ``TASKS``.
        monotonic: Attend along a path; else without restriction, as chapter 4 does.
        recurrent: Let an LSTM read the target, so that queries know what came before.
        context: Let an LSTM read the source both ways, so that keys know where they are.
        width: Of everything.
        num_letters: How many there are.
    """

    def __init__(
        self,
        task: str,
        *,
        monotonic: bool = True,
        recurrent: bool = True,
        context: bool = False,
        width: int = 32,
        num_letters: int = NUM_LETTERS,
    ) -> None:
        super().__init__()
        check_choice("task", task, tuple(TASKS))
        self.num_letters = num_letters
        self.source = nn.Embedding(num_letters + 1, width, padding_idx=0)
        self.target = nn.Embedding(num_letters + 2, width, padding_idx=0)
        self.context = (
            nn.LSTM(width, width // 2, batch_first=True, bidirectional=True) if context else None
        )
        self.memory = nn.LSTM(width, width, batch_first=True) if recurrent else None
        self.attention: MonotonicMultiheadAttention | MultiHeadAttention
        if monotonic:
            self.attention = MonotonicMultiheadAttention(width, 1, mode=TASKS[task].mode)
        else:
            self.attention = MultiHeadAttention(width, 1)
        self.output = nn.Linear(2 * width, num_letters)

    def keys(self, source: Tensor) -> Tensor:
        """The source as keys, ``[batch, length, width]``."""
        keys: Tensor = self.source(source)
        return keys if self.context is None else self.context(keys)[0]

    def queries(self, target_input: Tensor, memory: Any = None) -> tuple[Tensor, Any]:
        """The target so far as queries, ``[batch, steps, width]``, and what is remembered."""
        queries: Tensor = self.target(target_input)
        return (queries, None) if self.memory is None else self.memory(queries, memory)

    def forward(self, source: Tensor, target_input: Tensor, *, need_weights: bool = False) -> Any:
        """The next letter at each step.

        Args:
            source: ``[batch, length]``, all of one length.
            target_input: The target one letter late, ``[batch, steps]``; 0 is padding.
            need_weights: Return the weights as well.

        Returns:
            Logits of the letters, from number 1 on, ``[batch, steps, num_letters]``; with
            ``need_weights`` also the weights, ``[batch, 1, steps, length]``.
        """
        queries, keys = self.queries(target_input)[0], self.keys(source)
        options: dict[str, Any] = {"need_weights": need_weights}
        if isinstance(self.attention, MonotonicMultiheadAttention):
            options["query_lens"] = (target_input > 0).sum(1)
        found = self.attention(queries, keys, **options)
        answers, weights = found if need_weights else (found, None)
        logits = self.output(torch.cat((queries, answers), -1))
        return (logits, weights) if need_weights else logits

    def start(self, source: Tensor) -> SpellerState:
        """Stand at the first letter, to decode along one path.

        Args:
            source: ``[batch, length]``.

        Raises:
            TypeError: The attention is not monotonic: it has no path.
        """
        return SpellerState(self.path().start(self.keys(source)), None)

    def step(self, token: Tensor, state: SpellerState) -> tuple[Tensor, SpellerState, Tensor]:
        """The next letter, along one path and online: no letter of the source is read early.

        Args:
            token: The last of the target, ``[batch]``.
            state: From ``start``, or from the step before.

        Returns:
            Logits, ``[batch, num_letters]``; the new state; what was attended to, 0 or 1,
            ``[batch, 1, length]``.
        """
        queries, memory = self.queries(token[:, None], state.memory)
        answer, walk, weights = self.path().step(queries[:, 0], state.walk)
        logits = self.output(torch.cat((queries[:, 0], answer), -1))
        return logits, SpellerState(walk, memory), weights

    def path(self) -> MonotonicMultiheadAttention:
        """The attention, if it walks along a path.

        Raises:
            TypeError: It does not.
        """
        if not isinstance(self.attention, MonotonicMultiheadAttention):
            raise TypeError("hard decoding needs monotonic attention: others have no path.")
        return self.attention


class AsWritten(nn.Module):
    """The source's model: letters, attention, and an LSTM, if any, that reads what was found.

    Queries know one letter, always; the output sees no query.

    Args:
        task: A key of ``TASKS``.
        recurrent: Whether there is an LSTM.
        width: Of everything.
        num_letters: How many there are.

    Reference:
        Bolte (2023), Monotonic attention, "Toy example".
    """

    def __init__(
        self, task: str, *, recurrent: bool, width: int = 32, num_letters: int = NUM_LETTERS
    ) -> None:
        super().__init__()
        self.num_letters = num_letters
        self.letters = nn.Embedding(num_letters + 2, width, padding_idx=0)
        self.attention = MonotonicMultiheadAttention(width, 1, mode=TASKS[task].mode)
        self.memory = nn.LSTM(width, width, batch_first=True) if recurrent else None
        self.output = nn.Linear(width, num_letters)

    def forward(self, source: Tensor, target_input: Tensor) -> Tensor:
        """As ``Speller``."""
        found = self.attention(
            self.letters(target_input),
            self.letters(source),
            query_lens=(target_input > 0).sum(1),
        )
        logits: Tensor = self.output(found if self.memory is None else self.memory(found)[0])
        return logits


def wrongness(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of the letters of the targets; padding is left out."""
    return nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten() - 1, ignore_index=-1)


@torch.no_grad()
def spell(model: nn.Module, source: Tensor, steps: int, *, hard: bool = False) -> Tensor:
    """Write a target letter by letter, each the likeliest after those written before.

    In expectation all that is written is read again for each letter; a hard path goes on from
    where it stands.

    Args:
        model: A ``Speller``, or another with its ``forward``.
        source: ``[batch, length]``.
        steps: How many letters to write.
        hard: Walk one path; for a ``Speller`` with monotonic attention.

    Returns:
        Numbers of letters, ``[batch, steps]``.
    """
    start = int(model.num_letters) + 1  # type: ignore[arg-type]
    written = torch.full((len(source), steps + 1), start, device=source.device)
    state = model.start(source) if hard else None  # type: ignore[operator]
    for t in range(steps):
        if hard:
            logits, state, _ = model.step(written[:, t], state)  # type: ignore[operator]
        else:
            logits = model(source, written[:, : t + 1])[:, -1]
        written[:, t + 1] = logits.argmax(-1) + 1
    return written[:, 1:]


@torch.no_grad()
def places(weights: Tensor) -> Tensor:
    """The last key that each query of a path visits; ``key_len`` once the path has ended.

    Args:
        weights: 0 or 1, ``[..., query_len, key_len]``.

    Returns:
        ``[..., query_len]``.

    Example:
        >>> places(torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 0]]))
        tensor([1, 1, 3])
    """
    length = weights.shape[-1]
    after = torch.arange(1, length + 1, device=weights.device)
    last = (weights * after).amax(-1).long() - 1
    return last.where(last >= 0, length)


@torch.no_grad()
def hard_and_best(model: Speller, pairs: Letters) -> tuple[Tensor, Tensor]:
    """Where hard decoding stands at each step of the right targets, and where the best path does.

    The best path is the likeliest of all that the trained model may walk, its end included.

    Returns:
        Two of ``[count, steps]``, as ``places`` gives them.
    """
    attention = model.path()
    queries, _ = model.queries(delayed(pairs, model.num_letters))
    keys = model.keys(pairs.source)
    _, walked = attention(queries, keys, query_lens=pairs.target_lens, need_weights=True, hard=True)
    logits = attention.logits(queries, keys)[:, 0]
    options: dict[str, Any] = {"end": "edge", "validate": False}
    if attention.mode == "one_query_per_key":
        options |= {"model": "one_to_many", "column_lens": pairs.target_lens}
        visited = best_path(logits.mT, **options)[0].mT
    else:
        visited, _ = best_path(logits, row_lens=pairs.target_lens, **options)
    return places(walked[:, 0]), places(visited.int())


@torch.no_grad()
def judge(
    model: nn.Module, task: str, *, lengths: dict[int, int], num_letters: int = NUM_LETTERS
) -> Record:
    """How much of unseen sequences is right.

    Args:
        model: A ``Speller``, or another with its ``forward``.
        task: A key of ``TASKS``.
        lengths: Length of the sources -> how many to judge by.
        num_letters: How many there are.

    Returns:
        ``"lengths"``, ``"judged"``; then for each length, of ``"forced"``, in which the right
        letters precede, of ``"free"``, in which the model's own do, and of ``"hard"``, likewise
        along one path: ``"letters"`` and ``"whole"``, the shares of letters and of whole
        sequences that are right; and ``"agreement"``, the share of steps at which hard decoding
        stands where the most likely path does, the right letters preceding. The last two are
        empty where there is no path.
    """
    has_path = isinstance(model, Speller) and isinstance(
        model.attention, MonotonicMultiheadAttention
    )
    record: Record = {"lengths": list(lengths), "judged": list(lengths.values()), "agreement": []}
    record |= {way: {"letters": [], "whole": []} for way in ("forced", "free", "hard")}
    for length, count in lengths.items():
        pairs = letters(
            count, repeats=TASKS[task].repeats, num_letters=num_letters, length=length,
            seed=1_000_000 + length,
        )  # fmt: skip
        steps = pairs.target.shape[1]
        written = {
            "forced": model(pairs.source, delayed(pairs, num_letters)).argmax(-1) + 1,
            "free": spell(model, pairs.source, steps),
        }
        if has_path:
            written["hard"] = spell(model, pairs.source, steps, hard=True)
            hard, best = hard_and_best(model, pairs)  # type: ignore[arg-type]
            record["agreement"].append(_share((hard == best)[pairs.target > 0]))
        for way, found in written.items():
            right, real = found == pairs.target, pairs.target > 0
            record[way]["letters"].append(_share(right[real]))
            record[way]["whole"].append(_share((right | ~real).all(1)))
    return record


def _share(some: Tensor) -> float:
    """Never 1 unless all are: rounded down."""
    return math.floor(10_000 * some.double().mean().item() + 1e-6) / 10_000
