"""What maps positions to slots, as a module: learned, random, convolution, pooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attn_course._validation import check_choice, check_counts
from attn_course.linformer import ops, reference

KINDS = ("learnable", "convolution", "pooling", "random")

#: All heads.
ALL = slice(None)


class SequenceProjection(nn.Module):
    """Map the positions of a sequence to ``projected_len`` slots.

        learnable    slot_j = sum_i E_ji x_i + bias_j, E learned
        random       the same, E drawn once and kept: what the paper's proof assumes
        pooling      slot_j is the mean of n/k neighbours
        convolution  slot_j = W [x_i, ..., x_(i + n/k - 1)] + bias: kernel and stride are n/k, and
                     W mixes the columns of a head as well, as a convolution does

    The first two look at all positions, the others at a stretch each: with padding their last
    slots may be empty, and ``slot_lens`` says how many are not.

    Args:
        input_len: The longest sequence, n.
        projected_len: Slots, k.
        kind: ``"learnable"``, ``"random"``, ``"pooling"`` or ``"convolution"``; the last two
            need n to be a multiple of k.
        num_heads: How many heads have a projection of their own; ``None``: all share one.
        head_dim: Columns of a head, for ``"convolution"``.
        bias: Whether a learned number is added: to a slot, or, by a convolution, to a column.

    Attributes:
        weight: E, ``[(num_heads,) projected_len, input_len]``; a convolution's,
            ``[(num_heads,) head_dim, n/k * head_dim]``, position after position; ``None`` of
            pooling.
        stretch: Positions of a slot, n/k, or ``None`` where a slot looks at all.

    Raises:
        ValueError: A number, a name or a combination is out of place.

    Reference:
        Wang et al. (2020), Linformer, sections 3 and 4: low-rank projections; "General
        projections" for pooling and convolution with kernel and stride n/k.

    Example:
        >>> project = SequenceProjection(input_len=6, projected_len=3, kind="pooling")
        >>> project(torch.arange(6.0).reshape(1, 6, 1)).flatten()
        tensor([0.5000, 2.5000, 4.5000])
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        input_len: int,
        projected_len: int,
        *,
        kind: str = "learnable",
        num_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        check_counts(input_len=input_len, projected_len=projected_len)
        check_choice("projection", kind, KINDS)
        if projected_len > input_len:
            raise ValueError(
                f"projected_len must be at most input_len, {input_len}, got {projected_len}: more "
                "slots than positions reduce nothing."
            )
        self.input_len, self.projected_len, self.kind = input_len, projected_len, kind
        self.num_heads, self.head_dim = num_heads, head_dim
        self.stretch: int | None = None
        if kind in ("pooling", "convolution"):
            if input_len % projected_len:
                raise ValueError(
                    f"projected_len must divide input_len, {input_len}, for {kind} with kernel "
                    f"and stride n/k, got {projected_len}."
                )
            self.stretch = input_len // projected_len
        if bias and kind in ("pooling", "random"):
            raise ValueError(f"projection_bias is learned, and {kind} projections are not.")
        own = () if num_heads is None else (num_heads,)
        if kind == "convolution":
            if head_dim is None:
                raise ValueError("head_dim must be given for convolutions, which mix columns.")
            assert self.stretch is not None
            shape, places = (head_dim, self.stretch * head_dim), head_dim
        else:
            shape, places = (projected_len, input_len), projected_len
        # What is independent and of variance 1 stays so: sums over n positions do not grow.
        drawn = torch.randn(*own, *shape) * shape[1] ** -0.5
        if kind == "random":
            self.register_buffer("weight", drawn)
        else:
            learned = None if kind == "pooling" else nn.Parameter(drawn)
            self.register_parameter("weight", learned)
        self.register_parameter("bias", nn.Parameter(torch.zeros(*own, places)) if bias else None)

    @property
    def before_heads(self) -> bool:
        """Whether tokens may be projected once, before heads take their columns of them."""
        return self.kind != "convolution" and (self.num_heads is None or self.kind == "pooling")

    def slot_lens(self, length: int, lens: Tensor | None) -> Tensor | None:
        """How many slots hold a position, ``[batch]``; ``None``: all that ``project`` returns."""
        if lens is None:
            return None
        if self.stretch is None:
            return (lens > 0) * self.projected_len
        return (lens + self.stretch - 1).div(self.stretch, rounding_mode="floor")

    def project(
        self, x: Tensor, lens: Tensor | None = None, *, heads: slice = ALL, impl: str = "auto"
    ) -> Tensor:
        """Slots without the bias, which belongs to the keys and values of a head.

        Args:
            x: ``[batch, (num_heads,) len, dim]``, at most ``input_len`` long.
            lens: How many leading positions count, ``[batch]``.
            heads: Which ones ``x`` holds.
            impl: As in ``project_sequence``; for matrices.

        Returns:
            ``[batch, (num_heads,) slots, dim]``: ``projected_len`` slots, or as many as
            stretches that ``x`` reaches.
        """
        if self.stretch is None:
            assert self.weight is not None
            weight = self.weight if self.num_heads is None else self.weight[heads]
            return ops.project_sequence(x, weight.to(x.dtype), valid_lens=lens, impl=impl)
        x = reference.clear_padding(x, lens)
        if self.kind == "pooling":
            return _sums(x, self.stretch) / self._counts(x, lens)
        assert self.weight is not None
        weight = self.weight if self.num_heads is None else self.weight[heads]
        if missing := -x.shape[-2] % self.stretch:
            x = nn.functional.pad(x, (0, 0, 0, missing))
        stretches = x.unflatten(-2, (-1, self.stretch)).flatten(-2)  # [..., slots, n/k * dim]
        return stretches @ weight.mT

    def shift(self, slots: Tensor, heads: slice = ALL) -> Tensor:
        """Add the bias to slots of ``heads``, ``[batch, num_heads, slots, dim]``."""
        if self.bias is None:
            return slots
        bias = self.bias if self.num_heads is None else self.bias[heads].unsqueeze(1)
        if self.kind != "convolution":
            bias = bias.unsqueeze(-1) if self.num_heads is None else bias.mT
        return slots + bias.to(slots.dtype)

    def forward(self, x: Tensor, valid_lens: Tensor | None = None) -> Tensor:
        """Project.

        Args:
            x: ``[batch, num_heads, len, dim]``, or without ``num_heads`` where heads share.
            valid_lens: How many leading positions count, ``[batch]``.

        Returns:
            ``[batch, (num_heads,) slots, dim]``.

        Raises:
            ValueError: A shape or a length is out of place.
        """
        check_length("x", x.shape[-2], self.input_len)
        return self.shift(self.project(x, ops.check_lens(valid_lens, x)))

    def matrix(
        self,
        length: int | None = None,
        lens: Tensor | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """The projection as a matrix, for ``effective_weights``.

        Args:
            length: Of the sequence; ``None``: ``input_len``.
            lens: How many leading positions count, ``[batch]``; the others get zeros.
            dtype: Of the matrix of a pooling, which has no weights of its own.

        Returns:
            ``[(num_heads,) slots, length]``; with ``lens``
            ``[batch, num_heads or 1, slots, length]``.

        Raises:
            ValueError: It is a convolution, which mixes columns too: no matrix of positions
                says what it does.
        """
        if self.kind == "convolution":
            raise ValueError(
                "projection is a convolution, which mixes columns as well as positions: there "
                "is no matrix of positions that says what it does."
            )
        length = self.input_len if length is None else length
        if self.weight is not None:
            matrix = self.weight[..., :length]
            return (
                matrix
                if lens is None
                else reference.clear_padding(
                    matrix.mT.expand(len(lens), self.num_heads or 1, -1, -1), lens
                ).mT
            )
        device = None if lens is None else lens.device
        one = torch.eye(length, dtype=dtype, device=device)  # what each position becomes
        if lens is None:
            return self.project(one[None])[0]
        return self.project(one.expand(len(lens), 1, -1, -1), lens)

    def _counts(self, x: Tensor, lens: Tensor | None) -> Tensor:
        """How many positions there are in each stretch, ``[(batch, 1,) slots, 1]``, at least 1."""
        assert self.stretch is not None
        starts = torch.arange(0, x.shape[-2], self.stretch, device=x.device)
        ends: Tensor | int = x.shape[-2]
        if lens is not None:
            ends = lens.reshape(-1, *[1] * (x.ndim - 2))
        counts: Tensor = (ends - starts).clamp(1, self.stretch)
        return counts.unsqueeze(-1)

    def extra_repr(self) -> str:
        """What ``print`` shows of it."""
        heads = "" if self.num_heads is None else f", num_heads={self.num_heads}"
        return f"{self.input_len} -> {self.projected_len}, kind={self.kind!r}{heads}"


def check_length(name: str, length: int, input_len: int) -> None:
    """Raise unless a sequence is at most as long as what was built for it."""
    if length > input_len:
        raise ValueError(
            f"{name} must be at most input_len = {input_len} long, got {length}: the projection "
            "has no columns for more."
        )


def _sums(x: Tensor, stretch: int) -> Tensor:
    """Add up each stretch of positions, the last one shorter or not; nothing is copied."""
    whole = x.shape[-2] // stretch
    sums = x[..., : whole * stretch, :].unflatten(-2, (whole, stretch)).sum(-2)
    if x.shape[-2] % stretch:
        tail = x[..., whole * stretch :, :].sum(-2, keepdim=True)
        sums = torch.cat([sums, tail], -2)
    return sums
