"""What a training run leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(repr=False)
class History:
    """The course of one training run. Epochs count from 1.

    Two histories are equal if everything but their time is equal.

    Attributes:
        train_loss: The mean loss of the batches of each epoch.
        val: The validation value after each epoch; empty without validation.
        best_epoch: The epoch with the lowest validation value, or ``None``.
        planned_epochs: How many epochs were asked for; early stopping may have ended
            the run before.
        seconds: How long the run took.

    Example:
        >>> History(train_loss=[0.5, 0.25], val=[0.3, 0.4], best_epoch=1, planned_epochs=9)
        stopped after 2 of 9 epochs, last mean loss 0.25, best epoch 1
    """

    train_loss: list[float] = field(default_factory=list)
    val: list[float] = field(default_factory=list)
    best_epoch: int | None = None
    planned_epochs: int = 0
    seconds: float = field(default=0.0, compare=False)

    def __repr__(self) -> str:
        """One line without timings, so that it is the same in every run."""
        done = len(self.train_loss)
        if done < self.planned_epochs:
            text = f"stopped after {done} of {self.planned_epochs} epochs"
        else:
            text = f"{done} epoch" if done == 1 else f"{done} epochs"
        if self.train_loss:
            text += f", {'last ' if done > 1 else ''}mean loss {self.train_loss[-1]:.4g}"
        if self.best_epoch is not None:
            text += f", best epoch {self.best_epoch}"
        return text

    def plot(self, ax: Axes) -> None:
        """Draw the training loss, and the validation values if there are any.

        Args:
            ax: The matplotlib axes to draw into.
        """
        epochs = range(1, len(self.train_loss) + 1)
        marker = "o" if len(self.train_loss) == 1 else ""  # a line of one point is invisible
        ax.plot(epochs, self.train_loss, marker=marker, label="training loss")
        if self.val:
            ax.plot(epochs, self.val, marker=marker, linestyle="--", label="validation")
            ax.legend()
        ax.set_xlabel("epoch")
        ax.set_ylabel("value" if self.val else "training loss")
