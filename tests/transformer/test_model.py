"""Encoder, decoder and both together: oracles, promises, bad input."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attn_course.benchmarks.d2l_transformer import LectureTransformer
from attn_course.multi_head import packing
from attn_course.positional import linear_slopes, sinusoid
from attn_course.testing import assert_unchanged
from attn_course.transformer import (
    TokenEmbedding,
    Transformer,
    TransformerDecoder,
    TransformerEncoder,
)
from tests.transformer.models import (
    DIM,
    HEADS,
    HIDDEN,
    LAYERS,
    LENS,
    POSITIONS,
    SOURCE_VOCAB,
    TARGET_VOCAB,
    make_batch,
    make_model,
    stir,
)

each_position = pytest.mark.parametrize("position", POSITIONS.values(), ids=POSITIONS)
each_norm = pytest.mark.parametrize("norm", ["post", "pre"])
PADDING = torch.arange(5) >= LENS[:, None]
SEEN = torch.ones(4, 4, dtype=torch.bool).tril()


# Oracles


def pytorchs(ours: Any, norm: str) -> Any:
    """PyTorch's stack with the weights of ours."""
    encoder = isinstance(ours, TransformerEncoder)
    layer = nn.TransformerEncoderLayer if encoder else nn.TransformerDecoderLayer
    stack = nn.TransformerEncoder if encoder else nn.TransformerDecoder
    options = {"enable_nested_tensor": False} if encoder else {}
    final = nn.LayerNorm(DIM) if norm == "pre" else None
    theirs = stack(
        layer(DIM, HEADS, HIDDEN, dropout=0.0, batch_first=True, norm_first=norm == "pre"),
        LAYERS, norm=final, **options,
    )  # fmt: skip
    for mine, other in zip(ours.layers, stir(theirs).layers, strict=True):
        mine.load_torch(other)
    if final is not None:
        ours.final_norm.load_state_dict(final.state_dict())
    return theirs.train()


@each_norm
def test_stacks_are_pytorchs(norm: str) -> None:
    model, batch = make_model(norm=norm), make_batch()
    encoder, decoder = pytorchs(model.encoder, norm), pytorchs(model.decoder, norm)
    source, target = batch["source"], batch["target_input"]

    def embed(part: Any, ids: Tensor) -> Tensor:
        rows = sinusoid(ids.shape[1], DIM, dtype=torch.float64)
        return part.embedding.tokens.weight[ids] * math.sqrt(DIM) + rows

    memory = encoder(embed(model.encoder, source), src_key_padding_mask=PADDING)
    ours = model.encoder(source, LENS)
    torch.testing.assert_close(ours[~PADDING], memory[~PADDING])
    states = decoder(
        embed(model.decoder, target), memory, tgt_mask=~SEEN, memory_key_padding_mask=PADDING
    )
    torch.testing.assert_close(model.decoder(target, ours, LENS), states)
    logits = states @ model.output.weight.T + model.output.bias
    torch.testing.assert_close(model(**batch), logits)
    upstream = torch.randn_like(logits)
    parameters = [model.encoder.embedding.tokens.weight, model.decoder.embedding.tokens.weight]
    expected = torch.autograd.grad((logits * upstream).sum(), parameters, retain_graph=True)
    actual = torch.autograd.grad((model(**batch) * upstream).sum(), parameters)
    torch.testing.assert_close(actual, expected)


@pytest.mark.skipif(
    importlib.util.find_spec("d2l") is None,
    reason="d2l is not installed: python -m attn_course.install_d2l",
)
def test_a_model_of_d2ls_parts() -> None:
    """From ids to logits: d2l scales its embeddings and adds sinusoids as well."""
    batch = make_batch()
    theirs = LectureTransformer(SOURCE_VOCAB, TARGET_VOCAB, DIM, HIDDEN, HEADS, LAYERS)
    theirs(**batch)  # its parts learn their widths
    stir(theirs).train()
    ours, pairs = make_model(), ("encoder", "decoder")
    for mine, other in ((getattr(ours, name), getattr(theirs, name)) for name in pairs):
        other.pos_encoding.P = other.pos_encoding.P.double()
        mine.embedding.tokens.load_state_dict(other.embedding.state_dict())
        for layer, block in zip(mine.layers, other.blks, strict=True):
            layer.load_d2l(block)
    ours.output.load_state_dict(theirs.decoder.dense.state_dict())
    torch.testing.assert_close(ours(**batch), theirs(**batch), rtol=1e-6, atol=1e-6)


