"""Trainings of chapter 9: how much can be recalled through k slots.

A sequence is filler, with a few facts here and there, such as B=7: a letter and its digit in
one token. It ends with questions, such as B?, and each is to be answered with the digit. What
a question needs may stand anywhere: full attention looks it up, a window sees it only if it
is near, and Linformer has k slots for all that stands there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attn_course.benchmarks.trainings.common import Record
from attn_course.benchmarks.trainings.recipe import one_cycle, round_to_stored
from attn_course.data import pretrained, save_pretrained
from attn_course.linformer import LinformerAttention
from attn_course.long_sequences import WindowedSelfAttention
from attn_course.training import History, fit, seed_everything
from attn_course.transformer import PositionwiseFeedForward

#: What facts are about, what they say, and how many questions a sequence ends with.
LETTERS, DIGITS, QUESTIONS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", 8

#: Of the sequences: how long they are with their questions, and how many facts are in them.
LENGTH, FACTS = 128, 8

#: Sequences to be judged by.
JUDGED = 2048

#: Steps of a training, sequences in each, and the highest learning rate.
STEPS, BATCH_SIZE, MAX_LR = 1000, 32, 4e-3

#: Rounds of so many steps each, after which a loss is noted.
EPOCHS = 20

#: Slots that are compared, those with which all else is, and what is shared.
SLOTS, MIDDLE, SHARING = (4, 8, 16, 32, 64), 16, "key_value"


class Facts(NamedTuple):
    """Sequences, what is right, and where it stands.

    Attributes:
        tokens: ``[batch, length, 2]``: the letter of each token, ``len(LETTERS)`` of filler;
            and the digit, ``len(DIGITS)`` of filler and one more of a question.
        answers: The digits that are asked for, ``[batch, QUESTIONS]``.
        places: Where they stand, ``[batch, QUESTIONS]``.
    """

    tokens: Tensor
    answers: Tensor
    places: Tensor


def draw_facts(batch: int, length: int, facts: int, generator: torch.Generator) -> Facts:
    """Draw sequences: facts about different letters in random places, then questions.

    Args:
        batch: How many.
        length: Of each, with its questions.
        facts: How many each tells.
        generator: Draws.

    Raises:
        ValueError: So many facts have no room, or no letters.
    """
    room = length - QUESTIONS
    most = min(room, len(LETTERS))
    if not 1 <= facts <= most:
        raise ValueError(f"facts must be in [1, {most}], got {facts}.")

    def some_of(count: int) -> Tensor:  # different ones for each sequence
        return torch.rand(batch, count, generator=generator).argsort(-1)[:, :facts]

    letters, places = some_of(len(LETTERS)), some_of(room)
    digits = torch.randint(len(DIGITS), (batch, facts), generator=generator)
    asked = torch.randint(facts, (batch, QUESTIONS), generator=generator)
    tokens = torch.tensor([len(LETTERS), len(DIGITS)]).repeat(batch, length, 1)
    told = torch.stack([letters, digits], -1)
    tokens.scatter_(1, places.unsqueeze(-1).expand_as(told), told)
    tokens[:, room:, 0] = letters.gather(1, asked)
    tokens[:, room:, 1] = len(DIGITS) + 1
    return Facts(tokens, digits.gather(1, asked), places.gather(1, asked))


def spell(tokens: Tensor) -> list[str]:
    """A sequence as text.

    Args:
        tokens: ``[length, 2]``, of ``draw_facts``.

    Example:
        >>> spell(torch.tensor([[26, 10], [1, 7], [26, 10], [1, 11]]))
        ['.', 'B=7', '.', 'B?']
    """
    says = [*(f"={digit}" for digit in DIGITS), "", "?"]
    return [(LETTERS + ".")[letter] + says[digit] for letter, digit in tokens.tolist()]


class Recall(nn.Module):
    """Tokens, one layer or more of attention and a feed-forward network, digits.

    There are no positions in it: full attention does not need any to find a letter, and a
    learned projection tells positions apart by itself.

    Args:
        kind: ``"full"``, ``"window"`` or ``"linformer"``.
        length: Of the sequences.
        width: Of the tokens.
        num_heads: Of each layer.
        depth: How many layers.
        options: Of ``WindowedSelfAttention`` or ``LinformerAttention``, such as
            ``projected_len``.
    """

    def __init__(
        self,
        kind: str,
        length: int = LENGTH,
        *,
        width: int = 32,
        num_heads: int = 4,
        depth: int = 1,
        **options: Any,
    ) -> None:
        super().__init__()
        self.letter = nn.Embedding(len(LETTERS) + 1, width, padding_idx=len(LETTERS))
        self.digit = nn.Embedding(len(DIGITS) + 2, width, padding_idx=len(DIGITS))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))
        self.attention = nn.ModuleList()
        for _ in range(depth):
            layer: nn.Module
            if kind == "window":
                layer = WindowedSelfAttention(width, num_heads, **options)
            elif kind == "full":
                layer = LinformerAttention(width, num_heads, length, length, full_attention=True)
            else:
                layer = LinformerAttention(width, num_heads, length, **options)
            self.attention.append(layer)
        self.feed_forward = nn.ModuleList(
            PositionwiseFeedForward(width, 2 * width) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, len(DIGITS))

    def forward(self, tokens: Tensor, *, need_weights: bool = False) -> Any:
        """Answer the questions.

        Args:
            tokens: ``[batch, length, 2]``, of ``draw_facts``.
            need_weights: Return the weights as well.

        Returns:
            Logits, ``[batch, QUESTIONS, 10]``; with ``need_weights`` also a list of each
            layer's weights.
        """
        x = self.letter(tokens[..., 0]) + self.digit(tokens[..., 1])
        layers = []
        for i, (attention, feed_forward) in enumerate(
            zip(self.attention, self.feed_forward, strict=True)
        ):
            found = attention(self.norms[2 * i](x), need_weights=need_weights)
            update, weights = found if need_weights else (found, None)
            layers.append(weights)
            x = x + update
            x = x + feed_forward(self.norms[2 * i + 1](x))
        logits = self.output(self.norm(x[:, -QUESTIONS:]))
        return (logits, layers) if need_weights else logits


class FactBatches:
    """Sequences to train on, never the same; it goes on from where it stopped.

    In the first half of all steps a batch has any number of facts, up to ``facts``: what is
    to be done is learnt from few, where nothing is in the way.

    Args:
        batch_size: Sequences a step.
        length: Of the sequences.
        facts: How many each tells.
        steps: How many batches there are in ``EPOCHS`` rounds.
        seed: Of all that is drawn.

    Reference:
        Bengio et al. (2009), Curriculum learning.
    """

    def __init__(self, batch_size: int, length: int, facts: int, steps: int, seed: int) -> None:
        self.batch_size, self.length, self.facts, self.steps = batch_size, length, facts, steps
        self.generator, self.made = torch.Generator().manual_seed(seed), 0

    def __len__(self) -> int:
        """Steps of a round."""
        return self.steps // EPOCHS

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw a round."""
        for _ in range(len(self)):
            count = self.facts
            if self.made < self.steps // 2:
                count = int(torch.randint(1, self.facts + 1, (), generator=self.generator))
            self.made += 1
            batch = draw_facts(self.batch_size, self.length, count, self.generator)
            yield batch.tokens, batch.answers


