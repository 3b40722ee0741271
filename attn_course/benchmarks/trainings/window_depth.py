"""A training of chapter 8: how far news travels through windows, layer after layer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from attn_course.benchmarks.trainings.common import Record
from attn_course.long_sequences import WindowedSelfAttention
from attn_course.training import seed_everything
from attn_course.transformer import PositionwiseFeedForward

#: Steps to each side, and layers.
WINDOWS, DEPTHS = (4, 6, 8, 16), (1, 2, 3, 4)

#: How far the first symbol is from the last, and how many symbols there are.
DISTANCE, SYMBOLS = 16, 8

#: Sequences to be judged by.
JUDGED = 2048


class FirstFromLast(nn.Module):
    """Layers of windowed attention that are asked at the end for what stood at the beginning.

    Args:
        window: Steps to each side that a layer sees.
        depth: How many layers, each with a feed-forward network, norm first.
        length: Of the sequences, whose places are learned.
        width: Of the tokens.
        num_heads: Of each layer.
    """

    def __init__(
        self, window: int, depth: int, length: int, width: int = 32, num_heads: int = 4
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(SYMBOLS, width)
        self.place = nn.Parameter(torch.randn(length, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))
        self.attention = nn.ModuleList(
            WindowedSelfAttention(width, num_heads, window=window) for _ in range(depth)
        )
        self.feed_forward = nn.ModuleList(
            PositionwiseFeedForward(width, 2 * width) for _ in range(depth)
        )
        self.output = nn.Linear(width, SYMBOLS)

    def forward(self, symbols: Tensor) -> Tensor:
        """What stood first, ``[batch, SYMBOLS]`` before softmax, as the last step knows it.

        Args:
            symbols: ``[batch, length]``.
        """
        x = self.token(symbols) + self.place
        layers = zip(self.attention, self.feed_forward, strict=True)
        for k, (attention, feed_forward) in enumerate(layers):
            x = x + attention(self.norms[2 * k](x))
            x = x + feed_forward(self.norms[2 * k + 1](x))
        output: Tensor = self.output(x[:, -1])
        return output


def accuracy(
    window: int, depth: int, seed: int, *, steps: int = 600, batch: int = 64, max_lr: float = 3e-3
) -> float:
    """Train on random sequences; the share of unseen ones whose first symbol is told.

    Args:
        window: As in ``FirstFromLast``, and so the next.
        depth: How many layers.
        seed: Of parameters and sequences.
        steps: How many batches.
        batch: Sequences in each.
        max_lr: The highest learning rate, of a cycle that begins and ends low.
    """
    seed_everything(seed)
    model = FirstFromLast(window, depth, DISTANCE + 1)
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr, total_steps=steps + 1)
    for _ in range(steps):
        symbols = torch.randint(SYMBOLS, (batch, DISTANCE + 1), generator=draw)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(symbols), symbols[:, 0]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    symbols = torch.randint(SYMBOLS, (JUDGED, DISTANCE + 1), generator=draw)
    with torch.no_grad():
        right = model(symbols).argmax(-1) == symbols[:, 0]
    return round(right.double().mean().item(), 4)


def run(
    seed: int, *, windows: Sequence[int] = WINDOWS, depths: Sequence[int] = DEPTHS, steps: int = 600
) -> Record:
    """Every window with every depth."""
    start, used = time.perf_counter(), time.process_time()
    found = [[accuracy(w, depth, seed, steps=steps) for depth in depths] for w in windows]
    return {
        "seed": seed,
        "distance": DISTANCE,
        "symbols": SYMBOLS,
        "judged": JUDGED,
        "windows": list(windows),
        "depths": list(depths),
        "steps": steps,
        "accuracy": found,
        "seconds": round(time.perf_counter() - start, 1),
        "core_seconds": round(time.process_time() - used, 1),
        "threads": torch.get_num_threads(),
    }


#: Name -> the training, a function of the seed.
RUNS: dict[str, Callable[[int], Record]] = {"window_depth": run}

PRETRAINED: dict[str, Callable[[], Path]] = {}
