"""Figures, read back from matplotlib's own objects."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch

from attn_course.heatmaps import DIVERGING, PALETTE, SEQUENTIAL, show_heatmaps, use_style


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    with matplotlib.rc_context():
        yield
    plt.close("all")


def panels(figure: Figure) -> list[Axes]:
    return [ax for ax in figure.axes if ax.images]


def bars(figure: Figure) -> list[Axes]:
    return [ax for ax in figure.axes if not ax.images]


def shown(ax: Axes) -> np.ndarray:
    return np.asarray(ax.images[0].get_array())


def hatched(ax: Axes, shape: tuple[int, int]) -> np.ndarray:
    """Which cells' centres lie in a hatched patch."""
    cells = np.zeros(shape, dtype=bool)
    for patch in ax.patches:
        assert isinstance(patch, PathPatch) and patch.get_hatch()
        for polygon in map(np.asarray, patch.get_path().to_polygons()):
            (left, top), (right, bottom) = polygon.min(0), polygon.max(0)
            i, j = np.indices(shape)
            cells |= (left < j) & (j < right) & (top < i) & (i < bottom)
    return cells


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_each_panel_shows_its_own_matrix(lead: tuple[int, ...]) -> None:
    weights = torch.rand(*lead, 4, 5)
    figure = show_heatmaps(weights)
    found = panels(figure)
    matrices = weights.reshape(-1, 4, 5)
    assert len(found) == len(matrices)
    for ax, matrix in zip(found, matrices, strict=True):
        assert np.allclose(shown(ax), matrix.numpy())
        assert ax.images[0].get_clim() == (0, pytest.approx(weights.max().item()))
        bottom, top = ax.get_ylim()
        assert bottom > top, "queries must run down"
    assert len(bars(figure)) == 1
    grid = found[0].get_subplotspec()
    assert grid is not None and grid.get_geometry()[:2] == ((1, 1, *lead)[-2:])


def test_a_scale_for_each_panel() -> None:
    weights = torch.stack([torch.full((2, 2), 0.25), torch.eye(2)])
    figure = show_heatmaps(weights, shared_scale=False)
    assert [ax.images[0].get_clim() for ax in panels(figure)] == [(0, 0.25), (0, 1)]
    assert len(bars(figure)) == 2


def test_vmax_and_zero_weights() -> None:
    assert panels(show_heatmaps(torch.eye(2), vmax=0.5))[0].images[0].get_clim() == (0, 0.5)
    assert panels(show_heatmaps(torch.zeros(2, 2)))[0].images[0].get_clim() == (0, 1)


@pytest.mark.parametrize(
    ("low", "high", "extend"),
    [(0, 1, "max"), (-1, 0.1, "min"), (-1, 1, "both"), (0, 0.4, "neither")],
)
def test_the_bar_says_that_the_scale_was_cut(low: float, high: float, extend: str) -> None:
    figure = show_heatmaps(torch.tensor([[low, high]]), vmax=0.5)
    colorbar = panels(figure)[0].images[0].colorbar
    assert colorbar is not None and colorbar.extend == extend


def test_negative_numbers_get_a_symmetric_scale() -> None:
    image = panels(show_heatmaps(torch.tensor([[-3.0, 1.0]])))[0].images[0]
    assert image.get_clim() == (-3, 3) and image.get_cmap().name == DIVERGING.name
    image = panels(show_heatmaps(torch.tensor([[3.0, 1.0]])))[0].images[0]
    assert image.get_clim() == (0, 3) and image.get_cmap().name == SEQUENTIAL.name
    assert panels(show_heatmaps(torch.eye(2), cmap="gray"))[0].images[0].get_cmap().name == "gray"


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_masked_cells_are_hatched_and_only_they(lead: tuple[int, ...]) -> None:
    mask = torch.rand(*lead[-1:], 6, 7) < 0.5
    weights = torch.rand(*lead, 6, 7)
    figure = show_heatmaps(weights, mask=mask)
    masks = mask.expand(*lead, 6, 7).reshape(-1, 6, 7)
    for ax, allowed in zip(panels(figure), masks, strict=True):
        assert np.array_equal(hatched(ax, (6, 7)), ~allowed.numpy())


