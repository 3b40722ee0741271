"""With the cache and without: the same logits, tokens and weights; and states that stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attn_course.multi_head import MultiHeadAttention
from attn_course.seq2seq import beam_search, greedy_decode
from attn_course.transformer import TransformerState
from tests.transformer.models import (
    BOS,
    EOS,
    HEADS,
    LAYERS,
    LENS,
    POSITIONS,
    TARGET_VOCAB,
    make_batch,
    make_model,
)

each_position = pytest.mark.parametrize("position", POSITIONS.values(), ids=POSITIONS)
each_norm = pytest.mark.parametrize("norm", ["post", "pre"])
each_way = pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no_cache"])


def start(model: Any, **options: Any) -> TransformerState:
    batch = make_batch()
    return model.start(batch["source"], batch["source_lens"], **options)


def follow(model: Any, state: TransformerState, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and weights of each step, where ``tokens`` are read whatever is written."""
    logits, rows = [], []
    for token in tokens.unbind(1):
        found, state, weights = model.step(token, state, need_weights=True)
        logits.append(found)
        rows.append(weights)
    return torch.stack(logits, 1), torch.stack(rows, 3)


@each_position
@each_norm
@each_way
def test_steps_equal_the_whole(position: dict[str, Any], norm: str, use_cache: bool) -> None:
    model, batch = make_model(norm=norm, **position), make_batch()
    expected, weights = model(**batch, need_weights=True)
    logits, cross = follow(model, start(model, use_cache=use_cache), batch["target_input"])
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    assert cross.shape == (3, LAYERS, HEADS, 4, 5)
    torch.testing.assert_close(cross, weights.cross)
    single = model.float()
    logits, _ = follow(single, start(single, use_cache=use_cache), batch["target_input"])
    torch.testing.assert_close(logits, single(**batch), rtol=1e-5, atol=2e-6)


class Uncached:
    """The same model, whose searches keep nothing."""

    def __new__(cls, model: Any) -> Any:
        plain = model.start
        model.start = lambda *given, **options: plain(*given, use_cache=False, **options)
        return model


SEARCHES: dict[str, Callable[..., Any]] = {
    "greedy": greedy_decode,
    "beam": lambda *given, **options: beam_search(*given, width=3, return_all=True, **options),
}


@each_position
@each_norm
@pytest.mark.parametrize("search", SEARCHES)
def test_searches_write_the_same(position: dict[str, Any], norm: str, search: str) -> None:
    batch = make_batch()
    asked = {"bos": BOS, "eos": EOS, "max_len": 7, "need_weights": True}
    given = batch["source"], batch["source_lens"]
    cached = SEARCHES[search](make_model(norm=norm, **position), *given, **asked)
    plain = SEARCHES[search](Uncached(make_model(norm=norm, **position)), *given, **asked)
    assert torch.equal(cached.tokens, plain.tokens)
    torch.testing.assert_close(cached.scores, plain.scores)
    torch.testing.assert_close(cached.weights, plain.weights)
    steps = cached.tokens.shape[-1]
    assert cached.weights.shape[-4:] == (LAYERS, HEADS, steps, 5)


def test_greedy_takes_the_likeliest_of_the_whole_model() -> None:
    model, batch = make_model(), make_batch()
    written = greedy_decode(
        model, batch["source"], batch["source_lens"], bos=BOS, eos=EOS, max_len=6
    )
    for i in range(3):
        tokens = [BOS]
        while len(tokens) < 7 and (len(tokens) == 1 or tokens[-1] != EOS):
            logits = model(batch["source"][[i]], LENS[[i]], torch.tensor([tokens]))
            tokens.append(int(logits[0, -1].argmax()))
        expected = tokens[1:] + [EOS] * (written.tokens.shape[1] + 1 - len(tokens))
        assert written.tokens[i].tolist() == expected


@each_way
def test_a_step_leaves_the_state_as_it_was(use_cache: bool) -> None:
    model, tokens = make_model(), make_batch()["target_input"]
    state = start(model, use_cache=use_cache)
    first = follow(model, state, tokens)
    assert state.tokens.shape == (3, 0)
    torch.testing.assert_close(follow(model, state, tokens), first, rtol=0, atol=0)
    _, state, _ = model.step(tokens[:, 0], state)
    one, _, _ = model.step(tokens[:, 1], state)
    model.step(tokens[:, 1] * 0, state)  # another way to go on
    again, _, _ = model.step(tokens[:, 1], state)
    assert torch.equal(one, again)


