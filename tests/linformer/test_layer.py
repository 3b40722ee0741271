"""The attention layer: its options against the formula, and promises about padding."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course.linformer import LinformerAttention, SequenceProjection, ops
from attn_course.multi_head import MultiHeadAttention, merge_heads, split_heads
from attn_course.testing import assert_close, poisoned_padding
from tests.launches import interpreted

DIM, HEADS, N, K = 8, 2, 12, 4
LENS = torch.tensor([12, 5, 0])
KINDS = ["learnable", "random", "pooling", "convolution"]
SHARING = ["none", "headwise", "key_value", "layerwise"]
each_kind = pytest.mark.parametrize("kind", KINDS)
each_sharing = pytest.mark.parametrize("sharing", SHARING)


def make(**options: Any) -> LinformerAttention:
    options = {"input_len": N, "projected_len": K} | options
    layer = LinformerAttention(DIM, HEADS, **options).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def randn(length: int = N) -> Tensor:
    return torch.randn(3, length, DIM, dtype=torch.float64, requires_grad=True)


def slots_of(p: SequenceProjection, x: Tensor, lens: Tensor) -> list[list[Tensor]]:
    """Slots of each item and head, ``[slots, dim]``, by the definition of each kind."""
    found = []
    for b in range(x.shape[0]):
        row, length = [], int(lens[b])
        for h in range(x.shape[1]):
            own = x[b, h].clone()
            own[length:] = 0
            at = () if p.num_heads is None else (h,)
            bias = None if p.bias is None else p.bias[at]
            if p.stretch is None:
                assert p.weight is not None
                slots = p.weight[at][:, : len(own)] @ own
                slots = slots if bias is None else slots + bias[:, None]
            else:
                count = -(-length // p.stretch)
                slots = own.new_zeros(count, own.shape[1])
                for j in range(count):
                    here = own[j * p.stretch : (j + 1) * p.stretch]
                    if p.kind == "pooling":
                        slots[j] = own[j * p.stretch : min((j + 1) * p.stretch, length)].mean(0)
                    else:
                        assert p.weight is not None
                        kernel = p.weight[at].unflatten(1, (p.stretch, -1))[:, : len(here)]
                        slots[j] = torch.einsum("osi,si->o", kernel, here)
                slots = slots if bias is None else slots + bias
            row.append(slots)
        found.append(row)
    return found


def exact(layer: LinformerAttention, x: Tensor, lens: Tensor) -> Tensor:
    """Heads, projections and products in the order of the paper, item by item."""
    query, key, value = (
        split_heads(F.linear(x, w.weight), layer.num_heads)
        for w in (layer.W_q, layer.W_k, layer.W_v)
    )
    keys, values = layer.projections
    reduced = slots_of(keys, key, lens), slots_of(values, value, lens)
    answers = torch.zeros_like(query)
    for b, h in itertools.product(range(x.shape[0]), range(layer.num_heads)):
        if lens[b]:
            k, v = reduced[0][b][h], reduced[1][b][h]
            answers[b, h] = (query[b, h] @ k.mT / layer.head_dim**0.5).softmax(-1) @ v
    output = layer.W_o(merge_heads(answers))
    return output if layer.W_o2 is None else layer.W_o2(output)


def compare(layer: LinformerAttention, x: Tensor, lens: Tensor | None = None) -> None:
    """Output of real positions, and all gradients."""
    full = torch.full((len(x),), x.shape[1]) if lens is None else lens
    real = (torch.arange(x.shape[1]) < full[:, None])[..., None]
    leaves = [x, *layer.parameters()]
    output, expected = (y * real for y in (layer(x, valid_lens=lens), exact(layer, x, full)))
    assert_close(output, expected)
    upstream = torch.linspace(-1, 2, output.numel(), dtype=torch.float64).view_as(output)
    ours, theirs = (
        torch.autograd.grad(y, leaves, upstream, allow_unused=True) for y in (output, expected)
    )
    for mine, other, leaf in zip(ours, theirs, leaves, strict=True):
        mine, other = (torch.zeros_like(leaf) if g is None else g for g in (mine, other))
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-10)


@each_kind
@each_sharing
@pytest.mark.parametrize("head_dim", [None, 9])
@pytest.mark.parametrize("padded", [False, True])
def test_is_the_formula(kind: str, sharing: str, head_dim: int | None, padded: bool) -> None:
    """Whatever the order in which it multiplies; heads of 9 are wider than a token."""
    layer = make(projection=kind, sharing=sharing, head_dim=head_dim)
    compare(layer, randn(), LENS if padded else None)


@pytest.mark.parametrize("kind", ["learnable", "convolution"])
@each_sharing
@pytest.mark.parametrize("head_dim", [None, 9])
def test_with_bias_and_rank(kind: str, sharing: str, head_dim: int | None) -> None:
    layer = make(
        projection=kind, sharing=sharing, head_dim=head_dim, projection_bias=True, output_rank=3
    )
    assert layer.W_o.weight.shape[0] == 3
    compare(layer, randn(), LENS)


@pytest.mark.parametrize("head_dim", [None, 9])
@pytest.mark.parametrize("kind", ["learnable", "convolution"])
def test_an_item_without_positions_finds_nothing(kind: str, head_dim: int | None) -> None:
    """Not even the biases of the slots."""
    layer = make(projection=kind, projection_bias=True, head_dim=head_dim)
    output = layer(randn(), valid_lens=LENS)
    assert_close(output[2], layer.W_o.bias.expand(N, DIM))


@pytest.mark.parametrize("impl", ["reference", "sdpa", "blocked", "auto"])
@pytest.mark.parametrize("head_dim", [None, 9])
def test_implementations(impl: str, head_dim: int | None) -> None:
    compare(make(impl=impl, head_dim=head_dim), randn(), LENS)


@interpreted
@pytest.mark.triton
@pytest.mark.parametrize("sharing", ["none", "key_value"])
def test_kernels(sharing: str) -> None:
    compare(make(impl="triton", sharing=sharing), randn(), LENS)


@each_kind
@each_sharing
@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_a_shorter_sequence_is_a_padded_one(kind: str, sharing: str, length: int) -> None:
    layer, x = make(projection=kind, sharing=sharing), randn()
    lens = torch.full((3,), length)
    padded = layer(x, valid_lens=lens)[:, :length]
    assert_close(layer(x[:, :length]), padded)


@each_kind
@pytest.mark.parametrize(
    "options", [{}, {"head_dim": 9}, {"checkpoint_heads": True}, {"full_attention": True}]
)
def test_padding_may_hold_anything(kind: str, options: dict[str, Any]) -> None:
    layer, x = make(projection=kind, **options), randn()
    poisoned = poisoned_padding(x.detach(), LENS).requires_grad_()
    real = (torch.arange(N) < LENS[:, None])[..., None]
    grads = []
    outputs = []
    for given in (x, poisoned):
        output = layer(given, valid_lens=LENS)
        outputs.append(output.masked_fill(~real, 0))
        leaves = [given, *layer.parameters()]
        grads.append(torch.autograd.grad(outputs[-1].square().sum(), leaves, allow_unused=True))
    assert_close(outputs[1], outputs[0])
    assert (grads[1][0][1, 5:] == 0).all()
    for clean, other in zip(*grads, strict=True):
        if clean is not None:
            torch.testing.assert_close(other, clean)


@pytest.mark.parametrize("head_dim", [None, 9])
def test_with_the_identity_it_is_multi_head_attention(head_dim: int | None) -> None:
    """k = n and E = 1: full attention, of this layer and of chapter 4's."""
    layer = make(projected_len=N, head_dim=head_dim)
    keys, _ = layer.projections
    with torch.no_grad():
        assert keys.weight is not None
        keys.weight.copy_(torch.eye(N))
    full = make(full_attention=True, head_dim=head_dim)
    full.load_state_dict({k: v for k, v in layer.state_dict().items() if "projection" not in k})
    x = randn()
    for lens in (None, torch.tensor([12, 12, 12])):
        assert_close(layer(x, valid_lens=lens), full(x, valid_lens=lens))
    if head_dim is None:
        heads = MultiHeadAttention(DIM, HEADS).double()
        state = {f"W_{a}.weight": getattr(layer, f"W_{a}").weight for a in "qkvo"}
        state |= {f"W_{a}.bias": torch.zeros(DIM) for a in "qkv"} | {"W_o.bias": layer.W_o.bias}
        heads.load_state_dict(state)
        assert_close(layer(x), heads(x))
        lens = torch.tensor([7, 12, 3])
        real = (torch.arange(N) < lens[:, None])[..., None]
        assert_close(full(x, valid_lens=lens) * real, heads(x, valid_lens=lens) * real)


