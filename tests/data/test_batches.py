"""Vocabularies and batches: ids there and back, padding, order, and what they refuse."""

from collections import Counter

import pytest
import torch
from torch import nn

from attn_course.data import (
    Pair,
    TranslationBatch,
    Vocabulary,
    detokenize,
    tokenize,
    translation_batches,
)
from attn_course.training import fit


def toy(count=500):
    """Pairs of all lengths; the target is the source, a word longer."""
    return [Pair(" ".join(["w"] * (k * 7 % 13 + 1)) + f" n{k}", f"a b n{k}") for k in range(count)]


def batches_of(pairs, **options):
    source = Vocabulary(pair.source for pair in pairs)
    target = Vocabulary(pair.target for pair in pairs)
    return translation_batches(pairs, source, target, **options), source, target


def test_special_tokens_come_first():
    vocabulary = Vocabulary([["b", "a", "b"], ["c"]])
    assert (vocabulary.pad, vocabulary.bos, vocabulary.eos, vocabulary.unk) == (0, 1, 2, 3)
    assert vocabulary.tokens == ["<pad>", "<bos>", "<eos>", "<unk>", "b", "a", "c"]
    assert len(vocabulary) == 7 and "a" in vocabulary and "d" not in vocabulary


def test_text_and_lists_are_the_same():
    assert Vocabulary(["a b", "c"]).tokens == Vocabulary([["a", "b"], ["c"]]).tokens
    vocabulary = Vocabulary(iter(["a b", "c"]))
    assert vocabulary.encode("c a") == vocabulary.encode(["c", "a"])


def test_rare_tokens_are_left_out():
    vocabulary = Vocabulary(["a a b", "b c"], min_freq=2)
    assert vocabulary.tokens[4:] == ["a", "b"]
    assert vocabulary.encode("c a", unknown="unk") == [vocabulary.unk, 4]


def test_decode_stops_at_the_end():
    vocabulary = Vocabulary(["a b"])
    assert vocabulary.decode(torch.tensor([1, 4, 3, 0, 5, 2, 4])) == ["a", "<unk>", "b"]
    assert vocabulary.decode([]) == []
    with pytest.raises(ValueError, match=r"ids must lie in \[0, 5\], got -1"):
        vocabulary.decode([-1])


@pytest.mark.parametrize(
    ("sentences", "options", "error", "message"),
    [
        ("a b", {}, TypeError, "several sentences, got one string"),
        ([3], {}, TypeError, "text or a list of tokens, got int"),
        ([[3]], {}, TypeError, "text or a list of tokens"),
        ([], {}, ValueError, "must hold a token"),
        (["a b"], {"min_freq": 2}, ValueError, "occurs 2 times"),
        (["a b"], {"min_freq": 0}, ValueError, "min_freq must be an integer of at least 1, got 0"),
        (["a <eos>"], {}, ValueError, "special token '<eos>'"),
    ],
)
def test_vocabulary_refuses(sentences, options, error, message):
    with pytest.raises(error, match=message):
        Vocabulary(sentences, **options)


def test_encode_names_the_unknown_token_and_its_place():
    vocabulary = Vocabulary(["the cat"])
    with pytest.raises(ValueError, match=r"lacks 'dog', token 1 of 'the dog'"):
        vocabulary.encode("the dog")
    assert vocabulary.encode("all unknown", unknown="unk") == [3, 3]
    with pytest.raises(ValueError, match="empty"):
        vocabulary.encode("  ")
    with pytest.raises(ValueError, match="unknown must be one of 'error', 'unk', got 'skip'"):
        vocabulary.encode("the", unknown="skip")


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ("n' a pas", "n'a pas"),
        ("quatre - vingt - une pommes", "quatre-vingt-une pommes"),
        ("the king 's cat , here .", "the king's cat, here."),
        ("a ' quoted ' word", "a ' quoted ' word"),
    ],
)
def test_detokenize(tokens, text):
    assert detokenize(tokenize(tokens)) == text


def test_batches_hold_every_pair_once():
    pairs = toy()
    for seed in (None, 0):
        batches, source, target = batches_of(pairs, batch_size=32, seed=seed)
        assert len(batches) == len(list(batches)) == 16
        seen = Counter(
            (" ".join(source.decode(s)), " ".join(target.decode(t)))
            for batch in batches
            for s, t in zip(batch.source, batch.target, strict=True)
        )
        assert seen == Counter((pair.source, pair.target) for pair in pairs)


