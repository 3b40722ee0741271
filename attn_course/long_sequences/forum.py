"""The three approaches of the forum's question, rebuilt to be measured and repaired.

The question is about a text recogniser: convolutions turn an image into a sequence of about
800 steps, and attention is to stand between two recurrent networks. Its code lacks the base
class and does not run as it stands; here is what it says, in our own words. Like there,
sequences come first, ``[len, batch, width]``, which is what recurrent layers expect.

Approach 1 goes step by step. Its second network never reads what attention returns, so all
steps can attend at once: ``Approach1(how=...)`` has both forms and the remedies of the
chapter, with the same parameters. Approaches 2.1 and 2.2 are products of matrices with faults
that can be switched off one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attn_course._validation import check_choice, check_counts, check_rank, check_tensor
from attn_course.dot_product import dot_product_attention
from attn_course.long_sequences.ops import windowed_attention

#: What is wrong with approaches 2.1 and 2.2 as posted; see ``Approach21``.
FAULTS = ("axis", "layout", "direction", "sizes")

_CELLS = {"gru": nn.GRU, "lstm": nn.LSTM}

#: From queries and memory, ``[batch, len, width]`` each, and a window to the contexts.
LookUp = Callable[[Tensor, Tensor, int], Tensor]


def _plain(query: Tensor, memory: Tensor, window: int) -> Tensor:
    """Two products and a softmax, whose result is kept for the backward pass."""
    weights = (query @ memory.mT).softmax(dim=-1)
    return weights @ memory


def _checkpointed(query: Tensor, memory: Tensor, window: int) -> Tensor:
    """The same, but the weights are dropped and computed once more in the backward pass."""
    found: Tensor = checkpoint(_plain, query, memory, window, use_reentrant=False)
    return found


def _fused(query: Tensor, memory: Tensor, window: int) -> Tensor:
    """The same in PyTorch's fused operation, which never holds all weights."""
    return dot_product_attention(query, memory, memory, scale=1.0, impl="sdpa")


def _local(query: Tensor, memory: Tensor, window: int) -> Tensor:
    """Chapter 3's local attention: all scores, and a mask that hides what is far away."""
    near = (window, window)
    return dot_product_attention(query, memory, memory, scale=1.0, window=near, impl="reference")


def _windowed(query: Tensor, memory: Tensor, window: int, kind: str) -> Tensor:
    """Near steps only, without computing the other scores."""
    return windowed_attention(query, memory, memory, scale=1.0, window=window, kind=kind)


#: The ways in which ``Approach1`` attends for all steps at once, by name.
LOOK_UPS: dict[str, LookUp] = {
    "batched": _plain,
    "checkpointed": _checkpointed,
    "fused": _fused,
    "local": _local,
    "sliding": partial(_windowed, kind="sliding"),
    "block": partial(_windowed, kind="block"),
}


