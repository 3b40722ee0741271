"""The two halves as one model, and on devices of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from attn_course.seq2seq import (
    AttentionDecoder,
    Encoder,
    Seq2Seq,
    beam_search,
    greedy_decode,
    place,
)
from attn_course.testing import assert_close
from tests.seq2seq.models import BOS, EOS, OPTIONS, languages, make_batch, make_model

options_by_name = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def run(model: Seq2Seq, options: dict[str, Any]) -> list[torch.Tensor]:
    """Logits, every gradient, and what both searches write, on the CPU."""
    batch, told = make_batch(), languages(options)
    logits = model(**batch, **told)
    model.zero_grad()
    (logits**2).sum().backward()
    target = batch.pop("target_input")
    assert target.device.type == "cpu"
    searched = {**batch, **told, "bos": BOS, "eos": EOS, "max_len": 5}
    greedy = greedy_decode(model, **searched)
    beam = beam_search(model, **searched, width=3, need_weights=model.decoder.attention is not None)
    results = [logits, *(p.grad for p in model.parameters()), greedy.scores, beam.scores]
    return [x.detach().cpu().double() for x in results if x is not None]


@options_by_name
@pytest.mark.parametrize(
    "devices",
    [
        ["cpu"] * 3,
        pytest.param(["cuda"], marks=pytest.mark.gpu),
        pytest.param(["cpu", "cuda"], marks=pytest.mark.gpu),
        pytest.param(["cuda", "cpu", "cuda"], marks=pytest.mark.gpu),
        pytest.param(["cpu", "cuda", "cpu"], marks=pytest.mark.gpu),
        pytest.param(["cuda", "cuda", "cpu"], marks=pytest.mark.gpu),
    ],
    ids="-".join,
)
def test_any_places_give_the_same(devices: list[str], options: dict[str, Any]) -> None:
    expected = run(make_model(**options), options)
    model = place(make_model(**options), devices)
    actual = run(model, options)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_every_part_goes_where_it_should() -> None:
    """On ``meta``, the second device that every machine has."""
    model = place(make_model(scoring="dot"), ["cpu", "meta", "cpu"])  # nothing but a map
    where = {name: p.device.type for name, p in model.named_parameters()}
    assert {n for n, d in where.items() if d == "meta"} == {"decoder.attention.match_query.weight"}
    assert model.decoder.attention.device.type == "meta"

    model = place(make_model(), ["cpu", "meta"])
    assert {p.device.type for p in model.encoder.parameters()} == {"cpu"}
    assert {p.device.type for p in model.decoder.parameters()} == {"meta"}

    model = place(make_model(scoring="uniform"), ["meta", "cpu"])
    assert model.decoder.attention.device.type == "cpu"
    assert place(model, ["meta"]).decoder.attention.device.type == "meta"
    assert place(make_model(scoring=None), ["cpu", "meta", "cpu"]).decoder.attention is None


def test_where_things_are_is_not_stored() -> None:
    assert not any("_anchor" in name for name in make_model().state_dict())


@pytest.mark.parametrize("devices", [[], ["cpu"] * 4, "cpu"])
def test_place_refuses(devices: Any) -> None:
    with pytest.raises(ValueError, match="devices must be a list of 1 to 3 devices"):
        place(make_model(), devices)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_dim": 6}, "memory_dim must be what the encoder gives, 12, got 6"),
        ({"num_layers": 2}, "num_layers must be what the encoder gives, 1, got 2"),
        ({"cell": "lstm"}, "cell must be what the encoder gives, 'gru', got 'lstm'"),
    ],
)
def test_halves_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    decoder = AttentionDecoder(9, 5, 6, **({"memory_dim": 12} | options))
    with pytest.raises(ValueError, match=message):
        Seq2Seq(Encoder(11, 5, 6), decoder)


@pytest.mark.parametrize("count", ["vocab_size", "embed_dim", "hidden_dim", "num_layers"])
def test_the_encoder_refuses(count: str) -> None:
    sizes = {"vocab_size": 3, "embed_dim": 3, "hidden_dim": 3} | {count: 0}
    with pytest.raises(ValueError, match=f"{count} must be an integer of at least 1, got 0"):
        Encoder(**sizes)


def test_weights_come_only_if_asked_for() -> None:
    logits = make_model()(**make_batch())
    assert isinstance(logits, torch.Tensor)
    again, weights = make_model()(**make_batch(), need_weights=True)
    assert torch.equal(logits, again)
    assert weights.shape == (3, 4, 5)
    _, weights = make_model(attend_generated=True)(**make_batch(), need_weights=True)
    assert weights.shape == (3, 4, 5 + 3)


def test_arguments_are_left_as_they_are() -> None:
    batch = make_batch()
    copies = {name: tensor.clone() for name, tensor in batch.items()}
    make_model()(**batch)
    assert all(torch.equal(batch[name], copies[name]) for name in batch)


def test_it_learns_to_copy_backwards() -> None:
    """A hundred and fifty steps: a word order that only attention or a good memory gets right."""
    torch.manual_seed(0)
    model = Seq2Seq(Encoder(10, 16, 24), AttentionDecoder(10, 16, 32, 48))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    lens = torch.full((32,), 4)
    for _ in range(150):
        source = torch.randint(3, 10, (32, 4))
        target = torch.cat([source.flip(1), torch.full((32, 1), EOS)], dim=1)
        target_input = torch.cat([torch.full((32, 1), BOS), target[:, :-1]], dim=1)
        logits = model(source, lens, target_input)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    source = torch.randint(3, 10, (200, 4))
    written = greedy_decode(model, source, torch.full((200,), 4), bos=BOS, eos=EOS, max_len=8)
    right = (written.lengths == 4) & (written.tokens[:, :4] == source.flip(1)).all(1)
    assert right.double().mean() > 0.9