@each_way
@pytest.mark.parametrize("steps", [0, 2])
def test_select(use_cache: bool, steps: int) -> None:
    """Chosen, repeated, dropped, more than before: each goes on as it would have."""
    model, tokens = make_model(), make_batch()["target_input"]
    state = start(model, use_cache=use_cache)
    for t in range(steps):
        _, state, _ = model.step(tokens[:, t], state)
    expected, _ = follow(model, state, tokens[:, 2:])
    index = torch.tensor([2, 0, 0, 2, 1])
    chosen = state.select(index)
    logits, _ = follow(model, chosen, tokens[index, 2:])
    torch.testing.assert_close(logits, expected[index])
    after, _ = follow(model, state, tokens[:, 2:])
    assert torch.equal(after, expected)  # the old one is as it was
    alone, _ = follow(model, state.select(torch.tensor([1])), tokens[[1], 2:])
    torch.testing.assert_close(alone, expected[[1]])
    index = torch.tensor([1, 2, 0])
    twice = state.select(index).select(index)
    assert torch.equal(twice.tokens, state.tokens[index[index]])


def test_nothing_is_projected_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = make_model(), make_batch()
    counts: dict[str, int] = {}
    for name, module in model.decoder.named_modules():
        if isinstance(module, MultiHeadAttention):
            for part in ("W_q", "W_k"):
                key = f"{'cross' if 'cross' in name else 'self'}.{part}"

                def count(_: Any, inputs: Any, key: str = key) -> None:
                    counts[key] = counts.get(key, 0) + inputs[0].shape[1]

                getattr(module, part).register_forward_pre_hook(count)
    follow(model, start(model), batch["target_input"])
    expected = {"self.W_q": 4, "self.W_k": 4, "cross.W_q": 4, "cross.W_k": 5}
    assert counts == {name: LAYERS * number for name, number in expected.items()}
    counts.clear()
    follow(model, start(model, use_cache=False), batch["target_input"])
    expected = {"self.W_q": 10, "self.W_k": 10, "cross.W_q": 10, "cross.W_k": 20}
    assert counts == {name: LAYERS * number for name, number in expected.items()}


@each_way
def test_padding_does_not_matter(use_cache: bool) -> None:
    model, batch = make_model(), make_batch()
    changed = batch["source"].masked_fill(torch.arange(5) >= LENS[:, None], 9)
    logits = [
        follow(model, model.start(source, LENS, use_cache=use_cache), batch["target_input"])
        for source in (batch["source"], changed)
    ]
    torch.testing.assert_close(*logits, rtol=0, atol=0)


def test_gradients_flow_through_steps() -> None:
    model, batch = make_model(), make_batch()
    results = []
    for logits in (model(**batch), follow(model, start(model), batch["target_input"])[0]):
        model.zero_grad()
        logits.square().sum().backward()
        results.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*results)


def test_weights_only_if_needed() -> None:
    model = make_model()
    assert model.step(torch.tensor([1, 1, 1]), start(model))[2] is None
    assert model.vocab_size == TARGET_VOCAB
    assert model.device == torch.device("cpu")


def test_bad_input() -> None:
    model = make_model()
    state = start(model)
    for token, error, message in (
        (torch.tensor([1, 1]), ValueError, r"token must have shape \[3\], got \[2\]"),
        (torch.tensor([1, 1, 9]), ValueError, r"token must hold integers in \[0, 9\)"),
        (torch.ones(3), TypeError, "token must hold integers, got torch.float32"),
        ([1, 1, 1], TypeError, r"token must be a torch\.Tensor"),
    ):
        with pytest.raises(error, match=message):
            model.step(token, state)
    with pytest.raises(ValueError, match="language must be None"):
        start(model, language=torch.tensor([0, 0, 0]))
    with pytest.raises(ValueError, match="index must lie in"):
        model.step(torch.tensor([1, 1, 1]), state)[1].select(torch.tensor([3]))
    other = start(model)._replace(tokens=torch.zeros(2, 0, dtype=torch.long))
    with pytest.raises(ValueError, match="batch"):
        model.step(torch.tensor([1, 1]), other)