@each_position
def test_positions_are_where_they_should_be(position: dict[str, Any]) -> None:
    model, batch = make_model(**position), make_batch()
    ids = batch["source"]
    for part in (model.encoder, model.decoder):
        rows = part.embedding(ids[:1] * 0)[0]  # one token, again and again
        if position.get("position") == "learned":
            added = part.embedding.position.weight[:5]
        else:
            added = sinusoid(5, DIM, dtype=torch.float64) * (not position)
        plain = part.embedding.tokens.weight[0] * math.sqrt(DIM)
        torch.testing.assert_close(rows, plain + added)
    found = model.encoder.position
    kind = position.get("position")
    if kind == "rotary":
        assert found.dim == DIM // HEADS and model.decoder.position.dim == DIM // HEADS
    elif kind == "linear":
        torch.testing.assert_close(found, linear_slopes(HEADS).double())
    else:
        assert found is None
    if kind in ("rotary", "linear"):  # they reach self-attention, and that alone
        x = model.encoder.embedding(ids)
        for layer in model.encoder.layers:
            x = layer(x, valid_lens=LENS, position=found)
        torch.testing.assert_close(model.encoder(ids, LENS)[~PADDING], x[~PADDING])
        assert not any("slopes" in name or "rotary" in name for name in model.state_dict())


@each_position
def test_order_matters_if_positions_are_known(position: dict[str, Any]) -> None:
    model, ids = make_model(**position), torch.tensor([[3, 5, 7, 1, 2]])
    order, lens = torch.tensor([2, 0, 4, 1, 3]), torch.tensor([5])
    moved, expected = model.encoder(ids[:, order], lens), model.encoder(ids, lens)[:, order]
    assert torch.allclose(moved, expected) == (position == {"position": None})


