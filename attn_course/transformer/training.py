"""What training a Transformer asks for besides data: smoothed labels and a warm-up."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attn_course._validation import check_counts, check_floating, check_ids


def label_smoothing_loss(
    logits: Tensor, target: Tensor, *, smoothing: float = 0.1, pad: int | None = None
) -> Tensor:
    """Cross-entropy with targets that leave a little room for the other tokens.

    The right token is given 1 - ``smoothing``; the others share ``smoothing`` evenly. Padding
    is nobody's right answer: its id gets nothing, and targets that are padding do not count.

    PyTorch's ``label_smoothing=e`` gives e / vocab_size to every class, the right one and
    padding included. Without padding the two agree at e = smoothing * vocab_size /
    (vocab_size - 1).

    Args:
        logits: ``[..., vocab_size]``.
        target: The ids of the right tokens, ``[...]``.
        smoothing: In [0, 1); 0 is plain cross-entropy.
        pad: The id of padding, if there is any.

    Returns:
        The mean over all targets that are not padding, ``[]``; 0 where there are none. Half
        precision is computed in float32, and the mean stays in it.

    Raises:
        TypeError: A tensor has the wrong kind of numbers.
        ValueError: A shape, an id or a number is out of place, or no other token is left.

    Reference:
        Szegedy et al. (2016), Rethinking the Inception architecture, section 7; Vaswani et
        al. (2017), section 5.4.

    Example:
        >>> logits = torch.tensor([[0.8, 0.1, 0.1], [0.6, 0.2, 0.2]]).log()
        >>> label_smoothing_loss(logits, torch.tensor([0, 0]), smoothing=0.0)
        tensor(0.3670)
        >>> label_smoothing_loss(logits, torch.tensor([0, 2]), smoothing=0.5, pad=2)
        tensor(1.2629)
    """
    check_floating("logits", logits)
    if logits.ndim < 1 or logits.shape[-1] == 0:
        raise ValueError(f"logits must have shape [..., vocab_size], got {list(logits.shape)}.")
    vocab_size = logits.shape[-1]
    check_ids("target", target, logits.shape[:-1], vocab_size)
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must lie in [0, 1), got {smoothing!r}.")
    if pad is not None and (isinstance(pad, bool) or pad not in range(vocab_size)):
        raise ValueError(f"pad must be None or an id in [0, {vocab_size}), got {pad!r}.")
    others = vocab_size - (1 if pad is None else 2)
    if smoothing and others < 1:
        raise ValueError(
            f"smoothing must be 0 where no other token is left to share it, got {smoothing} "
            f"with {vocab_size} tokens and pad={pad}."
        )
    log_p = logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    right = log_p.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    loss = -right
    if smoothing:
        if pad is not None:  # not subtracted from the sum: its logit may be -inf
            log_p = log_p.masked_fill(torch.arange(vocab_size, device=log_p.device) == pad, 0)
        rest = log_p.sum(-1) - right
        loss = -(1 - smoothing) * right - smoothing / others * rest
    if pad is None:
        return loss.sum() / max(1, loss.numel())
    counts = target != pad
    return loss.masked_fill(~counts, 0).sum() / counts.sum().clamp(min=1)


def warmup_factor(step: int, warmup_steps: int) -> float:
    """What the highest learning rate is multiplied by: rise evenly, then fall as 1/sqrt.

    With n = ``step`` + 1, since schedulers count from 0 and the paper from 1:

        factor = min(n / warmup_steps, sqrt(warmup_steps / n))

    It is 1 at the end of the warm-up. The paper's rate is the factor times
    ``1 / sqrt(embed_dim * warmup_steps)``.

    Args:
        step: How many steps have been made.
        warmup_steps: How many steps the rate rises.

    Raises:
        ValueError: A number is out of place.

    Reference:
        Vaswani et al. (2017), Attention is all you need, equation 3.

    Example:
        >>> [round(warmup_factor(step, 4), 3) for step in range(6)]
        [0.25, 0.5, 0.75, 1.0, 0.894, 0.816]
        >>> optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
        >>> scheduler = torch.optim.lr_scheduler.LambdaLR(
        ...     optimizer, lambda step: warmup_factor(step, warmup_steps=4)
        ... )
        >>> optimizer.param_groups[0]["lr"]
        0.00025
    """
    check_counts(warmup_steps=warmup_steps)
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ValueError(f"step must be an integer of at least 0, got {step!r}.")
    n = step + 1
    return min(n / warmup_steps, math.sqrt(warmup_steps / n))
