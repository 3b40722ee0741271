"""The training loop that every chapter uses."""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attn_course._validation import check_counts, check_positive
from attn_course.training.history import History
from attn_course.training.progress import Progress


def seed_everything(seed: int) -> None:
    """Seed the random numbers of Python, NumPy and PyTorch (on every device).

    Args:
        seed: An integer from 0 to ``2**32 - 1``.

    Raises:
        ValueError: ``seed`` is anything else.

    Example:
        >>> seed_everything(0)
        >>> first = torch.rand(2)
        >>> seed_everything(0)
        >>> torch.equal(first, torch.rand(2))
        True
    """
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer in [0, 2**32), got {seed!r}.")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def fit(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    loss_fn: Callable[[Any, Any], Tensor],
    *,
    epochs: int,
    optimizer: torch.optim.Optimizer | None = None,
    lr: float | None = None,
    validate: Callable[[nn.Module], float | Tensor] | None = None,
    patience: int | None = None,
    clip_norm: float | None = None,
    device: torch.device | str | None = None,
    seed: int | None = 0,
    progress: bool = True,
) -> History:
    """Train a model; leave it in evaluation mode, ready to predict.

    Args:
        model: What to train, in place.
        batches: Gives ``(inputs, target)`` pairs, anew each time it is iterated over: a
            ``DataLoader``, or for a full batch a list of one pair. The model is called
            with a tensor as its only argument, with a tuple or list as its positional
            arguments, with a dict as its keyword arguments.
        loss_fn: ``loss_fn(output, target)``, a single number to make small.
        epochs: How many times to go through ``batches`` at most.
        optimizer: Changes the parameters; ``None`` for Adam with learning rate ``lr``.
        lr: The learning rate of that Adam, 1e-3 if not given.
        validate: ``validate(model)``, called after each epoch in evaluation mode and
            without gradients: a number that is better if lower, e.g. an error rate.
        patience: Stop once this many epochs in a row have not brought a lower
            validation value, and in any case put back the parameters of the best epoch.
        clip_norm: Shrink the gradient of all parameters together to this length
            where it is longer.
        device: Where to train; ``None`` for where the model is. The model stays there.
        seed: Passed to ``seed_everything`` first, so that the same model and batches
            train alike in every run; ``None`` leaves the random numbers as they are.
            A ``DataLoader`` with a generator of its own goes on from that generator's state.
        progress: Show a progress bar and a closing line where someone can see them.

    Returns:
        The losses and validation values of the run.

    Raises:
        TypeError: ``batches`` does not give pairs, or can be iterated over only once.
        ValueError: A number is out of range, ``patience`` comes without ``validate``,
            ``lr`` comes with an ``optimizer``, there is nothing to train or to train
            on, or the loss is not a single number.
        FloatingPointError: The loss, its gradient or the validation value is infinite
            or not a number; the message names the epoch.

    Example:
        >>> from torch import nn
        >>> seed_everything(0)
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(-1)
        >>> line = nn.Linear(1, 1)
        >>> batches, loss_fn = [(x, 2 * x)], nn.functional.mse_loss
        >>> history = fit(line, batches, loss_fn, lr=0.1, epochs=200, progress=False)
        >>> history.train_loss[-1] < 1e-6
        True
        >>> f"{line(torch.ones(1)).item():.3f}"
        '2.000'
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    _check_arguments(parameters, batches, epochs, optimizer, lr, validate, patience, clip_norm)
    if seed is not None:
        seed_everything(seed)
    device = parameters[0].device if device is None else torch.device(device)
    model.to(device)
    if optimizer is None:
        optimizer = torch.optim.Adam(parameters, lr=1e-3 if lr is None else lr)

    history = History(planned_epochs=epochs)
    lowest, best_state = math.inf, None
    start = time.perf_counter()
    with Progress(epochs, show=progress) as bar:
        for epoch in range(1, epochs + 1):
            model.train()
            losses: list[float] = []
            for inputs, target in _pairs(batches, device):
                loss = loss_fn(_call(model, inputs), target)
                losses.append(_number("loss", loss, epoch))
                optimizer.zero_grad()
                loss.backward()
                norm = nn.utils.clip_grad_norm_(parameters, clip_norm or math.inf)
                _number("gradient's length", norm, epoch)
                optimizer.step()
                bar.update(epoch - 1 + _fraction(len(losses), batches), losses[-1])
            if not losses:
                raise ValueError(f"batches gave nothing to train on in epoch {epoch}.")
            history.train_loss.append(sum(losses) / len(losses))

            if validate is None:
                continue
            model.eval()
            with torch.no_grad():
                history.val.append(_number("validation value", validate(model), epoch))
            if history.val[-1] < lowest:
                lowest, history.best_epoch = history.val[-1], epoch
                if patience is not None:
                    best_state = copy.deepcopy(model.state_dict())
            elif patience is not None and epoch - (history.best_epoch or 0) >= patience:
                break

        if best_state is not None:
            model.load_state_dict(best_state)
        model.eval()
        history.seconds = time.perf_counter() - start
        bar.finish(repr(history))
    return history


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def _pairs(batches: Iterable[Any], device: torch.device) -> Iterator[tuple[Any, Any]]:
    """The batches on ``device``, each checked to be a pair."""
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            came = type(batch).__name__
            if isinstance(batch, tuple | list):
                came += f" of {len(batch)}"
            raise TypeError(f"batches must give (inputs, target) pairs, got a {came}.")
        yield move(batch[0], device), move(batch[1], device)


def move(value: Any, device: torch.device | str) -> Any:
    """Move every tensor in nested tuples, lists and dicts to ``device``.

    Example:
        >>> moved = move({"query": torch.ones(2), "lens": (torch.ones(1), 3)}, "meta")
        >>> moved["query"].device.type, moved["lens"][1]
        ('meta', 3)
    """
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: move(item, device) for name, item in value.items()}
    if isinstance(value, tuple | list):
        items = [move(item, device) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def _number(name: str, value: float | Tensor, epoch: int) -> float:
    """``value`` as a float, checked to be a single, finite number."""
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(
            f"the {name} must be a single number, got a tensor of shape {list(value.shape)}. "
            "Take its mean or sum."
        )
    number = float(value.detach() if isinstance(value, Tensor) else value)
    if not math.isfinite(number):
        raise FloatingPointError(
            f"the {name} became {number} in epoch {epoch}. Look for a division by zero or a "
            "logarithm of zero, or try a lower learning rate or clip_norm."
        )
    return number


def _fraction(done: int, batches: Any) -> float:
    """The part of an epoch that ``done`` batches are; 0 if the whole is unknown."""
    return min(1.0, done / len(batches)) if hasattr(batches, "__len__") else 0.0


def _check_arguments(
    parameters: list[nn.Parameter],
    batches: Any,
    epochs: int,
    optimizer: torch.optim.Optimizer | None,
    lr: float | None,
    validate: Any,
    patience: int | None,
    clip_norm: float | None,
) -> None:
    if not parameters:
        raise ValueError("model has no parameters to train.")
    if isinstance(batches, Iterator):
        raise TypeError(
            "batches can be iterated over only once, so the second epoch would find nothing: "
            "pass a list or a DataLoader, not an iterator or a generator."
        )
    for name, count in (("epochs", epochs), ("patience", patience)):
        if count is not None:
            check_counts(**{name: count})
    for name, number in (("lr", lr), ("clip_norm", clip_norm)):
        if number is not None:
            check_positive(name, number)
    if optimizer is not None and lr is not None:
        raise ValueError(
            "lr sets the rate of the default optimizer: give lr or optimizer, not both."
        )
    if patience is not None and validate is None:
        raise ValueError("patience looks at the validation value: give validate as well.")