@each_sharing
def test_who_shares_what(sharing: str) -> None:
    layer = make(sharing=sharing)
    keys, values = layer.projections
    assert keys.weight is not None
    assert (keys is values) == (sharing in ("key_value", "layerwise"))
    assert keys.weight.shape == ((HEADS, K, N) if sharing == "none" else (K, N))
    count = sum(p.numel() for p in layer.parameters()) - 4 * DIM * DIM - DIM
    assert (
        count == {"none": 2 * HEADS, "headwise": 2, "key_value": 1, "layerwise": 1}[sharing] * K * N
    )


def test_a_shared_projection_belongs_to_its_maker() -> None:
    shared = SequenceProjection(N, K)
    layers = [make(sharing="layerwise", shared=shared) for _ in range(2)]
    assert layers[0].projections[0] is layers[1].projections[1] is shared
    assert not any("projection" in name for name in layers[0].state_dict())


@each_kind
def test_what_is_learned(kind: str) -> None:
    project = SequenceProjection(N, K, kind=kind, head_dim=3)
    learned = sum(p.numel() for p in project.parameters())
    assert (
        learned == {"learnable": K * N, "random": 0, "pooling": 0, "convolution": 3 * 3 * 3}[kind]
    )
    saved = "weight" in project.state_dict()
    assert saved == (kind != "pooling")


