"""Greedy decoding and beam search against every sentence there is."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attn_course.seq2seq import (
    AttentionDecoder,
    Encoder,
    Seq2Seq,
    beam_search,
    greedy_decode,
)
from attn_course.testing import assert_close
from tests.seq2seq.models import (
    BOS,
    EOS,
    OPTIONS,
    SOURCE_VOCAB,
    languages,
    make_batch,
    make_model,
)

IDS = {"bos": BOS, "eos": EOS}
options_by_name = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def sources() -> dict[str, Tensor]:
    batch = make_batch()
    return {"source": batch["source"], "source_lens": batch["source_lens"]}


def tiny(seed: int, vocab_size: int = 4, eos_bias: float = 0.0) -> Seq2Seq:
    """A model that writes with few tokens and has strong opinions."""
    torch.manual_seed(seed)
    decoder = AttentionDecoder(vocab_size, 5, 6, 12)
    model = Seq2Seq(Encoder(SOURCE_VOCAB, 5, 6), decoder).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
        decoder.output.bias[EOS] += eos_bias
    return model.eval()


def log_probability(model: Seq2Seq, i: int, tokens: list[int]) -> float:
    """Of one sentence as the translation of source ``i``, by teacher forcing, alone."""
    batch = sources()
    length = int(batch["source_lens"][i])
    target_input = torch.tensor([[BOS, *tokens[:-1]]])
    logits = model(batch["source"][i : i + 1, :length], torch.tensor([length]), target_input)
    steps = logits[0].softmax(-1).log()
    return sum(steps[t, token].item() for t, token in enumerate(tokens))


def all_sentences(vocab_size: int, max_len: int) -> list[list[int]]:
    """Those that end in eos after up to max_len tokens, and those that are cut off there."""
    words = [token for token in range(vocab_size) if token != EOS]
    ended = [
        [*s, EOS] for n in range(max_len) for s in map(list, itertools.product(words, repeat=n))
    ]
    return ended + [list(s) for s in itertools.product(words, repeat=max_len)]


def ranked(model: Seq2Seq, i: int, max_len: int, penalty: float) -> list[tuple[float, list[int]]]:
    sentences = all_sentences(model.decoder.vocab_size, max_len)
    scores = [(log_probability(model, i, s) / ((5 + len(s)) / 6) ** penalty, s) for s in sentences]
    return sorted(scores, reverse=True)


def words(sentence: list[int]) -> list[int]:
    return sentence[:-1] if sentence[-1] == EOS else sentence


@pytest.mark.parametrize("penalty", [0.0, 0.7, 3.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_beam_wide_enough_is_exhaustive(seed: int, penalty: float) -> None:
    model, max_len = tiny(seed), 3
    count = len(all_sentences(4, max_len))
    every = beam_search(
        model,
        **sources(),
        **IDS,
        max_len=max_len,
        width=count + 3,
        length_penalty=penalty,
        return_all=True,
    )
    best = beam_search(
        model, **sources(), **IDS, max_len=max_len, width=count, length_penalty=penalty
    )
    assert every.tokens.shape == (3, count + 3, max_len)
    for i in range(3):
        expected = ranked(model, i, max_len, penalty)
        scores = torch.tensor([score for score, _ in expected])
        torch.testing.assert_close(every.scores[i, :count].float(), scores, atol=1e-5, rtol=1e-5)
        assert every.scores[i, count:].tolist() == [-torch.inf] * 3  # places left over
        assert every.lengths[i, count:].tolist() == [0] * 3
        found = [
            tuple(row[:n].tolist())
            for row, n in zip(every.tokens[i, :count], every.lengths[i, :count], strict=True)
        ]
        assert sorted(found) == sorted(tuple(words(s)) for _, s in expected)
        top = words(expected[0][1])
        assert best.tokens[i, : best.lengths[i]].tolist() == top
        assert list(found[0]) == top


@options_by_name
def test_width_one_is_greedy(options: dict[str, Any]) -> None:
    model, told = make_model(seed=1, **options), languages(options)
    greedy = greedy_decode(model, **sources(), **told, **IDS, max_len=7)
    beam = beam_search(model, **sources(), **told, **IDS, max_len=7, width=1)
    assert torch.equal(greedy.tokens, beam.tokens)
    assert torch.equal(greedy.lengths, beam.lengths)
    assert_close(beam.scores.float(), greedy.scores.double())


@options_by_name
def test_greedy_takes_the_likeliest_token_each_time(options: dict[str, Any]) -> None:
    model, told = make_model(seed=3, **options), languages(options)
    asked = options.get("scoring", "") is not None
    written = greedy_decode(model, **sources(), **told, **IDS, max_len=6, need_weights=asked)
    starts = torch.full((3, 1), BOS)
    target_input = torch.cat([starts, written.tokens[:, :-1]], dim=1)
    result = model(**sources(), target_input=target_input, **told, need_weights=asked)
    logits, weights = result if asked else (result, None)
    best = logits.argmax(-1)
    for i, length in enumerate(written.lengths.tolist()):
        end = min(length + 1, written.tokens.shape[1])
        assert written.tokens[i, :end].tolist() == best[i, :end].tolist()
        assert (written.tokens[i, length:] == EOS).all()
        assert not (written.tokens[i, :length] == EOS).any()
        total = logits[i, :end].log_softmax(-1).gather(1, written.tokens[i, :end, None]).sum()
        torch.testing.assert_close(written.scores[i].double(), total, atol=1e-5, rtol=1e-5)
        if asked:
            columns = written.weights.shape[2]
            assert_close(written.weights[i, :end], weights[i, :end, :columns].detach())
            assert not written.weights[i, end:].any()
    assert written.tokens.shape[1] == 6 or int(written.lengths.max()) + 1 == written.tokens.shape[1]


@pytest.mark.parametrize("search", ["greedy", "beam"])
def test_the_others_of_the_batch_do_not_matter(search: str) -> None:
    lengths = set()

    def write(model: Seq2Seq, batch: dict[str, Tensor]) -> list[list[int]]:
        if search == "greedy":
            written = greedy_decode(model, **batch, **IDS, max_len=8)
        else:
            written = beam_search(model, **batch, **IDS, max_len=8, width=3, length_penalty=0.6)
        rows = zip(written.tokens, written.lengths, strict=True)
        return [row[:length].tolist() for row, length in rows]

    for seed in range(6):
        model = tiny(seed, vocab_size=6, eos_bias=1.0)
        together = write(model, sources())
        alone = [write(model, {k: v[i : i + 1] for k, v in sources().items()}) for i in range(3)]
        assert together == [rows[0] for rows in alone]
        lengths.add(tuple(len(row) for row in together))
    assert any(len(set(ends)) > 1 for ends in lengths)  # some end at different times


@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_written_after_the_end(seed: int) -> None:
    """A sure model ends some sentences early, and leaves no hope to their other beams."""
    model = tiny(seed, vocab_size=7, eos_bias=2.0)
    with torch.no_grad():
        for parameter in model.decoder.output.parameters():
            parameter.mul_(4)
    batch = {name: tensor.repeat(4, *[1] * (tensor.ndim - 1)) for name, tensor in sources().items()}
    batch["source"] = batch["source"].clone()
    batch["source"][:, 0] = torch.arange(4, 4 + len(batch["source"])) % SOURCE_VOCAB
    found = beam_search(model, **batch, **IDS, max_len=12, width=4)
    for i, row in enumerate(found.tokens.tolist()):
        length = int(found.lengths[i])
        assert EOS not in row[:length] and set(row[length:]) <= {EOS}
        one = {name: tensor[i : i + 1] for name, tensor in batch.items()}
        alone = beam_search(model, **one, **IDS, max_len=12, width=4)
        assert alone.tokens[0, :length].tolist() == row[:length]
        assert int(alone.lengths) == length


def test_a_wider_beam_finds_what_greedy_misses() -> None:
    """And its best is never worse than greedy's, which stays in the beam's reach here."""
    better = 0
    for seed in range(8):
        model = tiny(seed, vocab_size=5)
        greedy = greedy_decode(model, **sources(), **IDS, max_len=5)
        beam = beam_search(model, **sources(), **IDS, max_len=5, width=64)
        better += int((beam.scores > greedy.scores + 1e-4).sum())
        assert bool((beam.scores >= greedy.scores - 1e-4).all())
    assert better > 0


def test_one_parent_may_have_several_survivors() -> None:
    """The first step has one sentence to extend, so a beam of 3 must keep 3 of its children."""
    model = tiny(0, vocab_size=6)
    written = beam_search(model, **sources(), **IDS, max_len=1, width=3, return_all=True)
    logits, _, _ = model.decoder.step(
        torch.full((3,), BOS),
        model.decoder.start(model.encoder(*sources().values()), sources()["source_lens"]),
    )
    best, tokens = logits.log_softmax(-1).topk(3)
    assert torch.equal(written.tokens[..., 0].sort(1).values, tokens.sort(1).values)
    assert_close(written.scores.float(), best.detach(), atol=1e-6)


class Script(nn.Module):
    """Gives the logits that a table has for what was written last."""

    def __init__(self, table: dict[int, dict[int, float]], vocab_size: int) -> None:
        super().__init__()
        rows = torch.full((vocab_size, vocab_size), -30.0)
        for last, nexts in table.items():
            for token, probability in nexts.items():
                rows[last, token] = torch.tensor(probability).log()
        self.rows = nn.Parameter(rows)

    def forward(self, token: Tensor) -> Tensor:
        return self.rows[token]


def scripted(table: dict[int, dict[int, float]], monkeypatch: pytest.MonkeyPatch) -> Seq2Seq:
    """A model whose next token depends on the last one alone, as the table says."""
    model, script = tiny(0, vocab_size=7), Script(table, 7)
    real = model.decoder.step

    def step(token: Tensor, state: Any, **keywords: Any) -> Any:
        _, state, weights = real(token, state, **keywords)
        return script(token), state, weights

    monkeypatch.setattr(model.decoder, "step", step)
    return model


def test_a_sentence_that_has_ended_wins_only_if_none_can_beat_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # "3" ends at once with 0.5; "4 5" then goes on without a doubt: 0.45.
    table = {BOS: {3: 0.55, 4: 0.45}, 3: {EOS: 0.7, 6: 0.3}, 4: {5: 1.0}, 5: {EOS: 1.0}}
    table |= {6: {6: 1.0}}
    model = scripted(table, monkeypatch)
    one = {"source": torch.tensor([[3, 4]]), "source_lens": torch.tensor([2])}
    short = beam_search(model, **one, **IDS, max_len=9, width=3)
    assert short.tokens.tolist() == [[4, 5, EOS]]  # 0.45 beats 0.385, though it ends later
    assert short.scores.exp().item() == pytest.approx(0.45, rel=1e-5)
    # Half as likely, but three times as long: the penalty turns the order.
    table = {BOS: {EOS: 0.6, 3: 0.4}, 3: {4: 1.0}, 4: {5: 1.0}, 5: {6: 1.0}, 6: {EOS: 1.0}}
    model = scripted(table, monkeypatch)
    assert beam_search(model, **one, **IDS, max_len=9, width=2).lengths.tolist() == [0]
    longer = beam_search(model, **one, **IDS, max_len=9, width=2, length_penalty=2.0)
    assert longer.tokens.tolist() == [[3, 4, 5, 6, EOS]]
    expected = torch.tensor(0.4).log().item() / (10 / 6) ** 2
    assert longer.scores.item() == pytest.approx(expected, rel=1e-4)


def test_the_search_stops_once_it_is_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {BOS: {EOS: 0.9, 3: 0.1}, 3: {3: 1.0}}  # "3" would go on for ever
    model = scripted(table, monkeypatch)
    step, calls = model.decoder.step, []
    monkeypatch.setattr(model.decoder, "step", lambda *a, **k: calls.append(1) or step(*a, **k))
    written = beam_search(model, **sources(), **IDS, max_len=50, width=2)
    assert len(calls) == 1
    assert written.tokens.tolist() == [[EOS]] * 3
    assert written.lengths.tolist() == [0] * 3


@options_by_name
def test_a_beams_weights_are_those_of_its_sentence(options: dict[str, Any]) -> None:
    if options.get("scoring", "") is None:
        return
    model, told = make_model(seed=2, **options), languages(options)
    written = beam_search(model, **sources(), **told, **IDS, max_len=5, width=4, need_weights=True)
    steps = written.tokens.shape[1]
    target_input = torch.cat([torch.full((3, 1), BOS), written.tokens[:, :-1]], dim=1)
    _, weights = model(**sources(), target_input=target_input, **told, need_weights=True)
    for i, length in enumerate(written.lengths.tolist()):
        end = min(length + 1, steps)
        columns = weights.shape[2]
        assert_close(written.weights[i, :end, :columns], weights[i, :end].detach())
        assert not written.weights[i, :end, columns:].any()
        assert not written.weights[i, end:].any()


def test_the_mode_is_left_as_it_was() -> None:
    model = make_model(dropout=0.5).train()
    model.encoder.dropout.eval()  # a mixture
    modes = [module.training for module in model.modules()]
    first = greedy_decode(model, **sources(), **IDS, max_len=6)
    second = greedy_decode(model, **sources(), **IDS, max_len=6)
    assert torch.equal(first.scores, second.scores)  # no dropout
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(ValueError, match="source must have shape"):
        greedy_decode(model, torch.zeros(3, 0).long(), torch.ones(3).long(), **IDS, max_len=6)
    assert [module.training for module in model.modules()] == modes
    assert not first.scores.requires_grad


def test_half_precision_is_scored_in_single() -> None:
    model = make_model().to(torch.bfloat16)
    for written in (
        greedy_decode(model, **sources(), **IDS, max_len=4),
        beam_search(model, **sources(), **IDS, max_len=4, width=2),
    ):
        assert written.scores.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width must be an integer of at least 1, got 0"),
        ({"width": 2.0}, "width must be an integer of at least 1, got 2.0"),
        ({"max_len": 0}, "max_len must be an integer of at least 1, got 0"),
        ({"bos": 9}, r"bos must be an id in \[0, 9\), got 9"),
        ({"eos": -1}, r"eos must be an id in \[0, 9\), got -1"),
        ({"eos": torch.tensor(2)}, "eos must be an id"),
        ({"length_penalty": -0.1}, "length_penalty must be at least 0"),
        ({"length_penalty": float("nan")}, "length_penalty must be at least 0"),
    ],
)
def test_searches_refuse(change: dict[str, Any], message: str) -> None:
    options = {**IDS, "max_len": 4, "width": 2} | change
    with pytest.raises(ValueError, match=message):
        beam_search(make_model(), **sources(), **options)
    if not {"width", "length_penalty"} & set(change):
        options.pop("width")
        with pytest.raises(ValueError, match=message):
            greedy_decode(make_model(), **sources(), **options)


def test_a_search_needs_a_translator() -> None:
    with pytest.raises(TypeError, match="module with start and step, such as Seq2Seq, got Linear"):
        greedy_decode(nn.Linear(1, 1), **sources(), **IDS, max_len=3)  # type: ignore[arg-type]
