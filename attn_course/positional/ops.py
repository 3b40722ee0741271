"""The public operations: validation, and the choice between implementations."""

from __future__ import annotations

import torch
from torch import Tensor

from attn_course import _triton
from attn_course._precision import wide_dtype, widened
from attn_course._validation import (
    check_choice,
    check_floating,
    check_integer,
    check_number,
    check_rank,
)
from attn_course.positional import reference

IMPLEMENTATIONS = ("auto", "reference", "triton")

#: Which columns make a pair: (2j, 2j+1), as in the paper, or (j, j + dim/2).
PAIRS = ("adjacent", "halves")

#: Positions are 32-bit integers on the GPU.
_LAST = 2**31 - 1


def sinusoid(
    length: int,
    dim: int,
    *,
    offset: int = 0,
    base: float = 10000.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """The positional encoding P as a matrix, a row for each position.

    ``P[i, 2j] = sin(i / base^(2j / dim))``, and ``P[i, 2j + 1]`` is the cosine of the same angle.
    Angles are computed in float64. Where ``dim`` is odd, the last sine has no cosine.

    Args:
        length: How many positions.
        dim: How many columns.
        offset: The first position.
        base: How much slower the last columns turn than the first; at least 1.
        dtype: Type of the result.
        device: Where it lives.

    Returns:
        ``[length, dim]``.

    Raises:
        TypeError: ``base`` is not a number, or a count not an integer.
        ValueError: A number is out of place.

    Reference:
        Vaswani et al. (2017), Attention is all you need, section 3.5.

    Example:
        >>> sinusoid(3, 4)
        tensor([[ 0.0000,  1.0000,  0.0000,  1.0000],
                [ 0.8415,  0.5403,  0.0100,  0.9999],
                [ 0.9093, -0.4161,  0.0200,  0.9998]])
    """
    check_count("length", length, 0)
    check_count("dim", dim, 1)
    _check_positions(offset, length)
    check_base(base)
    where = None if device is None else torch.device(device)
    angle = reference.angles(length, dim, offset=offset, base=base, device=where)
    return reference.sinusoid(angle, dim).to(dtype)


def add_sinusoid(
    x: Tensor, *, offset: int = 0, base: float = 10000.0, impl: str = "auto"
) -> Tensor:
    """Add to each position its row of ``sinusoid``.

    Args:
        x: ``[..., len, dim]``.
        offset: The position of the first row.
        base: As in ``sinusoid``.
        impl: Which implementation:

            ============= ======================================================
            ``reference`` PyTorch; makes the rows of ``sinusoid`` and adds them
            ``triton``    GPU kernel (interpreted where there is no GPU: slow);
                          computes sines and cosines where they are added
            ``auto``      on CUDA ``triton``, else ``reference``
            ============= ======================================================

    Returns:
        A tensor of the shape and type of ``x``. Half precision is computed in float32 and
        rounded at the end.

    Raises:
        TypeError: ``x`` does not hold floating-point numbers, or a number is of another kind.
        ValueError: A shape, a number or a name is out of place.
        RuntimeError: ``impl="triton"`` cannot be had here; the message says why.

    Reference:
        Vaswani et al. (2017), Attention is all you need, section 3.5.

    Example:
        >>> add_sinusoid(torch.ones(2, 2), offset=7)
        tensor([[1.6570, 1.7539],
                [1.9894, 0.8545]])
    """
    length, dim = _check_tokens(x, offset, base)
    if _choose(impl, x) == "triton":
        from attn_course.positional import kernel as gpu

        return gpu.add_sinusoid(x, offset=offset, base=base)
    compute = wide_dtype(x.dtype)
    rows = sinusoid(length, dim, offset=offset, base=base, dtype=compute, device=x.device)
    return (x.to(compute) + rows).to(x.dtype)


def rotate(
    x: Tensor,
    *,
    offset: int = 0,
    base: float = 10000.0,
    pairs: str = "adjacent",
    impl: str = "auto",
) -> Tensor:
    """Turn each pair of columns by an angle that grows with the position.

    Pair j at position i turns by ``i / base^(2j / dim)``, the angle of ``sinusoid``. The dot
    product of a query rotated at i with a key rotated at k depends on i - k alone. Values
    are not rotated.

    Args:
        x: Queries or keys, ``[..., len, dim]`` with an even ``dim``.
        offset: The position of the first row.
        base: As in ``sinusoid``.
        pairs: Which columns make a pair: ``"adjacent"``, columns 2j and 2j + 1, as in the
            paper; or ``"halves"``, columns j and j + dim/2, as in many trained models. The
            two do not mix.
        impl: Which implementation:

            ============= ======================================================
            ``reference`` PyTorch
            ``triton``    GPU kernel (interpreted where there is no GPU: slow);
                          stores no angles
            ``auto``      on CUDA ``triton``, else ``reference``
            ============= ======================================================

    Returns:
        A tensor of the shape and type of ``x``. Half precision is computed in float32 and
        rounded at the end.

    Raises:
        TypeError: ``x`` does not hold floating-point numbers, or a number is of another kind.
        ValueError: A shape, a number or a name is out of place.
        RuntimeError: ``impl="triton"`` cannot be had here; the message says why.

    Reference:
        Su et al. (2021), RoFormer: enhanced Transformer with rotary position embedding,
        section 3.2.

    Example:
        >>> query, key = torch.rand(1, 8), torch.rand(1, 8)
        >>> near = rotate(query, offset=2) @ rotate(key, offset=5).mT
        >>> far = rotate(query, offset=102) @ rotate(key, offset=105).mT
        >>> torch.allclose(near, far, atol=1e-5)
        True
    """
    length, dim = _check_tokens(x, offset, base)
    if dim % 2:
        raise ValueError(f"x must have an even number of columns, to be paired, got {dim}.")
    check_choice("pairs", pairs, PAIRS)
    if _choose(impl, x) == "triton":
        from attn_course.positional import kernel as gpu

        return gpu.rotate(x, offset=offset, base=base, pairs=pairs)
    angle = reference.angles(length, dim, offset=offset, base=base, device=x.device)
    return reference.rotate(widened(x), angle, pairs).to(x.dtype)


def rotation_matrix(
    delta: float, dim: int, *, base: float = 10000.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The matrix M that moves a sinusoid by ``delta`` positions: P[i + delta] = M P[i].

    It does not depend on i. Each pair of columns turns by itself, [[cos, sin], [-sin, cos]]
    of ``delta / base^(2j / dim)``. ``rotate`` turns the other way, by the transpose of M, since
    its pairs are (cos, sin) where those of the sinusoid are (sin, cos).

    Args:
        delta: How many positions forward; backward if negative.
        dim: How many columns, an even number.
        base: As in ``sinusoid``.
        dtype: Type of the result.

    Returns:
        ``[dim, dim]``.

    Raises:
        TypeError: A number is of another kind.
        ValueError: ``dim`` is odd or a number out of place.

    Reference:
        Vaswani et al. (2017), section 3.5; Zhang et al., Dive into Deep Learning,
        section 11.6.3.2.

    Example:
        >>> P = sinusoid(9, 6)
        >>> M = rotation_matrix(3, 6)
        >>> torch.allclose(M @ P[5], P[8], atol=1e-6)
        True
    """
    check_number("delta", delta)
    check_count("dim", dim, 1)
    if dim % 2:
        raise ValueError(f"dim must be even, since columns turn in pairs, got {dim}.")
    check_base(base)
    angle = delta * reference.angles(1, dim, offset=1, base=base, device=None)[0]
    return reference.rotation_matrix(angle).to(dtype)


def linear_slopes(num_heads: int) -> Tensor:
    """How steeply the scores of each head fall with distance.

    For n heads, a power of two: ``2^(-8 / n), 2^(-16 / n), ..., 2^-8``. For other numbers, those
    of the power of two below, and then every second one of the power above.

    Args:
        num_heads: How many heads.

    Returns:
        ``[num_heads]``, float32, to be given to ``dot_product_attention`` as
        ``bias_slopes``, or to ``MultiHeadAttention`` as ``position``.

    Raises:
        TypeError: It is not an integer.
        ValueError: It is below 1.

    Reference:
        Press, Smith and Lewis (2022), Train short, test long: attention with linear biases
        enables input length extrapolation, section 3.

    Example:
        >>> linear_slopes(4)
        tensor([0.2500, 0.0625, 0.0156, 0.0039])
        >>> linear_slopes(3)
        tensor([0.0625, 0.0039, 0.2500])
    """
    check_count("num_heads", num_heads, 1)
    return torch.tensor(reference.slopes(num_heads))


def linear_biases(slopes: Tensor, query_len: int, key_len: int, *, offset: int = 0) -> Tensor:
    """What linear biases add to the scores: -slope * |i + offset - j|.

    To look at: ``dot_product_attention(bias_slopes=...)`` adds them without this matrix.

    Args:
        slopes: From ``linear_slopes``, ``[num_heads]``.
        query_len: How many queries.
        key_len: How many keys.
        offset: The position of the first query among the keys.

    Returns:
        ``[num_heads, query_len, key_len]``, of the type of ``slopes``.

    Raises:
        TypeError: ``slopes`` is not a tensor of floating-point numbers, or a count not an
            integer.
        ValueError: A shape or a number is out of place.

    Reference:
        Press, Smith and Lewis (2022), Train short, test long, section 3.

    Example:
        >>> linear_biases(torch.tensor([0.5]), query_len=1, key_len=3, offset=2)
        tensor([[[-1.0000, -0.5000, -0.0000]]])
    """
    check_floating("slopes", slopes)
    if slopes.ndim != 1:
        raise ValueError(f"slopes must have shape [num_heads], got {list(slopes.shape)}.")
    check_count("query_len", query_len, 0)
    check_count("key_len", key_len, 0)
    _check_positions(offset, query_len)
    query = torch.arange(offset, offset + query_len, device=slopes.device).unsqueeze(1)
    distance = (query - torch.arange(key_len, device=slopes.device)).abs()
    return -slopes[:, None, None] * distance


def check_count(name: str, value: int, least: int) -> None:
    """Raise unless ``value`` is an integer of at least ``least``."""
    check_integer(name, value)
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")


def check_base(base: float) -> None:
    """Raise unless ``base`` is a finite number of at least 1."""
    check_number("base", base)
    if base < 1:
        raise ValueError(f"base must be at least 1, got {base}.")


def _check_tokens(x: Tensor, offset: int, base: float) -> tuple[int, int]:
    """Raise unless the arguments of an operation on tokens fit; their length and width."""
    check_floating("x", x)
    check_rank("x", x, 2, "[..., len, dim]")
    length, dim = x.shape[-2:]
    if dim == 0:
        raise ValueError("x must have at least one column, got none.")
    _check_positions(offset, length)
    check_base(base)
    return length, dim


def _check_positions(offset: int, length: int) -> None:
    check_count("offset", offset, 0)
    if offset + length > _LAST:
        raise ValueError(f"offset must leave positions below 2^31, got {offset} for {length}.")


def _choose(impl: str, x: Tensor) -> str:
    check_choice("impl", impl, IMPLEMENTATIONS)
    if impl == "auto":
        return "triton" if x.is_cuda and _triton.AVAILABLE else "reference"
    if impl == "triton":
        _triton.require(x.device)
    return impl
