"""Who sees whom in a window, and how windows become ordinary attention, in plain PyTorch.

``visible`` is the definition, a mask of all queries times all keys, and with it the oracle.
``Groups`` is what saves that mask: positions that see each other only among themselves are put
in a sequence of their own, which joins the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Window(NamedTuple):
    """Which keys a query sees.

    Attributes:
        left: So many steps back,
        right: and so many ahead.
        dilation: Positions in a step.
        block: Positions of a block, which none sees beyond; ``None``: there are no blocks.
    """

    left: int
    right: int
    dilation: int = 1
    block: int | None = None


def visible(
    query_len: int, key_len: int, window: Window, device: torch.device | None = None
) -> Tensor:
    """Whether query i may see key j, ``[query_len, key_len]``.

    Reference:
        Beltagy et al. (2020), Longformer, figure 2, for sliding and dilated windows.

    Example:
        >>> visible(4, 4, Window(left=1, right=0)).int()
        tensor([[1, 0, 0, 0],
                [1, 1, 0, 0],
                [0, 1, 1, 0],
                [0, 0, 1, 1]], dtype=torch.int32)
    """
    i = torch.arange(query_len, device=device)[:, None]
    j = torch.arange(key_len, device=device)
    ahead, step = j - i, window.dilation
    seen = (ahead % step == 0) & (ahead >= -window.left * step) & (ahead <= window.right * step)
    return seen if window.block is None else seen & (i // window.block == j // window.block)


class Groups(NamedTuple):
    """Positions dealt out to groups that see nothing of each other.

    With a dilation of r, position p goes to place p // r of group p mod r: what were steps of r
    are steps of one. With blocks of w, it goes to place p mod w of group p // w. The last
    places of a group may be nobody's.

    Attributes:
        number: Of groups.
        query_places: Places of a group among the queries,
        key_places: and among the keys.
        strided: Whether groups are residues: else they are blocks.
    """

    number: int
    query_places: int
    key_places: int
    strided: bool

    @classmethod
    def of(cls, query_len: int, key_len: int, window: Window) -> Groups:
        """The groups of a window: one for each residue, or one for each block of queries."""
        if window.block is None:
            step = window.dilation
            return cls(step, -(-query_len // step), -(-key_len // step), strided=True)
        places = max(1, min(window.block, max(query_len, key_len)))
        return cls(max(1, -(-query_len // places)), places, places, strided=False)

    def split(self, x: Tensor, places: int) -> Tensor:
        """``[batch, ..., len, columns]`` as ``[batch * number, ..., places, columns]``."""
        missing = self.number * places - x.shape[-2]
        if missing:  # of keys, too many if missing < 0: blocks that no query is in
            x = F.pad(x, (0, 0, 0, missing))
        if self.strided:
            apart = x.unflatten(-2, (places, self.number)).movedim(-2, 1)
        else:
            apart = x.unflatten(-2, (self.number, places)).movedim(-3, 1)
        return apart.flatten(0, 1)  # [batch, number, ..., places, columns]

    def merge(self, x: Tensor, query_len: int) -> Tensor:
        """Undo ``split`` of queries: ``[batch, ..., query_len, columns]``."""
        apart = x.unflatten(0, (x.shape[0] // self.number, self.number))
        side_by_side = apart.movedim(1, -2 if self.strided else -3).flatten(-3, -2)
        return side_by_side[..., :query_len, :]

    def lens(
        self, lens: Tensor | None, batch: int, key_len: int, device: torch.device
    ) -> Tensor | None:
        """How many leading keys of each group count.

        Args:
            lens: How many leading keys count, ``[batch, 1 or query_len]``; ``None``: all.
            batch: Items of the batch.
            key_len: How many keys there are.
            device: Where the lengths shall live.

        Returns:
            ``[batch * number, 1 or query_places]``, or ``None`` where all of them do.
        """
        if lens is None:
            if key_len == self.number * self.key_places:
                return None
            lens = torch.full((batch, 1), key_len, device=device)
        if lens.shape[1] > 1:
            lens = self.split(lens[..., None], self.query_places).reshape(batch, self.number, -1)
        else:
            lens = lens[:, None]  # [batch, 1, 1]
        group = torch.arange(self.number, device=device)[:, None]
        if self.strided:  # keys group, group + r, ... below the length
            count = -((group - lens) // self.number)
        else:
            count = lens - group * self.key_places
        return count.clamp(0, self.key_places).flatten(0, 1)
