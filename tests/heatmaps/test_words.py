"""Vectors sorted by their words; the influence of words, against gradients taken by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attn_course.data import Pair, Vocabulary
from attn_course.heatmaps import influence_map, influence_through, rows_by_word, word_influence
from attn_course.seq2seq import Translator
from attn_course.seq2seq import build_translator as recurrent
from attn_course.transformer import build_translator as transformer

TWO = [("b", torch.tensor([float(i), 0])) for i in range(3)] + [("a", torch.tensor([9.0, 9]))]


def test_rows_stand_in_the_order_of_the_words() -> None:
    rows = rows_by_word([*TWO, ("c", torch.zeros(2))], ["a", "b"], most=2)
    assert rows.vectors.tolist() == [[9, 9], [0, 0], [1, 0]]
    assert rows.counts == [1, 2] and rows.edges() == [0, 1, 3]
    assert rows.centres(60) == pytest.approx([10, 40])


def test_words_that_cannot_be_sorted() -> None:
    with pytest.raises(ValueError, match=r"got no vector of \['d', 'e'\]"):
        rows_by_word(TWO, ["a", "d", "e"], most=1)
    with pytest.raises(ValueError, match="most must be an integer of at least 1"):
        rows_by_word(TWO, ["a"], most=0)
    empty: list[str] = []
    for words in ("ab", empty):
        with pytest.raises(ValueError, match="words must be a list of at least one word"):
            rows_by_word(TWO, words, most=1)
    with pytest.raises(ValueError, match="size must be positive"):
        rows_by_word(TWO, ["a"], most=1).centres(0)


@pytest.mark.parametrize("single", [True, False])
def test_through_a_module_is_the_map_from_what_it_puts_out(single: bool) -> None:
    torch.manual_seed(0)
    embed, mix = nn.Embedding(7, 3), torch.randn(2, 4)
    ids = torch.tensor([[1, 5, 2, 2]]) if single else torch.tensor([1, 5, 2, 2])

    def function(x: Tensor) -> Tensor:
        return (mix @ x.reshape(4, 3)).tanh()

    found = influence_through(embed, lambda: function(embed(ids)))
    expected = influence_map(function, embed(ids.flatten()).detach())
    torch.testing.assert_close(found, expected)
    assert not embed._forward_hooks and embed.weight.grad is None


def test_modules_that_do_not_fit() -> None:
    embed, ids = nn.Embedding(7, 3), torch.tensor([[1, 2]])
    with pytest.raises(ValueError, match="exactly once, got 0 calls"):
        influence_through(embed, lambda: torch.zeros(2))
    with pytest.raises(ValueError, match="exactly once, got 2 calls"):
        influence_through(embed, lambda: (embed(ids) + embed(ids))[0])
    with pytest.raises(ValueError, match=r"\[1, n, d\] or \[n, d\], got \[2, 2, 3\]"):
        influence_through(embed, lambda: embed(ids.repeat(2, 1))[0])
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module, got Tensor"):
        influence_through(torch.zeros(2), lambda: torch.zeros(2))  # type: ignore[arg-type]
    assert not embed._forward_hooks


def test_a_hook_is_taken_away_after_an_error() -> None:
    embed = nn.Embedding(7, 3)

    def function() -> Tensor:
        embed(torch.tensor([1]))
        raise RuntimeError("from within")

    with pytest.raises(RuntimeError, match="from within"):
        influence_through(embed, function)
    assert not embed._forward_hooks


PAIR = Pair("the black cat", "le chat noir")


def translators() -> list[Translator]:
    torch.manual_seed(1)
    words = Vocabulary([PAIR.source]), Vocabulary([PAIR.target])
    sizes = {"embed_dim": 4, "hidden_dim": 6}
    heads = {"embed_dim": 8, "hidden_dim": 6, "num_heads": 2, "num_layers": 1}
    made = [recurrent(sizes, sizes, *words), transformer(heads, heads, *words)]
    for translator in made:
        translator.model.eval()
    return made


@pytest.mark.parametrize("minus", [None, "chat"])
def test_influence_of_words_is_the_gradient_of_their_logits(minus: str | None) -> None:
    for translator in translators():
        table: Any = next(
            layer for layer in translator.model.encoder.modules() if isinstance(layer, nn.Embedding)
        )
        found = word_influence(translator, PAIR, minus=minus)
        (one,) = translator.batches([PAIR])
        logits = translator.model(**one.inputs)[0]
        assert found.shape == (4, 4)
        for t, label in enumerate(one.labels[0].tolist()):
            lead = logits[t, label]
            if minus:
                lead = lead - logits[t, translator.target.encode(minus)[0]]
            (gradient,) = torch.autograd.grad(lead, table.weight, retain_graph=True)
            # Each word occurs once, so its row of the table is its embedding here.
            expected = gradient[one.source[0]].norm(dim=1)
            torch.testing.assert_close(found[t], expected, rtol=1e-4, atol=1e-6)


def test_words_that_are_not_there() -> None:
    translator = translators()[0]
    with pytest.raises(ValueError, match="minus must be one word, got 'le chat'"):
        word_influence(translator, PAIR, minus="le chat")
    with pytest.raises(ValueError, match="dog"):
        word_influence(translator, Pair("the dog", "le chat"))
    translator.model.encoder.embedding = nn.Identity()
    with pytest.raises(TypeError, match=r"encoder with an nn\.Embedding"):
        word_influence(translator, PAIR)
