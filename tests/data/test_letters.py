"""The letters tasks: read again with Python's own tools."""

import itertools

import pytest
import torch

from attn_course.data import LetterBatches, delayed, letters


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 32])
def test_targets_repeat_each_run(repeats: int, length: int) -> None:
    pairs = letters(200, repeats=repeats, length=length)
    assert pairs.source.shape == (200, length)
    for n, (source, target) in enumerate(zip(pairs.sources, pairs.targets, strict=True)):
        runs = [(k, len(list(run))) for k, run in itertools.groupby(source)]
        assert target == "".join(k * repeats for k, _ in runs)
        assert len(target) == pairs.target_lens[n] and all(size <= 2 * repeats for _, size in runs)
        said = [i for i, (_, size) in enumerate(runs) for _ in range(size)]
        assert pairs.run[n].tolist() == said
    assert pairs.target.shape[1] == int(pairs.target_lens.max())


def test_everything_is_drawn() -> None:
    pairs = letters(2000, num_letters=4, repeats=1)
    assert pairs.source.unique().tolist() == [1, 2, 3, 4]
    runs = torch.stack([pairs.run[:, 10:] == pairs.run[:, 9:-1]]).float().mean()
    assert 0.25 < runs.item() < 0.42  # of runs of 1 and 2, a third of neighbours are equal
    assert torch.equal(letters(5, seed=1).source, letters(5, seed=1).source)
    assert not torch.equal(letters(5, seed=1).source, letters(5, seed=2).source)


def test_batches() -> None:
    batches = LetterBatches(4, 3, seed=5)
    first, second = list(batches), list(batches)
    assert len(batches) == len(first) == 3
    for (a, target), (b, again) in zip(first, second, strict=True):
        assert torch.equal(a["source"], b["source"]) and torch.equal(target, again)
        late = a["target_input"]
        assert (late[:, 0] == 11).all()
        kept = late[:, 1:] != 0
        assert torch.equal(late[:, 1:][kept], target[:, :-1][kept])
        assert torch.equal(late != 0, target != 0)
    assert not torch.equal(first[0][0]["source"], first[1][0]["source"])
    pairs = letters(2, num_letters=3)
    assert delayed(pairs, 3).shape == pairs.target.shape


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"num_letters must lie in \[2, 26\], got 27"):
        letters(1, num_letters=27)
    with pytest.raises(ValueError, match="num_letters"):
        LetterBatches(num_letters=1)
    with pytest.raises(ValueError, match="repeats must be"):
        letters(1, repeats=0)
    with pytest.raises(ValueError, match="steps must be"):
        LetterBatches(steps=0)
