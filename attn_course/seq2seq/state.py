"""What the decoder carries from step to step."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class DecoderState(NamedTuple):
    """All that the decoder knows before a step.

    Attributes:
        values: What is mixed, ``[batch, key_len, memory_dim]``: the encoder's states, and
            with ``attend_generated`` the decoder's own after them; projected once, when they
            came, if the score does so.
        keys: The same states as the score wants them, projected once as well.
        lens: How many of the encoder's states count, ``[batch]``.
        hidden: The recurrent state of each layer, ``[num_layers, batch, hidden_dim]``: a
            tuple of one tensor (GRU) or two (LSTM).
        context: The last context vector, ``[batch, memory_dim]``; zeros before the first.
            Without attention it stays the encoder's final state.
        language: The target language's embedding, ``[batch, embed_dim]``, or ``None``.
        step: How many steps went before.
    """

    values: Tensor
    keys: Tensor
    lens: Tensor
    hidden: tuple[Tensor, ...]
    context: Tensor
    language: Tensor | None
    step: int

    def select(self, index: Tensor) -> DecoderState:
        """The state of some items of the batch, in this order; an item may come twice.

        Args:
            index: Which ones, ``[new batch]``.

        Example:
            >>> import torch
            >>> z = torch.zeros(2, 3)
            >>> state = DecoderState(z[:, None], z[:, None], z[:, 0], (z[None],), z, None, 0)
            >>> state.select(torch.tensor([1, 1, 0])).context.shape
            torch.Size([3, 3])
        """

        def pick(tensor: Tensor, dim: int = 0) -> Tensor:
            return tensor.index_select(dim, index.to(tensor.device))

        return DecoderState(
            values=pick(self.values),
            keys=pick(self.keys),
            lens=pick(self.lens),
            hidden=tuple(pick(part, 1) for part in self.hidden),
            context=pick(self.context),
            language=None if self.language is None else pick(self.language),
            step=self.step,
        )
