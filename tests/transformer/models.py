"""Small Transformers and sentences for the tests of this folder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attn_course.transformer import Transformer, TransformerDecoder, TransformerEncoder

SOURCE_VOCAB, TARGET_VOCAB, DIM, HEADS, HIDDEN, LAYERS = 11, 9, 12, 3, 20, 2
BOS, EOS = 1, 2
LENS = torch.tensor([5, 1, 3])

#: Every way to know positions, as options of encoder and decoder.
POSITIONS: dict[str, dict[str, Any]] = {
    "sinusoidal": {},
    "learned": {"position": "learned", "max_len": 10},
    "rotary": {"position": "rotary"},
    "linear": {"position": "linear"},
    "none": {"position": None},
}


def stir(module: nn.Module) -> nn.Module:
    """Make everything in float64, and vectors random that are ones or zeros at first."""
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.5 * torch.randn_like(parameter))
            else:
                parameter.mul_(1.5)
    return module


def make_model(*, seed: int = 0, tie_weights: bool = False, **options: Any) -> Any:
    """A float64 model with random parameters, in evaluation mode."""
    torch.manual_seed(seed)
    size = {"embed_dim": DIM, "num_heads": HEADS, "hidden_dim": HIDDEN, "num_layers": LAYERS}
    model = Transformer(
        TransformerEncoder(SOURCE_VOCAB, **(size | options)),
        TransformerDecoder(TARGET_VOCAB, **(size | options)),
        tie_weights=tie_weights,
    )
    return stir(model).eval()


def make_batch(seed: int = 0) -> dict[str, Tensor]:
    """Three sentences of 5, 1 and 3 tokens, and four tokens of their translations."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "source": torch.randint(SOURCE_VOCAB, (3, 5), generator=generator),
        "source_lens": LENS.clone(),
        "target_input": torch.randint(TARGET_VOCAB, (3, 4), generator=generator),
    }
