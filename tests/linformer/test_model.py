"""Blocks and models: every option, checkpoints that change nothing, memory that stays flat."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course.linformer import (
    Linformer,
    LinformerAttention,
    LinformerBlock,
    LinformerLM,
    head_maps,
)
from attn_course.long_sequences import memory_ledger
from attn_course.testing import assert_close, poisoned_padding

DIM, HEADS, N, K, HIDDEN = 8, 2, 12, 4, 16
LENS = torch.tensor([12, 5, 0])
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "none": {"sharing": "none"},
    "headwise": {"sharing": "headwise"},
    "key_value": {"sharing": "key_value", "reduce_by_layer": 1},
    "wide heads": {"head_dim": 9},
    "pooling": {"projection": "pooling"},
    "convolution": {"projection": "convolution"},
    "random": {"projection": "random"},
    "bias": {"projection_bias": True},
    "rank": {"output_rank": 3},
    "intermediate": {"intermediate_dim": 6, "sharing": "headwise"},
    "pre": {"norm": "pre"},
    "pre, intermediate": {"norm": "pre", "intermediate_dim": 6},
    "relu": {"activation": "relu"},
    "full": {"full_attention": True},
    "causal": {"causal": "block", "block_len": 4},
    "no feed-forward": {"hidden_dim": None},
}
each_option = pytest.mark.parametrize("name", OPTIONS)


def make(name: str = "plain", **more: Any) -> Linformer:
    options: dict[str, Any] = {"hidden_dim": HIDDEN} | OPTIONS[name] | more
    torch.manual_seed(7)
    return Linformer(DIM, HEADS, N, K, num_layers=3, **options).double()


def randn(length: int = N) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, length, DIM, dtype=torch.float64, generator=generator)
    return x.requires_grad_()


def step(model: Any, x: Tensor, seed: int = 3, **options: Any) -> list[Tensor]:
    """Output of real positions, and all gradients."""
    torch.manual_seed(seed)
    lens = options.get("valid_lens")
    output = model(x, **options)
    if lens is not None:
        output = output.masked_fill((torch.arange(x.shape[1]) >= lens[:, None])[..., None], 0)
    grads = torch.autograd.grad(output.square().sum(), [x, *model.parameters()], allow_unused=True)
    return [output, *(g for g in grads if g is not None)]


# Checkpoints


@each_option
@pytest.mark.parametrize("level", ["C1", "C2"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpoints_change_no_gradient(name: str, level: str, dropout: float) -> None:
    """With dropout too: it draws the same again, and for each head the same."""
    x = randn()
    expected = step(make(name, dropout=dropout), x, valid_lens=LENS)
    found = step(make(name, dropout=dropout, checkpoint_level=level), x, valid_lens=LENS)
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)
    if dropout:
        other = step(make(name, dropout=dropout), x, seed=4, valid_lens=LENS)
        assert not torch.allclose(other[0], expected[0])


@pytest.mark.parametrize("level", ["C0", "C1", "C2"])
def test_a_first_layer_learns_from_inputs_that_need_no_gradient(level: str) -> None:
    model = make(checkpoint_level=level)
    model(randn().detach()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def kept(module: torch.nn.Module, x: Tensor, **options: Any) -> int:
    """Bytes that the forward pass keeps for the backward pass, inputs and parameters apart."""
    with memory_ledger() as ledger:
        output = module(x, **options)
    del output
    return ledger.total


def test_c1_keeps_two_tokens_a_layer_whatever_happens_within() -> None:
    """C0 keeps more than ten times as much; with C1 a layer adds its two inputs, no more."""
    n, dim = 512, 16
    x = torch.randn(1, n, dim, requires_grad=True)
    one = n * dim * 4  # bytes of a sequence of tokens

    def of(level: str, depth: int) -> int:
        model = Linformer(dim, 4, n, 32, 64, depth, checkpoint_level=level, dropout=0.1)
        return kept(model, x)

    growth = {level: (of(level, 6) - of(level, 2)) / 4 / one for level in ("C0", "C1", "C2")}
    assert growth["C1"] <= 2.01
    assert growth["C2"] <= 2.01
    assert growth["C0"] >= 20


def test_c2_keeps_nothing_long_for_a_head() -> None:
    """Of heads as wide as before: 16 of them keep as much as 2, within 1% and their slots."""
    n, dim, head_dim, k = 2048, 16, 8, 4
    x = torch.randn(1, n, dim, requires_grad=True)

    def of(heads: int, checkpoint_heads: bool) -> int:
        layer = LinformerAttention(
            dim, heads, n, k, head_dim=head_dim, checkpoint_heads=checkpoint_heads, dropout=0.1
        )
        return kept(layer, x)

    assert of(16, True) - of(2, True) < 0.01 * n * dim * 4
    assert of(16, False) > 5 * of(2, False)


def test_memory_grows_linearly() -> None:
    sizes = []
    for n in (1024, 2048, 4096):
        sizes.append(
            kept(Linformer(16, 2, n, 32, 32, 1), torch.randn(1, n, 16, requires_grad=True))
        )
    assert abs((sizes[2] - sizes[1]) / (sizes[1] - sizes[0]) - 2) < 0.01


def test_no_matrix_of_queries_times_slots_is_kept() -> None:
    n, k = 4096, 128
    layer = LinformerAttention(16, 2, n, k, dropout=0.1)
    with memory_ledger() as ledger:
        output = layer(torch.randn(1, n, 16, requires_grad=True))
    assert max(row.bytes for row in ledger.rows if row.kind == "activation") < n * k * 4
    output.sum().backward()


def test_heads_wider_than_tokens_make_nothing_of_their_width() -> None:
    n, dim, head_dim = 2048, 8, 64
    layer = LinformerAttention(dim, 4, n, 4, head_dim=head_dim)
    assert kept(layer, torch.randn(1, n, dim, requires_grad=True)) < n * dim * 4
    plain = LinformerAttention(dim, 4, n, 4, head_dim=head_dim, impl="reference")
    assert kept(plain, torch.randn(1, n, dim, requires_grad=True)) > 4 * n * head_dim * 4


# Options


@each_option
def test_an_option_runs_and_learns(name: str) -> None:
    model, x = make(name), randn()
    output, weights = model(x, valid_lens=LENS, need_weights=True)
    assert output.shape == x.shape and len(weights) == 3
    assert_close(output, model(x, valid_lens=LENS))
    output[:, :1].sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert not without


def test_options_reach_every_layer() -> None:
    model = make(
        "rank", norm="pre", activation="relu", dropout=0.2, feed_forward_dropout=0.4, head_dim=5,
        checkpoint_level="C1", impl="reference", projection="pooling", sharing="none",
    )  # fmt: skip
    assert len(model.blocks) == 3
    for block in model.blocks:
        assert isinstance(block, LinformerBlock) and block.feed_forward is not None
        assert (block.norm, block.checkpoint_level) == ("pre", "C1")
        assert block.feed_forward.activation == "relu"
        assert (block.dropout1.p, block.dropout2.p) == (0.2, 0.4)
        assert block.feed_forward.dropout.p == 0.4
        attention = block.attention
        assert (attention.dropout, attention.impl, attention.head_dim) == (0.2, "reference", 5)
        assert attention.W_o.out_features == 3 and attention.sharing == "none"
        assert attention.projections[0].kind == "pooling"


def test_a_model_is_its_blocks_and_pre_norm_ends_in_a_norm() -> None:
    for norm in ("post", "pre"):
        model, x = make(norm=norm), randn()
        y = x
        for block in model.blocks:
            y = block(y)
        if norm == "pre":
            torch.nn.init.normal_(model.final_norm.weight)
            y = F.layer_norm(y, (DIM,), model.final_norm.weight, model.final_norm.bias)
        assert_close(model(x), y)


@pytest.mark.parametrize(("first", "second"), [(0.5, 0.0), (0.0, 0.5)])
def test_what_each_sublayer_adds_is_dropped(first: float, second: float) -> None:
    """Where both add ones: of each, dropped or doubled as the sublayer's rate says."""
    for norm in ("post", "pre"):
        block = LinformerBlock(
            DIM, HEADS, N, K, HIDDEN, dropout=first, feed_forward_dropout=second, norm=norm
        )
        for linear in (block.attention.W_o, block.feed_forward.linear2):
            torch.nn.init.zeros_(linear.weight)
            torch.nn.init.ones_(linear.bias)
        if norm == "post":
            rates = block.norm1.dropout.p, block.norm2.dropout.p
            assert rates == (first, second)
            continue
        x = torch.zeros(50, N, DIM)
        assert set(block(x).unique().tolist()) == {1.0, 3.0}
        assert set(block.eval()(x).unique().tolist()) == {2.0}


