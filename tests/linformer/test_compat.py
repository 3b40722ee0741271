"""Beside linformer-pytorch, from PyPI: the same numbers, and where it is wrong."""

import inspect
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from attn_course.linformer import Linformer as Ours
from attn_course.linformer import compat
from attn_course.linformer.compat import Linformer, LinformerLM, load_published

N, C, K, HEADS = 12, 8, 4, 2


def published() -> Any:
    return pytest.importorskip(
        "linformer_pytorch", reason="the published package is not installed: linformer-pytorch"
    )


def test_the_sources_example_runs_with_its_import_changed() -> None:
    """As it stands in its README, but for the length and the device."""
    model = Linformer(
        input_size=512, channels=64, dim_d=256, dim_k=128, dim_ff=128, dropout_ff=0.15, nhead=4,
        depth=2, dropout=0.1, activation="gelu", checkpoint_level="C0",
    )  # fmt: skip
    y = model(torch.randn(1, 512, 64))
    assert y.shape == (1, 512, 64) and isinstance(model, Ours)
    attention: Any = model.blocks[0].attention
    assert attention.W_q.weight.shape == (4 * 256, 64)
    assert attention.dropout == 0.1 and model.blocks[0].feed_forward.dropout.p == 0.15


@pytest.mark.parametrize("name", ["Linformer", "LinformerLM"])
def test_arguments_and_defaults_are_the_published_ones(name: str) -> None:
    theirs = inspect.signature(getattr(published(), name).__init__).parameters
    ours = inspect.signature(getattr(compat, name).__init__).parameters
    assert list(ours) == list(theirs)
    assert {n: p.default for n, p in ours.items()} == {n: p.default for n, p in theirs.items()}


def test_what_no_weight_tells_arrives() -> None:
    """Numbers in evaluation mode say nothing of these."""
    given: dict[str, Any] = {
        "dim_k": K, "dim_ff": 16, "nhead": HEADS, "depth": 2, "dropout": 0.3, "dropout_ff": 0.2,
        "checkpoint_level": "C2", "k_reduce_by_layer": 1, "parameter_sharing": "kv",
    }  # fmt: skip
    model = LinformerLM(20, N, C, dropout_tokens=0.4, **given)
    assert model.embedding.dropout.p == 0.4
    for encoder in (model.linformer, Linformer(N, C, **given)):
        for block in encoder.blocks:
            assert block.checkpoint_level == "C2" and block.norm == "post"
            assert (block.attention.dropout, block.feed_forward.dropout.p) == (0.3, 0.2)
        assert [b.attention.projections[0].projected_len for b in encoder.blocks] == [K, K - 1]
    without = LinformerLM(20, N, C, include_ff=False, **given)
    assert all(block.feed_forward is None for block in without.linformer.blocks)


def test_positions_go_on_from_an_offset() -> None:
    x, add = torch.zeros(1, 9, 6), compat.HalvedSinusoid()
    torch.testing.assert_close(add(x[:, 4:], 4), add(x)[:, 4:])


OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "wide heads": {"dim_d": 9},
    "none": {"parameter_sharing": "none"},
    "headwise": {"parameter_sharing": "headwise", "dim_d": 5},
    "kv": {"parameter_sharing": "kv", "k_reduce_by_layer": 1},
    "full": {"full_attention": True},
    "full causal": {"full_attention": True, "causal": True},
    "no ff": {"include_ff": False},
    "rank": {"w_o_intermediate_dim": 3},
    "relu": {"activation": "relu"},
    "convolution": {"method": "convolution", "parameter_sharing": "none"},
    "shared convolution": {"method": "convolution"},
    "no_params": {"method": "no_params", "parameter_sharing": "headwise"},
    "intermediate": {"ff_intermediate": 6, "parameter_sharing": "none"},
}


