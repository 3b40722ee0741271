"""Patch embedding, block and model against PyTorch's and the source's, and their promises."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attn_course import _d2l
from attn_course.data import checkpoints, save_pretrained
from attn_course.testing import assert_unchanged
from attn_course.vision import (
    PatchEmbedding,
    ViT,
    ViTBlock,
    load_vit,
    patchify,
    resize_positions,
)
from tests.launches import interpreted

needs_d2l = pytest.mark.skipif(
    importlib.util.find_spec("d2l") is None,
    reason="d2l is not installed: python -m attn_course.install_d2l",
)
DIM, HEADS, HIDDEN = 24, 4, 40


def stir(module: Any) -> Any:
    """Random parameters throughout, so that none is 0 or 1; float64, in evaluation mode."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.double().eval()


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def small(**options: Any) -> Any:
    """A model of six patches, 2 x 3 of them, of 4 x 2 pixels."""
    settings = {
        "image_size": (8, 6), "patch_size": (4, 2), "channels": 2, "embed_dim": DIM,
        "num_heads": HEADS, "hidden_dim": HIDDEN, "num_layers": 3, "num_classes": 5,
    }  # fmt: skip
    return stir(ViT(**settings | options))


# Patch embedding


def test_takes_a_convolutions_weights() -> None:
    theirs = stir(nn.Conv2d(3, 7, (4, 2), stride=(4, 2)))
    images = randn(2, 3, 8, 6)
    expected = theirs(images).flatten(2).mT
    for impl in ("auto", "reference", "conv"):
        ours = stir(PatchEmbedding((8, 6), (4, 2), 3, 7, impl=impl))
        ours.load_state_dict(theirs.state_dict())
        output = ours(images)
        torch.testing.assert_close(output, expected)
        upstream = randn(*output.shape)
        pairs = [(ours.weight, theirs.weight), (ours.bias, theirs.bias), (images, images)]
        for mine, other in pairs:
            (a,) = torch.autograd.grad(output, mine, upstream, retain_graph=True)
            (b,) = torch.autograd.grad(expected, other, upstream, retain_graph=True)
            torch.testing.assert_close(a, b)


@interpreted
@pytest.mark.triton
def test_the_layer_passes_its_implementation_on() -> None:
    kernel, plain = (stir(PatchEmbedding(6, (3, 2), 1, 5, impl=i)) for i in ("triton", "conv"))
    plain.load_state_dict(kernel.state_dict())
    images, position, token = randn(2, 1, 6, 6), randn(7, 5), randn(5)
    both = (m(images, position=position, class_token=token) for m in (kernel, plain))
    torch.testing.assert_close(*both)
    assert kernel(images).grad_fn.name() == "_PatchEmbeddingBackward"


def test_patches_are_counted() -> None:
    embed = PatchEmbedding((12, 20), (3, 5), 1, 4)
    assert embed.grid == (4, 4) and embed.num_patches == 16
    assert embed.image_size == (12, 20) and embed.patch_size == (3, 5)
    embed.resize((3, 25))
    assert embed.grid == (1, 5) and embed(torch.zeros(2, 1, 3, 25)).shape == (2, 5, 4)
    with pytest.raises(ValueError, match="image_size must be a whole number of patches"):
        embed.resize(13)
    assert embed.image_size == (3, 25)
    assert "image_size=(3, 25), patch_size=(3, 5), channels=1" in repr(embed)


def test_starts_as_a_convolution_does() -> None:
    torch.manual_seed(0)
    ours, theirs = PatchEmbedding(16, 8, 3, 200), nn.Conv2d(3, 200, 8)
    for mine, other in ((ours.weight, theirs.weight), (ours.bias, theirs.bias)):
        assert mine.abs().max().item() == pytest.approx(other.abs().max().item(), rel=0.05)
        assert mine.std().item() == pytest.approx(other.std().item(), rel=0.15)


# The block


