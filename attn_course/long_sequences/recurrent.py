"""What reads a line so that neither padding nor other lines matter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attn_course._validation import check_choice, check_counts

_CELLS = {"gru": nn.GRU, "lstm": nn.LSTM}


class BothWays(nn.Module):
    """A recurrent network in each direction; each line is read back from its own end.

    ``nn.LSTM(bidirectional=True)`` would read a short line's padding first on the way back.
    Packing prevents that, and costs a CPU its fast path: here each line is turned round
    within its length instead, and read by a second network.

    Args:
        input_dim: Width of a step.
        hidden_dim: Width of a state of one direction.
        cell: ``"lstm"`` or ``"gru"``. A CPU trains an LSTM several times faster: PyTorch has
            a fused one, and none for the GRU.

    Raises:
        ValueError: A number or the cell is out of place.

    Example:
        >>> network = BothWays(input_dim=3, hidden_dim=4)
        >>> network(torch.rand(2, 5, 3), torch.tensor([5, 2])).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, input_dim: int, hidden_dim: int, *, cell: str = "lstm") -> None:
        super().__init__()
        check_counts(input_dim=input_dim, hidden_dim=hidden_dim)
        check_choice("cell", cell, _CELLS)
        self.onward = _CELLS[cell](input_dim, hidden_dim, batch_first=True)
        self.back = _CELLS[cell](input_dim, hidden_dim, batch_first=True)

    def forward(self, x: Tensor, lens: Tensor) -> Tensor:
        """Read ``[batch, steps, input_dim]``; states of both, ``[batch, steps, 2 * hidden_dim]``.

        Args:
            x: The steps.
            lens: How many count, ``[batch]``. States past them mean nothing.
        """
        step = torch.arange(x.shape[1], device=x.device)
        last = lens[:, None] - 1
        turned = (last - step).where(step <= last, step)[..., None]  # its own inverse
        onward, _ = self.onward(x)
        back, _ = self.back(x.take_along_dim(turned, 1))
        return torch.cat((onward, back.take_along_dim(turned, 1)), 2)


class LineNorm(nn.Module):
    """Give each channel of each line mean 0 and variance 1, then a scale and a shift.

    Batch normalisation takes the mean over all lines and over padding: neither must matter
    here. This takes it over the columns that count of one line.

    Args:
        channels: How many there are.
        eps: Added to the variance.

    Reference:
        Ulyanov, Vedaldi and Lempitsky (2016), Instance normalization.

    Example:
        >>> norm = LineNorm(channels=1)
        >>> norm(torch.tensor([[[[1.0, 3.0, 9.0]]]]), torch.tensor([2])).detach()[..., :2]
        tensor([[[[-1.0000,  1.0000]]]])
    """

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        check_counts(channels=channels)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor, widths: Tensor) -> Tensor:
        """Normalise ``[batch, channels, height, width]``, of which ``widths`` columns count."""
        column = torch.arange(x.shape[3], device=x.device)
        share = (column < widths[:, None]).to(x) / (widths[:, None] * x.shape[2])
        share = share[:, None, None]  # of each pixel in the mean, [batch, 1, 1, width]
        mean = (x * share).sum((2, 3), keepdim=True)
        centred = x - mean
        variance = (centred.square() * share).sum((2, 3), keepdim=True)
        scale = self.weight[:, None, None] * (variance + self.eps).rsqrt()
        return centred * scale + self.bias[:, None, None]