class Approach1(nn.Module):
    """A recogniser whose second recurrent network's states look back at the first one's.

    A bidirectional LSTM reads the sequence, and a second network reads its states. Each state
    h_t of the second looks up the states m of the first, and what both say is mixed:
    ``o_t = tanh(W [h_t; sum_j softmax_j(m_j . h_t) m_j])``. This is Luong's global attention
    without input feeding: no h_t depends on any o, so the loop over time is not needed.

    Args:
        input_dim: Width of the sequence.
        hidden_dim: Width of a state of the LSTM in each direction; the second network's is
            twice as wide.
        num_classes: Width of the output.
        cell: Of the second network, ``"gru"`` as posted or ``"lstm"``.
        how: ``"loop"``: as posted, one step after the other. For all steps at once:
            ``"batched"``, ``"checkpointed"``, ``"fused"``, which compute the same, and
            ``"sliding"``, ``"block"``, ``"local"``, which see a window. ``None``: without
            attention.
        window: How far the last three see: as many steps to each side, or the length of a
            block.

    Raises:
        ValueError: An argument is out of place.

    Reference:
        Luong et al. (2015), section 3.1, equations 5 to 7.

    Example:
        >>> loop, batched = Approach1(3, 2, 5), Approach1(3, 2, 5, how="batched")
        >>> _ = batched.load_state_dict(loop.state_dict())
        >>> x = torch.rand(7, 4, 3)
        >>> bool((loop(x) - batched(x)).abs().max() < 1e-6)
        True
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        num_classes: int,
        *,
        cell: str = "gru",
        how: str | None = "loop",
        window: int = 40,
    ) -> None:
        super().__init__()
        check_counts(
            input_dim=input_dim, hidden_dim=hidden_dim, num_classes=num_classes, window=window
        )
        check_choice("cell", cell, _CELLS)
        if how is not None:
            check_choice("how", how, ("loop", *LOOK_UPS))
        self.how, self.window = how, window
        width = 2 * hidden_dim
        self.rnn1 = nn.LSTM(input_dim, hidden_dim, bidirectional=True)
        self.rnn2 = _CELLS[cell](width, width)
        self.mix = None if how is None else nn.Linear(2 * width, width, bias=False)
        self.output = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Read sequences.

        Args:
            x: ``[len, batch, input_dim]``.

        Returns:
            ``[len, batch, num_classes]``, before softmax.
        """
        _check_sequence(x, self.rnn1)
        memory, _ = self.rnn1(x)
        if self.how == "loop":
            states = self._step_by_step(memory)
        else:
            states, _ = self.rnn2(memory)
            if self.how is not None:
                states = self._at_once(states, memory)
        output: Tensor = self.output(states)
        return output

    def _step_by_step(self, memory: Tensor) -> Tensor:
        """As posted: the network makes one step, and its state attends."""
        hidden, mixed = None, []
        keys = memory.transpose(0, 1)  # [batch, len, width]
        for step in memory:
            state, hidden = self.rnn2(step.unsqueeze(0), hidden)
            query = state.squeeze(0)  # [batch, width]
            weights = (keys @ query.unsqueeze(2)).softmax(dim=1)  # [batch, len, 1]
            context = (weights.mT @ keys).squeeze(1)  # [batch, width]
            mixed.append(self._mixed(query, context))
        return torch.stack(mixed)

    def _at_once(self, states: Tensor, memory: Tensor) -> Tensor:
        """All states attend together; the same numbers."""
        query, keys = states.transpose(0, 1), memory.transpose(0, 1)
        context = LOOK_UPS[self.how or ""](query, keys, self.window)
        return self._mixed(query, context).transpose(0, 1)

    def _mixed(self, query: Tensor, context: Tensor) -> Tensor:
        assert self.mix is not None
        mixed: Tensor = self.mix(torch.cat((query, context), dim=-1)).tanh()
        return mixed


