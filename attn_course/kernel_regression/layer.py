"""Layers around kernel regression: a width that is learned, and a classifier."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attn_course._validation import check_choice, check_positive, check_tensor
from attn_course.kernel_regression import ops, reference


class KernelRegression(nn.Module):
    """Kernel regression whose width is a parameter.

    The logarithm of the width is what is stored and learned, so that no step of an
    optimiser can make the width negative.

    Args:
        width: The width to start from: a number, or one for each coordinate.
        kernel: As in ``kernel_regression``. The boxcar and the constant kernel give
            the width no gradient.
        learn_width: Whether the width is a parameter or stays as it is.
        impl: As in ``kernel_regression``.

    Raises:
        ValueError: A width is not positive, the kernel or the impl is unknown.

    Example:
        >>> layer = KernelRegression(width=0.5)
        >>> x = torch.linspace(0, 1, 4).unsqueeze(-1)
        >>> layer(x, x, x).shape
        torch.Size([4, 1])
    """

    def __init__(
        self,
        width: float | Sequence[float] | Tensor = 1.0,
        *,
        kernel: str = "gaussian",
        learn_width: bool = True,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        start = torch.as_tensor(width, dtype=torch.get_default_dtype()).detach().clone()
        check_positive("width", start)
        if start.ndim > 1:
            raise ValueError(
                f"width must be a number or have shape [dim], got {list(start.shape)}."
            )
        check_choice("kernel", kernel, reference.KERNELS)
        check_choice("impl", impl, ops.IMPLEMENTATIONS)
        self.kernel = kernel
        self.impl = impl
        self.log_width = nn.Parameter(start.log(), requires_grad=learn_width)

    @property
    def width(self) -> Tensor:
        """The width, ``[]`` or ``[dim]``."""
        return self.log_width.exp()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        valid_lens: Tensor | None = None,
        mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Predict at the queries; arguments and result as in ``kernel_regression``."""
        return ops.kernel_regression(
            query,
            key,
            value,
            kernel=self.kernel,
            width=self.width,
            valid_lens=valid_lens,
            mask=mask,
            impl=self.impl,
            need_weights=need_weights,
        )

    def extra_repr(self) -> str:
        """What ``print`` shows of the layer."""
        return f"kernel={self.kernel!r}, width={self.width.tolist()}, impl={self.impl!r}"


class KernelClassifier(KernelRegression):
    """Kernel regression on one-hot labels: a probability for each class.

    Args:
        num_classes: How many classes there are.
        width: As in ``KernelRegression``.
        kernel: As in ``KernelRegression``.
        learn_width: As in ``KernelRegression``.
        impl: As in ``KernelRegression``.

    Raises:
        ValueError: ``num_classes`` is less than one, or ``KernelRegression`` refuses.

    Example:
        >>> classify = KernelClassifier(2, width=0.5)
        >>> key, label = torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1])
        >>> classify(torch.tensor([[0.5]]), key, label)
        tensor([[0.5000, 0.5000]], grad_fn=...)
    """

    def __init__(
        self,
        num_classes: int,
        width: float | Sequence[float] | Tensor = 1.0,
        *,
        kernel: str = "gaussian",
        learn_width: bool = True,
        impl: str = "auto",
    ) -> None:
        super().__init__(width, kernel=kernel, learn_width=learn_width, impl=impl)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}.")
        self.num_classes = num_classes

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        valid_lens: Tensor | None = None,
        mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Give each query a probability for each class.

        Args:
            query: ``[..., query_len, dim]``.
            key: ``[..., key_len, dim]``.
            value: The keys' labels, integers in [0, num_classes), ``[..., key_len]``.
            valid_lens: As in ``kernel_regression``.
            mask: As in ``kernel_regression``.
            need_weights: As in ``kernel_regression``.

        Returns:
            Probabilities ``[..., query_len, num_classes]``; zeros where no key is in
            the window. With ``need_weights`` also the weights.

        Raises:
            TypeError: The labels are not integers.
            ValueError: A label is out of range.
        """
        check_tensor("value", value)
        if value.is_floating_point() or value.dtype == torch.bool:
            raise TypeError(f"value must hold integer labels, got {value.dtype}.")
        if value.device.type != "cuda" and value.numel():
            low, high = int(value.min()), int(value.max())
            if low < 0 or high >= self.num_classes:
                raise ValueError(
                    f"value must hold labels in [0, {self.num_classes}), got {low} to {high}."
                )
        labels = F.one_hot(value.long(), self.num_classes).to(query.dtype)
        return super().forward(
            query, key, labels, valid_lens=valid_lens, mask=mask, need_weights=need_weights
        )