def test_a_block_is_what_it_says() -> None:
    for norm in ("post", "pre"):
        block = LinformerBlock(DIM, HEADS, N, K, HIDDEN, norm=norm, output_dim=6).double()
        x = randn()

        def normed(y: Tensor, norm: Any) -> Tensor:
            return F.layer_norm(y, y.shape[-1:], norm.weight, norm.bias)

        def think(y: Tensor, block: Any = block) -> Tensor:
            return block.feed_forward.linear2(F.gelu(block.feed_forward.linear1(y)))

        assert block.resample is not None
        if norm == "post":
            y = normed(x + block.attention(x), block.norm1)
            expected = normed(block.resample(y) + think(y), block.norm2)
        else:
            y = x + block.attention(normed(x, block.norm1))
            expected = block.resample(y) + think(normed(y, block.norm2))
        assert_close(block(x), expected)


def test_layers_share_one_projection_or_none() -> None:
    assert sum(p.shape == (K, N) for p in make().parameters()) == 1
    assert sum(p.shape == (K, N) for p in make("headwise").parameters()) == 6
    slots = [b.attention.projections[0].projected_len for b in make("key_value").blocks]
    assert slots == [4, 3, 2]


def test_a_state_dict_holds_each_tensor_once() -> None:
    state = make().state_dict()
    places = [tensor.data_ptr() for tensor in state.values()]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("name", [n for n in OPTIONS if n != "bias"])
