"""What trainings share, whatever they train: the optimiser, and rounding to what is stored."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def one_cycle(
    parameters: Iterable[Tensor],
    max_lr: float,
    steps: int,
    *,
    betas: tuple[float, float] = (0.9, 0.98),
    warmup: float = 0.1,
) -> torch.optim.Optimizer:
    """Adam, whose learning rate rises fast and then falls to nothing, step by step.

    Args:
        parameters: What it changes.
        max_lr: The highest learning rate.
        steps: How many there will be.
        betas: As in ``torch.optim.Adam``.
        warmup: The share of the steps in which the learning rate rises.

    Reference:
        Smith and Topin (2019), Super-convergence, for the schedule.
    """
    optimizer = torch.optim.Adam(parameters, betas=betas, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr, total_steps=steps + 1, pct_start=warmup
    )
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    return optimizer


@torch.no_grad()
def round_to_stored(model: nn.Module) -> None:
    """Round parameters to half precision, so that what is judged is what is stored."""
    for parameter in model.parameters():
        parameter.copy_(parameter.half().float())
