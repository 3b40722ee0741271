"""The live explorer: its widgets, moved as a reader would."""

import builtins
from typing import Any

import matplotlib

matplotlib.use("Agg")

import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from attn_course.heatmaps import explore

calls: list[dict[str, Any]] = []


def draw(width: float, count: int = 2, kind: str = "b") -> Figure:
    calls.append({"width": width, "count": count, "kind": kind})
    if count == 5:
        raise ValueError("five is <too> many")
    figure, ax = plt.subplots(figsize=(1, 1))
    ax.plot([0, width * count])
    return figure


@pytest.fixture
def box() -> Any:
    pytest.importorskip("ipywidgets")
    calls.clear()
    return explore(draw, width=(0.5, 1.5), count=(1, 5), kind=["a", "b"])


def test_controls_match_their_ranges(box: Any) -> None:
    width, count, kind, picture = box.children
    assert type(width).__name__ == "FloatSlider" and (width.min, width.max) == (0.5, 1.5)
    assert type(count).__name__ == "IntSlider" and (count.min, count.max) == (1, 5)
    assert type(kind).__name__ == "Dropdown" and kind.options == ("a", "b")
    # where draw has a default, it starts there; else halfway
    assert calls == [{"width": 1.0, "count": 2, "kind": "b"}]
    assert "data:image/png;base64," in picture.value
    assert 'alt="Figure for width = 1.0, count = 2, kind = b"' in picture.value


def test_a_step_is_kept() -> None:
    pytest.importorskip("ipywidgets")
    (slider, _) = explore(draw, width=(0, 1, 0.25)).children
    assert type(slider).__name__ == "FloatSlider" and slider.step == 0.25


def test_moving_a_control_redraws_and_leaves_no_figure_open(box: Any) -> None:
    width, _, kind, picture = box.children
    before = picture.value
    width.value = 0.7
    kind.value = "a"
    assert calls[1:] == [
        {"width": 0.7, "count": 2, "kind": "b"},
        {"width": 0.7, "count": 2, "kind": "a"},
    ]
    assert picture.value != before
    assert not plt.get_fignums()


def test_a_failure_is_shown_and_the_next_move_recovers(box: Any) -> None:
    _, count, _, picture = box.children
    count.value = 5
    assert picture.value == "<pre>ValueError: five is &lt;too&gt; many</pre>"
    count.value = 3
    assert "<img" in picture.value


def test_missing_ipywidgets_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "ipywidgets":
            raise ModuleNotFoundError("No module named 'ipywidgets'")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"explore needs ipywidgets.*pip install ipywidgets"):
        explore(draw, width=(0.0, 1.0))


@pytest.mark.parametrize("control", [(1.0,), (2, 1), (1, 1), [], "ab", 3, (0, 1, 2, 3), (True, 2)])
def test_bad_controls_are_named(control: Any) -> None:
    with pytest.raises(ValueError, match=r"width must be \(low, high\)"):
        explore(draw, width=control)


def test_bad_steps_and_no_controls_are_named() -> None:
    with pytest.raises(ValueError, match=r"width must have a step above zero, got \(0, 1, 0\)"):
        explore(draw, width=(0, 1, 0))
    with pytest.raises(ValueError, match="explore needs at least one control"):
        explore(draw)
