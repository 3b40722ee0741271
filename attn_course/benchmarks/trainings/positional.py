"""Trainings of chapter 5: an encoder of self-attention, and what a position is good for."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from attn_course._validation import check_choice
from attn_course.benchmarks.trainings.common import SHORT_EPOCHS, SHORT_SIZE, Record, on_grammar
from attn_course.data import Vocabulary
from attn_course.multi_head import MultiHeadAttention
from attn_course.positional import (
    LearnedEncoding,
    RotaryEmbedding,
    SinusoidalEncoding,
    add_sinusoid,
    linear_slopes,
)
from attn_course.seq2seq import AttentionDecoder, EncoderOutput, Seq2Seq, Translator
from attn_course.training import seed_everything

#: How attention is told where tokens stand.
SCHEMES = ("none", "sinusoidal", "learned", "rotary", "linear")


class Position(nn.Module):
    """One of ``SCHEMES``, in the two places where a position can enter.

    Args:
        scheme: Which one.
        width: Of the tokens.
        num_heads: Of the attention.
        max_len: The longest sequence, for vectors that are learned.

    Attributes:
        add: Adds the position to the tokens, or leaves them as they are.
        in_heads: What ``MultiHeadAttention`` takes as ``position``.
    """

    def __init__(self, scheme: str, width: int, num_heads: int, max_len: int) -> None:
        super().__init__()
        check_choice("scheme", scheme, SCHEMES)
        self.add: nn.Module = nn.Identity()
        self.in_heads: nn.Module | Tensor | None = None
        if scheme == "sinusoidal":
            self.add = SinusoidalEncoding(width)
        elif scheme == "learned":
            self.add = LearnedEncoding(max_len, width)
        elif scheme == "rotary":
            self.in_heads = RotaryEmbedding(width // num_heads)
        elif scheme == "linear":
            self.in_heads = linear_slopes(num_heads)


class SelfAttentionEncoder(nn.Module):
    """Embeddings, and one layer of self-attention whose answers are added to them.

    It stands where chapter 3 has a recurrent encoder. The decoder starts from the mean of
    the states, which knows no order.

    Args:
        vocab_size: How many token ids there are.
        scheme: How tokens know their places, one of ``SCHEMES``.
        width: Of embeddings and states.
        num_heads: Of the attention.
        max_len: The longest sentence, for vectors that are learned.
    """

    num_layers, cell = 1, "gru"  # of the decoder

    def __init__(
        self,
        vocab_size: int,
        scheme: str,
        *,
        width: int = 128,
        num_heads: int = 4,
        max_len: int = 24,
    ) -> None:
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(vocab_size, width)
        self.position = Position(scheme, width, num_heads, max_len)
        self.attention = MultiHeadAttention(width, num_heads)

    def forward(self, source: Tensor, source_lens: Tensor) -> EncoderOutput:
        """Read ``[batch, source_len]``, of which ``source_lens`` count."""
        x = self.position.add(self.embedding(source))
        states = x + self.attention(x, valid_lens=source_lens, position=self.position.in_heads)
        return self.give(states, source_lens)

    def give(self, states: Tensor, source_lens: Tensor) -> EncoderOutput:
        """The states, zero at padding, and their mean."""
        real = torch.arange(states.shape[1], device=states.device) < source_lens[:, None]
        states = states * real[..., None]
        mean = states.sum(1) / source_lens[:, None]
        return EncoderOutput(states, (mean[None],))


class MarkedEncoder(SelfAttentionEncoder):
    """Sinusoids are added to the states, too, so that the decoder can read the places."""

    def give(self, states: Tensor, source_lens: Tensor) -> EncoderOutput:
        """The marked states, zero at padding, and their mean."""
        return super().give(add_sinusoid(states), source_lens)


def build(
    scheme: str, source: Vocabulary, target: Vocabulary, *, marked: bool = False
) -> Translator:
    """One of the encoders above, and chapter 3's decoder."""
    encoder = (MarkedEncoder if marked else SelfAttentionEncoder)(len(source), scheme)
    decoder = AttentionDecoder(len(target), 64, 128, memory_dim=encoder.width)
    return Translator(Seq2Seq(encoder, decoder), source, target)  # type: ignore[arg-type]


def run_grammar(scheme: str, seed: int, *, marked: bool = False) -> Record:
    """A short training; see ``on_grammar``."""
    make = partial(build, scheme, marked=marked)
    return on_grammar(make, seed, size=SHORT_SIZE, epochs=SHORT_EPOCHS)