def test_pre_norm_ends_in_a_norm() -> None:
    post, pre = make_model(), make_model(norm="pre")
    assert isinstance(post.encoder.final_norm, nn.Identity)
    batch = make_batch()
    nn.init.ones_(pre.decoder.final_norm.weight), nn.init.zeros_(pre.decoder.final_norm.bias)
    states = pre.decoder(batch["target_input"], pre.encoder(batch["source"], LENS), LENS)
    torch.testing.assert_close(states.mean(-1), torch.zeros(3, 4).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(
        states.var(-1, correction=0), torch.ones(3, 4).double(), atol=1e-3, rtol=0
    )


# Promises


@each_position
@each_norm
def test_padding_and_neighbours_do_not_matter(position: dict[str, Any], norm: str) -> None:
    model, batch = make_model(norm=norm, **position), make_batch()
    expected = model(**batch)
    changed = batch | {"source": batch["source"].masked_fill(PADDING, 7)}
    assert torch.equal(model(**changed), expected)
    changed = batch | {"source": batch["source"].masked_fill(PADDING, -100)}  # no id at all
    assert torch.equal(model(**changed), expected)
    for i, length in enumerate(LENS.tolist()):
        alone = model(batch["source"][[i], :length], LENS[[i]], batch["target_input"][[i]])
        torch.testing.assert_close(alone, expected[[i]])


@pytest.mark.parametrize("long", [True, False])
@each_position
@each_norm
def test_layers_compute_nothing_for_padding(
    position: dict[str, Any], norm: str, long: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with a mask, which they cannot leave padding out with, find the same."""
    monkeypatch.setattr(packing, "_LONG", 1 if long else 1 << 20)
    model, batch = make_model(norm=norm, **position), make_batch()
    encoder, source = model.encoder, batch["source"]
    seen: list[tuple[int, ...]] = []
    for layer in encoder.layers:
        layer.feed_forward.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape))
        layer.self_attention.W_q.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape))
    memory = encoder(source, LENS)
    assert seen == [(1, int(LENS.sum()), DIM)] * 2 * LAYERS
    assert not memory[PADDING].any()
    x = encoder.embedding(source)
    for layer in encoder.layers:
        x = layer(x, mask=~PADDING[:, None], position=encoder.position)
    expected = encoder.final_norm(x).masked_fill(PADDING[..., None], 0)
    torch.testing.assert_close(memory, expected)
    upstream, parameters = torch.randn_like(memory), list(encoder.parameters())
    torch.testing.assert_close(
        torch.autograd.grad((memory * upstream).sum(), parameters),
        torch.autograd.grad((expected * upstream).sum(), parameters),
    )


@pytest.mark.parametrize("training", [True, False])
@each_position
@each_norm
def test_the_future_does_not_matter_bit_for_bit(
    position: dict[str, Any], norm: str, training: bool
) -> None:
    for dropout in (0.0, 0.3):
        model = make_model(norm=norm, dropout=dropout, **position).train(training)
        batch = make_batch()
        target = batch["target_input"].clone()
        target[:, 2:] = (target[:, 2:] + 3) % TARGET_VOCAB
        outputs = []
        for changed in (batch, batch | {"target_input": target}):
            torch.manual_seed(3)
            outputs.append(model(**changed))
        assert torch.equal(outputs[0][:, :2], outputs[1][:, :2])
        assert not torch.equal(outputs[0][:, 2:], outputs[1][:, 2:])


@each_norm
def test_weights_of_every_layer_and_head(norm: str) -> None:
    model, batch = make_model(norm=norm), make_batch()
    logits, weights = model(**batch, need_weights=True)
    torch.testing.assert_close(logits, model(**batch))
    assert weights.encoder.shape == (3, LAYERS, HEADS, 5, 5)
    assert weights.decoder.shape == (3, LAYERS, HEADS, 4, 4)
    assert weights.cross.shape == (3, LAYERS, HEADS, 4, 5)
    for rows in weights:
        torch.testing.assert_close(rows.sum(-1), torch.ones_like(rows.sum(-1)))
    assert not weights.decoder.triu(1).any()
    hidden = PADDING[:, None, None, None, :]
    assert not weights.cross.masked_select(hidden).any()
    assert not weights.encoder.masked_select(hidden).any()
    x = model.encoder.embedding(batch["source"].masked_fill(PADDING, 0))
    for i, layer in enumerate(model.encoder.layers):
        x, rows = layer(x, valid_lens=LENS, need_weights=True)
        asks = ~PADDING[:, None, :, None]  # what padding would see means nothing
        torch.testing.assert_close(weights.encoder[:, i] * asks, rows * asks)
    memory, y = model.encoder(batch["source"], LENS), model.decoder.embedding(batch["target_input"])
    for i, layer in enumerate(model.decoder.layers):
        y, own, cross = layer(y, memory, memory_lens=LENS, need_weights=True)
        torch.testing.assert_close(weights.decoder[:, i], own)
        torch.testing.assert_close(weights.cross[:, i], cross)


@each_norm
def test_where_padding_cannot_be_left_out(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, whose lengths are not looked at."""
    model, batch = make_model(norm=norm), make_batch()
    expected = model.encoder(batch["source"], LENS), model(**batch)
    monkeypatch.setattr(packing.Packing, "of", lambda *_: None)
    torch.testing.assert_close((model.encoder(batch["source"], LENS), model(**batch)), expected)


def test_tied_weights_are_one_matrix() -> None:
    model = make_model(tie_weights=True)
    assert model.output.weight is model.decoder.embedding.tokens.weight
    apart = make_model()
    assert apart.output.weight is not apart.decoder.embedding.tokens.weight
    counts = [sum(p.numel() for p in m.parameters()) for m in (apart, model)]
    assert counts[0] - counts[1] == TARGET_VOCAB * DIM
    other = make_model(tie_weights=True, seed=1)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(**make_batch()), model(**make_batch()))
    assert other.output.weight is other.decoder.embedding.tokens.weight


def test_sizes_start_as_they_should() -> None:
    for scale, std in ((True, 1 / 16), (False, 1.0)):
        embed = TokenEmbedding(500, 256, scale=scale, position=None)
        assert 0.95 < embed.tokens.weight.std() / std < 1.05
        assert 0.9 < embed(torch.arange(500)[None]).std() < 1.1  # either way
    size = {"embed_dim": 256, "num_heads": 4, "hidden_dim": 512, "num_layers": 2}
    model = Transformer(
        TransformerEncoder(300, **size), TransformerDecoder(300, **size), tie_weights=True
    )
    ids, lens = torch.randint(300, (4, 9)), torch.full((4,), 9)
    assert 0.7 < model(ids, lens, ids).std() < 1.3
    apart = Transformer(TransformerEncoder(300, **size), TransformerDecoder(300, **size))
    assert 0.95 < apart.output.weight.std() / (2 / (256 + 300)) ** 0.5 < 1.05
    assert not apart.output.bias.any()


def test_embeddings_are_dropped_in_training() -> None:
    embed = TokenEmbedding(5, 400, dropout=0.5)
    rows = embed(torch.zeros(1, 1, dtype=torch.long))
    assert 0.3 < (rows == 0).double().mean() < 0.7
    assert (embed.eval()(torch.zeros(1, 1, dtype=torch.long)) == 0).double().mean() < 0.1


def test_options_reach_every_part() -> None:
    options = {"dropout": 0.2, "activation": "gelu", "bias": False, "impl": "reference"}
    model = make_model(**options, norm="pre")
    named = {n: m.p for n, m in model.named_modules() if isinstance(m, nn.Dropout)}
    assert {p for name, p in named.items() if "position" not in name} == {0.2}  # once, not twice
    assert {p for name, p in named.items() if "position" in name} == {0.0}
    assert {m.activation for m in model.modules() if hasattr(m, "activation")} == {"gelu"}
    assert {m.impl for m in model.modules() if hasattr(m, "impl")} == {"reference"}
    assert [n for n, _ in model.named_parameters() if n.endswith("bias")] == ["output.bias"]
    torch.testing.assert_close(
        model(**make_batch()),
        make_model(**(options | {"impl": "auto"}), norm="pre")(**make_batch()),
    )


def test_nothing_changes_its_arguments() -> None:
    batch = make_batch()
    with assert_unchanged(**batch):
        make_model()(**batch, need_weights=True)


def test_an_empty_sentence_has_nothing_to_say() -> None:
    model, batch = make_model(), make_batch()
    for lens in ([5, 0, 3], [0, 0, 0]):
        logits = model(**(batch | {"source_lens": torch.tensor(lens)}))
        logits.sum().backward()
        assert logits.isfinite().all()
        assert all(p.grad.isfinite().all() for p in model.parameters())


# Bad input


@pytest.mark.parametrize("kind", [TransformerEncoder, TransformerDecoder])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"embed_dim": 10}, ValueError, "embed_dim must be a multiple of num_heads"),
        ({"vocab_size": 0}, ValueError, "vocab_size must be an integer of at least 1"),
        ({"num_layers": 0}, ValueError, "num_layers must be an integer of at least 1, got 0"),
        ({"dropout": 1.5}, ValueError, "dropout must lie in"),
        ({"position": "absolute"}, ValueError, "position must be one of 'sinusoidal', 'learned'"),
        ({"position": "learned"}, ValueError, "max_len must be given exactly if position is"),
        ({"max_len": 9}, ValueError, "max_len must be given exactly if position is 'learned'"),
        ({"position": "learned", "max_len": 2.5}, TypeError, "max_len must be an integer"),
        ({"position": "rotary", "embed_dim": 9}, ValueError, "dim must be even"),
    ],
)
def test_bad_options(kind: Any, options: dict[str, Any], error: Any, message: str) -> None:
    size = {"vocab_size": 9, "embed_dim": 12, "num_heads": 3, "hidden_dim": 8, "num_layers": 1}
    with pytest.raises(error, match=message):
        kind(**(size | options))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"source": torch.tensor([[0.5]])}, TypeError, "source must hold integers"),
        ({"source": torch.tensor([1, 2])}, ValueError, "source must have shape"),
        ({"source": torch.full((3, 5), SOURCE_VOCAB)}, ValueError, r"source .* in \[0, 11\)"),
        ({"source": [[1]]}, TypeError, r"source must be a torch\.Tensor"),
        ({"source_lens": torch.tensor([6, 1, 1])}, ValueError, r"source_lens .* in \[0, 6\)"),
        ({"source_lens": torch.tensor([1, 1])}, ValueError, r"source_lens must have shape \[3\]"),
        ({"source_lens": torch.ones(3)}, TypeError, "source_lens must hold integers"),
        ({"target_input": torch.full((3, 4), 9)}, ValueError, r"target_input .* in \[0, 9\)"),
        ({"target_input": torch.ones(2, 4).long()}, ValueError, r"target_input must have shape"),
        ({"target_input": torch.ones(3, 0).long()}, ValueError, "target_input must have shape"),
        ({"target_input": torch.ones(3, 4).bool()}, TypeError, "target_input must hold integers"),
    ],
)
def test_bad_input(changes: dict[str, Any], error: Any, message: str) -> None:
    batch = make_batch()
    batch["source_lens"] = torch.tensor([5, 5, 5])
    if "source" in changes and isinstance(changes["source"], Tensor):
        batch["source_lens"] = torch.full(changes["source"].shape[:1], changes["source"].shape[-1])
    with pytest.raises(error, match=message):
        make_model()(**(batch | changes))


def test_beyond_the_learned_positions() -> None:
    model = make_model(position="learned", max_len=4)
    with pytest.raises(ValueError, match=r"within the 4 positions that were learned \(max_len\)"):
        model(**make_batch())
    state = model.start(torch.ones(1, 4).long(), torch.tensor([4]))
    for _ in range(4):
        _, state, _ = model.step(torch.tensor([1]), state)
    with pytest.raises(ValueError, match=r"\(max_len\), got positions 4 to 4"):
        model.step(torch.tensor([1]), state)


def test_parts_that_do_not_fit() -> None:
    size = {"num_heads": 2, "hidden_dim": 8, "num_layers": 1}
    encoder = TransformerEncoder(9, 8, **size)
    with pytest.raises(ValueError, match="embed_dim=8, got 12"):
        Transformer(encoder, TransformerDecoder(9, 12, **size))
    with pytest.raises(ValueError, match=r"memory must have shape \[batch, source_len, 8\]"):
        TransformerDecoder(9, 8, **size)(torch.ones(1, 1).long(), torch.rand(1, 2, 5), LENS[:1])