def wrongness(logits: Tensor, answers: Tensor) -> Tensor:
    """Cross entropy of all questions."""
    return nn.functional.cross_entropy(logits.flatten(0, 1), answers.flatten())


def train(
    model: nn.Module,
    *,
    length: int = LENGTH,
    facts: int = FACTS,
    steps: int = STEPS,
    batch_size: int = BATCH_SIZE,
    max_lr: float = MAX_LR,
    seed: int = 0,
    progress: bool = True,
) -> History:
    """Train on sequences that are never the same.

    Args:
        model: What to train, in place.
        length: Of the sequences.
        facts: How many each tells.
        steps: How many batches, a multiple of ``EPOCHS``.
        batch_size: Sequences in each.
        max_lr: The highest learning rate, of a cycle that begins and ends low.
        seed: Of the sequences.
        progress: Show a progress bar where someone can see it.

    Returns:
        What ``fit`` returns, with ``EPOCHS`` epochs.
    """
    optimizer = one_cycle(model.parameters(), max_lr, steps)
    return fit(
        model,
        FactBatches(batch_size, length, facts, steps, seed),
        wrongness,
        epochs=EPOCHS,
        optimizer=optimizer,
        clip_norm=1.0,
        seed=seed,
        progress=progress,
    )


@torch.no_grad()
def judge(model: nn.Module, *, length: int = LENGTH, facts: int = FACTS) -> Record:
    """The share of right answers in ``JUDGED`` unseen sequences.

    Returns:
        ``"accuracy"``; the same ``"by_distance"``: of facts that are told in the last quarter
        of what precedes the questions, in the one before, and so on; and ``"by_facts"``, for
        sequences that tell 1, 2, 4, ... facts.
    """
    found = _judged(model, length, facts)
    fewer = [2**i for i in range(facts.bit_length()) if 2**i < facts]
    some = [_judged(model, length, count)["accuracy"] for count in fewer]
    return found | {"by_facts": [[*fewer, facts], [*some, found["accuracy"]]]}


