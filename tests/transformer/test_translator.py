"""Text in, text out; stored and loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from attn_course.data import Pair, Vocabulary, checkpoints, save_pretrained
from attn_course.seq2seq import greedy_decode
from attn_course.transformer import Transformer, build_translator, load_translator

PAIRS = [Pair("the cat sleeps", "le chat dort"), Pair("a black cat", "un chat noir")]
SIZE = {"embed_dim": 8, "num_heads": 2, "hidden_dim": 16, "num_layers": 3}


def small(**options: Any) -> Any:
    torch.manual_seed(0)
    english = Vocabulary(pair.source for pair in PAIRS)
    french = Vocabulary(pair.target for pair in PAIRS)
    translator = build_translator(SIZE, SIZE | {"norm": "pre"}, english, french, **options)
    translator.model.eval()
    return translator


def test_a_translation_is_what_the_search_writes() -> None:
    translator = small()
    texts = ["the cat sleeps", "cat"]
    found = translator.translate(texts, max_len=6, need_weights=True)
    for text, translation in zip(texts, found, strict=True):
        ids = [*translator.source.encode(text), translator.source.eos]
        source, lens = torch.tensor([ids]), torch.tensor([len(ids)])
        written = greedy_decode(
            translator.model, source, lens, bos=1, eos=2, max_len=6, need_weights=True
        )
        expected = [translator.target.tokens[i] for i in written.tokens[0].tolist()]
        assert translation.target == expected
        assert translation.weights.shape == (3, 2, len(expected), len(ids))
        torch.testing.assert_close(translation.weights, written.weights[0], rtol=1e-4, atol=1e-6)
    beams = translator.translate(texts, width=3, max_len=6)
    assert len(beams) == 2 and beams[0].weights is None


@pytest.mark.parametrize("tie_weights", [True, False])
def test_store_and_load(tie_weights: bool, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path)
    translator = small(tie_weights=tie_weights)
    config = {
        "encoder": SIZE,
        "decoder": SIZE | {"norm": "pre"},
        "model": {"tie_weights": tie_weights},
        "source": sorted(translator.source.tokens[4:]),
        "target": sorted(translator.target.tokens[4:]),
    }
    save_pretrained("tiny", config, translator.model.state_dict())
    loaded = load_translator("tiny")
    model = loaded.model
    assert isinstance(model, Transformer) and not model.training
    assert loaded.source.tokens[4:] == config["source"]
    assert loaded.target.tokens[4:] == config["target"]
    assert (model.output.weight is model.decoder.embedding.tokens.weight) == tie_weights
    for ours, stored in zip(translator.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.half().float(), stored)
    with pytest.raises(ValueError, match="no pretrained model 'grammar_latin'"):
        load_translator("grammar_latin")
