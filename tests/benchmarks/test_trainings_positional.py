"""Chapter 5's trainings: what they ask, and what their models may know."""

from __future__ import annotations

import pytest
import torch

from attn_course.benchmarks.trainings.positional import (
    BACK,
    SCHEMES,
    Finder,
    SelfAttentionEncoder,
    build,
    look_up,
)
from attn_course.data import Vocabulary


def test_what_is_asked_for() -> None:
    generator = torch.Generator().manual_seed(0)
    letters, digits, recent = look_up("recent", 3, 30, generator)
    for row in range(3):
        for i in range(30):
            last = -100
            for j in range(i):
                if letters[row, j] == letters[row, i]:
                    last = int(digits[row, j])
            assert recent[row, i] == last
    _, digits, back = look_up("back", 3, 30, generator)
    assert (back[:, :BACK] == -100).all()
    assert torch.equal(back[:, BACK:], digits[:, :-BACK])


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="task"):
        look_up("first", 1, 4, torch.Generator())
    with pytest.raises(ValueError, match="scheme"):
        Finder("absolute")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_order_is_known_with_a_position_only(scheme: str) -> None:
    torch.manual_seed(0)
    encoder = SelfAttentionEncoder(9, scheme, width=8, num_heads=2, max_len=7)
    source = torch.tensor([[4, 7, 5, 6, 3]])
    order = torch.tensor([2, 0, 4, 1, 3])
    with torch.no_grad():
        states, (start,) = encoder(source, torch.tensor([5]))
        moved, (other,) = encoder(source[:, order], torch.tensor([5]))
    same = torch.allclose(moved, states[:, order], atol=1e-6)
    assert same == (scheme == "none")
    assert torch.allclose(start, other, atol=1e-6) == (scheme == "none")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_padding_does_not_matter(scheme: str) -> None:
    torch.manual_seed(0)
    encoder = SelfAttentionEncoder(9, scheme, width=8, num_heads=2, max_len=7)
    lens = torch.tensor([3])
    with torch.no_grad():
        short, (start,) = encoder(torch.tensor([[4, 7, 3]]), lens)
        padded, (other,) = encoder(torch.tensor([[4, 7, 3, 5, 0]]), lens)
    torch.testing.assert_close(padded[:, :3], short)
    torch.testing.assert_close(other, start)
    assert (padded[:, 3:] == 0).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_finder_sees_earlier_tokens_alone(scheme: str) -> None:
    torch.manual_seed(0)
    model = Finder(scheme, width=8, num_heads=2)
    letters, digits, _ = look_up("back", 1, 6, torch.Generator().manual_seed(0))
    other = digits.clone()
    other[0, 3] = (other[0, 3] + 1) % 8
    with torch.no_grad():
        one, weights = model(letters, digits, need_weights=True)
        two = model(letters, other)
    torch.testing.assert_close(one[:, :4], two[:, :4])
    assert not torch.allclose(one[:, 4:], two[:, 4:])
    assert (weights.triu() == 0).all()


@pytest.mark.parametrize("marked", [False, True])
def test_the_translator_translates(marked: bool) -> None:
    source, target = Vocabulary(["the cat"]), Vocabulary(["le chat"])
    translator = build("none", source, target, marked=marked)
    (found,) = translator.translate(["the cat"], max_len=3)
    assert found.source == ["the", "cat", "<eos>"]
    with torch.no_grad():
        one, _ = translator.model.encoder(torch.tensor([[4, 5, 3]]), torch.tensor([2]))
        two, _ = translator.model.encoder(torch.tensor([[5, 4, 3]]), torch.tensor([2]))
    assert torch.allclose(one[0, :2], two[0, [1, 0]], atol=1e-6) != marked
    assert (one[0, 2] == 0).all()