@pytest.mark.parametrize("kind", ["learnable", "random", "pooling"])
def test_the_matrix_says_what_is_projected(kind: str) -> None:
    project, x = SequenceProjection(N, K, kind=kind).double(), randn(7)
    x = x.detach()
    torch.testing.assert_close(project.matrix(7).double() @ x, project(x), atol=1e-6, rtol=1e-6)
    lens = torch.tensor([7, 4, 0])
    slots = project.matrix(7, lens).double()[:, 0] @ x
    torch.testing.assert_close(slots, project(x, lens), atol=1e-6, rtol=1e-6)


def test_projected_keys_are_as_large_as_keys() -> None:
    for kind in ("learnable", "random"):
        project = SequenceProjection(4096, 64, kind=kind)
        assert 0.9 < float(project(torch.randn(1, 4096, 64)).detach().std()) < 1.1


def test_weights_do_not_change_the_output() -> None:
    for options in ({}, {"head_dim": 9}, {"projection": "pooling"}, {"checkpoint_heads": True}):
        layer, x = make(**options), randn()
        output, weights = layer(x, valid_lens=LENS, need_weights=True)
        assert_close(output, layer(x, valid_lens=LENS))
        assert weights.shape[:3] == (3, HEADS, N)
        torch.testing.assert_close(weights[:2].sum(-1), torch.ones_like(weights[:2, ..., 0]))
        assert (weights[2] == 0).all()


DROPPING: dict[str, dict[str, Any]] = {
    "plain": {},
    "wide heads": {"head_dim": 9},
    "full": {"full_attention": True},
    "causal": {"causal": "block", "block_len": 4, "projected_len": 2},
}


@pytest.mark.parametrize("name", DROPPING)
def test_weights_are_dropped_in_training_alone(name: str) -> None:
    layer, x = make(dropout=0.5, **DROPPING[name]), randn()
    assert not torch.equal(layer(x), layer(x))
    without = make(**DROPPING[name])
    without.load_state_dict(layer.state_dict())
    assert_close(layer.eval()(x), without(x))


