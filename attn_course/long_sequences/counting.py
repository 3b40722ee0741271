"""How many tiles of keys chapter 4's kernel visits: its loop bounds, in Python."""

from __future__ import annotations

import torch
from torch import Tensor

from attn_course._masks import check_valid_lens
from attn_course._validation import check_counts
from attn_course.long_sequences.ops import Window, check_window
from attn_course.long_sequences.reference import Groups


def tiles(
    query_len: int,
    key_len: int,
    *,
    window: Window,
    kind: str = "sliding",
    dilation: int = 1,
    is_causal: bool = False,
    valid_lens: Tensor | None = None,
    block: tuple[int, int] = (16, 16),
) -> int:
    """Count the tiles of keys that the forward kernel visits, over all tiles of queries.

    A tile of queries, i to i', sees keys i - left to i' + right below the valid length, and
    the kernel visits the tiles that one of these lies in. Nothing is saved by a window that
    is narrower than a tile.

    Args:
        query_len: Number of queries.
        key_len: Number of keys.
        window: As in ``windowed_attention``, and so the next three.
        kind: ``"sliding"`` or ``"block"``.
        dilation: Positions in a step. The groups it makes are all as long as the longest.
        is_causal: Whether queries see no later keys.
        valid_lens: How many leading keys count, ``[batch]``: the items are then added up.
            ``None``: one item, and all of them.
        block: Queries and keys of a tile: (16, 16) where the kernel is interpreted. On a GPU
            see ``CONFIGS`` in ``attn_course.dot_product.kernel``.

    Returns:
        The number, of one head.

    Raises:
        TypeError: An option has the wrong type.
        ValueError: An option is out of place.

    Example:
        >>> tiles(4096, 4096, window=4095), tiles(4096, 4096, window=4095, is_causal=True)
        (65536, 32896)
        >>> tiles(4096, 4096, window=64), tiles(4096, 4096, window=64, is_causal=True)
        (2284, 1270)
    """
    check_counts(query_len=query_len, key_len=key_len)
    if not isinstance(block, tuple | list) or len(block) != 2:
        raise TypeError(f"block must be a pair (queries, keys), got {block!r}.")
    rows, columns = block
    check_counts(**{"block[0]": rows, "block[1]": columns})
    seen = check_window(window, kind, dilation, is_causal)
    if valid_lens is None:
        valid_lens = torch.tensor([key_len])
    elif valid_lens.ndim != 1:
        raise ValueError(f"valid_lens must have shape [batch], got {list(valid_lens.shape)}.")
    batch, place = valid_lens.shape[0], torch.device("cpu")
    lens = check_valid_lens(valid_lens.cpu(), (batch,), query_len, key_len, place)
    queries = query_len
    if seen.dilation > 1 or seen.block is not None:
        groups = Groups.of(query_len, key_len, seen)
        queries, lens = groups.query_places, groups.lens(lens, batch, key_len, place)
    assert lens is not None
    visited = 0
    for length in lens.flatten().tolist():
        for first in range(0, queries, rows):
            last = min(first + rows, queries) - 1
            start, stop = max(first - seen.left, 0), min(length, last + seen.right + 1)
            if start < stop:
                visited += -(-stop // columns) - start // columns
    return visited
