"""Encoder and decoder against the article's loop, and what must not matter to them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attn_course import _d2l
from attn_course.scoring import AdditiveAttention
from attn_course.seq2seq import AttentionDecoder, EncoderOutput, UniformAttention
from attn_course.seq2seq import attention as attention_module
from attn_course.testing import assert_close
from tests.seq2seq import article
from tests.seq2seq.models import HIDDEN, OPTIONS, TARGET_VOCAB, languages, make_batch, make_model

options_by_name = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def loop(model: nn.Module, options: dict[str, Any], batch: dict[str, Tensor]) -> tuple:
    """The article's loop over a batch: logits, and weights with zeros at padding."""
    told = languages(options)
    kept = {k: v for k, v in options.items() if k not in ("cell", "num_layers", "num_languages")}
    if options.get("scoring") == "uniform":
        kept["query"] = ("token",)
    all_logits, all_weights = [], []
    source_len, target_len = batch["source"].shape[1], batch["target_input"].shape[1]
    for i, length in enumerate(batch["source_lens"].tolist()):
        language = int(told["language"][i]) if told else None
        logits, rows = article.translate(
            model,
            batch["source"][i, :length].tolist(),
            batch["target_input"][i].tolist(),
            language=language,
            **kept,
        )
        columns = source_len + (target_len - 1 if options.get("attend_generated") else 0)
        weights = logits.new_zeros(target_len, columns)
        for t, row in enumerate(rows):
            weights[t, :length] = row[:length]
            weights[t, source_len : source_len + len(row) - length] = row[length:]
        all_logits.append(logits)
        all_weights.append(weights)
    return torch.stack(all_logits), torch.stack(all_weights)


@options_by_name
@pytest.mark.parametrize("hidden", [HIDDEN, 12])
def test_the_batch_is_the_articles_loop(options: dict[str, Any], hidden: int) -> None:
    """With a decoder of another width than the encoder's (6 and 12), and of the same."""
    model, batch = make_model(hidden=hidden, **options), make_batch()
    if options.get("window") == 0:
        batch["source_lens"] = torch.tensor([5, 4, 5])  # the loop has no answer to empty rows
    asked = options.get("scoring", "") is not None
    result = model(**batch, **languages(options), need_weights=asked)
    logits, weights = result if asked else (result, None)
    expected, expected_weights = loop(model, options, batch)
    if options.get("window") == 1:
        seen = expected.isfinite().all(-1)  # a window past a short sentence is empty: 0 / 0
        assert bool(seen[0].all()) and bool(seen[:, 0].all())
        torch.testing.assert_close(logits[0], expected[0])
        torch.testing.assert_close(logits[:, 0], expected[:, 0])
        return
    assert_close(logits, expected)
    if asked:
        assert_close(weights, expected_weights)
        assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_the_encoder_reads_as_its_equations_say(
    bidirectional: bool, cell: str, num_layers: int
) -> None:
    model = make_model(bidirectional=bidirectional, cell=cell, num_layers=num_layers)
    batch = make_batch()
    states, final = model.encoder(batch["source"], batch["source_lens"])
    assert len(final) == (1 if cell == "gru" else 2)
    for i, length in enumerate(batch["source_lens"].tolist()):
        all_h, *finals = article.read(model, batch["source"][i, :length].tolist())
        assert_close(states[i, :length], torch.stack(all_h))
        assert not states[i, length:].any()
        for part, expected in zip(final, finals, strict=False):
            assert_close(part[:, i], torch.stack(expected))


@options_by_name
def test_neither_padding_nor_the_others_matter(options: dict[str, Any]) -> None:
    model, batch, told = make_model(**options), make_batch(), languages(options)
    before = model(**batch, **told)
    padding = torch.arange(5) >= batch["source_lens"].unsqueeze(1)
    garbage = batch["source"].masked_fill(padding, -100)  # not even an id
    assert torch.equal(model(**{**batch, "source": garbage}, **told), before)

    longer = torch.cat([batch["source"], batch["source"]], dim=1)
    assert_close(model(**{**batch, "source": longer}, **told), before.detach())

    alone = {k: v[2:] for k, v in (batch | told).items()}
    alone["source"] = alone["source"][:, :3]
    assert_close(model(**alone), before[2:].detach())


