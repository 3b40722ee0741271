"""The layer: its sums, its padding, and the path it decodes along."""

import math
import warnings

import pytest
import torch
from torch import Tensor

from attn_course.monotonic import (
    MonotonicMultiheadAttention,
    best_path,
    expected_alignment,
    many_to_many,
    one_to_many,
    sample_paths,
)

MODES = ("many_to_many", "one_query_per_key", "one_key_per_query", "hard_monotonic")
on_modes = pytest.mark.parametrize("mode", MODES)


def sizes(mode: str) -> tuple[int, int]:
    return (9, 5) if mode == "one_key_per_query" else (5, 9)


def tokens(mode: str, width: int = 8) -> tuple[Tensor, Tensor]:
    query_len, key_len = sizes(mode)
    return torch.randn(2, query_len, width).double(), torch.randn(2, key_len, width).double()


def layer(mode: str, **options: object) -> MonotonicMultiheadAttention:
    return MonotonicMultiheadAttention(8, 2, mode=mode, **options).double()  # type: ignore[arg-type]


@on_modes
def test_head_by_head(mode: str) -> None:
    attention = layer(mode, clamp=None)
    query, key = tokens(mode)
    output, weights = attention(query, key, need_weights=True)
    q, k, v = attention.W_q(query), attention.W_k(key), attention.W_v(key)
    heads = []
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        x = q[..., part] @ k[..., part].mT / 2
        expected = {
            "many_to_many": lambda x: many_to_many(x),
            "one_query_per_key": lambda x: one_to_many(x.mT).mT,
            "one_key_per_query": lambda x: one_to_many(x),
            "hard_monotonic": lambda x: expected_alignment(x),
        }[mode](x)
        torch.testing.assert_close(weights[:, h], expected)
        heads.append(expected @ v[..., part])
    torch.testing.assert_close(output, attention.W_o(torch.cat(heads, -1)))


@on_modes
@pytest.mark.parametrize("clamp", [None, "soft"])
def test_paths_of_the_logits_are_those_of_the_weights(mode: str, clamp: str | None) -> None:
    attention, (query, key) = layer(mode, clamp=clamp, num_kv_heads=1, epsilon=0.1), tokens(mode)
    x = attention.logits(query, key)
    _, weights = attention(query, key, need_weights=True)
    if mode == "one_query_per_key":
        x, weights = x.mT, weights.mT
    model = "many_to_many" if mode in ("many_to_many", "hard_monotonic") else "one_to_many"
    walks = sample_paths(x, 4000, model=model, validate=False).double()
    if mode == "hard_monotonic":  # the last key of each query, unless it has walked past the end
        stops = walks * (1 - walks.roll(-1, -1))
        stops[..., -1] = walks[..., -1] * (-x[..., -1]).sigmoid()
        walks = stops
    torch.testing.assert_close(walks.mean(0), weights, atol=0.05, rtol=0)


def test_what_the_weights_sum_to() -> None:
    for mode in MODES:
        _, weights = layer(mode)(*tokens(mode), need_weights=True)
        if mode == "many_to_many":
            assert (weights.sum(-1) > 1).any()
        else:
            sums = weights.sum(-2 if mode == "one_query_per_key" else -1)
            assert (sums <= 1 + 1e-9).all()
            assert sums[..., 0].allclose(torch.ones(2, 2).double(), atol=0.02)


@on_modes
def test_groups_share_keys(mode: str) -> None:
    shared = MonotonicMultiheadAttention(8, 4, mode=mode, num_kv_heads=2).double()
    full = MonotonicMultiheadAttention(8, 4, mode=mode).double()
    state = shared.state_dict()
    for name in ("W_k", "W_v"):
        for part in ("weight", "bias"):
            by_head = state[f"{name}.{part}"].unflatten(0, (2, 2))
            state[f"{name}.{part}"] = by_head.repeat_interleave(2, 0).flatten(0, 1)
    full.load_state_dict(state)
    query, key = tokens(mode)
    for hard in (False, True):
        torch.testing.assert_close(shared(query, key, hard=hard), full(query, key, hard=hard))


@on_modes
@pytest.mark.parametrize("hard", [False, True])
def test_padding_may_hold_anything(mode: str, hard: bool) -> None:
    attention = layer(mode)
    query, key = tokens(mode)
    query_lens, valid_lens = torch.tensor([3, sizes(mode)[0]]), torch.tensor([sizes(mode)[1], 3])
    if mode == "one_key_per_query":
        query_lens = torch.tensor([6, sizes(mode)[0]])
    poisoned_q, poisoned_k = query.clone(), key.clone()
    poisoned_q[0, query_lens[0] :] = math.nan
    poisoned_k[1, 3:] = math.inf
    with _quiet():
        output, weights = attention(
            poisoned_q, poisoned_k, valid_lens=valid_lens, query_lens=query_lens,
            need_weights=True, hard=hard,
        )  # fmt: skip
        cut = attention(query[:1, : query_lens[0]], key[:1], hard=hard)
    torch.testing.assert_close(output[:1, : query_lens[0]], cut)
    assert (weights[0, :, query_lens[0] :] == 0).all() and (weights[1, :, :, 3:] == 0).all()
    output.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in attention.parameters())