def _judged(model: nn.Module, length: int, facts: int) -> Record:
    draw = torch.Generator().manual_seed(1_000_000)
    right, quarters = [], []
    for _ in range(JUDGED // 128):
        batch = draw_facts(128, length, facts, draw)
        right.append(model(batch.tokens).argmax(-1) == batch.answers)
        quarters.append(3 - 4 * batch.places // (length - QUESTIONS))
    hits, quarter = torch.cat(right), torch.cat(quarters)

    def share(some: Tensor) -> float:
        return round(some.double().mean().item(), 4)

    return {"accuracy": share(hits), "by_distance": [share(hits[quarter == i]) for i in range(4)]}


def recall(
    kind: str,
    seed: int,
    *,
    length: int = LENGTH,
    facts: int = FACTS,
    steps: int = STEPS,
    **options: Any,
) -> tuple[Recall, Record]:
    """Train a model and judge it.

    Args:
        kind: As in ``Recall``.
        seed: Of the parameters and of the sequences.
        length: Of the sequences.
        facts: How many each tells.
        steps: How many batches.
        options: Others of ``Recall``.
    """
    seed_everything(seed)
    model = Recall(kind, length, **options)
    start, used = time.perf_counter(), time.process_time()
    train(model, length=length, facts=facts, steps=steps, seed=seed)
    record = {
        "seed": seed,
        "kind": kind,
        "length": length,
        "facts": facts,
        "options": options,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "seconds": round(time.perf_counter() - start, 1),
        "core_seconds": round(time.process_time() - used, 1),
        "threads": torch.get_num_threads(),
        "judged": JUDGED,
    }
    return model, record | judge(model, length=length, facts=facts)


def run(kind: str, seed: int, **options: Any) -> Record:
    """The record of ``recall``."""
    return recall(kind, seed, **options)[1]


def name_of(slots: int, length: int = LENGTH, facts: int = FACTS) -> str:
    """What the run is called that has so many slots, positions and facts."""
    return f"recall_k{slots}_n{length}_facts{facts}"


def slots_run(slots: int, length: int = LENGTH, facts: int = FACTS) -> Callable[[int], Record]:
    """The run of that name."""
    return partial(
        run, "linformer", length=length, facts=facts, projected_len=slots, sharing=SHARING
    )


#: Slots, length and facts, if one of them grows, or two together, or all: n/k is the same in
#: the second and in the last, facts for each slot in the first two and in the last.
GROWING: dict[str, list[tuple[int, int, int]]] = {
    "n": [(16, 64, 8), (16, 128, 8), (16, 256, 8)],
    "n and k": [(8, 64, 8), (16, 128, 8), (32, 256, 8)],
    "n and facts": [(16, 64, 4), (16, 128, 8), (16, 256, 16)],
    "n, k and facts": [(8, 64, 4), (16, 128, 8), (32, 256, 16)],
}

#: At ``MIDDLE`` slots: options of ``LinformerAttention``.
VARIANTS: dict[str, dict[str, Any]] = {
    "recall_convolution": {"projection": "convolution", "sharing": SHARING},
    "recall_pooling": {"projection": "pooling", "sharing": SHARING},
    "recall_random": {"projection": "random", "sharing": SHARING},
    "recall_sharing_none": {"sharing": "none"},
    "recall_sharing_headwise": {"sharing": "headwise"},
}

#: Name -> the training, a function of the seed.
RUNS: dict[str, Callable[[int], Record]] = {
    "recall_full": partial(run, "full"),
    "recall_full_n256_facts16": partial(run, "full", length=256, facts=16),
    "recall_window": partial(run, "window", window=16),
    "recall_window_deep": partial(run, "window", window=16, depth=2),
    **{name_of(slots): slots_run(slots) for slots in SLOTS},
    **{name_of(*sizes): slots_run(*sizes) for rows in GROWING.values() for sizes in rows},
    **{
        name: partial(run, "linformer", projected_len=MIDDLE, **options)
        for name, options in VARIANTS.items()
    },
}


def load_recall(name: str = "recall_linformer") -> Recall:
    """A model that comes with the course, trained, in evaluation mode.

    Args:
        name: A key of ``PRETRAINED``.

    Raises:
        ValueError: There is none of that name.
    """
    config, state = pretrained(name)
    model = Recall(**config["model"])
    model.load_state_dict(state)
    return model.eval()


def _keep(name: str, kind: str, **options: Any) -> Path:
    """Train and store a model; it is judged as it is stored, in half precision."""
    model, record = recall(kind, 0, **options)
    round_to_stored(model)
    config = {"model": {"kind": kind} | options, "seed": 0, "steps": record["steps"]}
    return save_pretrained(name, config | judge(model), model.state_dict())


#: Name of a model that comes with the course -> what trains and stores it.
PRETRAINED: dict[str, Callable[[], Path]] = {
    "recall_full": partial(_keep, "recall_full", "full"),
    "recall_linformer": partial(
        _keep, "recall_linformer", "linformer", projected_len=MIDDLE, sharing=SHARING
    ),
}