@options_by_name
def test_steps_are_teacher_forcing_taken_apart(options: dict[str, Any]) -> None:
    model, batch = make_model(**options), make_batch()
    asked = options.get("scoring", "") is not None
    result = model(**batch, **languages(options), need_weights=asked)
    logits, weights = result if asked else (result, None)
    encoded = model.encoder(batch["source"], batch["source_lens"])
    state = model.decoder.start(encoded, batch["source_lens"], **languages(options))
    for t, token in enumerate(batch["target_input"].unbind(1)):
        step, state, row = model.decoder.step(token, state, need_weights=asked)
        assert state.step == t + 1
        assert_close(step, logits[:, t].detach())
        if asked:
            assert_close(row, weights[:, t, : row.shape[1]].detach())
            assert not weights[:, t, row.shape[1] :].any()
        else:
            assert row is None


@options_by_name
def test_later_tokens_do_not_matter(options: dict[str, Any]) -> None:
    model, batch, told = make_model(**options), make_batch(), languages(options)
    before = model(**batch, **told)
    batch["target_input"][:, 2:] = 0
    torch.testing.assert_close(model(**batch, **told)[:, :2], before[:, :2])


@options_by_name
def test_a_selected_state_goes_on_as_the_item_would(options: dict[str, Any]) -> None:
    model, batch, told = make_model(**options), make_batch(), languages(options)
    encoded = model.encoder(batch["source"], batch["source_lens"])
    state = model.decoder.start(encoded, batch["source_lens"], **told)
    _, state, _ = model.decoder.step(batch["target_input"][:, 0], state)
    index = torch.tensor([2, 0, 2, 1])
    token = batch["target_input"][:, 1]
    expected, _, _ = model.decoder.step(token, state)
    selected, _, _ = model.decoder.step(token[index], state.select(index))
    assert_close(selected, expected[index].detach())


def test_nan_in_the_memorys_padding_does_not_leak() -> None:
    model, batch = make_model(), make_batch()
    states, final = model.encoder(batch["source"], batch["source_lens"])
    padding = torch.arange(5) >= batch["source_lens"].unsqueeze(1)
    poisoned = states.detach().masked_fill(padding.unsqueeze(2), torch.nan).requires_grad_()
    state = model.decoder.start(EncoderOutput(poisoned, final), batch["source_lens"])
    logits, _, _ = model.decoder(batch["target_input"], state)
    assert_close(logits, model(**batch).detach())
    logits.sum().backward()
    assert not poisoned.grad[padding].any()
    assert all(bool(p.grad.isfinite().all()) for p in model.decoder.parameters())


@pytest.mark.parametrize("name", ["additive", "cosine", "bilinear"])
def test_keys_are_projected_once_a_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = make_model(scoring=name), make_batch()
    calls: list[Tensor] = []
    project = model.decoder.attention.scoring.project_keys
    monkeypatch.setattr(
        model.decoder.attention.scoring, "project_keys", lambda k: calls.append(k) or project(k)
    )
    model(**batch)
    assert [call.shape for call in calls] == [(3, 5, 12)]


def test_each_own_state_is_projected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = make_model(attend_generated=True), make_batch()
    calls: list[Tensor] = []
    project = model.decoder.attention.scoring.project_keys
    monkeypatch.setattr(
        model.decoder.attention.scoring, "project_keys", lambda k: calls.append(k) or project(k)
    )
    model(**batch)
    assert [call.shape[1] for call in calls] == [5, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("options", "calls"),
    [({}, 4), ({"query": ("token",)}, 1), ({"scoring": "uniform"}, 1), ({"scoring": None}, 1)],
)
def test_only_a_query_that_must_wait_makes_a_loop(options: dict[str, Any], calls: int) -> None:
    model, seen = make_model(**options), []
    model.decoder.rnn.register_forward_hook(lambda *a: seen.append(1))
    model(**make_batch())
    assert len(seen) == calls