def pair(name: str, **more: Any) -> tuple[Any, Any]:
    options = {"input_size": N, "channels": C, "dim_k": K, "nhead": HEADS, "depth": 3, "dim_ff": 16}
    options |= OPTIONS[name] | more
    theirs = published().Linformer(**options)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    ours = Linformer(**options)
    load_published(ours, theirs)
    return ours.eval(), theirs.eval()


@pytest.mark.parametrize("name", OPTIONS)
def test_the_numbers_are_the_published_ones(name: str) -> None:
    ours, theirs = pair(name)
    x = torch.randn(2, N, C, requires_grad=True)
    output, expected = ours(x), theirs(x)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    upstream = torch.randn_like(output)
    (mine,), (other,) = (torch.autograd.grad(y, x, upstream) for y in (output, expected))
    torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("emb_dim", [None, 6])
@pytest.mark.parametrize("return_emb", [False, True])
def test_tokens_are_the_published_ones(emb_dim: int | None, return_emb: bool) -> None:
    options: dict[str, Any] = {
        "num_tokens": 20, "input_size": N, "channels": C, "dim_k": K, "dim_ff": 16, "nhead": HEADS,
        "emb_dim": emb_dim, "return_emb": return_emb,
    }  # fmt: skip
    theirs = published().LinformerLM(**options).eval()
    ours = LinformerLM(**options).eval()
    load_published(ours, theirs.state_dict())
    ids = torch.randint(20, (2, N))
    torch.testing.assert_close(ours(ids), theirs(ids), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_loaded() -> None:
    ours, theirs = pair("defaults")
    with pytest.raises(ValueError, match="source must be made with the arguments of target"):
        load_published(Linformer(N, C, K - 1, nhead=HEADS, depth=3, dim_ff=16), theirs)
    with pytest.raises(ValueError, match=r"source must hold seq.0.fn.heads.0.E.weight"):
        state = pair("no_params")[1].state_dict()
        load_published(
            Linformer(
                N, C, K, nhead=HEADS, dim_ff=16, method="no_params", parameter_sharing="headwise"
            ),
            state,
        )
    with pytest.raises(TypeError, match="target must be a Linformer or LinformerLM"):
        load_published(theirs, ours)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"causal": True}, "causal=True cannot be had"),
        ({"decoder_mode": True}, "decoder_mode=True cannot be had"),
        ({"k_reduce_by_layer": 1}, "k_reduce_by_layer cannot go with parameter_sharing"),
        ({"k_reduce_by_layer": 2, "parameter_sharing": "kv"}, "must leave at least 1 slot"),
        ({"parameter_sharing": "key_value"}, "parameter_sharing must be one of"),
        ({"method": "pooling"}, "method must be one of"),
        ({"checkpoint_level": "C3"}, "checkpoint_level must be one of"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Linformer(N, C, K, nhead=HEADS, depth=3, **options)


# Where the published package is wrong, and this one is not


def moved(model: Any, x: Tensor, at: int, **asked: Any) -> Tensor:
    """Which positions' outputs change when the input at one does."""
    later = x.clone()
    later[:, at] += 1
    return (model(x, **asked) - model(later, **asked)).abs().amax((0, 2)) > 1e-6


def test_its_causal_mask_leaks_the_future() -> None:
    theirs = published().Linformer(N, C, K, nhead=HEADS, causal=True).eval()
    assert moved(theirs, torch.randn(1, N, C), N - 1).all()
    ours = Ours(C, HEADS, N, 2, 16, 1, causal="block", block_len=4).eval()
    assert not moved(ours, torch.randn(1, N, C), N - 1)[:-1].any()


def test_its_padder_lets_padding_speak() -> None:
    """Padded to its length without a mask, a sequence hears what its padding became."""
    module = published()
    ours, theirs = pair("kv", k_reduce_by_layer=0)
    x = torch.randn(1, 7, C)
    padder = module.Padder(theirs)
    mask = (torch.arange(N) < 7)[None]
    without, with_mask = padder(x), padder(x, input_mask=mask)
    assert float((without - with_mask).detach().abs().max()) > 1e-3
    torch.testing.assert_close(ours(x), with_mask[:, :7], rtol=1e-4, atol=1e-5)


def test_nan_in_its_padding_reaches_every_gradient() -> None:
    ours, theirs = pair("kv", k_reduce_by_layer=0, depth=1)
    x = torch.randn(1, N, C)
    x[:, 7:] = torch.nan
    theirs(x, input_mask=(torch.arange(N) < 7)[None])[:, :7].sum().backward()
    assert any(p.grad is not None and bool(p.grad.isnan().any()) for p in theirs.parameters())
    ours(x, valid_lens=torch.tensor([7]))[:, :7].sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in ours.parameters() if p.grad is not None)


