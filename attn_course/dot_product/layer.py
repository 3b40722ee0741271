"""Layers whose scores are dot products: plain, bilinear and cosine."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attn_course._precision import wide_dtype
from attn_course._validation import check_counts, check_positive
from attn_course.dot_product import ops
from attn_course.scoring import AttentionLayer


class DotProductAttention(AttentionLayer):
    """Attention whose scores are scaled dot products. Nothing is learned.

    Queries and keys must have the same width.

    Args:
        scale: What the dot products are multiplied by; ``None`` is ``1/sqrt(dim)``, and 1 is
            Luong's plain dot product.
        dropout: Probability with which a weight is dropped in training.
        impl: As in ``dot_product_attention``.

    Raises:
        TypeError: ``scale`` is not a number.
        ValueError: ``scale``, ``dropout`` or ``impl`` is out of place.

    Reference:
        Luong et al. (2015), section 3.1, "dot"; Vaswani et al. (2017), equation 1.

    Example:
        >>> attention = DotProductAttention()
        >>> query, key, value = torch.rand(2, 3, 4), torch.rand(2, 5, 4), torch.rand(2, 5, 7)
        >>> attention(query, key, value, valid_lens=torch.tensor([5, 2])).shape
        torch.Size([2, 3, 7])
    """

    def __init__(
        self, *, scale: float | None = None, dropout: float = 0.0, impl: str = "auto"
    ) -> None:
        super().__init__(dropout, impl, ops.IMPLEMENTATIONS)
        ops.check_scale(scale)
        self.scale = scale

    def attend(
        self,
        query: Tensor,
        projected_key: Tensor,
        value: Tensor,
        *,
        valid_lens: Tensor | None = None,
        mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend with keys from ``project_keys``; the rest as in ``forward``."""
        return ops.dot_product_attention(
            query,
            projected_key,
            value,
            valid_lens=valid_lens,
            mask=mask,
            scale=self.scale,
            dropout_p=self.dropout if self.training else 0.0,
            need_weights=need_weights,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        """What ``print`` shows of the layer."""
        return f"scale={self.scale}, dropout={self.dropout}, impl={self.impl!r}"


class BilinearAttention(DotProductAttention):
    """Attention whose scores are ``q^T M k``, with a learned matrix M.

    Queries and keys may differ in width: M k has the width of the queries.

    Args:
        query_dim: Width of the queries.
        key_dim: Width of the keys.
        scale: What the scores are multiplied by; ``None`` is ``1/sqrt(query_dim)``.
        dropout: As in ``DotProductAttention``.
        impl: As in ``dot_product_attention``.

    Raises:
        TypeError: ``scale`` is not a number.
        ValueError: A size or what ``DotProductAttention`` takes is out of place.

    Reference:
        Luong et al. (2015), section 3.1, "general".

    Example:
        >>> attention = BilinearAttention(query_dim=4, key_dim=6)
        >>> attention(torch.rand(2, 3, 4), torch.rand(2, 5, 6), torch.rand(2, 5, 7)).shape
        torch.Size([2, 3, 7])
    """

    def __init__(
        self,
        query_dim: int,
        key_dim: int,
        *,
        scale: float | None = None,
        dropout: float = 0.0,
        impl: str = "auto",
    ) -> None:
        super().__init__(scale=scale, dropout=dropout, impl=impl)
        check_counts(query_dim=query_dim, key_dim=key_dim)
        # M k then varies as much as k does.
        self.M = nn.Parameter(torch.randn(query_dim, key_dim) * key_dim**-0.5)

    def project_keys(self, key: Tensor) -> Tensor:
        """The part that no query changes, ``[..., key_len, query_dim]``: M k."""
        return nn.functional.linear(key, self.M)


class CosineAttention(DotProductAttention):
    """Attention whose scores are the cosine between query and key, over a temperature.

    A vector of zeros has no direction: its scores are 0. The logarithm of the temperature
    is what is stored and learned, so that no step of an optimiser can make it negative.

    Args:
        temperature: What to start from: low is sharp, high is even. Cosines lie in
            [-1, 1], so 1 would be nearly even.
        dropout: As in ``DotProductAttention``.
        impl: As in ``dot_product_attention``.

    Raises:
        TypeError: ``temperature`` is not a number.
        ValueError: It is not positive, or ``DotProductAttention`` refuses.

    Reference:
        Graves et al. (2014), Neural Turing machines, section 3.3.1.

    Example:
        >>> attention = CosineAttention(temperature=0.1)
        >>> direction = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> attention(9 * direction, direction, direction)
        tensor([[9.9995e-01, 4.5398e-05],
                [4.5398e-05, 9.9995e-01]], grad_fn=...)
    """

    def __init__(
        self, *, temperature: float = 0.1, dropout: float = 0.0, impl: str = "auto"
    ) -> None:
        super().__init__(scale=1.0, dropout=dropout, impl=impl)
        check_positive("temperature", temperature)
        self.log_temperature = nn.Parameter(torch.tensor(float(temperature)).log())

    @property
    def temperature(self) -> Tensor:
        """The temperature, ``[]``."""
        return self.log_temperature.exp()

    def project_keys(self, key: Tensor) -> Tensor:
        """The part that no query changes: the direction of each key."""
        return _direction(key)

    def attend(
        self,
        query: Tensor,
        projected_key: Tensor,
        value: Tensor,
        *,
        valid_lens: Tensor | None = None,
        mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend with keys from ``project_keys``; the rest as in ``forward``."""
        return super().attend(
            _direction(query) / self.temperature.to(query.dtype),
            projected_key,
            value,
            valid_lens=valid_lens,
            mask=mask,
            need_weights=need_weights,
        )

    def extra_repr(self) -> str:
        """What ``print`` shows of the layer."""
        return (
            f"temperature={self.temperature.item():.4g}, dropout={self.dropout}, impl={self.impl!r}"
        )


def _direction(vector: Tensor) -> Tensor:
    """The vectors, divided by their length; a vector of zeros stays, with a gentle gradient."""
    wide = wide_dtype(vector.dtype)
    length = torch.linalg.vector_norm(vector, dim=-1, keepdim=True, dtype=wide)
    return (vector / length.masked_fill(length == 0, 1)).to(vector.dtype)
