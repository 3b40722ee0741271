"""What heads have seen so far, kept so that nothing is projected twice."""

from __future__ import annotations

import torch
from torch import Tensor

from attn_course._validation import check_floating, check_tensor, check_together


class KeyValueCache:
    """The projected keys and values of the positions so far: one layer, one batch.

    A decoder that writes token by token would project its whole past again at every step.
    With a cache it projects the new token alone and appends it:

        key_1..t = [key_1..t-1; key_t],    value_1..t = [value_1..t-1; value_t]

    Appending makes new tensors and leaves those it returned before as they are: gradients
    can flow through it, and a copy of 1..t-1 costs no more than the attention that is about
    to read it.

    A frozen cache is the memory of cross-attention: projected once, read at every step.

    Args:
        frozen: Whether nothing may be appended after the first time.

    Attributes:
        key: ``[batch, num_kv_heads, length, head_dim]``, or ``None`` before the first.
        value: ``[batch, num_kv_heads, length, value_dim]``, or ``None`` before the first.
        frozen: As given.

    Example:
        >>> cache = KeyValueCache()
        >>> for _ in range(3):
        ...     keys, values = cache.append(torch.rand(2, 4, 1, 8), torch.rand(2, 4, 1, 8))
        >>> keys.shape, cache.length
        (torch.Size([2, 4, 3, 8]), 3)
        >>> cache.reorder(torch.tensor([1, 1]))  # both beams go on from the second
        >>> bool((cache.key[0] == cache.key[1]).all())
        True
    """

    def __init__(self, *, frozen: bool = False) -> None:
        self.key: Tensor | None = None
        self.value: Tensor | None = None
        self.frozen = frozen

    @property
    def length(self) -> int:
        """How many positions it holds."""
        return 0 if self.key is None else self.key.shape[-2]

    @property
    def batch(self) -> int | None:
        """How many sequences it holds; ``None`` before the first."""
        return None if self.key is None else self.key.shape[0]

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of one or more new positions.

        Args:
            key: ``[batch, num_kv_heads, new_len, head_dim]``.
            value: ``[batch, num_kv_heads, new_len, value_dim]``.

        Returns:
            All keys and all values so far, in the order in which they came.

        Raises:
            TypeError: A tensor has the wrong kind of numbers.
            ValueError: The shape, dtype or device is not that of what the cache holds, or
                the cache is frozen and holds something.
        """
        for name, tensor in (("key", key), ("value", value)):
            check_floating(name, tensor)
            if tensor.ndim != 4:
                raise ValueError(
                    f"{name} must have shape [batch, num_kv_heads, new_len, head_dim], "
                    f"got {list(tensor.shape)}."
                )
        if key.shape[:3] != value.shape[:3]:
            raise ValueError(
                "value must have the batch, heads and length of key, "
                f"{list(key.shape[:3])}, got {list(value.shape[:3])}."
            )
        if self.key is None or self.value is None:
            self.key, self.value = key, value
            return key, value
        if self.frozen:
            raise ValueError("cache is frozen: nothing can be appended to it.")
        for name, new, held in (("key", key, self.key), ("value", value, self.value)):
            if (*new.shape[:2], new.shape[3]) != (*held.shape[:2], held.shape[3]):
                raise ValueError(
                    f"cache holds a {name} of shape {list(held.shape)}, got one of shape "
                    f"{list(new.shape)}: all but the length must be the same. One cache serves "
                    "one layer and one batch."
                )
            check_together(cache=held, **{name: new})
        self.key = torch.cat([self.key, key], dim=-2)
        self.value = torch.cat([self.value, value], dim=-2)
        return self.key, self.value

    def reorder(self, index: Tensor) -> None:
        """Let each sequence go on from another one's past, as beams do.

        Args:
            index: For each sequence from now on, which one it continues, ``[new_batch]``;
                repeated, dropped and more than before, if need be.

        Raises:
            TypeError: It does not hold integers.
            ValueError: It is not one row of sequences that the cache holds. On CUDA devices
                it is taken on trust: looking would make the host wait.
        """
        check_tensor("index", index)
        if index.is_floating_point() or index.dtype == torch.bool:
            raise TypeError(f"index must hold integers, got {index.dtype}.")
        if index.ndim != 1:
            raise ValueError(f"index must have shape [new_batch], got {list(index.shape)}.")
        if self.key is None or self.value is None:
            raise ValueError("cache is empty: there is nothing to reorder.")
        batch = self.key.shape[0]
        if index.device.type != "cuda" and bool(((index < 0) | (index >= batch)).any()):
            raise ValueError(
                f"index must lie in [0, {batch}), the sequences of the cache, got {index.tolist()}."
            )
        index = index.to(self.key.device).long()
        self.key, self.value = self.key.index_select(0, index), self.value.index_select(0, index)
