"""The loss on sentences that a training does not see, while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from attn_course.benchmarks.trainings.common import next_token_loss
from attn_course.data import Pair
from attn_course.seq2seq import Translator

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class LossCurve:
    """Notes the loss on held-out sentences: what ``train`` takes as ``watch``.

    Args:
        translator: The one that is trained.
        pairs: Sentences that it does not learn from, and their translations.

    Attributes:
        points: ``(step, loss)`` of each call, in order.

    Raises:
        ValueError: As in ``translation_batches``: there are no pairs, or tokens are unknown.

    Example:
        >>> from attn_course.data import Vocabulary
        >>> from attn_course.seq2seq import build_translator
        >>> pairs = [Pair("the cat", "le chat")]
        >>> words = Vocabulary(["the cat"]), Vocabulary(["le chat"])
        >>> sizes = {"embed_dim": 4, "hidden_dim": 4}
        >>> curve = LossCurve(build_translator(sizes, sizes, *words), pairs)
        >>> curve(0)
        >>> [step for step, loss in curve.points]
        [0]
    """

    def __init__(self, translator: Translator, pairs: Sequence[Pair]) -> None:
        self.translator = translator
        (self.batch,) = translator.batches(pairs, batch_size=max(len(pairs), 1))
        self.points: list[tuple[int, float]] = []

    @torch.no_grad()
    def __call__(self, step: int) -> None:
        """Note the loss after this step; without dropout, and the training goes on as it was."""
        model = self.translator.model
        training = model.training
        model.eval()
        logits = model(**self.batch.inputs)
        model.train(training)
        loss = next_token_loss(self.translator.target)(logits, self.batch.labels)
        self.points.append((step, loss.item()))

    def plot(self, ax: Axes) -> None:
        """Draw the points, the loss on a logarithmic axis.

        Args:
            ax: The matplotlib axes to draw into.

        Raises:
            ValueError: Nothing has been noted yet.
        """
        if not self.points:
            raise ValueError("the curve has no points: pass it to train as watch first.")
        ax.semilogy(*zip(*self.points, strict=True))
        ax.set(xlabel="step", ylabel="loss, unseen sentences")