@pytest.mark.parametrize("width", [24, 48])
def test_block_is_pytorchs_layer(width: int) -> None:
    theirs = stir(
        nn.TransformerEncoderLayer(
            width, HEADS, HIDDEN, dropout=0.1, norm_first=True, activation="gelu", batch_first=True
        )
    )
    ours = stir(ViTBlock(width, HEADS, HIDDEN, dropout=0.1))
    ours.load_torch(theirs)
    x = randn(3, 7, width)
    output, expected = ours(x), theirs(x)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    upstream = randn(*output.shape)
    pairs = [
        (x, x),
        (ours.norm1.weight, theirs.norm1.weight),
        (ours.norm2.bias, theirs.norm2.bias),
        (ours.self_attention.W_o.weight, theirs.self_attn.out_proj.weight),
        (ours.feed_forward.linear1.weight, theirs.linear1.weight),
        (ours.feed_forward.linear2.bias, theirs.linear2.bias),
    ]
    for mine, other in pairs:
        (a,) = torch.autograd.grad(output, mine, upstream, retain_graph=True)
        (b,) = torch.autograd.grad(expected, other, upstream, retain_graph=True)
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_block_is_pytorchs_layer_in_single_precision() -> None:
    options: dict[str, Any] = {"norm_first": True, "activation": "gelu", "batch_first": True}
    theirs = nn.TransformerEncoderLayer(DIM, HEADS, HIDDEN, **options).eval()
    ours = ViTBlock(DIM, HEADS, HIDDEN).eval()
    ours.load_torch(theirs)
    x = torch.randn(2, 9, DIM)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_first": False}, "norm='pre', as this layer, got 'post'"),
        ({"activation": "relu"}, "activation='gelu', as this layer, got 'relu'"),
        ({"nhead": 2}, "num_heads=4, as this layer, got 2"),
        ({"dim_feedforward": 41}, "feed_forward.linear1.bias is .40. here and .41. in source"),
    ],
)
def test_other_layers_of_pytorchs_are_refused(change: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {
        "d_model": DIM, "nhead": HEADS, "dim_feedforward": HIDDEN, "norm_first": True,
        "activation": "gelu", "batch_first": True,
    }  # fmt: skip
    theirs = nn.TransformerEncoderLayer(**options | change)
    with pytest.raises(ValueError, match=message):
        ViTBlock(DIM, HEADS, HIDDEN).load_torch(theirs)


class SourceMLP(nn.Module):
    """The source's two-layer network, in its own words."""

    def __init__(self, mlp_num_hiddens: int, mlp_num_outputs: int, dropout: float) -> None:
        super().__init__()
        self.dense1 = nn.LazyLinear(mlp_num_hiddens)
        self.gelu = nn.GELU()
        self.dropout1 = nn.Dropout(dropout)
        self.dense2 = nn.LazyLinear(mlp_num_outputs)
        self.dropout2 = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout2(self.dense2(self.dropout1(self.gelu(self.dense1(x)))))


class SourceBlock(nn.Module):
    """The source's block, in its own words."""

    def __init__(self, num_hiddens: int, num_heads: int, mlp: int, use_bias: bool = False) -> None:
        super().__init__()
        attention = _d2l.load().MultiHeadAttention
        self.ln1 = nn.LayerNorm(num_hiddens)
        self.attention = attention(num_hiddens, num_heads, 0.1, use_bias)
        self.ln2 = nn.LayerNorm(num_hiddens)
        self.mlp = SourceMLP(mlp, num_hiddens, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.ln1(x)
        x = x + self.attention(normed, normed, normed, None)
        return x + self.mlp(self.ln2(x))


class SourceViT(nn.Module):
    """The source's model, in its own words; images and patches are square."""

    def __init__(self, image: int, patch: int, blocks: int, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.LazyConv2d(DIM, kernel_size=patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, DIM))
        self.pos_embedding = nn.Parameter(torch.randn(1, (image // patch) ** 2 + 1, DIM))
        self.blks = nn.Sequential(*(SourceBlock(DIM, HEADS, HIDDEN) for _ in range(blocks)))
        self.head = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv(images).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), 1)
        x = self.blks(x + self.pos_embedding)
        return self.head(x[:, 0])


@needs_d2l
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("as_state", [False, True])
def test_block_is_the_sources(bias: bool, as_state: bool) -> None:
    theirs = SourceBlock(DIM, HEADS, HIDDEN, bias)
    theirs(torch.zeros(1, 2, DIM))  # tells its widths
    stir(theirs)
    ours = stir(ViTBlock(DIM, HEADS, HIDDEN))
    ours.load_d2l(theirs.state_dict() if as_state else theirs)
    x = randn(3, 7, DIM)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-10, atol=1e-10)


@needs_d2l
def test_other_blocks_of_the_sources_are_refused() -> None:
    ours = ViTBlock(DIM, HEADS, HIDDEN)
    with pytest.raises(ValueError, match="source has no weights yet: call it once"):
        ours.load_d2l(SourceBlock(DIM, HEADS, HIDDEN))
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    for theirs, message in (
        (SourceBlock(DIM, 2, HIDDEN), "source must have 4 heads, as this block, got 2"),
        (SourceBlock(DIM, HEADS, 41), r"feed_forward.linear1.bias is \[40\] here and \[41\] in"),
    ):
        theirs(torch.zeros(1, 2, DIM))
        with pytest.raises(ValueError, match=message):
            ours.load_d2l(theirs)
    with pytest.raises(ValueError, match=r"linear1\.bias is \[40\] here and missing in"):
        ours.load_d2l({})
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, before[name])


@needs_d2l
def test_model_is_the_sources() -> None:
    theirs = SourceViT(12, 4, blocks=2, num_classes=5)
    images = torch.randn(3, 2, 12, 12, dtype=torch.float64)
    theirs(images.float())
    stir(theirs)
    ours = small(image_size=12, patch_size=4, num_layers=2)
    ours.embed.load_state_dict(theirs.conv.state_dict())
    for mine, other in zip(ours.blocks, theirs.blks, strict=True):
        mine.load_d2l(other)
    ours.final_norm.load_state_dict(theirs.head[0].state_dict())
    ours.head.load_state_dict(theirs.head[1].state_dict())
    with torch.no_grad():
        ours.class_token.copy_(theirs.cls_token[0, 0])
        ours.position.copy_(theirs.pos_embedding[0])
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-10, atol=1e-10)


