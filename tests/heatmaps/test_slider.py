"""The slider's HTML, parsed."""

import base64
import re
import struct
from html.parser import HTMLParser
from typing import Any

import matplotlib

matplotlib.use("Agg")

import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from attn_course.heatmaps import slider


class Page(HTMLParser):
    """Every element with its attributes, and the text inside ``<output>``."""

    def __init__(self, *snippets: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.outputs: list[str] = []
        self.open: list[str] = []
        for snippet in snippets:
            self.feed(snippet)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "output":
            self.outputs.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.elements if name == tag]


def draw(height: float) -> Figure:
    figure, ax = plt.subplots(figsize=(2, 1))
    ax.plot([0, height])
    return figure


def make(**kwargs: Any) -> Any:
    settings: dict[str, Any] = {"label": "Height", "alt": "A line of height {value}.", "dpi": 50}
    values = kwargs.pop("values", [1, 2.5, 4])
    return slider(kwargs.pop("draw", draw), values, **(settings | kwargs))


def visible(images: list[dict[str, str]]) -> list[int]:
    return [i for i, image in enumerate(images) if "display:block" in image["style"]]


def test_one_frame_is_visible_and_every_frame_is_described() -> None:
    page = Page(make(start=1)._repr_html_())
    images = page.all("img")
    assert visible(images) == [1]
    assert [image["alt"] for image in images] == [
        "A line of height 1.", "A line of height 2.5.", "A line of height 4.",
    ]  # fmt: skip
    assert all("max-width:100%" in image["style"] for image in images)
    (control,) = page.all("input")
    assert (control["type"], control["min"], control["max"], control["value"]) == (
        "range", "0", "2", "1",
    )  # fmt: skip
    assert control["aria-label"] == "Height" and control["aria-valuetext"] == "2.5"
    assert page.outputs == ["2.5"]
    for tag in ("label", "output"):
        assert page.all(tag)[0]["for"] == control["id"]


def test_frames_are_different_opaque_images() -> None:
    images = Page(make()._repr_html_()).all("img")
    frames = []
    for image in images:
        head, data = image["src"].split(",", 1)
        assert head == "data:image/png;base64"
        frames.append(base64.b64decode(data))
    assert len(set(frames)) == 3
    for frame in frames:
        assert frame.startswith(b"\x89PNG")
        width, height, _, kind = struct.unpack(">IIBB", frame[16:26])
        assert (width, height) == (100, 50)
        assert kind in (2, 3) and b"tRNS" not in frame  # no transparency


def test_it_needs_no_network_and_no_lookup_by_id() -> None:
    html = make()._repr_html_()
    assert "http" not in html and "<script" not in html
    (control,) = Page(html).all("input")
    code = control["oninput"]
    assert "getElementById" not in code and "closest('.attn-slider')" in code


def test_two_sliders_share_no_id_and_runs_repeat() -> None:
    first, second = make(), make(draw=lambda height: draw(-height))  # same words, other pictures
    page = Page(first._repr_html_(), second._repr_html_())
    found = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(found) == len(set(found)) == 4
    assert make()._repr_html_() == first._repr_html_()
    assert re.fullmatch(r"[a-z0-9-]+", first.id)
    assert repr(first) == "<Slider 'Height': 3 frames>"


def test_text_cannot_break_out_of_the_html() -> None:
    evil = '"><script>alert(1)</script>'
    page = Page(make(label=evil, alt=evil + "{value}", fmt=lambda value: evil)._repr_html_())
    assert not page.all("script")
    assert page.all("input")[0]["aria-label"] == evil
    assert page.all("img")[0]["alt"] == evil + evil
    assert page.outputs == [evil]


def test_formats_and_descriptions_may_be_functions() -> None:
    made = make(values=["a{", "b"], draw=lambda _: draw(1), alt=lambda value: f"Case {value}")
    assert made.texts == ["a{", "b"]
    assert [image["alt"] for image in Page(made._repr_html_()).all("img")] == ["Case a{", "Case b"]
    assert make(fmt="{:.2f} m").texts == ["1.00 m", "2.50 m", "4.00 m"]


def test_width_is_the_frame_s_own_unless_given() -> None:
    assert "width:100px" in make()._repr_html_()
    assert "width:80px" in make(width=80)._repr_html_()


def test_no_figure_stays_open() -> None:
    mine = plt.figure()

    def careless(value: float) -> Figure:
        plt.figure()
        return draw(value)

    def failing(value: float) -> Figure:
        plt.figure()
        raise RuntimeError("no")

    make(draw=careless)
    with pytest.raises(RuntimeError):
        make(draw=failing)
    assert plt.get_fignums() == [mine.number]
    plt.close(mine)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"values": []}, "values must hold at least one value"),
        ({"start": 3}, r"start must lie in \[0, 2\], got 3"),
        ({"start": -1}, r"start must lie in \[0, 2\], got -1"),
        ({"label": " "}, "label must say what the values are"),
        ({"alt": "A line."}, r"alt must have a place for '\{value\}'"),
        ({"alt": lambda value: ""}, "alt must describe every frame, got '' for 1"),
        ({"width": 0}, "width must be at least 1 pixel, got 0"),
    ],
)
def test_bad_arguments_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_a_draw_that_returns_no_figure_is_named() -> None:
    with pytest.raises(TypeError, match="draw must return a matplotlib Figure, got NoneType"):
        make(draw=lambda _: None)
