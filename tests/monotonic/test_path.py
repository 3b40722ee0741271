"""Paths: against every walk there is."""

import math
from typing import Any

import pytest
import torch

from attn_course.monotonic import (
    best_path,
    count_paths,
    enumerate_paths,
    many_to_many,
    one_to_many,
    path_log_prob,
    posterior,
    sample_paths,
)
from tests.monotonic.walks import MODELS, every_walk

SIZES = [(1, 1), (1, 5), (5, 1), (2, 3), (4, 3), (3, 5), (6, 6)]
pytestmark = pytest.mark.filterwarnings("ignore:one_to_many has")
on_both = pytest.mark.parametrize("model", MODELS)
on_sizes = pytest.mark.parametrize("size", SIZES)


def random(*shape: int) -> torch.Tensor:
    return 2 * torch.randn(*shape, dtype=torch.float64)


@on_both
@on_sizes
def test_paths_are_counted_and_listed(model: str, size: tuple[int, int]) -> None:
    x = random(*size)
    _, visits = every_walk(x, model)
    nodes = {tuple(map(tuple, v.nonzero().tolist())) for v in visits}
    listed = {tuple(path) for path in enumerate_paths(*size, model=model, end="edge")}
    assert listed == nodes
    arriving = enumerate_paths(*size, model=model)
    assert {tuple(p) for p in arriving} == {n for n in nodes if n[-1] == (size[0] - 1, size[1] - 1)}
    assert len(arriving) == len({tuple(p) for p in arriving}) == count_paths(*size, model=model)


@on_both
@on_sizes
@pytest.mark.parametrize("end", ["corner", "edge"])
def test_the_best_path_is_the_best(model: str, size: tuple[int, int], end: str) -> None:
    x = random(*size)
    visited, log_prob = best_path(x, model=model, end=end)
    walks, visits = every_walk(x, model)
    if end == "corner":
        paths = enumerate_paths(*size, model=model)
        if not paths:
            assert log_prob == -math.inf and not visited.any()
            return
        each = torch.stack([path_log_prob(x, path, model=model) for path in paths])
        assert visited.nonzero().tolist() == [list(node) for node in paths[int(each.argmax())]]
        torch.testing.assert_close(log_prob, each.max())
    else:  # two walks may leave one node in two ways: they are one path
        pairs = zip(visits, walks, strict=True)
        total = torch.stack([w for v, w in pairs if torch.equal(v, visited)]).logsumexp(0)
        torch.testing.assert_close(log_prob, total)
        for v in visits:
            same = torch.stack([w for u, w in zip(visits, walks, strict=True) if torch.equal(u, v)])
            assert same.logsumexp(0) <= log_prob + 1e-9
            if len(visits) > 300:
                break


@on_both
@on_sizes
def test_the_posterior_is_that_of_walks_that_arrive(model: str, size: tuple[int, int]) -> None:
    x = random(*size)
    walks, visits = every_walk(x, model)
    here = visits[:, -1, -1]
    arriving = walks.exp() * here
    expected = (arriving[:, None, None] * visits).sum(0) / arriving.sum().clamp_min(1e-300)
    torch.testing.assert_close(posterior(x, model=model), expected)
    if here.any():
        assert torch.autograd.gradcheck(lambda x: posterior(x, model=model), x.requires_grad_())


@on_both
def test_lengths_cut_the_grid(model: str) -> None:
    full = random(3, 2, 6, 5)
    rows, columns = torch.tensor([6, 4, 0]), torch.tensor([5, 2, 3])
    x = full.clone()
    for item in range(3):
        x[item, :, rows[item] :] = math.nan
        x[item, :, :, columns[item] :] = math.nan
    lens: dict[str, Any] = {"row_lens": rows, "column_lens": columns}
    found = {
        "posterior": posterior(x, model=model, **lens),
        "corner": best_path(x, model=model, **lens)[0],
        "edge": best_path(x, model=model, end="edge", **lens)[0],
    }
    drawn = sample_paths(x, 5, model=model, **lens)
    for item, (r, c) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
        outside = torch.ones(6, 5, dtype=torch.bool)
        outside[:r, :c] = False
        assert not drawn[:, item, :, outside].any()
        for name, y in found.items():
            assert not y[item, :, outside].any()
            if r:
                cut = full[item, :, :r, :c]
                whole = (
                    posterior(cut, model=model)
                    if name == "posterior"
                    else best_path(cut, model=model, end=name)[0]
                )
                torch.testing.assert_close(y[item, :, :r, :c], whole)


def test_the_posterior_leaks_the_future_and_phi_does_not() -> None:
    x = random(5, 7)
    later = x.clone()
    later[3:] = random(2, 7)
    assert torch.equal(many_to_many(x)[:3], many_to_many(later)[:3])
    assert not posterior(x)[:3].allclose(posterior(later)[:3], atol=1e-3)


@on_both
def test_samples_visit_as_phi_says(model: str) -> None:
    x = random(2, 4, 5)
    generator = torch.Generator().manual_seed(3)
    drawn = sample_paths(x, 20_000, model=model, generator=generator)
    phi = (many_to_many if model == "many_to_many" else one_to_many)(x)
    assert (drawn.double().mean(0) - phi).abs().max() < 0.015  # four standard errors


@on_both
def test_long_grids(model: str) -> None:
    x = torch.randn(500, 300)
    visited, log_prob = best_path(x, model=model)
    path = [tuple(node) for node in visited.nonzero().tolist()]
    assert path[-1] == (499, 299)
    torch.testing.assert_close(path_log_prob(x, path, model=model), log_prob, rtol=1e-4, atol=0)
    gamma = posterior(x, model=model)
    assert gamma.isfinite().all() and gamma[-1, -1].item() == pytest.approx(1)
    if model == "one_to_many":
        torch.testing.assert_close(gamma.sum(1), torch.ones(500))


def test_bad_input() -> None:
    x = torch.randn(2, 3)
    with pytest.raises(ValueError, match="model must be"):
        best_path(x, model="many")
    with pytest.raises(ValueError, match="end must be"):
        best_path(x, end="anywhere")
    with pytest.raises(ValueError, match="at most 100,000 paths"):
        enumerate_paths(20, 20)
    with pytest.raises(ValueError, match="rows must be"):
        count_paths(0, 3)
    with pytest.raises(ValueError, match="a step"):
        path_log_prob(x, [(0, 0), (1, 1)])
    with pytest.raises(ValueError, match="stay in the grid"):
        path_log_prob(x, [(1, 2), (1, 3)])
    with pytest.raises(ValueError, match="count must be"):
        sample_paths(x, 0)


def test_logits_that_look_like_probabilities_can_be_insisted_on() -> None:
    x = random(5, 6).sigmoid()
    for search in (best_path, posterior, sample_paths):
        with pytest.raises(ValueError, match="look like probabilities"):
            search(x)
        search(x, validate=False)