def test_rows_end_and_are_padded():
    pairs = [Pair("a", "x y z"), Pair("a b c", "x")]
    ((batch,), source, target) = batches_of(pairs, batch_size=5)
    a, b, c = source.encode("a b c")
    x, y, z = target.encode("x y z")
    assert batch.source.tolist() == [[a, 2, 0, 0], [a, b, c, 2]]
    assert batch.target.tolist() == [[1, x, y, z, 2], [1, x, 2, 0, 0]]
    assert batch.source_lens.tolist() == [2, 4] and batch.target_lens.tolist() == [5, 3]
    assert all(tensor.dtype == torch.int64 for tensor in batch[:4])
    assert batch.language is None
    # What is read and what is to be written are the same, one step apart.
    assert set(batch.inputs) == {"source", "source_lens", "target_input"}
    assert torch.equal(batch.inputs["target_input"][:, 1:], batch.labels[:, :-1])
    assert batch.inputs["target_input"].tolist() == [[1, x, y, z], [1, x, 2, 0]]
    assert batch.labels.tolist() == [[x, y, z, 2], [x, 2, 0, 0]]


def test_order_is_that_of_the_pairs_without_a_seed():
    pairs = toy(10)
    batches, source, _ = batches_of(pairs, batch_size=3)
    rows = [" ".join(source.decode(row)) for batch in batches for row in batch.source]
    assert rows == [pair.source for pair in pairs]


def test_seed_decides_the_order_and_each_pass_has_another():
    def passes(seed):
        torch.manual_seed(seed * 31)  # must not matter
        batches, *_ = batches_of(toy(), batch_size=16, seed=seed)
        return [[batch.source.tolist() for batch in batches] for _ in range(2)]

    first, second = passes(0)
    assert passes(0) == [first, second]
    assert first != second
    assert passes(1)[0] != first


def test_lengths_are_grouped():
    pairs = toy()
    shuffled, *_ = batches_of(pairs, batch_size=20, seed=0)
    ordered, *_ = batches_of(pairs, batch_size=20)

    def padding(batches):
        return sum(int((batch.source == 0).sum()) for batch in batches)

    assert padding(shuffled) < 0.1 * padding(ordered)
    widths = [batch.source.shape[1] for batch in shuffled]
    assert widths != sorted(widths), "short sentences must not all come first"


def test_languages():
    pairs = toy(9)
    languages = [k % 2 for k in range(9)]
    batches, source, _ = batches_of(pairs, batch_size=4, seed=0, languages=languages)
    for batch in batches:
        numbers = [int(source.decode(row)[-1][1:]) for row in batch.source]
        assert batch.language.tolist() == [number % 2 for number in numbers]
        assert torch.equal(batch.inputs["language"], batch.language)


def test_device():
    batches, *_ = batches_of(toy(3), batch_size=2, device="meta", languages=[0, 0, 0])
    batch = next(iter(batches))
    assert all(tensor.device.type == "meta" for tensor in batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"batch_size": 2.0}, "batch_size must be"),
        ({"batch_size": 2, "pairs": []}, "at least one pair"),
        ({"batch_size": 2, "pairs": [Pair("a", "x"), Pair("", "x")]}, r"pairs\[1\].*empty"),
        ({"batch_size": 2, "pairs": [Pair("a", "x"), Pair("a", "y")]}, r"pairs\[1\].*lacks 'y'"),
        ({"batch_size": 2, "languages": [0]}, "one for each of 2 pairs, got 1"),
    ],
)
def test_batches_refuse(options, message):
    pairs = options.pop("pairs", [Pair("a", "x"), Pair("a", "x")])
    with pytest.raises(ValueError, match=message):
        translation_batches(pairs, Vocabulary(["a"]), Vocabulary(["x"]), **options)


def test_unknown_words_may_be_read():
    (batch,) = translation_batches(
        [Pair("b c", "y")], Vocabulary(["a"]), Vocabulary(["x"]), batch_size=1, unknown="unk"
    )
    assert batch.source.tolist() == [[3, 3, 2]] and batch.target.tolist() == [[1, 3, 2]]


def test_fit_takes_them():
    class Counting(nn.Module):
        """Knows the distribution of tokens and nothing else."""

        def __init__(self, size):
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(size))

        def forward(self, source, source_lens, target_input):
            assert source.shape[0] == source_lens.shape[0]
            return self.logits.expand(*target_input.shape, -1)

    def loss(logits, labels):
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=0)

    batches, _, target = batches_of(toy(40), batch_size=8, seed=0)
    pairs = batches.for_fit()
    assert len(pairs) == 5
    model = Counting(len(target))
    history = fit(model, pairs, loss, epochs=3, lr=0.5, progress=False)
    assert history.train_loss[-1] < history.train_loss[0]
    assert isinstance(next(iter(batches)), TranslationBatch)
