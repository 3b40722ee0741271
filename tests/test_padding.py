"""What padding holds is disarmed, and nothing else is touched."""

import pytest
import torch

from attn_course import _padding
from attn_course._padding import disarm_padding
from attn_course.testing import make_qkv

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("how", ["lens", "mask", "both"])
def test_only_what_no_query_sees_is_padding(how: str) -> None:
    """Keys before the longest of the queries' own lengths still count."""
    query, key, value = make_qkv((2,), 3, 9, 4, 5, dtype=torch.float64, device=DEVICE)
    lens = torch.tensor([[2, 5, 0], [1, 8, 3]], device=DEVICE)
    hidden = torch.arange(9, device=DEVICE) >= lens.amax(-1, keepdim=True)
    seen = torch.arange(9, device=DEVICE) < lens[..., None]
    hiding = {"valid_lens": lens, "mask": seen}
    if how != "both":
        del hiding["mask" if how == "lens" else "valid_lens"]
    given = (
        query.masked_fill((lens == 0)[..., None], torch.nan),
        key.masked_fill(hidden[..., None], torch.nan),
        value.masked_fill(hidden[..., None], torch.nan),
    )
    for kept, tensor, rows in zip(
        disarm_padding(*given, **hiding),
        (query, key, value),
        (lens == 0, hidden, hidden),
        strict=True,
    ):
        assert torch.equal(kept, tensor.masked_fill(rows[..., None], 0))
    assert all(tensor.isnan().any() for tensor in given)  # and not changed


def test_padding_is_copied_only_where_it_could_do_harm() -> None:
    query, key, value = make_qkv((2,), 2, 3, 4, 3, dtype=torch.float32, device=DEVICE)
    lens = torch.tensor([3, 1], device=DEVICE)
    harmless = disarm_padding(query, key, value, valid_lens=lens)
    if DEVICE == "cpu":
        assert all(a is b for a, b in zip(harmless, (query, key, value), strict=True))
    hidden = torch.arange(3, device=DEVICE) >= lens[:, None]
    for poison in (torch.nan, -torch.inf, torch.inf, 1e30, -1e30):
        bad = value.masked_fill(hidden[..., None], poison)
        _, same, cleared = disarm_padding(query, key, bad, valid_lens=lens)
        assert DEVICE != "cpu" or same is key
        torch.testing.assert_close(cleared, value.masked_fill(hidden[..., None], 0))
    halves = disarm_padding(query.half(), key.half(), value.half(), valid_lens=lens)
    assert bool((halves[1][hidden] == 0).all())
    untouched = disarm_padding(query, key, bad)
    assert all(a is b for a, b in zip(untouched, (query, key, bad), strict=True))


def test_one_tensor_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(_padding, "_looks_harmless", lambda x: seen.append(x) or True)
    x, y = torch.ones(2, 3), torch.full((2, 3), torch.nan)
    assert _padding.harmless(x, x, x) and len(seen) == 1
    assert _padding.harmless(x, y, x) and len(seen) == 3
    monkeypatch.undo()
    assert not _padding.harmless(x, x, y)
    assert _padding.harmless(x, y[:0]) is (_padding.harmless(x))
    assert not _padding.harmless(x.half())


def test_bad_input_is_named() -> None:
    Q, K, V = torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4, 1)
    lens = torch.tensor(1)
    with pytest.raises(TypeError, match="key must hold floating-point"):
        disarm_padding(Q, K.long(), V, valid_lens=lens)
    with pytest.raises(ValueError, match=r"value must have shape \[\.\.\., length, width\]"):
        disarm_padding(Q, K, V[0], valid_lens=lens)
    with pytest.raises(ValueError, match=r"\[0, 4\].* got 9"):
        disarm_padding(Q, K, V, valid_lens=9 * lens)