def test_what_is_masked_decides_no_scale_and_may_be_nan() -> None:
    mask = torch.tensor([[True, False]])
    for hidden in (9.0, -9.0, torch.nan):
        image = panels(show_heatmaps(torch.tensor([[0.5, hidden]]), mask=mask))[0].images[0]
        assert image.get_clim() == (0, 0.5)
    everything = panels(show_heatmaps(torch.eye(2), mask=torch.zeros(2, 2, dtype=torch.bool)))[0]
    assert hatched(everything, (2, 2)).all()
    assert not panels(show_heatmaps(torch.eye(2), mask=torch.tensor(True)))[0].patches


def test_a_masked_cell_does_not_look_like_zero() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    ax = panels(show_heatmaps(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), mask=mask))[0]
    ax.figure.canvas.draw()
    pixels = np.asarray(ax.figure.canvas.buffer_rgba())  # type: ignore[attr-defined]

    def cell(i: int, j: int) -> np.ndarray:
        x, y = ax.transData.transform((j, i))
        row = len(pixels) - int(y)
        return pixels[row - 15 : row + 15, int(x) - 15 : int(x) + 15, :3].reshape(-1, 3).mean(0)

    assert cell(1, 1).min() > 245  # nearly white
    assert cell(0, 1).max() < 225  # grey


def test_tokens_stand_at_their_cells() -> None:
    figure = show_heatmaps(
        torch.rand(2, 2, 3), query_tokens=["le", "chat"], key_tokens=["the", "cat", "."]
    )
    figure.canvas.draw()
    first, second = panels(figure)
    for ax in (first, second):
        assert ax.get_xticks().tolist() == [0, 1, 2] and ax.get_yticks().tolist() == [0, 1]
        labels = ax.get_xticklabels()
        assert [label.get_text() for label in labels] == ["the", "cat", "."]
        assert all(label.get_rotation() == 45 for label in labels)
    assert [label.get_text() for label in first.get_yticklabels()] == ["le", "chat"]
    assert not any(label.get_visible() and label.get_text() for label in second.get_yticklabels())


def test_titles_and_labels_stand_outside() -> None:
    figure = show_heatmaps(
        torch.rand(2, 2, 3, 3), titles=["a", "b"], row_titles=["x", "y"], xlabel="Keys!", ylabel="Q"
    )
    found = panels(figure)
    assert [ax.get_title() for ax in found] == ["a", "b", "", ""]
    assert [ax.get_xlabel() for ax in found] == ["", "", "Keys!", "Keys!"]
    assert [ax.get_ylabel() for ax in found] == ["x\nQ", "", "y\nQ", ""]
    each = panels(show_heatmaps(torch.rand(2, 2, 3, 3), titles=list("abcd")))
    assert [ax.get_title() for ax in each] == list("abcd")
    assert panels(show_heatmaps(torch.eye(2), titles="one"))[0].get_title() == "one"


def test_positions_are_whole_numbers() -> None:
    figure = show_heatmaps(torch.rand(2, 3))
    figure.canvas.draw()
    ax = panels(figure)[0]
    assert all(float(tick).is_integer() for tick in [*ax.get_xticks(), *ax.get_yticks()])


def test_nothing_is_kept_or_changed() -> None:
    weights = torch.rand(2, 3, 3, requires_grad=True)
    before = weights.detach().clone()
    mask = torch.ones(3, 3).tril().bool()
    figure = show_heatmaps(weights.softmax(-1), mask=mask)
    shown(panels(figure)[0])[:] = 7
    assert torch.equal(weights.detach(), before) and weights.grad is None
    again = weights.detach().numpy()
    shown(panels(show_heatmaps(again))[0])[:] = 7
    assert torch.equal(weights.detach(), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.bool])
def test_other_dtypes(dtype: torch.dtype) -> None:
    ax = panels(show_heatmaps(torch.eye(3).to(dtype)))[0]
    assert np.array_equal(shown(ax), np.eye(3))


