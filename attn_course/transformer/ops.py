"""The public operations: validation, and the choice between implementations."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor
from torch.nn import functional as F

from attn_course import _triton
from attn_course._precision import wide_dtype
from attn_course._validation import (
    check_choice,
    check_floating,
    check_positive,
    check_rank,
    check_together,
)
from attn_course.transformer import reference

IMPLEMENTATIONS = ("auto", "reference", "torch", "triton")

#: Columns of the widest row that the kernel takes.
_MAX_COLUMNS = 16384


@overload
def add_norm(
    x: Tensor,
    update: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    eps: float = ...,
    return_sum: Literal[False] = ...,
    impl: str = ...,
) -> Tensor: ...


@overload
def add_norm(
    x: Tensor,
    update: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    eps: float = ...,
    return_sum: Literal[True],
    impl: str = ...,
) -> tuple[Tensor, Tensor]: ...


@overload
def add_norm(
    x: Tensor,
    update: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    eps: float = ...,
    return_sum: bool,
    impl: str = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...


def add_norm(
    x: Tensor,
    update: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    eps: float = 1e-5,
    return_sum: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Close a residual connection and normalise: LayerNorm(x + update), row by row.

    Args:
        x: What went into the sublayer, ``[..., dim]``.
        update: What came out of it, of the same shape; dropout, if any, already applied.
        weight: The scale of each column, ``[dim]``.
        bias: The shift of each column, ``[dim]``, or ``None`` for none.
        eps: Added to the variance, so that a constant row gives ``bias`` rather than NaN.
        return_sum: Return x + update as well, which a pre-norm stack passes on.
        impl: Which implementation:

            ============= ======================================================
            ``reference`` PyTorch, the formula written out; can be
                          differentiated twice
            ``torch``     an addition and PyTorch's fused ``layer_norm``
            ``triton``    GPU kernel (interpreted where there is no GPU: slow);
                          ``dim`` up to 16,384
            ``auto``      on CUDA ``triton`` where it takes the width, else
                          ``torch``
            ============= ======================================================

    Returns:
        LayerNorm(x + update), of the shape and type of ``x``, or with ``return_sum`` the pair
        of it and x + update. Half precision is computed in float32 and rounded at the end.

    Raises:
        TypeError: A tensor has the wrong kind of numbers, or ``eps`` is not a number.
        ValueError: A shape, a number or a name is out of place.
        RuntimeError: ``impl="triton"`` cannot be had here; the message says why.

    Reference:
        Vaswani et al. (2017), Attention is all you need, section 3.1; Ba, Kiros and Hinton
        (2016), Layer normalization, equation 4.

    Example:
        >>> import torch
        >>> x, update = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 2.0]])
        >>> weight, bias = torch.ones(2), torch.tensor([0.0, 10.0])
        >>> add_norm(x, update, weight, bias)
        tensor([[-1.0000, 11.0000]])
    """
    _check(x, update, weight, bias, eps)
    check_choice("impl", impl, IMPLEMENTATIONS)
    dim = x.shape[-1]
    if impl == "auto":
        impl = "triton" if _kernel_takes(x) else "torch"
    elif impl == "triton":
        _triton.require(x.device)
        if dim > _MAX_COLUMNS:
            raise ValueError(
                f"impl='triton' keeps a row in registers, up to {_MAX_COLUMNS} columns, "
                f"got {dim}: use impl='torch' or 'auto'."
            )

    if impl == "triton":
        from attn_course.transformer import kernel as gpu

        return gpu.add_norm(x, update, weight, bias, eps, return_sum=return_sum)
    dtype = x.dtype
    compute = wide_dtype(dtype)
    x, update, weight = x.to(compute), update.to(compute), weight.to(compute)
    bias = None if bias is None else bias.to(compute)
    if impl == "torch":
        total = x + update
        normed = F.layer_norm(total, (dim,), weight, bias, eps)
    else:
        normed, total = reference.add_norm(x, update, weight, bias, eps)
    return (normed.to(dtype), total.to(dtype)) if return_sum else normed.to(dtype)


def _check(x: Tensor, update: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> None:
    tensors = {"x": x, "update": update, "weight": weight}
    if bias is not None:
        tensors["bias"] = bias
    for name, tensor in tensors.items():
        check_floating(name, tensor)
    check_rank("x", x, 1, "[..., dim]")
    dim = x.shape[-1]
    if dim == 0:
        raise ValueError("x must have at least one column, got none.")
    if update.shape != x.shape:
        raise ValueError(
            f"update must have the shape of x, {list(x.shape)}, got {list(update.shape)}."
        )
    for name in tensors.keys() - {"x", "update"}:
        if tuple(tensors[name].shape) != (dim,):
            raise ValueError(f"{name} must have shape [{dim}], got {list(tensors[name].shape)}.")
    check_together(**tensors)
    if isinstance(eps, Tensor):
        raise TypeError("eps must be a number, got a tensor.")
    check_positive("eps", eps)


def _kernel_takes(x: Tensor) -> bool:
    return x.is_cuda and _triton.AVAILABLE and x.shape[-1] <= _MAX_COLUMNS