def test_padding_may_hold_anything(name: str) -> None:
    model, x = make(name), randn()
    poisoned = poisoned_padding(x.detach(), LENS).requires_grad_()
    for mine, theirs in zip(
        step(model, poisoned, valid_lens=LENS), step(model, x, valid_lens=LENS), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@each_option
def test_shorter_inputs(name: str) -> None:
    model, x = make(name), randn()
    lens = torch.full((3,), 7)
    assert_close(model(x[:, :7]), model(x, valid_lens=lens)[:, :7])


@pytest.mark.parametrize("level", ["C0", "C1", "C2"])
def test_without_gradients_nothing_is_checkpointed(level: str) -> None:
    model, x = make(checkpoint_level=level), randn()
    with torch.no_grad():
        assert_close(model(x), make()(x))


@pytest.mark.parametrize("level", ["C0", "C2"])
def test_autocast(level: str) -> None:
    model, x = make(checkpoint_level=level, intermediate_dim=6).float(), randn().detach().float()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x, valid_lens=LENS)
    output.float().sum().backward()
    expected = model(x, valid_lens=LENS)
    assert float((output - expected).detach()[0].abs().max()) < 0.1
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


# Tokens


@pytest.mark.parametrize(
    "options",
    [
        {}, {"token_dim": 4}, {"position": "learned"}, {"position": None}, {"hidden_dim": None},
        {"causal": "block", "block_len": 4}, {"token_dropout": 0.1, "dropout": 0.1},
    ],
)  # fmt: skip
def test_tokens(options: dict[str, Any]) -> None:
    options = {"hidden_dim": HIDDEN, "num_layers": 2} | options
    model = LinformerLM(30, DIM, HEADS, N, K, **options)
    ids = torch.randint(30, (3, N))
    assert model(ids).shape == (3, N, 30)
    model.eval()
    logits, weights = model(ids, valid_lens=LENS, need_weights=True)
    assert len(weights) == 2
    wrong = ids.masked_fill(torch.arange(N) >= LENS[:, None], 999)  # no such token
    torch.testing.assert_close(model(wrong, valid_lens=LENS)[1, :5], logits[1, :5])
    torch.testing.assert_close(model(ids[1:2, :5])[0], logits[1, :5])
    logits[:, :1].sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_embedded_tokens_are_dropped_in_training() -> None:
    model = LinformerLM(30, DIM, HEADS, N, K, HIDDEN, 1, token_dim=200, token_dropout=0.5)
    assert model.embedding.dropout.p == 0.5
    assert not torch.equal(*(model(torch.zeros(1, N, dtype=torch.int64)) for _ in range(2)))