def test_figures_fit_the_page() -> None:
    for lead in [(), (2,), (4,), (2, 3), (2, 8)]:
        for n, m in [(7, 7), (1, 12), (40, 5)]:
            width, height = show_heatmaps(torch.rand(*lead, n, m)).get_size_inches()
            assert 3 <= width <= 7.01 and 1.5 <= height <= 14
    assert show_heatmaps(torch.eye(2), figsize=(4, 3)).get_size_inches().tolist() == [4, 3]


def test_the_background_is_opaque_white() -> None:
    assert show_heatmaps(torch.eye(2)).get_facecolor() == (1, 1, 1, 1)
    use_style()
    assert plt.figure().get_facecolor() == (1, 1, 1, 1)
    assert matplotlib.rcParams["savefig.transparent"] is False


def test_weights_grow_darker() -> None:
    def luminance(colour: Any) -> float:
        return float(np.dot(colour[:3], [0.2126, 0.7152, 0.0722]))

    scale = [luminance(SEQUENTIAL(x)) for x in np.linspace(0, 1, 64)]
    assert all(a > b for a, b in pairwise(scale))
    assert scale[0] > 0.97 and scale[-1] < 0.12
    assert len(set(PALETTE)) == 8
    assert luminance(DIVERGING(0.5)) > max(luminance(DIVERGING(0.2)), luminance(DIVERGING(0.8)))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"weights": torch.rand(3)}, r"weights must have shape \[query_len, key_len\].*got \[3\]"),
        ({"weights": torch.rand(1, 1, 1, 2, 2)}, r"got \[1, 1, 1, 2, 2\]"),
        ({"weights": torch.rand(0, 3)}, r"none of them 0, got \[0, 3\]"),
        ({"weights": torch.tensor([[torch.nan]])}, "weights must be finite.*softmax"),
        ({"weights": torch.tensor([[torch.inf]])}, "weights must be finite"),
        ({"weights": [["a"]]}, "weights must hold real numbers"),
        ({"titles": ["a"]}, "titles must hold 3, one for each column, or 6, got 1"),
        ({"row_titles": ["a"]}, "row_titles must hold 2, one for each of the rows, got 1"),
        (
            {"query_tokens": ["a"] * 5},
            "query_tokens must hold 4, one for each of the queries, got 5",
        ),
        ({"key_tokens": ["a"] * 4}, "key_tokens must hold 5, one for each of the keys, got 4"),
        ({"key_tokens": "abcde"}, "key_tokens must hold 5, .* got 'abcde'"),
        ({"mask": torch.ones(4, 4) > 0}, r"mask must broadcast to \[2, 3, 4, 5\].*got \[4, 4\]"),
        ({"vmax": 0.0}, "vmax must be positive and finite, got 0.0"),
    ],
)
def test_bad_arguments_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        show_heatmaps(**({"weights": torch.rand(2, 3, 4, 5)} | kwargs))
    assert not plt.get_fignums()


def test_a_mask_of_numbers_is_refused() -> None:
    with pytest.raises(TypeError, match="mask must hold booleans"):
        show_heatmaps(torch.eye(2), mask=torch.ones(2, 2))


@pytest.mark.parametrize("shared", [True, False])
def test_colour_bars_say_what_they_count(shared: bool) -> None:
    weights = torch.rand(2, 3, 3)
    named = show_heatmaps(weights, shared_scale=shared, bar_label="weight")
    assert [bar.get_ylabel() for bar in bars(named)] == ["weight"] * (1 if shared else 2)
    assert {bar.get_ylabel() for bar in bars(show_heatmaps(weights, shared_scale=shared))} == {""}


@pytest.mark.parametrize(("tokens", "turned"), [("012", 0), (["0", "1", "10"], 45)])
def test_single_characters_stand_upright(tokens: list[str], turned: int) -> None:
    (ax,) = panels(show_heatmaps(torch.rand(3, 3), key_tokens=list(tokens)))
    assert {label.get_rotation() for label in ax.get_xticklabels()} == {turned}