@pytest.mark.parametrize(
    ("sharing", "seen"),
    [
        ("none", [(3, HEADS, N, DIM // HEADS)] * 2),
        ("headwise", [(3, N, DIM)] * 2),  # tokens, once for all heads
        ("key_value", [(3, N, DIM)]),
    ],
)
@pytest.mark.parametrize(
    ("impl", "asked"), [("auto", "auto"), ("sdpa", "auto"), ("reference", "reference")]
)
def test_who_projects_what(
    sharing: str, seen: list[Any], impl: str, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    project = ops.project_sequence

    def watched(x: Tensor, *rest: Any, impl: str, **options: Any) -> Tensor:
        calls.append((tuple(x.shape), impl))
        return project(x, *rest, impl=impl, **options)

    monkeypatch.setattr(ops, "project_sequence", watched)
    make(sharing=sharing, impl=impl)(randn())
    assert calls == [(shape, asked) for shape in seen]


@interpreted
@pytest.mark.triton
def test_kernels_project_too(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    project = ops._kernel_project
    monkeypatch.setattr(ops, "_kernel_project", lambda *x: calls.append(1) or project(*x))
    make(impl="triton", sharing="headwise")(randn())
    assert len(calls) == 2


def test_sizes_start_as_they_should() -> None:
    layer = LinformerAttention(256, 4, 32, 8, head_dim=128, output_rank=64)
    for linear, fans in (
        (layer.W_q, 768), (layer.W_k, 768), (layer.W_v, 768), (layer.W_o, 576), (layer.W_o2, 320),
    ):  # fmt: skip
        assert linear is not None
        assert 0.95 < linear.weight.std() / (2 / fans) ** 0.5 < 1.05
        assert linear.bias is None or not linear.bias.any()


# Causality


def test_causal_is_refused_and_says_why() -> None:
    with pytest.raises(ValueError, match=r"causal=True cannot be had.*sees the future.*'block'"):
        make(causal=True)


@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("options", [{}, {"checkpoint_heads": True}, {"projection": "pooling"}])
def test_the_block_form_sees_no_future(sharing: str, options: dict[str, Any]) -> None:
    layer = make(causal="block", block_len=4, projected_len=2, sharing=sharing, **options).float()
    x = torch.randn(2, 11, DIM)
    before = layer(x)
    for i in (0, 3, 4, 9):
        later = x.clone()
        later[:, i + 1 :] = 50 * torch.randn_like(later[:, i + 1 :])
        after = layer(later)
        assert torch.equal(after[:, : i + 1], before[:, : i + 1])
        assert not torch.equal(after[:, i + 1 :], before[:, i + 1 :])


def test_full_attention_may_be_causal() -> None:
    layer, x = make(full_attention=True, causal=True), randn().detach()
    later = x.clone()
    later[:, 5:] += 1
    assert_close(layer(later)[:, :5], layer(x)[:, :5])
    assert not torch.allclose(layer(later)[:, 5:], layer(x)[:, 5:])


# Autocast


@pytest.mark.parametrize(
    "options",
    [{}, {"head_dim": 9}, {"sharing": "none"}, {"projection": "convolution"}, {"causal": "block"}],
)
def test_autocast(options: dict[str, Any]) -> None:
    if "causal" in options:
        options = options | {"block_len": 4}
    layer = make(**options).float()
    x = torch.randn(3, N, DIM, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x, valid_lens=LENS)
    # Heads wider than tokens take these as they are, in float32.
    assert output.dtype == (torch.float32 if "head_dim" in options else torch.bfloat16)
    output.float().square().sum().backward()
    expected = layer(x, valid_lens=LENS)
    scale = float(expected.detach().abs().max())
    assert float((output - expected).detach().abs()[:2].max()) < 0.05 * scale
    assert x.grad is not None and bool(x.grad.isfinite().all())


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"projected_len": 13}, "projected_len must be at most input_len, 12, got 13"),
        ({"projected_len": 0}, "projected_len must be an integer of at least 1"),
        ({"sharing": "heads"}, "sharing must be one of"),
        ({"projection": "linear"}, "projection must be one of"),
        ({"projection": "pooling", "projected_len": 5}, "projected_len must divide input_len, 12"),
        ({"projection": "convolution", "projected_len": 5}, "projected_len must divide input_len"),
        ({"projection": "random", "projection_bias": True}, "projection_bias is learned"),
        ({"head_dim": 0}, "head_dim must be an integer"),
        ({"output_rank": 0}, "output_rank must be an integer"),
        ({"dropout": 1.0}, "dropout must lie in"),
        ({"impl": "fast"}, "impl must be one of"),
        ({"impl": "triton", "projection": "pooling"}, "impl='triton' has kernels for projections"),
        ({"impl": "triton", "dropout": 0.1}, "dropout must be 0 with impl='triton'"),
        ({"causal": "blocks"}, "causal must be False or 'block', got 'blocks'"),
        ({"causal": "block"}, "block_len must be given exactly if causal='block', got None"),
        ({"block_len": 4}, "block_len must be given exactly if causal='block'"),
        ({"causal": "block", "block_len": 4, "projection": "convolution"}, "projects blocks by a"),
        ({"shared": SequenceProjection(N, K)}, "shared is for sharing='layerwise'"),
        (
            {"shared": SequenceProjection(N, 3), "sharing": "layerwise"},
            "shared must have this layer's input_len",
        ),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_heads_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="embed_dim must be a multiple of num_heads"):
        LinformerAttention(9, 2, N, K)


def test_bad_input() -> None:
    layer = make()
    with pytest.raises(ValueError, match="x must be at most input_len = 12 long, got 13"):
        layer(randn(13))
    with pytest.raises(ValueError, match=r"x must have shape \[batch, len, 8\]"):
        layer(randn()[..., :7])
    with pytest.raises(ValueError, match="valid_lens must lie in"):
        layer(randn(), valid_lens=torch.tensor([1, 2, 13]))
    with pytest.raises(ValueError, match="full_attention=True: there is no projection"):
        _ = make(full_attention=True).projections
