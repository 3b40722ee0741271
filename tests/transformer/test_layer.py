"""The layers against PyTorch's and d2l's, and their promises."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attn_course import _d2l
from attn_course.benchmarks.d2l_transformer import LectureDecoderBlock, LectureState
from attn_course.multi_head import KeyValueCache
from attn_course.testing import assert_unchanged
from attn_course.transformer import (
    AddNorm,
    DecoderLayer,
    EncoderLayer,
    PositionwiseFeedForward,
)
from tests.launches import interpreted
from tests.transformer.models import DIM, HEADS, HIDDEN, LENS, stir

needs_d2l = pytest.mark.skipif(
    importlib.util.find_spec("d2l") is None,
    reason="d2l is not installed: python -m attn_course.install_d2l",
)
each_norm = pytest.mark.parametrize("norm", ["post", "pre"])
each_activation = pytest.mark.parametrize("activation", ["relu", "gelu"])
each_bias = pytest.mark.parametrize("bias", [True, False])
each_kind = pytest.mark.parametrize("kind", [EncoderLayer, DecoderLayer])
BATCH, LENGTH, MEMORY = 3, 5, 6
PADDING = torch.arange(LENGTH) >= LENS[:, None]
SEEN = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()


def make(kind: Any, **options: Any) -> Any:
    return stir(kind(DIM, HEADS, HIDDEN, **options))


def randn(length: int = LENGTH, width: int = DIM) -> Tensor:
    return torch.randn(BATCH, length, width, dtype=torch.float64, requires_grad=True)


def run(kind: Any, layer: nn.Module, x: Tensor, memory: Tensor, **options: Any) -> Any:
    return layer(x, **options) if kind is EncoderLayer else layer(x, memory, **options)


# PyTorch's layers


def make_torch(kind: Any, norm: str, activation: str, bias: bool) -> Any:
    theirs = nn.TransformerEncoderLayer if kind is EncoderLayer else nn.TransformerDecoderLayer
    options = {"activation": activation, "norm_first": norm == "pre", "bias": bias}
    made = theirs(DIM, HEADS, HIDDEN, dropout=0.0, batch_first=True, **options)
    return stir(made)


HIDING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # ours, theirs (True = hidden)
    "nothing": ({}, {}),
    "padding": ({"valid_lens": LENS}, {"src_key_padding_mask": PADDING}),
    "mask": ({"mask": SEEN}, {"src_mask": ~SEEN}),
    "both": (
        {"valid_lens": LENS, "mask": SEEN},
        {"src_key_padding_mask": PADDING, "src_mask": ~SEEN},
    ),
}


@each_norm
@each_activation
@each_bias
@pytest.mark.parametrize("hiding", HIDING)
def test_encoder_layer_is_pytorchs(norm: str, activation: str, bias: bool, hiding: str) -> None:
    theirs = make_torch(EncoderLayer, norm, activation, bias)
    ours = make(EncoderLayer, norm=norm, activation=activation, bias=bias)
    ours.load_torch(theirs)
    x, (mine, others) = randn(), HIDING[hiding]
    output, expected = ours(x, **mine), theirs(x, **others)
    if "valid_lens" in mine:  # padding comes to nothing in particular
        output, expected = (y.masked_fill(PADDING[..., None], 0) for y in (output, expected))
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)
    pairs = [
        (ours.feed_forward.linear1.weight, theirs.linear1.weight),
        (ours.self_attention.W_o.weight, theirs.self_attn.out_proj.weight),
        (ours.norm1.weight, theirs.norm1.weight),
        (ours.norm2.weight, theirs.norm2.weight),
        (x, x),
    ]
    for mine_, other in pairs:
        torch.testing.assert_close(gradients_of(output, mine_), gradients_of(expected, other))


def gradients_of(output: Tensor, parameter: Tensor) -> Tensor:
    upstream = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
    (found,) = torch.autograd.grad((output * upstream).sum(), parameter, retain_graph=True)
    return found


@each_norm
@each_activation
@each_bias
@pytest.mark.parametrize("padded", [False, True])
def test_decoder_layer_is_pytorchs_with_a_causal_mask(
    norm: str, activation: str, bias: bool, padded: bool
) -> None:
    theirs = make_torch(DecoderLayer, norm, activation, bias)
    ours = make(DecoderLayer, norm=norm, activation=activation, bias=bias)
    ours.load_torch(theirs)
    x, memory = randn(), randn(MEMORY)
    hidden = torch.arange(MEMORY) >= LENS[:, None]
    expected = theirs(x, memory, tgt_mask=~SEEN, memory_key_padding_mask=hidden if padded else None)
    output = ours(x, memory, memory_lens=LENS if padded else None)
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)
    pairs = [
        (ours.feed_forward.linear2.weight, theirs.linear2.weight),
        (ours.cross_attention.W_o.weight, theirs.multihead_attn.out_proj.weight),
        *((getattr(ours, n).weight, getattr(theirs, n).weight) for n in ("norm1", "norm2")),
        (ours.norm3.weight, theirs.norm3.weight),
        (x, x),
        (memory, memory),
    ]
    for mine, other in pairs:
        torch.testing.assert_close(gradients_of(output, mine), gradients_of(expected, other))


@each_kind
def test_pytorchs_weights_in_single_precision(kind: Any) -> None:
    theirs = make_torch(kind, "post", "relu", True).float().eval()
    ours = kind(DIM, HEADS, HIDDEN).eval()
    ours.load_torch(theirs.state_dict())
    x, memory = randn().float(), randn(MEMORY).float()
    told = {} if kind is EncoderLayer else {"tgt_mask": ~SEEN}
    expected = run(kind, theirs, x, memory, **told)
    torch.testing.assert_close(run(kind, ours, x, memory), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("activation", "theirs"), [("relu", nn.ReLU()), ("gelu", nn.GELU())])
def test_an_activation_may_come_as_a_module(activation: str, theirs: nn.Module) -> None:
    other = nn.TransformerEncoderLayer(DIM, HEADS, HIDDEN, activation=theirs, batch_first=True)
    other, ours = stir(other).eval(), make(EncoderLayer, activation=activation)
    ours.load_torch(other)
    x = randn().detach()
    torch.testing.assert_close(ours(x), other(x))


@each_kind
def test_dropout_stands_where_pytorch_has_it(kind: Any) -> None:
    """In every sublayer, and with p = 0.999 nothing is left of any of them."""
    torch.manual_seed(0)
    for norm in ("post", "pre"):
        layer = make(kind, norm=norm, dropout=0.3)
        named = {n: m.p for n, m in layer.named_modules() if isinstance(m, nn.Dropout)}
        assert set(named.values()) == {0.3}
        assert "feed_forward.dropout" in named and "norm2.dropout" in named
        assert layer.self_attention.dropout == 0.3
        x, memory = randn().detach(), randn(MEMORY).detach()
        dropped = make(kind, norm=norm, dropout=1 - 1e-12)
        expected = x
        if norm == "post":
            for i in range(1, 3 if kind is EncoderLayer else 4):
                expected = getattr(dropped, f"norm{i}")(expected, torch.zeros_like(x))
        torch.testing.assert_close(run(kind, dropped, x, memory), expected)
        assert not torch.equal(run(kind, layer, x, memory), run(kind, layer, x, memory))
        layer.eval()
        assert torch.equal(run(kind, layer, x, memory), run(kind, layer, x, memory))


def test_the_networks_hidden_numbers_are_dropped() -> None:
    network = PositionwiseFeedForward(4, 6, dropout=0.5)
    seen: list[Tensor] = []
    network.linear2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network.linear1.bias.data.fill_(100.0)  # nothing is zero but what is dropped
    network(torch.rand(50, 4))
    assert 0.3 < (seen[0] == 0).double().mean() < 0.7
    network.eval()
    network(torch.rand(50, 4))
    assert (seen[1] != 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm_first": True}, "norm='post', as this layer, got 'pre'"),
        ({"activation": "gelu"}, "activation='relu', as this layer, got 'gelu'"),
        ({"nhead": 6}, "num_heads=3, as this layer, got 6"),
        ({"layer_norm_eps": 1e-3}, "eps=1e-05, as this layer, got 0.001"),
        ({"bias": False}, "bias is"),
        ({"dim_feedforward": 8}, r"feed_forward.linear1.bias is \[20\] here and \[8\] in source"),
        ({"activation": nn.Tanh()}, "activation='relu', as this layer, got 'Tanh"),
        ({"activation": nn.GELU("tanh")}, "activation='relu', as this layer, got"),
    ],
)
def test_load_torch_refuses_other_layers(options: dict[str, Any], message: str) -> None:
    ours = make(EncoderLayer)
    sizes = {"d_model": DIM, "nhead": HEADS, "dim_feedforward": HIDDEN, "batch_first": True}
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        ours.load_torch(nn.TransformerEncoderLayer(**(sizes | options)))
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_load_torch_refuses_an_approximate_gelu() -> None:
    theirs = nn.TransformerEncoderLayer(DIM, HEADS, HIDDEN, activation=nn.GELU("tanh"))
    with pytest.raises(ValueError, match=r"activation='gelu', as this layer, got .*tanh"):
        make(EncoderLayer, activation="gelu").load_torch(theirs)


def test_an_encoder_layer_is_no_decoder_layer() -> None:
    with pytest.raises(ValueError, match=r"cross_attention.W_k.bias is \[12\] here and missing"):
        make(DecoderLayer).load_torch(make_torch(EncoderLayer, "post", "relu", True))
    with pytest.raises(ValueError, match=r"cross_attention.W_k.bias is missing here"):
        make(EncoderLayer).load_torch(make_torch(DecoderLayer, "post", "relu", True))


# d2l's blocks


@needs_d2l
@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_encoder_layer_is_d2ls(use_bias: bool, padded: bool) -> None:
    theirs = _d2l.load().TransformerEncoderBlock(DIM, HIDDEN, HEADS, 0.0, use_bias)
    x, lens = randn(), LENS if padded else None
    theirs.double()(x, lens)  # learns its widths
    theirs = stir(theirs)
    ours = make(EncoderLayer)
    ours.load_d2l(theirs)
    output, expected = ours(x, valid_lens=lens), theirs(x, lens)
    if padded:
        output, expected = (y.masked_fill(PADDING[..., None], 0) for y in (output, expected))
    torch.testing.assert_close(output, expected)
    for mine, other in (
        (ours.self_attention.W_v.weight, theirs.attention.W_v.weight),
        (ours.norm1.bias, theirs.addnorm1.ln.bias),
        (ours.feed_forward.linear1.weight, theirs.ffn.dense1.weight),
        (x, x),
    ):
        torch.testing.assert_close(gradients_of(output, mine), gradients_of(expected, other))


def d2l_decoder_block(x: Tensor, memory: Tensor) -> LectureDecoderBlock:
    theirs = LectureDecoderBlock(DIM, HIDDEN, HEADS).double()
    theirs(x, LectureState(memory, None, [None]))
    return stir(theirs)


@needs_d2l
@pytest.mark.parametrize("padded", [False, True])
def test_decoder_layer_is_d2ls_in_training(padded: bool) -> None:
    x, memory, lens = randn(), randn(MEMORY), LENS if padded else None
    theirs, ours = d2l_decoder_block(x, memory), make(DecoderLayer)
    ours.load_d2l(theirs.state_dict())
    expected = theirs(x, LectureState(memory, lens, [None]))
    output = ours(x, memory, memory_lens=lens)
    torch.testing.assert_close(output, expected)
    for mine, other in (
        (ours.cross_attention.W_q.weight, theirs.attention2.W_q.weight),
        (ours.self_attention.W_q.weight, theirs.attention1.W_q.weight),
        (ours.norm3.weight, theirs.addnorm3.ln.weight),
        (ours.feed_forward.linear2.bias, theirs.ffn.dense2.bias),
        (x, x),
        (memory, memory),
    ):
        torch.testing.assert_close(gradients_of(output, mine), gradients_of(expected, other))


@needs_d2l
def test_d2ls_decoder_sees_the_future_in_evaluation_mode() -> None:
    """The fault that the course shows; ours does not have it."""
    x, memory = randn().detach(), randn(MEMORY).detach()
    theirs, ours = d2l_decoder_block(x, memory), make(DecoderLayer)
    ours.load_d2l(theirs)
    changed = x.clone()
    changed[:, -1] += 1
    for training in (True, False):
        theirs.train(training), ours.train(training)
        before, after = (
            theirs(y, LectureState(memory, None, [None]))[:, :-1] for y in (x, changed)
        )
        assert torch.equal(before, after) == training
        assert torch.equal(ours(x, memory)[:, :-1], ours(changed, memory)[:, :-1])
    expected = theirs.train()(x, LectureState(memory, None, [None]))
    torch.testing.assert_close(ours(x, memory), expected)


@needs_d2l
def test_load_d2l_refuses_what_does_not_fit() -> None:
    d2l = _d2l.load()
    block = d2l.TransformerEncoderBlock(DIM, HIDDEN, HEADS, 0.0)
    with pytest.raises(ValueError, match="source has no weights yet"):
        EncoderLayer(DIM, HEADS, HIDDEN).load_d2l(block)
    block(torch.rand(1, 2, DIM), None)
    for options, message in (
        ({"num_heads": 4}, "num_heads=4, as this layer, got 3"),
        ({"norm": "pre"}, "norm='pre', as this layer, got 'post'"),
        ({"activation": "gelu"}, "activation='gelu', as this layer, got 'relu'"),
        ({"hidden_dim": 8}, "feed_forward.linear1.bias is"),
        ({"bias": False}, "bias is missing here"),
    ):
        made = EncoderLayer(DIM, **({"num_heads": HEADS, "hidden_dim": HIDDEN} | options))
        with pytest.raises(ValueError, match=message):
            made.load_d2l(block)


# Promises


@each_kind
@each_norm
def test_padding_does_not_matter(kind: Any, norm: str) -> None:
    """Not in outputs and not in gradients, even if it holds NaN."""
    layer = make(kind, norm=norm)
    if kind is EncoderLayer:
        x, padding = randn().detach(), PADDING
        poisoned = x.masked_fill(padding[..., None], torch.nan)
        outputs = [layer(y, valid_lens=LENS)[~padding] for y in (x, poisoned)]
    else:
        x, memory = randn().detach(), randn(MEMORY).detach()
        padding = torch.arange(MEMORY) >= LENS[:, None]
        poisoned = memory.masked_fill(padding[..., None], torch.nan)
        outputs = [layer(x, y, memory_lens=LENS) for y in (memory, poisoned)]
        cache = layer.cross_attention.remember(poisoned, valid_lens=LENS)
        torch.testing.assert_close(layer(x, cache, memory_lens=LENS), outputs[0])
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-14)
    if kind is DecoderLayer:
        for parameter in layer.parameters():
            assert gradients_of(outputs[1], parameter).isfinite().all()


def test_no_memory_is_no_news() -> None:
    layer, x, memory = make(DecoderLayer), randn(), randn(MEMORY)
    lens = torch.tensor([0, 2, 6])
    output = layer(x, memory, memory_lens=lens)
    assert output.isfinite().all()
    assert not gradients_of(output, memory)[0].any()


@each_norm
@pytest.mark.parametrize("training", [True, False])
def test_the_future_does_not_matter_bit_for_bit(norm: str, training: bool) -> None:
    x, memory = randn().detach(), randn(MEMORY).detach()
    changed = x.clone()
    changed[:, 3:] = torch.randn(BATCH, 2, DIM).double() * 9
    for dropout in (0.0, 0.4):
        layer = make(DecoderLayer, norm=norm, dropout=dropout).train(training)
        outputs = []
        for y in (x, changed):
            torch.manual_seed(5)
            outputs.append(layer(y, memory, need_weights=True))
        for before, after in zip(*outputs, strict=True):
            rows = (..., slice(3), slice(None))
            assert torch.equal(before[rows], after[rows])
            assert not torch.equal(before, after)


@each_kind
def test_weights_are_those_that_are_used(kind: Any) -> None:
    layer, x, memory = make(kind), randn(), randn(MEMORY)
    output, *weights = run(kind, layer, x, memory, need_weights=True)
    torch.testing.assert_close(output, run(kind, layer, x, memory))
    shapes = [(BATCH, HEADS, LENGTH, LENGTH), (BATCH, HEADS, LENGTH, MEMORY)]
    assert [tuple(w.shape) for w in weights] == shapes[: len(weights)]
    for rows in weights:
        torch.testing.assert_close(rows.sum(-1), torch.ones_like(rows.sum(-1)))
    if kind is DecoderLayer:
        assert not weights[0].triu(1).any()
        _, cross = layer.cross_attention(
            layer.norm1(x, layer.self_attention(x, is_causal=True)), memory, need_weights=True
        )
        torch.testing.assert_close(weights[1], cross)


@each_norm
@pytest.mark.parametrize("remembered", [True, False])
def test_pieces_with_a_cache_equal_the_whole(norm: str, remembered: bool) -> None:
    layer, x, memory = make(DecoderLayer, norm=norm), randn(), randn(MEMORY)
    source = layer.cross_attention.remember(memory) if remembered else memory
    cache = KeyValueCache()
    pieces = [layer(p, source, memory_lens=LENS, cache=cache) for p in x.split([1, 3, 1], 1)]
    expected = layer(x, memory, memory_lens=LENS)
    torch.testing.assert_close(torch.cat(pieces, 1), expected)
    assert cache.length == LENGTH


@each_kind
@each_norm
@each_activation
def test_gradcheck(kind: Any, norm: str, activation: str) -> None:
    layer = stir(kind(4, 2, 3, norm=norm, activation=activation))
    names = [name for name, _ in layer.named_parameters()]
    x, memory = (torch.randn(2, n, 4, dtype=torch.float64) for n in (2, 3))
    lens = {"valid_lens" if kind is EncoderLayer else "memory_lens": torch.tensor([2, 1])}

    def call(x: Tensor, memory: Tensor, *values: Tensor) -> Tensor:
        given = (x,) if kind is EncoderLayer else (x, memory)
        state = dict(zip(names, values, strict=True))
        output = torch.func.functional_call(layer, state, given, lens)
        return output[:, :1]  # past the end of a sequence nothing is promised

    inputs = [x, memory, *(p.detach() for p in layer.parameters())]
    assert torch.autograd.gradcheck(
        call, [t.requires_grad_() for t in inputs], fast_mode=True, atol=1e-4
    )


@each_kind
def test_nothing_changes_its_arguments(kind: Any) -> None:
    layer, x, memory = make(kind), randn().detach(), randn(MEMORY).detach()
    lens = {"valid_lens" if kind is EncoderLayer else "memory_lens": LENS}
    with assert_unchanged(x, memory, LENS):
        run(kind, layer, x, memory, **lens, need_weights=True)


@each_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(kind: Any, dtype: torch.dtype) -> None:
    layer = kind(DIM, HEADS, HIDDEN)
    x, memory = randn().detach().float(), randn(MEMORY).detach().float()
    expected = run(kind, layer, x, memory)
    with torch.autocast("cpu", dtype=dtype):
        mixed = run(kind, layer, x, memory)
    half = run(kind, layer.to(dtype), x.to(dtype), memory.to(dtype))
    assert mixed.dtype == torch.float32 and half.dtype == dtype
    torch.testing.assert_close(mixed, expected, rtol=0.1, atol=0.1)
    torch.testing.assert_close(half.float(), expected, rtol=0.1, atol=0.1)


@each_kind
@each_norm
def test_every_implementation_gives_the_same(kind: Any, norm: str) -> None:
    layer, x, memory = make(kind, norm=norm, impl="reference"), randn(), randn(MEMORY)
    auto = make(kind, norm=norm)
    auto.load_state_dict(layer.state_dict())
    torch.testing.assert_close(run(kind, layer, x, memory), run(kind, auto, x, memory))
    assert {m.impl for m in layer.modules() if hasattr(m, "impl")} == {"reference"}


@interpreted
@pytest.mark.triton
@each_kind
@each_norm
def test_kernels_give_the_same(kind: Any, norm: str) -> None:
    reference = kind(8, 2, 8, norm=norm, impl="reference")
    kernels = kind(8, 2, 8, norm=norm, impl="triton")
    kernels.load_state_dict(reference.state_dict())
    x, memory = torch.randn(1, 3, 8), torch.randn(1, 4, 8)
    expected, output = (run(kind, layer, x, memory) for layer in (reference, kernels))
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    expected, output = (
        gradients_of(run(kind, layer, x, memory), layer.norm2.weight)
        for layer in (reference, kernels)
    )
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


# The parts


def test_the_network_treats_each_position_alike() -> None:
    network = stir(PositionwiseFeedForward(4, 6))
    x = torch.randn(2, 3, 4).double()
    hidden = (x @ network.linear1.weight.T + network.linear1.bias).clamp(min=0)
    expected = hidden @ network.linear2.weight.T + network.linear2.bias
    torch.testing.assert_close(network(x), expected)
    torch.testing.assert_close(network(x.flip(1)), expected.flip(1))


def test_add_norm_adds_and_normalises() -> None:
    layer = stir(AddNorm(5))
    x, update = torch.randn(2, 3, 5).double(), torch.randn(2, 3, 5).double()
    total = x + update
    centred = total - total.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = expected * layer.weight + layer.bias
    torch.testing.assert_close(layer(x, update), expected)
    normed, passed = layer(x, update, return_sum=True)
    torch.testing.assert_close((normed, passed), (expected, total))
    assert AddNorm(5, bias=False).bias is None
    constant = AddNorm(2, eps=3.0)(torch.tensor([0.0, 2.0]), torch.zeros(2))  # variance 1
    torch.testing.assert_close(constant, torch.tensor([-0.5, 0.5]))


def test_add_norm_drops_from_the_update_alone() -> None:
    layer, x = AddNorm(100, dropout=0.5), torch.zeros(1, 100)
    _, total = layer(x, torch.ones(1, 100), return_sum=True)
    assert set(total.flatten().tolist()) == {0.0, 2.0}
    _, total = layer(x + 1, torch.zeros(1, 100), return_sum=True)
    assert (total == 1).all()


def test_sizes_start_as_they_should() -> None:
    layer = DecoderLayer(256, 4, 1024)
    for linear, fans in ((layer.feed_forward.linear1, 1280), (layer.cross_attention.W_q, 512)):
        assert 0.95 < linear.weight.std() / (2 / fans) ** 0.5 < 1.05
        assert not linear.bias.any()


# Bad input


@each_kind
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dim": 10}, "embed_dim must be a multiple of num_heads"),
        ({"num_heads": 0}, "num_heads must be an integer of at least 1, got 0"),
        ({"hidden_dim": 2.0}, r"hidden_dim must be an integer of at least 1, got 2\.0"),
        ({"dropout": 1.0}, "dropout must lie in"),
        ({"norm": "middle"}, "norm must be one of 'post', 'pre', got 'middle'"),
        ({"activation": "tanh"}, "activation must be one of 'relu', 'gelu', got 'tanh'"),
        ({"impl": "sdpa"}, "impl must be one of 'auto', 'reference', 'triton', got 'sdpa'"),
    ],
)
def test_bad_options(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**({"embed_dim": DIM, "num_heads": HEADS, "hidden_dim": HIDDEN} | options))


def test_bad_parts() -> None:
    with pytest.raises(ValueError, match="embed_dim must be an integer"):
        AddNorm(0)
    with pytest.raises(ValueError, match="dropout must lie in"):
        AddNorm(4, dropout=1)
    with pytest.raises(ValueError, match="impl must be one of"):
        AddNorm(4, impl="fast")
    with pytest.raises(ValueError, match="activation must be one of"):
        PositionwiseFeedForward(4, 4, activation="swish")
    with pytest.raises(ValueError, match="dropout must lie in"):
        PositionwiseFeedForward(4, 4, dropout=-1)


BAD: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "width": (EncoderLayer, {"x": torch.rand(2, 3, 5)}, ValueError, "x must have shape"),
    "rank": (DecoderLayer, {"x": torch.rand(3, DIM)}, ValueError, "x must have shape"),
    "ids": (EncoderLayer, {"x": torch.ones(2, 3, DIM).long()}, TypeError, "x must hold floating"),
    "list": (EncoderLayer, {"x": [1.0]}, TypeError, r"x must be a torch\.Tensor"),
    "float_mask": (EncoderLayer, {"mask": torch.zeros(3, 3)}, TypeError, "mask must hold booleans"),
    "lens": (EncoderLayer, {"valid_lens": torch.tensor([1, 4])}, ValueError, "valid_lens must lie"),
    "float_lens": (EncoderLayer, {"valid_lens": torch.ones(2)}, TypeError, "valid_lens must hold"),
    "memory": (
        DecoderLayer, {"memory": torch.rand(2, 4, 5)}, ValueError,
        r"memory must have shape \[batch, memory_len, 12\], got \[2, 4, 5\]",
    ),
    "memory_batch": (DecoderLayer, {"memory": torch.rand(3, 4, DIM)}, ValueError, "batch of query"),
    "memory_lens": (
        DecoderLayer, {"memory_lens": torch.tensor([1, 5])}, ValueError,
        r"memory_lens must hold integers in \[0, 5\), got 1 to 5",
    ),
    "float_memory_lens": (
        DecoderLayer, {"memory_lens": torch.ones(2)}, TypeError, "memory_lens must hold integers",
    ),
    "slopes": (EncoderLayer, {"position": torch.ones(2)}, ValueError, "position must hold a slope"),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_bad_input(bad: str) -> None:
    kind, changes, error, message = BAD[bad]
    given: dict[str, Any] = {"x": torch.rand(2, 3, DIM)}
    if kind is DecoderLayer:
        given["memory"] = torch.rand(2, 4, DIM)
    with pytest.raises(error, match=message):
        kind(DIM, HEADS, HIDDEN)(**(given | changes))


def test_caches_of_another_batch() -> None:
    layer, memory = DecoderLayer(DIM, HEADS, HIDDEN), torch.rand(2, 4, DIM)
    cache = KeyValueCache()
    layer(torch.rand(2, 1, DIM), memory, cache=cache)
    with pytest.raises(ValueError, match="cache holds a batch of 2, got a query with a batch of 1"):
        layer(torch.rand(1, 1, DIM), memory[:1], cache=cache)
    source = layer.cross_attention.remember(memory)
    with pytest.raises(ValueError, match="cache holds a batch of 2, got a query with a batch of 3"):
        layer(torch.rand(3, 1, DIM), source)


def test_what_print_shows() -> None:
    shown = repr(EncoderLayer(DIM, HEADS, HIDDEN, norm="pre", activation="gelu"))
    assert "norm='pre'" in shown and "activation='gelu'" in shown and "eps=1e-05" in shown
