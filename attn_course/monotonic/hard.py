"""Hard decoding: one path, walked as the queries come, in time linear in queries and keys.

At test time nobody needs expectations: each node takes the likelier of its two steps. A head then
only remembers at which key it stands. No key behind it is ever looked at again, and none ahead
before it gets there, so queries and keys can both come in one at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MODES = ("many_to_many", "one_query_per_key", "one_key_per_query", "hard_monotonic")


class HardState(NamedTuple):
    """Where each head stands, and the keys it walks along.

    Attributes:
        key: Projected, ``[batch, num_kv_heads, key_len, head_dim]``.
        value: Projected, ``[batch, num_kv_heads, key_len, head_dim]``.
        lens: How many keys count, ``[batch]``.
        position: The key at which each head stands, ``[batch, num_heads]``; ``lens`` once it has
            walked past the last.
    """

    key: Tensor
    value: Tensor
    lens: Tensor
    position: Tensor

    def select(self, index: Tensor) -> HardState:
        """The state of some batch items, in a new order: what beam search asks for."""
        return HardState(*(part[index] for part in self))


def walk(
    query: Tensor, state: HardState, *, mode: str, scale: float
) -> tuple[Tensor, HardState, Tensor]:
    """Answer one query, and go on as far as it wants to.

    A step of the path is taken with p if the logit of the node is above 0, else with q. In the
    many-to-many grid a query keeps going while p wins, and hands over at the same key.

    Args:
        query: Projected, ``[batch, num_heads, head_dim]``.
        state: Where the last query left off.
        mode: One of ``MODES``.
        scale: What products of queries and keys are multiplied by.

    Returns:
        The sum of the values it attends to, ``[batch, num_heads, head_dim]``; the new state;
        and to which it does, 0 or 1, ``[batch, num_heads, key_len]``.
    """
    key, value, lens, position = state
    key_len, group = key.shape[2], query.shape[1] // key.shape[1]
    item = torch.arange(len(key), device=key.device)[:, None]
    head = torch.arange(query.shape[1], device=key.device) // group
    output = torch.zeros_like(query)
    weights = query.new_zeros(*query.shape[:2], key_len)
    walking = position < lens[:, None]
    while bool(walking.any()):
        here = position.clamp_max(key_len - 1)
        logit = (query * key[item, head, here]).sum(-1) * scale
        onwards = walking & (logit > 0)
        attended = walking & ~onwards if mode == "hard_monotonic" else walking
        output = output + value[item, head, here] * attended[..., None]
        weights.scatter_add_(2, here[..., None], attended[..., None].to(weights.dtype))
        if mode == "one_key_per_query":  # p stays with the key, and the query is done
            position = position + (walking & ~onwards).long()
            break
        step = walking if mode == "one_query_per_key" else onwards
        position = position + step.long()
        walking = onwards & (position < lens[:, None])
    return output, state._replace(position=position), weights
