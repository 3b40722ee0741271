"""Small models and sentences for the tests of this folder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attn_course.seq2seq import AttentionDecoder, Encoder, Seq2Seq

SOURCE_VOCAB, TARGET_VOCAB, EMBED, HIDDEN = 11, 9, 5, 6
BOS, EOS = 1, 2

#: Every way to attend, as options of the decoder.
OPTIONS: dict[str, dict[str, Any]] = {
    "additive": {},
    "no_v": {"scoring": "no_v"},
    "dot": {"scoring": "dot"},
    "scaled_dot": {"scoring": "scaled_dot"},
    "bilinear": {"scoring": "bilinear"},
    "cosine": {"scoring": "cosine"},
    "uniform": {"scoring": "uniform"},
    "uniform_window": {"scoring": "uniform", "window": 1},
    "none": {"scoring": None},
    "token": {"query": ("token",)},
    "token_window": {"query": ("token",), "window": 1},
    "token_language": {"query": ("token", "language"), "num_languages": 2},
    "everything": {"query": ("state", "token", "context", "language"), "num_languages": 2},
    "context_only": {"query": ("context",), "scoring": "dot"},
    "window": {"window": 1},
    "generated": {"attend_generated": True},
    "generated_window": {"attend_generated": True, "window": 0, "scoring": "dot"},
    "lstm": {"cell": "lstm"},
    "two_layers": {"num_layers": 2},
}


def make_model(
    *, bidirectional: bool = True, seed: int = 0, hidden: int = HIDDEN, **options: Any
) -> Seq2Seq:
    """A float64 model with random parameters, in evaluation mode."""
    torch.manual_seed(seed)
    shared = {k: options[k] for k in ("cell", "num_layers", "dropout") if k in options}
    encoder = Encoder(SOURCE_VOCAB, EMBED, 6, bidirectional=bidirectional, **shared)
    decoder = AttentionDecoder(TARGET_VOCAB, EMBED, hidden, encoder.width, **options)
    model = Seq2Seq(encoder, decoder).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # far enough from linear to tell formulas apart
    return model


def make_batch(seed: int = 0) -> dict[str, Tensor]:
    """Three sentences of 5, 1 and 3 tokens, and four tokens of their translations."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "source": torch.randint(SOURCE_VOCAB, (3, 5), generator=generator),
        "source_lens": torch.tensor([5, 1, 3]),
        "target_input": torch.randint(TARGET_VOCAB, (3, 4), generator=generator),
    }


def languages(options: dict[str, Any]) -> dict[str, Tensor]:
    """The languages of the three sentences, for a decoder that wants them."""
    return {"language": torch.tensor([0, 1, 1])} if "num_languages" in options else {}
