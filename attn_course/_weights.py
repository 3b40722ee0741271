"""Loading the weights of others' layers, once they have the names that ours have."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def check_drawn(source: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` if a layer of d2l's has not been called, and so has no weights yet."""
    if any(nn.parameter.is_lazy(tensor) for tensor in source.values()):
        raise ValueError("source has no weights yet: call it once, so that it learns its widths.")


def load_named(
    module: nn.Module,
    state: Mapping[str, Tensor],
    demand: str = "have the parameters of this layer, with the same shapes",
) -> None:
    """Load a state under the module's own names, all or nothing.

    Args:
        module: Where it goes.
        state: Renamed already.
        demand: What a message says that the source must do.

    Raises:
        ValueError: The names or the shapes are not those of the module.
    """
    ours = module.state_dict()
    for name in sorted({*ours, *state}):
        here, there = (
            list(held[name].shape) if name in held else "missing" for held in (ours, state)
        )
        if here != there:
            raise ValueError(f"source must {demand}: {name} is {here} here and {there} in source.")
    module.load_state_dict(state)