#: Of the tokens to look up: a letter and a digit each.
LETTERS, DIGITS = 6, 8

#: How far back the second task looks.
BACK = 3

#: What is asked at each token, of the tokens before it.
TASKS = ("recent", "back")

#: The length to learn from, and the lengths to be tested on.
TRAIN_LEN, TEST_LENS = 20, (20, 25, 30, 40, 60, 80)


def look_up(task: str, batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Random letters, digits, and the digit to be found at each place.

    ``"recent"``: the digit that stood with this letter last time. ``"back"``: the digit
    ``BACK`` places before. It is -100 where there is none.

    Returns:
        ``letters``, ``digits`` and ``labels``, each ``[batch, length]``.
    """
    check_choice("task", task, TASKS)
    letters = torch.randint(LETTERS, (batch, length), generator=generator)
    digits = torch.randint(DIGITS, (batch, length), generator=generator)
    here = torch.arange(length)
    if task == "back":
        found = (here - BACK).expand(batch, -1)
    else:
        same = letters[:, :, None] == letters[:, None]
        found = torch.where(same & (here < here[:, None]), here, -1).amax(-1)
    labels = digits.gather(1, found.clamp_min(0)).masked_fill(found < 0, -100)
    return letters, digits, labels


class Finder(nn.Module):
    """One attention layer: a letter asks the earlier tokens, and the answer is a digit.

    Args:
        scheme: How tokens know their places, one of ``SCHEMES``.
        width: Of the tokens.
        num_heads: Of the attention.
    """

    def __init__(self, scheme: str, *, width: int = 32, num_heads: int = 4) -> None:
        super().__init__()
        self.letter = nn.Embedding(LETTERS, width)
        self.digit = nn.Embedding(DIGITS, width)
        self.position = Position(scheme, width, num_heads, max(TEST_LENS))
        self.attention = MultiHeadAttention(width, num_heads)
        self.out = nn.Linear(width, DIGITS)

    def forward(
        self, letters: Tensor, digits: Tensor, *, need_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits of the digits, ``[batch, length, DIGITS]``; and the weights of each head."""
        letter = self.letter(letters)
        n = letters.shape[1]
        answer, weights = self.attention(
            self.position.add(letter),
            self.position.add(letter + self.digit(digits)),
            mask=torch.ones(n, n, dtype=torch.bool).tril(-1),
            position=self.position.in_heads,
            need_weights=True,
        )
        logits: Tensor = self.out(answer)
        return (logits, weights) if need_weights else logits


def learn(
    task: str, scheme: str, seed: int, *, steps: int = 600, batch: int = 64, max_lr: float = 1e-2
) -> Finder:
    """Train a ``Finder`` on sequences of ``TRAIN_LEN`` tokens."""
    seed_everything(seed)
    model, generator = Finder(scheme), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr, total_steps=steps)
    for _ in range(steps):
        letters, digits, labels = look_up(task, batch, TRAIN_LEN, generator)
        logits = model(letters, digits)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def found(model: Finder, task: str, length: int) -> float:
    """The share of right answers at the last ten places of sequences of a length."""
    generator = torch.Generator().manual_seed(length)
    letters, digits, labels = look_up(task, 200, length, generator)
    right = model(letters, digits).argmax(-1) == labels
    asked = labels[:, -10:] >= 0
    return round(right[:, -10:][asked].float().mean().item(), 4)


def run_find(task: str, seed: int) -> Record:
    """Each scheme learns the task, and is tested on longer sequences than it has seen."""
    start = time.perf_counter()
    models = {scheme: learn(task, scheme, seed) for scheme in SCHEMES}
    return {
        "seed": seed,
        "seconds": round(time.perf_counter() - start, 1),
        "parameters": {s: sum(p.numel() for p in m.parameters()) for s, m in models.items()},
        "lengths": list(TEST_LENS),
        "right": {s: [found(m, task, n) for n in TEST_LENS] for s, m in models.items()},
    }


#: Name -> the training, a function of the seed.
RUNS: dict[str, Callable[[int], Record]] = {
    **{f"position_{scheme}": partial(run_grammar, scheme) for scheme in SCHEMES},
    "position_marked": partial(run_grammar, "rotary", marked=True),
    **{f"find_{task}": partial(run_find, task) for task in TASKS},
}

PRETRAINED: dict[str, Callable[[], Path]] = {}