class FromD2L(nn.Module):
    """d2l's additive attention, which projects the keys at each step."""

    def __init__(self, ours: AdditiveAttention) -> None:
        super().__init__()
        self.net = _d2l.load().AdditiveAttention(len(ours.w_v), dropout=0.0)
        self.net.W_q, self.net.W_k = ours.W_q, ours.W_k
        self.net.w_v = nn.Linear(len(ours.w_v), 1, bias=False)
        self.net.w_v.weight = nn.Parameter(ours.w_v.detach().unsqueeze(0))

    def project_keys(self, key: Tensor) -> Tensor:
        return key

    def attend(
        self,
        query: Tensor,
        projected_key: Tensor,
        value: Tensor,
        *,
        valid_lens: Tensor | None = None,
        need_weights: bool = False,
    ) -> Any:
        output = self.net(query, projected_key, value, valid_lens)
        return (output, self.net.attention_weights) if need_weights else output


def test_with_d2ls_attention_it_writes_the_same() -> None:
    pytest.importorskip("d2l")
    model, batch = make_model().float(), make_batch()
    logits, weights = model(**batch, need_weights=True)
    model.decoder.attention.scoring = FromD2L(model.decoder.attention.scoring)
    theirs, their_weights = model(**batch, need_weights=True)
    torch.testing.assert_close(logits, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weights, their_weights, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["additive", "everything", "generated", "window", "lstm", "none", "token"]
)
def test_gradients(name: str) -> None:
    options = OPTIONS[name]
    model, batch, told = make_model(**options), make_batch(), languages(options)
    states, final = model.encoder(batch["source"], batch["source_lens"])

    def logits(states: Tensor, *final: Tensor) -> Tensor:
        state = model.decoder.start(EncoderOutput(states, final), batch["source_lens"], **told)
        return model.decoder(batch["target_input"], state)[0]

    inputs = [x.detach().requires_grad_() for x in (states, *final)]
    assert torch.autograd.gradcheck(logits, inputs, fast_mode=True)


@options_by_name
def test_everything_learned_is_used(options: dict[str, Any]) -> None:
    model, batch, told = make_model(**options), make_batch(), languages(options)
    (model(**batch, **told) ** 2).sum().backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unused


def test_an_empty_window_gives_zeros() -> None:
    model, batch = make_model(window=0), make_batch()
    logits, weights = model(**batch, need_weights=True)
    assert bool(logits.isfinite().all())
    expected = torch.eye(4, 5).repeat(3, 1, 1).double()
    expected[1, 1:] = 0  # one word long: nothing stands at positions 1, 2, 3
    expected[2, 3:] = 0
    assert_close(weights, expected)
    logits.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_a_module_of_ones_own() -> None:
    ours, batch = make_model(scoring=UniformAttention(), query=("token",)), make_batch()
    assert torch.equal(ours(**batch), make_model(scoring="uniform")(**batch))


def test_uniform_attention_is_a_layer_like_the_others() -> None:
    key, lens = torch.randn(2, 4, 3, dtype=torch.float64), torch.tensor([4, 2])
    query = torch.full((2, 1, 5), torch.nan, dtype=torch.float64)  # it does not look
    output, weights = UniformAttention()(query, key, key, valid_lens=lens, need_weights=True)
    expected = torch.stack([key[0].mean(0), key[1, :2].mean(0)]).unsqueeze(1)
    assert_close(output, expected)
    assert weights.tolist() == [[[0.25] * 4], [[0.5, 0.5, 0, 0]]]


def test_dropout_is_for_training_only() -> None:
    model, batch = make_model(dropout=0.5, num_layers=2), make_batch()
    assert torch.equal(model(**batch), model(**batch))
    model.train()
    assert not torch.equal(model(**batch), model(**batch))


def test_language_matters() -> None:
    options = OPTIONS["token_language"]
    model, batch = make_model(**options), make_batch()
    both = [model(**batch, language=torch.full((3,), i)) for i in range(2)]
    assert not torch.allclose(*both)


def test_the_names_are_those_of_the_docstring() -> None:
    for name in attention_module.SCORINGS:
        assert f'``"{name}"``' in (AttentionDecoder.__doc__ or "")