class _quiet:
    def __enter__(self) -> None:
        self.held = warnings.catch_warnings()
        self.held.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *error: object) -> None:
        self.held.__exit__(*error)  # type: ignore[arg-type]


@on_modes
def test_certain_heads_decode_as_they_expect(mode: str) -> None:
    attention = layer(mode, clamp=None)
    query, key = tokens(mode)
    query = 1e4 * query  # p is 0 or 1
    soft, expected = attention(query, key, need_weights=True)
    hard, weights = attention(query, key, need_weights=True, hard=True)
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(hard, soft)


@on_modes
def test_hard_decoding_takes_the_likelier_step(mode: str) -> None:
    attention = layer(mode)
    query, key = tokens(mode)
    _, weights = attention(query, key, need_weights=True, hard=True)
    q, k = (w(x).unflatten(-1, (2, 4)).transpose(1, 2) for w, x in
            ((attention.W_q, query), (attention.W_k, key)))  # fmt: skip
    x = 1e6 * q @ k.mT  # certain in the direction it leans to
    if mode == "hard_monotonic":
        expected = expected_alignment(x)
    elif mode == "one_query_per_key":
        expected = best_path(x.mT, model="one_to_many", end="edge")[0].mT
    else:
        model = "many_to_many" if mode == "many_to_many" else "one_to_many"
        expected = best_path(x, model=model, end="edge")[0]
    torch.testing.assert_close(weights, expected.to(weights.dtype))


@on_modes
def test_step_by_step_and_never_ahead(mode: str) -> None:
    attention = layer(mode)
    query, key = tokens(mode)
    whole, rows = attention(query, key, need_weights=True, hard=True)
    state = attention.start(key)
    start = state
    for i in range(query.shape[1]):
        before = state.position
        reached = int(state.position.max())
        answer, state, row = attention.step(query[:, i], state)
        torch.testing.assert_close(answer, whole[:, i])
        assert torch.equal(row, rows[:, :, i]) and (state.position >= before).all()
        far = max(reached, int(state.position.max())) + 1
        hidden = state._replace(key=state.key.clone(), position=before)
        hidden.key[:, :, far:] = math.nan  # not read
        torch.testing.assert_close(attention.step(query[:, i], hidden)[0], answer)
    assert (start.position == 0).all()
    swapped = state.select(torch.tensor([1, 0, 1]))
    assert torch.equal(swapped.position, state.position[[1, 0, 1]]) and len(swapped.key) == 3


@pytest.mark.parametrize("clamp", ["soft", "hard", None])
def test_clamping(clamp: str | None) -> None:
    attention = layer("one_key_per_query", clamp=clamp, epsilon=0.1)
    query, key = tokens("one_key_per_query")
    _, weights = attention(1e6 * query, key, need_weights=True)
    first = weights[:, :, 1, :2].amin()  # both keys of the second query stay possible
    assert first.item() == pytest.approx(0.1 if clamp else 0.0, abs=1e-6)


@on_modes
def test_learning_and_dropout(mode: str) -> None:
    attention = layer(mode, dropout=0.5)
    query, key = tokens(mode)
    first, weights = attention(query, key, need_weights=True)
    again, same = attention(query, key, need_weights=True)
    assert not torch.equal(first, again) and torch.equal(weights, same)
    first.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in attention.parameters())
    attention.eval()
    assert torch.equal(attention(query, key), attention(query, key, key))


def test_widths_and_messages() -> None:
    attention = MonotonicMultiheadAttention(8, 2, query_dim=3, key_dim=4, value_dim=5, bias=False)
    shapes = torch.randn(2, 6, 3), torch.randn(2, 7, 4), torch.randn(2, 7, 5)
    assert attention(*shapes).shape == (2, 6, 8) and attention.W_q.bias is None
    for error, match, call in (
        (ValueError, r"value must have shape \[batch, len, 5\]", lambda: attention(*shapes[::-1])),
        (ValueError, "share their batch", lambda: attention(shapes[0][:1], *shapes[1:])),
        (ValueError, "valid_lens must lie in", lambda: attention(*shapes, valid_lens=_two(8))),
        (ValueError, "query_lens must lie in", lambda: attention(*shapes, query_lens=_two(7))),
        (TypeError, "must hold integers", lambda: attention(*shapes, valid_lens=_two(1.0))),
        (ValueError, "mode must be", lambda: MonotonicMultiheadAttention(8, 2, mode="free")),
        (ValueError, "multiple of num_heads", lambda: MonotonicMultiheadAttention(8, 3)),
        (ValueError, "must divide", lambda: MonotonicMultiheadAttention(8, 4, num_kv_heads=3)),
        (ValueError, "how must be", lambda: MonotonicMultiheadAttention(8, 2, clamp="firm")),
        (ValueError, "epsilon", lambda: MonotonicMultiheadAttention(8, 2, epsilon=0.7)),
        (ValueError, r"query must have shape \[2, 3\]",
         lambda: attention.step(torch.zeros(2, 4), attention.start(*shapes[1:]))),
    ):  # fmt: skip
        with pytest.raises(error, match=match):
            call()
    with pytest.warns(UserWarning, match="cannot be reached"):
        layer("one_key_per_query")(*tokens("many_to_many"))


def _two(value: float) -> Tensor:
    return torch.tensor([value, value])