@pytest.mark.parametrize("level", ["C1", "C2"])
def test_its_checkpoints_learn_nothing_from_plain_inputs(level: str) -> None:
    """It takes the re-entrant kind, whose output needs no gradient if its input needs none."""
    theirs = published().Linformer(N, C, K, nhead=HEADS, checkpoint_level=level)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = theirs(torch.randn(1, N, C))
    ours = Linformer(N, C, K, nhead=HEADS, checkpoint_level=level)
    ours(torch.randn(1, N, C)).sum().backward()
    assert all(p.grad is not None for p in ours.parameters())
    if output.requires_grad:  # a PyTorch whose default is the other kind
        pytest.skip("this PyTorch checkpoints without re-entering by default")
    assert not output.requires_grad


def test_it_ignores_k_reduced_by_layer_with_its_default_sharing() -> None:
    theirs = published().Linformer(N, C, K, nhead=HEADS, depth=3, k_reduce_by_layer=1)
    shapes = [theirs.seq[2 * i].fn.heads[0].E.weight.shape[0] for i in range(3)]
    assert shapes == [K, K, K]


def test_it_reduces_k_below_1_in_silence() -> None:
    theirs = published().Linformer(
        N, C, K, nhead=HEADS, depth=3, k_reduce_by_layer=3, parameter_sharing="kv"
    )
    shapes = [theirs.seq[2 * i].fn.heads[0].E.weight.shape[0] for i in range(3)]
    assert shapes == [4, 1, 1]


def test_its_fixed_projection_is_not_saved() -> None:
    theirs = published().Linformer(N, C, K, nhead=HEADS, method="no_params")
    assert not any(".E" in name or ".F" in name for name in theirs.state_dict())
    ours = Linformer(N, C, K, nhead=HEADS, method="no_params")
    assert any("projection" in name for name in ours.state_dict())


def test_its_fixed_projection_makes_keys_smaller_or_larger() -> None:
    """Its standard deviation is 1/k; 1/sqrt(k) keeps lengths, and 1/sqrt(n) the size of keys."""
    matrix = published().get_EF(4096, 64, method="no_params")
    assert abs(float(matrix.std()) * 64 - 1) < 0.02


def test_its_convolution_has_other_slots_than_asked_for() -> None:
    theirs = published().Linformer(10, C, 4, nhead=HEADS, method="convolution")
    x = torch.randn(1, 10, C)
    theirs(x, visualize=True)
    assert theirs.seq[0].fn.heads[0].P_bar.shape[-1] == 5
    with pytest.raises(ValueError, match="projected_len must divide input_len, 10"):
        Linformer(10, C, 4, nhead=HEADS, method="convolution")


def test_its_odd_embedding_and_its_visualiser_fail() -> None:
    module = published()
    with pytest.raises(RuntimeError):
        module.LinformerLM(9, N, C, dim_k=K, emb_dim=5)(torch.zeros(1, N, dtype=torch.int64))
    pytest.importorskip("matplotlib")
    attention = module.Linformer(N, C, K, nhead=HEADS).seq[0].fn
    with pytest.raises(AttributeError):
        module.Visualizer(attention).plot_all_heads(show=False)