def test_vectors_in_place_of_scores() -> None:
    model = LinformerLM(30, DIM, HEADS, N, K, HIDDEN, 1, token_dim=4, output_head=False)
    assert model(torch.randint(30, (3, N))).shape == (3, N, 4)


# Maps


@pytest.mark.parametrize("name", ["plain", "none", "pooling", "random", "key_value"])
@pytest.mark.parametrize("padded", [False, True])
def test_maps_of_all_heads(name: str, padded: bool) -> None:
    """What is mapped back to positions is what values are averaged with."""
    model, x = make(name, dropout=0.5), randn().detach()
    lens = LENS if padded else None
    maps = head_maps(model, x, valid_lens=lens)
    assert len(maps) == 3 and model.training
    block: Any = model.blocks[0]
    on_positions = maps[0].on_positions()
    assert on_positions.shape == (3, HEADS, N, N)
    if padded:
        assert (on_positions[1, ..., 5:] == 0).all() and (on_positions[2] == 0).all()
    value = block.attention.W_v(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
    answers = (on_positions @ value).transpose(1, 2).flatten(2)
    real = (torch.arange(N) < LENS[:, None])[..., None] if padded else torch.ones(1)
    expected = block.attention.eval()(x, valid_lens=lens)
    assert_close(block.attention.W_o(answers) * real, expected * real)
    assert_close(maps[0].on_positions(slice(2, 4)), on_positions[:, :, 2:4])


def test_maps_that_cannot_be_had() -> None:
    x = randn().detach()
    with pytest.raises(ValueError, match="the projection is a convolution"):
        head_maps(make("convolution"), x)[0].on_positions()
    with pytest.raises(ValueError, match="model must attend to slots of the whole sequence"):
        head_maps(make("causal"), x)
    with pytest.raises(TypeError, match="model must be a Linformer or LinformerLM"):
        head_maps(torch.nn.Linear(1, 1), x)  # type: ignore[arg-type]


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduce_by_layer": 2, "sharing": "none"}, "reduce_by_layer must leave at least 1 slot"),
        ({"reduce_by_layer": 1}, "reduce_by_layer asks for fewer slots .* sharing='layerwise'"),
        ({"reduce_by_layer": -1}, "reduce_by_layer must be an integer of at least 0"),
        ({"sharing": "kv"}, "sharing must be one of"),
        ({"checkpoint_level": "C3"}, "checkpoint_level must be one of 'C0', 'C1', 'C2'"),
        ({"norm": "both"}, "norm must be one of"),
        ({"activation": "tanh"}, "activation must be one of"),
        ({"causal": True}, "causal=True cannot be had"),
        ({"hidden_dim": None, "intermediate_dim": 6}, "intermediate_dim needs feed-forward"),
        ({"feed_forward_dropout": 1.0}, "feed_forward_dropout must lie in"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_bad_sizes() -> None:
    with pytest.raises(ValueError, match="projected_len must be at most input_len, 12, got 13"):
        Linformer(DIM, HEADS, N, 13, HIDDEN, 1)
    with pytest.raises(ValueError, match="output_dim must be embed_dim without a feed-forward"):
        LinformerBlock(DIM, HEADS, N, K, None, output_dim=6)
    with pytest.raises(ValueError, match="x must be at most input_len = 12 long, got 13"):
        make()(randn(13))
    model = LinformerLM(30, DIM, HEADS, N, K, HIDDEN, 1)
    with pytest.raises(ValueError, match="ids must be at most input_len = 12 long, got 13"):
        model(torch.zeros(1, 13, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"ids must hold integers in \[0, 30\)"):
        model(torch.full((1, 3), 30))
