"""The parts of a layer that are not attention: feed-forward network, and add & norm."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attn_course._validation import check_choice, check_counts, check_dropout
from attn_course.transformer import ops

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


class PositionwiseFeedForward(nn.Module):
    """The same two-layer network for each position: ``W_2 activation(W_1 x + b_1) + b_2``.

    Attention mixes positions and leaves each number to a weighted average; this network
    mixes numbers and knows no positions.

    Args:
        embed_dim: Width of a token, before and after.
        hidden_dim: Width between the two maps.
        activation: ``"relu"`` or ``"gelu"``.
        dropout: Probability with which a hidden number is dropped in training.
        bias: Whether the two maps add a bias.

    Raises:
        ValueError: A number or a name is out of place.

    Reference:
        Vaswani et al. (2017), Attention is all you need, section 3.3.

    Example:
        >>> network, x = PositionwiseFeedForward(4, 16), torch.rand(2, 3, 4)
        >>> torch.allclose(network(x)[:, 1], network(x[:, 1]), atol=1e-6)
        True
    """

    def __init__(
        self,
        embed_dim: int,
        hidden_dim: int,
        *,
        activation: str = "relu",
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        check_counts(embed_dim=embed_dim, hidden_dim=hidden_dim)
        check_choice("activation", activation, ACTIVATIONS)
        check_dropout("dropout", dropout)
        self.activation = activation
        self.linear1 = nn.Linear(embed_dim, hidden_dim, bias=bias)
        self.linear2 = nn.Linear(hidden_dim, embed_dim, bias=bias)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.linear1, self.linear2):
            # Numbers, and gradients on their way back, keep their size from layer to layer.
            nn.init.xavier_uniform_(linear.weight)
            if bias:
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each position, ``[..., embed_dim]`` to ``[..., embed_dim]``."""
        hidden = ACTIVATIONS[self.activation](self.linear1(x))
        output: Tensor = self.linear2(self.dropout(hidden))
        return output

    def extra_repr(self) -> str:
        """What ``print`` shows of the layer."""
        return f"activation={self.activation!r}"


class AddNorm(nn.Module):
    """The residual connection and the normalisation: LayerNorm(x + dropout(update)).

    Args:
        embed_dim: Width of a token.
        dropout: Probability with which a number of the update is dropped in training.
        eps: Added to the variance.
        bias: Whether the normalised numbers are shifted as well as scaled.
        impl: As in ``add_norm``.

    Raises:
        ValueError: A number or a name is out of place.

    Reference:
        Vaswani et al. (2017), section 3.1; Ba, Kiros and Hinton (2016), Layer normalization.

    Example:
        >>> norm = AddNorm(4)
        >>> norm(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.ones(4)).detach()
        tensor([-1.3416, -0.4472,  0.4472,  1.3416])
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        dropout: float = 0.0,
        eps: float = 1e-5,
        bias: bool = True,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        check_counts(embed_dim=embed_dim)
        check_dropout("dropout", dropout)
        check_choice("impl", impl, ops.IMPLEMENTATIONS)
        self.eps, self.impl = eps, impl
        self.weight = nn.Parameter(torch.ones(embed_dim))
        self.bias = nn.Parameter(torch.zeros(embed_dim)) if bias else None
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, update: Tensor, *, return_sum: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Add and normalise.

        Args:
            x: What goes past the sublayer, ``[..., embed_dim]``.
            update: What the sublayer made of it, ``[..., embed_dim]``.
            return_sum: Return x + dropout(update) as well, which goes past the next
                sublayer where layers normalise first.

        Returns:
            ``[..., embed_dim]``; with ``return_sum`` also the sum, of the same shape.

        Raises:
            TypeError: As in ``add_norm``.
            ValueError: As in ``add_norm``.
        """
        return ops.add_norm(
            x,
            self.dropout(update).to(x.dtype),  # half precision under autocast
            self.weight,
            self.bias,
            eps=self.eps,
            return_sum=return_sum,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        """What ``print`` shows of the layer."""
        return f"{len(self.weight)}, eps={self.eps}, impl={self.impl!r}"
