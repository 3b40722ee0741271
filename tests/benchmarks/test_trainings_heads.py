"""The trainings of chapters 4 and 6: models of equal size, and the options that they say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attn_course.benchmarks.trainings import multi_head, seq2seq, transformer
from attn_course.data import Vocabulary
from attn_course.seq2seq import Translator
from attn_course.transformer import label_smoothing_loss


@pytest.fixture(scope="module")
def words() -> tuple[Vocabulary, Vocabulary]:
    """As many as the grammar's, so that the counts of parameters are those that are trained."""
    return tuple(Vocabulary([[f"w{i}" for i in range(n)]]) for n in (225, 280))  # type: ignore[return-value]


def parameters(translator: Translator) -> int:
    return sum(p.numel() for p in translator.model.parameters())


def test_rivals_have_about_equally_many_parameters(words: tuple[Vocabulary, Vocabulary]) -> None:
    recurrent = parameters(seq2seq.make("attention", *words))
    heads = [parameters(multi_head.make(count, *words)) for count in (1, 4)]
    assert heads[0] == heads[1] == pytest.approx(recurrent, rel=0.03)
    assert parameters(transformer.make(transformer.SIZES, *words)) == pytest.approx(
        recurrent, rel=0.03
    )


def test_each_name_has_its_training(
    words: tuple[Vocabulary, Vocabulary], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: dict[str, tuple[Any, dict[str, Any]]] = {}

    def note(build: Any, seed: int, **options: Any) -> dict[str, Any]:
        trained[name] = (build(*words).model, options)
        return {"seed": seed}

    monkeypatch.setattr(transformer, "on_grammar", note)
    for name in transformer.GRAMMAR:
        assert transformer.RUNS[name](3) == {"seed": 3}
    long, long_options = trained["transformer"]
    assert long_options == {"epochs": 4, "batch_size": 128, "max_lr": 4e-3}
    assert long.decoder.num_layers == 2 and long.decoder.layers[0].norm == "pre"
    for name, (model, options) in trained.items():
        if name == "transformer":
            continue
        assert options["size"] == 20_000 and options["batch_size"] == 64
        deep = "_two_" not in name and ("_pre" in name or "_post" in name)
        assert model.encoder.num_layers == model.decoder.num_layers == (6 if deep else 2)
        assert model.decoder.layers[0].norm == ("post" if "_post" in name else "pre")
        assert options.get("warmup") == (
            0.0 if name.endswith("_cold") else 0.3 if name.endswith("_gentle") else None
        )
        tied = model.output.weight is model.decoder.embedding.tokens.weight
        assert tied == (name == "transformer_short_tied")
        assert ("loss" in options) == (name == "transformer_short_smoothed")


def test_the_smoothed_loss_leaves_padding_out() -> None:
    words = Vocabulary(["le chat"])
    logits, labels = torch.randn(2, 3, len(words)), torch.tensor([[4, 5, 2], [4, 2, words.pad]])
    expected = label_smoothing_loss(logits, labels, smoothing=0.1, pad=words.pad)
    torch.testing.assert_close(transformer.smoothed(words)(logits, labels), expected)
    changed = logits.clone()
    changed[1, 2] = 7.0
    torch.testing.assert_close(transformer.smoothed(words)(changed, labels), expected)