MEMORY = EncoderOutput(torch.zeros(2, 3, 4), (torch.zeros(1, 2, 4),))
LENS = torch.tensor([3, 2])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scoring": "luong"}, ValueError, "scoring must be one of 'additive', .*got 'luong'"),
        ({"scoring": nn.Linear(2, 2)}, TypeError, "project_keys and attend, got Linear"),
        ({"scoring": None, "window": 2}, ValueError, "takes no window"),
        ({"scoring": None, "attend_generated": True}, ValueError, "takes no window"),
        ({"window": -1}, ValueError, "window must be None or an integer of at least 0, got -1"),
        ({"window": 1.5}, ValueError, "window must be None or an integer"),
        ({"query": ()}, ValueError, "query must be a tuple"),
        ({"query": "state"}, ValueError, "query must be a tuple .*got 'state'"),
        ({"query": ("word",)}, ValueError, "query must be one of 'state', .*got 'word'"),
        ({"query": ("token", "token")}, ValueError, "each part once"),
        ({"query": ("language",)}, ValueError, "num_languages must be given exactly if"),
        ({"num_languages": 2}, ValueError, "num_languages must be given exactly if"),
        ({"query": ("language",), "num_languages": 0}, ValueError, "num_languages must be an int"),
        ({"cell": "rnn"}, ValueError, "cell must be one of 'gru', 'lstm'"),
        ({"num_layers": 0}, ValueError, "num_layers must be an integer of at least 1, got 0"),
        ({"dropout": 1.0}, ValueError, r"dropout must lie in \[0, 1\)"),
    ],
)
def test_the_constructor_refuses(options: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        AttentionDecoder(TARGET_VOCAB, 4, 4, 4, **options)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"source": torch.zeros(3, dtype=torch.long)}, ValueError, r"source must have shape"),
        ({"source": torch.zeros(3, 0, dtype=torch.long)}, ValueError, r"source must have shape"),
        ({"source": torch.zeros(3, 5)}, TypeError, "source must hold integers"),
        ({"source": torch.full((3, 5), 11)}, ValueError, r"integers in \[0, 11\), got 0 to 11"),
        ({"source": [[1, 2]]}, TypeError, "source must be a torch.Tensor, got list"),
        ({"source_lens": torch.tensor([5, 0, 1])}, ValueError, "at least 1, got 0: an empty"),
        ({"source_lens": torch.tensor([6, 1, 1])}, ValueError, r"source_lens must hold .* to 6"),
        ({"source_lens": torch.tensor([-1, 1, 1])}, ValueError, "source_lens must hold .*got -1"),
        ({"source_lens": torch.tensor([5, 1])}, ValueError, r"shape \[3\], got \[2\]"),
        ({"source_lens": torch.ones(3)}, TypeError, "source_lens must hold integers"),
        ({"target_input": torch.zeros(3, dtype=torch.long)}, ValueError, r"\[3, target_len\]"),
        ({"target_input": torch.zeros(2, 4, dtype=torch.long)}, ValueError, r"\[3, target_len\]"),
        ({"target_input": torch.zeros(3, 0, dtype=torch.long)}, ValueError, r"\[3, target_len\]"),
        ({"target_input": torch.full((3, 4), 9)}, ValueError, r"integers in \[0, 9\), got 9 to 9"),
        ({"language": torch.zeros(3, dtype=torch.long)}, ValueError, "num_languages"),
    ],
)
def test_forward_refuses(change: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make_model()(**(make_batch() | change))


def test_more_refusals() -> None:
    with pytest.raises(ValueError, match="language must be given"):
        make_model(**OPTIONS["token_language"])(**make_batch())
    with pytest.raises(ValueError, match=r"language must hold integers in \[0, 2\), got 0 to 2"):
        model = make_model(**OPTIONS["token_language"])
        model(**make_batch(), language=torch.tensor([0, 2, 1]))
    with pytest.raises(ValueError, match="weights, which scoring=None has not"):
        make_model(scoring=None)(**make_batch(), need_weights=True)
    decoder = AttentionDecoder(TARGET_VOCAB, 4, 4, 5)
    with pytest.raises(ValueError, match=r"shape \[batch, source_len, 5\], got \[2, 3, 4\]"):
        decoder.start(MEMORY, LENS)
    decoder = AttentionDecoder(TARGET_VOCAB, 4, 4, 4)
    with pytest.raises(ValueError, match=r"token must have shape \[2\], got \[2, 1\]"):
        decoder.step(torch.ones(2, 1, dtype=torch.long), decoder.start(MEMORY, LENS))