class _MatrixApproach(nn.Module):
    """What approaches 2.1 and 2.2 have in common; arguments as in ``Approach21``."""

    #: What the posted code has in place of the width of what it scores.
    hard_coded: int

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        num_classes: int,
        scored_dim: int,
        faults: Collection[str],
    ) -> None:
        super().__init__()
        check_counts(input_dim=input_dim, hidden_dim=hidden_dim, num_classes=num_classes)
        if isinstance(faults, str):
            raise TypeError(f"faults must be a collection of names, got {faults!r}.")
        for fault in faults:
            check_choice("faults", fault, FAULTS)
        self.faults = frozenset(faults)
        scored_dim = self.hard_coded if "sizes" in faults else scored_dim
        self.rnn1 = self._lstm(input_dim, hidden_dim)
        self.rnn2 = self._lstm(2 * hidden_dim, hidden_dim)
        self.w = nn.Linear(scored_dim, scored_dim)
        self.output = nn.Linear(2 * hidden_dim, num_classes)

    def _lstm(self, input_dim: int, hidden_dim: int) -> nn.LSTM:
        if "direction" in self.faults:
            # The third one is num_layers: the posted True was taken for this 1, until PyTorch
            # began to refuse it when the layer is called.
            return nn.LSTM(input_dim, hidden_dim, 1)
        return nn.LSTM(input_dim, hidden_dim, bidirectional=True)

    def weights(self, x: Tensor) -> Tensor:
        """How much each step of a sequence gets from each other.

        Args:
            x: What is scored, batch first: ``[batch, len, width]``.

        Returns:
            ``[batch, len, len]``; each row sums to 1, or with the fault ``axis`` each column.
        """
        scores = self.w(x) @ x.mT
        return scores.softmax(dim=1 if "axis" in self.faults else 2)

    def _read(self, found: Tensor) -> Tensor:
        """The second network and the output, from ``[batch, len, width]``."""
        if "layout" not in self.faults:
            found = found.transpose(0, 1)
        states, _ = self.rnn2(found)  # its first axis is time, whatever lies there
        output: Tensor = self.output(states)
        return output


class Approach21(_MatrixApproach):
    """Attention between the networks as two products: scores of the input, values of the first.

    Args:
        input_dim: Width of the sequence.
        hidden_dim: Width of a state of the LSTMs in each direction.
        num_classes: Width of the output.
        faults: Those that it has, by default all as posted:

            ============= ========================================================
            ``axis``      softmax over the queries: of the scores [batch, query,
                          key] it normalises ``dim=1``, so that the weights which
                          a step receives do not sum to 1
            ``layout``    the result, batch first, goes into a network that takes
                          sequences first: the batch becomes time
            ``direction`` ``nn.LSTM(nin, nh, True)`` sets ``num_layers`` to 1, not
                          ``bidirectional``; the next layer expects both
                          directions, so the model does not run
            ``sizes``     ``nn.Linear(128, 128)``, whatever the width
            ============= ========================================================

    Raises:
        TypeError: ``faults`` is a text.
        ValueError: An argument is out of place.

    Example:
        >>> model = Approach21(3, 2, 5, faults=())
        >>> model(torch.rand(7, 4, 3)).shape
        torch.Size([7, 4, 5])
        >>> Approach21(3, 2, 5, faults=["layout"])(torch.rand(7, 4, 3)).shape
        torch.Size([4, 7, 5])
    """

    hard_coded = 128

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        num_classes: int,
        *,
        faults: Collection[str] = FAULTS,
    ) -> None:
        super().__init__(input_dim, hidden_dim, num_classes, input_dim, faults)

    def forward(self, x: Tensor) -> Tensor:
        """Read sequences.

        Args:
            x: ``[len, batch, input_dim]``.

        Returns:
            ``[len, batch, num_classes]``; with the fault ``layout`` batch first.
        """
        _check_sequence(x, self.rnn1)
        states, _ = self.rnn1(x)
        return self._read(self.weights(x.transpose(0, 1)) @ states.transpose(0, 1))


class Approach22(_MatrixApproach):
    """Attention between the networks inside windows that follow each other.

    The first network's states are split into windows, and each window attends to itself.

    Args:
        input_dim: Width of the sequence.
        hidden_dim: Width of a state of the LSTMs in each direction.
        num_classes: Width of the output.
        window: How many steps a window has.
        faults: As in ``Approach21``; here ``sizes`` is ``nn.Linear(512, 512)``.

    Raises:
        TypeError: ``faults`` is a text.
        ValueError: An argument is out of place.

    Example:
        >>> model = Approach22(3, 2, 5, window=2, faults=())
        >>> model(torch.rand(7, 4, 3)).shape
        torch.Size([7, 4, 5])
    """

    hard_coded = 512

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        num_classes: int,
        *,
        window: int = 40,
        faults: Collection[str] = FAULTS,
    ) -> None:
        check_counts(window=window)
        super().__init__(input_dim, hidden_dim, num_classes, 2 * hidden_dim, faults)
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        """Read sequences; as in ``Approach21``."""
        _check_sequence(x, self.rnn1)
        states, _ = self.rnn1(x)
        windows = [part.transpose(0, 1) for part in states.split(self.window)]
        return self._read(torch.cat([self.weights(part) @ part for part in windows], dim=1))