# The model


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_model_is_its_formula(pool: str) -> None:
    """Every step written out, with PyTorch's layer in the blocks' place."""
    model, images = small(pool=pool), randn(3, 2, 8, 6)
    x = patchify(images, (4, 2)) @ model.embed.weight.flatten(1).mT + model.embed.bias
    if pool == "class":
        x = torch.cat([model.class_token.expand(3, 1, -1), x], 1)
    x = x + model.position
    for block in model.blocks:
        attention = block.self_attention
        normed = nn.functional.layer_norm(x, (DIM,), block.norm1.weight, block.norm1.bias)
        heads = [
            (normed @ w.weight.mT + w.bias).unflatten(2, (HEADS, -1)).transpose(1, 2)
            for w in (attention.W_q, attention.W_k, attention.W_v)
        ]
        weights = (heads[0] @ heads[1].mT / (DIM // HEADS) ** 0.5).softmax(-1)
        x = x + attention.W_o((weights @ heads[2]).transpose(1, 2).flatten(2))
        normed = nn.functional.layer_norm(x, (DIM,), block.norm2.weight, block.norm2.bias)
        x = x + block.feed_forward.linear2(nn.functional.gelu(block.feed_forward.linear1(normed)))
    features = nn.functional.layer_norm(x, (DIM,), model.final_norm.weight, model.final_norm.bias)
    torch.testing.assert_close(model.features(images), features)
    pooled = features[:, 0] if pool == "class" else features.mean(1)
    logits, found = model(images, need_weights=True)
    torch.testing.assert_close(logits, model.head(pooled))
    assert found.shape == (3, 3, HEADS, len(model.position), len(model.position))
    torch.testing.assert_close(found[:, -1], weights)


def test_only_the_class_token_has_one_more() -> None:
    model = small(pool="mean")
    assert model.class_token is None and model.position.shape == (6, DIM)
    assert "class_token" not in model.state_dict()
    assert small().position.shape == (7, DIM) and small().grid == (2, 3)
    assert "pool='mean'" in repr(model)


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_every_parameter_learns(pool: str) -> None:
    model = small(pool=pool).train()
    loss = nn.functional.cross_entropy(model(randn(4, 2, 8, 6)), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    for name, parameter in model.named_parameters():
        # A bias of the keys adds the same to all scores of a query.
        assert name.endswith("W_k.bias") or bool((parameter.grad.abs() > 1e-12).any()), name


def test_need_weights_changes_nothing_else() -> None:
    model, images = small(), randn(2, 2, 8, 6)
    logits, weights = model(images, need_weights=True)
    torch.testing.assert_close(logits, model(images))
    features, again = model.features(images, need_weights=True)
    torch.testing.assert_close(features, model.features(images))
    assert torch.equal(weights, again)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_without_positions_patches_are_a_set() -> None:
    """Shuffle them, and the answer is the same; with positions it is not."""
    model, images = small(), randn(2, 2, 8, 6).detach()
    blocks = images.unflatten(3, (3, 2)).unflatten(2, (2, 4))  # [2, 2, rows, 4, columns, 2]
    shuffled = blocks[:, :, [1, 0]][:, :, :, :, [2, 0, 1]].flatten(4).flatten(2, 3)
    assert not torch.allclose(model(images), model(shuffled))
    nn.init.zeros_(model.position)
    torch.testing.assert_close(model(images), model(shuffled))


def test_images_of_a_batch_do_not_meet() -> None:
    model, images = small(), randn(3, 2, 8, 6)
    torch.testing.assert_close(model(images)[1:2], model(images[1:2]))
    assert model(images[:0]).shape == (0, 5)


def test_dropout_is_for_training() -> None:
    images = randn(2, 2, 8, 6)
    for options in ({"embedding_dropout": 0.5}, {"dropout": 0.5}):
        model = small(**options)
        assert torch.equal(model(images), model(images))
        model.train()
        assert not torch.equal(model(images), model(images))
    plain = small().train()
    assert torch.equal(plain(images), plain(images))


def test_embedding_dropout_drops_embedded_tokens() -> None:
    model = small(embedding_dropout=0.5).train()
    seen: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    model(randn(20, 2, 8, 6))
    assert 0.4 < (seen[0] == 0).double().mean().item() < 0.6
    assert model.blocks[0].self_attention.dropout == 0


def test_arguments_are_left_alone() -> None:
    images = randn(2, 2, 8, 6)
    with assert_unchanged(images=images):
        small()(images, need_weights=True)


@interpreted
@pytest.mark.triton
def test_implementations_agree() -> None:
    options = {"image_size": (8, 4), "num_layers": 1}
    models = [small(impl=impl, **options) for impl in ("auto", "reference", "triton")]
    images = randn(2, 2, 8, 4)
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
        torch.testing.assert_close(model(images), models[0](images))


# Other image sizes


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_resized(pool: str) -> None:
    model, images = small(pool=pool), randn(2, 2, 16, 10)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = model.resized((16, 10))
    assert other.grid == (4, 5) and other(images).shape == (2, 5)
    expected = resize_positions(model.position, (2, 3), (4, 5), has_class=pool == "class")
    assert torch.equal(other.position, expected)
    for name, tensor in other.state_dict().items():
        assert name == "position" or torch.equal(tensor, before[name])
    assert model.grid == (2, 3) and model(images[:, :, :8, :6]).shape == (2, 5)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_resized_to_the_same_size_is_a_copy() -> None:
    model, images = small(), randn(2, 2, 8, 6)
    model(images).sum().backward()
    other = model.resized((8, 6))
    assert torch.equal(other(images), model(images))
    mine, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    assert mine.keys() == theirs.keys()
    for name, parameter in theirs.items():
        assert parameter.grad is None and parameter.requires_grad
        assert parameter.data_ptr() != mine[name].data_ptr(), name
    other.position.data.zero_()
    assert bool(model.position.any()) and mine["position"].grad is not None


def test_resized_keeps_mode_and_type() -> None:
    assert small().train().resized((4, 2)).training
    model = small().half()
    model.position.requires_grad_(False)
    other = model.resized((4, 2))
    assert not other.training and other.position.dtype == torch.float16
    assert not other.position.requires_grad
    with pytest.raises(ValueError, match=r"image_size must be a whole number .* 9 x 6"):
        model.resized((9, 6))
    with pytest.raises(ValueError, match="image_size must be at least as large as a patch"):
        model.resized(2)


# Bad input


BAD_MODEL: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"image_size": 9}, ValueError, "image_size must be a whole number .* 9 x 9 for patches of 4"),
    ({"image_size": (8, 5)}, ValueError, "image_size must be a whole number .* got 8 x 5"),
    ({"image_size": 3}, ValueError, "image_size must be at least as large as a patch, got 3 x 3"),
    ({"image_size": "8"}, TypeError, "image_size must be an integer or"),
    ({"patch_size": 0}, ValueError, "patch_size must be an integer of at least 1"),
    ({"patch_size": (1, 2, 3)}, TypeError, "patch_size must be an integer or"),
    ({"channels": 0}, ValueError, "channels must be an integer of at least 1, got 0"),
    ({"num_classes": 0}, ValueError, "num_classes must be an integer of at least 1"),
    ({"num_layers": 0}, ValueError, "num_layers must be an integer of at least 1"),
    ({"num_heads": 5}, ValueError, "embed_dim must be a multiple of num_heads"),
    ({"pool": "max"}, ValueError, "pool must be one of 'class', 'mean', got 'max'"),
    ({"dropout": 1.0}, ValueError, r"dropout must lie in \[0, 1\)"),
    ({"embedding_dropout": -0.1}, ValueError, r"embedding_dropout must lie in \[0, 1\)"),
    ({"impl": "conv"}, ValueError, "impl must be one of 'auto', 'reference', 'triton'"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_MODEL)
def test_bad_settings_are_named(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        small(**options)


BAD_IMAGES: list[tuple[Any, type[Exception], str]] = [
    (torch.zeros(1, 2, 8, 8), ValueError, r"\[batch, 2, 8, 6\], got \[1, 2, 8, 8\]"),
    (torch.zeros(1, 2, 6, 8), ValueError, r"\[batch, 2, 8, 6\], got \[1, 2, 6, 8\]"),
    (torch.zeros(1, 1, 8, 6), ValueError, r"\[batch, 2, 8, 6\], got \[1, 1, 8, 6\]"),
    (torch.zeros(2, 8, 6), ValueError, r"images must have shape \[batch, channels, height"),
    (torch.zeros(1, 2, 8, 6, dtype=torch.uint8), TypeError, "images must hold floating-point"),
    (torch.zeros(1, 2, 8, 6), ValueError, "weight must have the dtype of images, torch.float32"),
    ([0.0], TypeError, "images must be a torch.Tensor, got list"),
]


@pytest.mark.parametrize(("images", "error", "message"), BAD_IMAGES)
def test_bad_images_are_named(images: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        small()(images)  # whose parameters are float64


def test_bad_implementations_of_a_layer_are_named() -> None:
    with pytest.raises(ValueError, match="'auto', 'reference', 'conv', 'triton', got 'cuda'"):
        PatchEmbedding(4, 2, 1, 3, impl="cuda")
    with pytest.raises(ValueError, match="impl must be one of 'auto', 'reference', 'triton'"):
        ViTBlock(4, 2, 1, impl="cuda")


# The stored model


def test_a_stored_model_comes_back(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path)
    settings = {
        "image_size": [8, 6], "patch_size": [4, 2], "channels": 2, "embed_dim": 8, "num_heads": 2,
        "hidden_dim": 12, "num_layers": 2, "num_classes": 5, "pool": "mean",
    }  # fmt: skip
    model = ViT(**settings).half().float()  # type: ignore[arg-type]
    save_pretrained("tiny_vit", {"model": settings}, model.state_dict())
    loaded = load_vit("tiny_vit")
    assert not loaded.training
    images = torch.randn(3, 2, 8, 6)
    torch.testing.assert_close(loaded(images), model.eval()(images))
    with pytest.raises(ValueError, match="there is no pretrained model 'other', only tiny_vit"):
        load_vit("other")
