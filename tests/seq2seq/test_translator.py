"""Text in, text out; stored and loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from attn_course.data import (
    SIGNPOST,
    Pair,
    Vocabulary,
    checkpoints,
    save_pretrained,
    translation_batches,
)
from attn_course.seq2seq import (
    asked_and_known,
    beam_search,
    build_translator,
    greedy_decode,
    load_translator,
)

PAIRS = [Pair("the cat sleeps", "le chat dort"), Pair("a black cat", "un chat noir")] * 20
OPTIONS = {"embed_dim": 8, "hidden_dim": 12}


def small(**decoder: Any) -> Any:
    torch.manual_seed(0)
    english = Vocabulary(pair.source for pair in PAIRS)
    french = Vocabulary(pair.target for pair in PAIRS)
    return build_translator(OPTIONS, OPTIONS | decoder, english, french)


@pytest.mark.parametrize("width", [1, 3])
def test_a_translation_is_what_the_search_writes(width: int) -> None:
    translator = small()
    texts = ["the cat sleeps", "cat"]
    found = translator.translate(texts, width=width, max_len=6, need_weights=True)
    for text, translation in zip(texts, found, strict=True):
        ids = [*translator.source.encode(text), translator.source.eos]
        source, lens = torch.tensor([ids]), torch.tensor([len(ids)])
        options = {"bos": 1, "eos": 2, "max_len": 6, "need_weights": True}
        if width == 1:
            written = greedy_decode(translator.model, source, lens, **options)
        else:
            written = beam_search(translator.model, source, lens, width=width, **options)
        assert translation.source == [*text.split(), "<eos>"]
        expected = [translator.target.tokens[i] for i in written.tokens[0].tolist()]
        assert translation.target == expected
        assert translation.text == " ".join(t for t in expected if t != "<eos>")
        torch.testing.assert_close(translation.weights, written.weights[0])
        assert translation.weights.shape == (len(translation.target), len(ids))


def test_without_weights() -> None:
    (translation,) = small(scoring=None).translate(["a cat"], max_len=4)
    assert translation.weights is None


@pytest.mark.parametrize("sentences", ["the cat", []])
def test_one_text_is_no_list(sentences: Any) -> None:
    with pytest.raises(ValueError, match="sentences must be a list of at least one text"):
        small().translate(sentences)


def test_store_and_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path)
    translator = small()
    config = {
        "encoder": OPTIONS,
        "decoder": OPTIONS,
        "source": sorted(translator.source.tokens[4:]),
        "target": sorted(translator.target.tokens[4:]),
    }
    save_pretrained("tiny", config, translator.model.state_dict())
    loaded = load_translator("tiny")
    assert not loaded.model.training
    # Ids follow the order of the file, and rows of the embeddings follow ids.
    assert loaded.source.tokens[4:] == config["source"]
    assert loaded.target.tokens[4:] == config["target"]
    for ours, stored in zip(translator.model.parameters(), loaded.model.parameters(), strict=True):
        torch.testing.assert_close(ours.half().float(), stored)
    with pytest.raises(ValueError, match="no pretrained model 'grammar_latin'"):
        load_translator("grammar_latin")


def test_a_language_is_asked_for() -> None:
    translator = small(query=("state", "language"), num_languages=2)
    with torch.no_grad():
        translator.model.decoder.language.weight.mul_(100)
    weights = [
        translator.translate(["a black cat"], language=i, max_len=3, need_weights=True)[0].weights
        for i in range(2)
    ]
    assert weights[0].shape[1] == weights[1].shape[1]
    assert not torch.equal(weights[0][0], weights[1][0])
    with pytest.raises(ValueError, match="language"):
        translator.translate(["a black cat"], language=2)
    with pytest.raises(ValueError, match="language"):
        translator.translate(["a black cat"])


def test_unknown_tokens() -> None:
    translator = small()
    with pytest.raises(ValueError, match="dragon"):
        translator.translate(["the dragon sleeps"])
    (found,) = translator.translate(["the dragon sleeps"], unknown="unk", max_len=3)
    assert found.source == ["the", "<unk>", "sleeps", "<eos>"]


def test_the_one_that_is_shipped_knows_the_signpost() -> None:
    translator = load_translator()
    (translation,) = translator.translate([SIGNPOST.source], need_weights=True)
    assert translation.text == SIGNPOST.target
    assert translation.weights is not None
    # The adjective follows its noun in French: the alignment crosses.
    chat, noir = translation.weights[2, :4], translation.weights[3, :4]
    assert translation.target[2:4] == ["chat", "noir"]
    assert int(chat.argmax()) == 3 and int(noir.argmax()) in (2, 3)


def test_batches_are_those_of_its_vocabularies() -> None:
    translator = small()
    ours = list(translator.batches(PAIRS, batch_size=16, seed=3))
    words = translator.source, translator.target
    theirs = list(translation_batches(PAIRS, *words, batch_size=16, seed=3))
    assert len(ours) == 3
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.source, other.source) and torch.equal(one.target, other.target)
    (whole,) = translator.batches(PAIRS)
    assert len(whole.source) == 40


def test_forced_weights_are_of_the_right_words() -> None:
    translator = small()
    translator.model.eval()
    pair = PAIRS[0]
    weights = translator.forced_weights(pair)
    ids = (
        [[*translator.source.encode(pair.source), 2]],
        [[1, *translator.target.encode(pair.target)]],
    )
    source, read = (torch.tensor(side) for side in ids)
    _, expected = translator.model(source, torch.tensor([4]), read, need_weights=True)
    assert weights.shape == (1, 4, 4) and not weights.requires_grad
    torch.testing.assert_close(weights, expected)


LINKED = Pair("a black cat", "un chat noir", links=((0, 0), (1, 2), (2, 1)))


def test_queries_and_keys_make_the_weights() -> None:
    """Scored by hand, they give what the model attended to."""
    translator = small()
    translator.model.eval()
    queries, keys = asked_and_known(translator, [LINKED, LINKED])
    words = LINKED.source.split()
    assert [word for word, _ in keys] == words * 2
    assert [word for word, _ in queries] == [words[i] for i, _ in LINKED.links] * 2
    w_v = translator.model.decoder.attention.scoring.w_v
    known = torch.stack([vector for _, vector in keys[:3]])
    weights = translator.forced_weights(LINKED)[0, :, :3]  # without the key of <eos>
    for (_, vector), (_, j) in zip(queries, LINKED.links, strict=False):
        scores = torch.tanh(vector + known) @ w_v
        torch.testing.assert_close(scores.softmax(-1), weights[j] / weights[j].sum())
        assert not vector.requires_grad
    assert not translator.model.decoder.attention.scoring.W_q._forward_hooks


def test_queries_need_a_projection_and_pairs() -> None:
    with pytest.raises(TypeError, match="projects queries by W_q, got UniformAttention"):
        asked_and_known(small(scoring="uniform"), [LINKED])
    with pytest.raises(ValueError, match="pairs must hold at least one pair"):
        asked_and_known(small(), [])