class ConvolutionStack(nn.Sequential):
    """The convolutions of a text recogniser of 2016, in front of the recurrent layers.

    The question in the forum says only "several convolutions". These are those of Shi et al.:
    the 512 of approach 2.2 is the width that they and the LSTMs behind them have.

    Args:
        channels: Of the image.

    Reference:
        Shi et al. (2017), An end-to-end trainable neural network for image-based sequence
        recognition, table 1.

    Example:
        >>> ConvolutionStack()(torch.rand(2, 1, 32, 100)).shape
        torch.Size([26, 2, 512])
    """

    def __init__(self, channels: int = 1) -> None:
        check_counts(channels=channels)

        def layer(before: int, after: int, *, size: int = 3, norm: bool = False) -> list[nn.Module]:
            convolution = nn.Conv2d(before, after, size, padding=size // 3)
            return [convolution, *[nn.BatchNorm2d(after)] * norm, nn.ReLU(inplace=True)]

        def halve_height() -> nn.Module:  # and one column more
            return nn.MaxPool2d(2, stride=(2, 1), padding=(0, 1))

        super().__init__(
            *layer(channels, 64),
            nn.MaxPool2d(2),
            *layer(64, 128),
            nn.MaxPool2d(2),
            *layer(128, 256),
            *layer(256, 256),
            halve_height(),
            *layer(256, 512, norm=True),
            *layer(512, 512, norm=True),
            halve_height(),
            *layer(512, 512, size=2),
        )

    def forward(self, images: Tensor) -> Tensor:
        """See images as sequences.

        Args:
            images: ``[batch, channels, 32, width]``.

        Returns:
            ``[width // 4 + 1, batch, 512]``.

        Raises:
            ValueError: The height is not 32.
        """
        check_tensor("images", images)
        if images.ndim != 4 or images.shape[2] != 32:
            raise ValueError(
                f"images must have shape [batch, channels, 32, width], got {list(images.shape)}."
            )
        features: Tensor = super().forward(images)
        return features.squeeze(2).permute(2, 0, 1)


@torch.no_grad()
def item_influence(model: nn.Module, x: Tensor, *, axis: int = 1) -> Tensor:
    """Change one item of a batch after the other, and see whose outputs change.

    Args:
        model: From ``[len, batch, width]`` to a tensor with as many items; in evaluation
            mode, if that matters to it.
        x: ``[len, batch, width]``.
        axis: Of the output, along which its items lie.

    Returns:
        ``[batch, batch]``: in row i and column j the largest change of item i's output when
        item j changes. Off the diagonal there should be zeros.

    Example:
        >>> item_influence(torch.nn.Identity(), torch.rand(5, 2, 3)).round()
        tensor([[1., 0.],
                [0., 1.]])
    """
    before = model(x).movedim(axis, 0).flatten(1)
    columns = []
    for j in range(x.shape[1]):
        changed = x.clone()
        changed[:, j] += 1
        after = model(changed).movedim(axis, 0).flatten(1)
        columns.append((after - before).abs().amax(dim=1))
    return torch.stack(columns, dim=1)


def _check_sequence(x: Tensor, rnn: nn.LSTM) -> None:
    check_tensor("x", x)
    check_rank("x", x, 3, "[len, batch, input_dim]")
    if x.ndim != 3 or x.shape[2] != rnn.input_size or x.shape[0] < 1:
        raise ValueError(f"x must have shape [len, batch, {rnn.input_size}], got {list(x.shape)}.")
