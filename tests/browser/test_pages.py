"""Every page of the book as a reader meets it, from the built site and from the offline zip."""

from __future__ import annotations

from io import BytesIO
from itertools import pairwise

import pytest

from tests.browser import axe, reader
from tests.browser.reader import Count, Visit, as_lines, each

if reason := reader.lacking():
    pytest.skip(reason, allow_module_level=True)

#: The zip holds the same files, so that what depends on them alone is asked of few pages there.
FEW = ("book/index.html", "notebooks/01_kernel_regression.html", "search.html")

ALL = each("site", reader.pages())
BOTH = ALL + each("zip", reader.pages())
SOME = ALL + each("zip", [path for path in reader.pages() if path in FEW])

each_page = pytest.mark.parametrize("opened", BOTH, indirect=True)
some_pages = pytest.mark.parametrize("opened", SOME, indirect=True)


@each_page
def test_nothing_is_missing(visit: Visit, record_property: Count) -> None:
    broken = visit.ask(
        """async () => {
          const bad = [];
          for (const image of document.images) {
            image.loading = "eager";
            await image.decode().catch(() => bad.push(image.getAttribute("src")));
          }
          return bad;
        }"""
    )
    assert not broken, as_lines(broken)
    assert not visit.complaints, as_lines(visit.complaints)
    record_property("pages", 1)
    record_property("requests", visit.requests)


@each_page
def test_links_lead_somewhere(visit: Visit) -> None:
    broken = visit.broken_links()
    assert not broken, as_lines(broken)


@each_page
def test_formulas_are_set(visit: Visit, record_property: Count) -> None:
    formulas, unset, raw, displayed, inline = visit.page.evaluate(
        r"""() => {
          const formulas = [...document.querySelectorAll("main .math")];
          const unset = formulas.filter(formula => !formula.querySelector("mjx-container"));
          unset.push(...document.querySelectorAll("mjx-merror, [data-mjx-error]"));
          const raw = [];
          const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
          while (texts.nextNode()) {
            const {data, parentElement} = texts.currentNode;
            if (/\$|\\[([]|\\begin\{/.test(data)
                && !parentElement.closest("script, style, code, pre, kbd, samp"))
              raw.push(data.trim().slice(0, 80));
          }
          // In a paragraph and in a line of its own, a formula's letters are as large.
          const all = [...document.querySelectorAll("main p .math, main div.math")];
          const sizes = shown => [...new Set(all
            .map(part => part.querySelector("mjx-container"))
            .filter(part => part?.checkVisibility() && part.matches("[display]") === shown
              && !part.closest("details, table, .figure-text, .sd-card, li, dd"))
            .map(part => getComputedStyle(part).fontSize))];
          return [formulas.length, unset.map(part => part.outerHTML.slice(0, 200)), raw,
                  sizes(true), sizes(false)];
        }"""
    )
    assert not unset, as_lines(unset)
    assert len({*displayed, *inline}) <= 1, f"displayed {displayed}, in paragraphs {inline}"
    assert not raw, as_lines(raw)
    record_property("formulas", formulas)


@each_page
def test_pictures_say_what_they_show(visit: Visit, record_property: Count) -> None:
    pictures, mute = visit.page.evaluate(
        """() => {
          const named = part => (part.getAttribute("alt") || part.getAttribute("aria-label")
                                 || part.querySelector("title")?.textContent || "").trim();
          const pictures = [...document.querySelectorAll("img, svg[role=img]:not([aria-hidden])")];
          const mute = pictures.filter(part => !named(part));
          return [pictures.length, mute.map(part => part.outerHTML.slice(0, 200))];
        }"""
    )
    assert not mute, as_lines(mute)
    record_property("pictures", pictures)


@each_page
def test_headings_are_in_order(visit: Visit) -> None:
    levels = visit.page.evaluate(
        """() => [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")]
          .filter(part => part.checkVisibility())
          .map(part => [Number(part.tagName[1]), part.textContent.trim()])"""
    )
    assert [level for level, _ in levels].count(1) == 1, as_lines(levels)
    for (above, _), (level, title) in pairwise(levels):
        assert level <= above + 1, f"{title!r} is at level {level}, below one of level {above}"


@some_pages
def test_a_phone_scrolls_down_only(visit: Visit) -> None:
    with visit.narrow():
        width, beyond = visit.page.evaluate(
            """() => {
              const page = document.scrollingElement, text = "article.bd-article";
              // The text scrolls as little as the page; what stands in it may.
              const scrolls = part => !part.matches(text)
                && (getComputedStyle(part).overflowX !== "visible" || scrolls(part.parentElement));
              const beyond = [...document.querySelectorAll(`${text} *`)].filter(part =>
                part.getBoundingClientRect().right > page.clientWidth + 1
                && part.checkVisibility() && !scrolls(part.parentElement)
                && !part.closest("mjx-assistive-mml, .visually-hidden"));
              return [page.scrollWidth, beyond.map(part => part.outerHTML.slice(0, 160))];
            }"""
        )
    assert width <= reader.NARROW["width"] and not beyond, f"{width} px wide{as_lines(beyond[:8])}"


@some_pages
def test_answers_fold_out(visit: Visit, record_property: Count) -> None:
    page = visit.page
    # An answer inside another is tried with that one open.
    state = """summary => {
      const fold = summary.parentElement, inside = summary.nextElementSibling;
      for (let outer = fold; outer = outer.parentElement.closest("details");) outer.open = true;
      return [fold.open, inside?.checkVisibility({contentVisibilityAuto: true}) ?? fold.open];
    }"""
    summaries = page.locator("main details > summary").all()
    for number, summary in enumerate(summaries):
        opened = summary.evaluate(state)[0]
        summary.click(position={"x": 12, "y": 12})
        assert summary.evaluate(state) == [not opened] * 2, f"click: {summary.inner_text()}"
        key = ("Enter", "Space")[number % 2]
        summary.press(key)
        assert summary.evaluate(state) == [opened] * 2, f"{key}: {summary.inner_text()}"
    record_property("folded answers", len(summaries))


@some_pages
def test_sliders_slide(visit: Visit, record_property: Count) -> None:
    page = visit.page
    sliders = page.locator(".attn-slider").all()
    for slider in sliders:
        control = slider.locator("input[type=range]")
        last = int(control.get_attribute("max") or 0)
        assert last >= 1

        def shown(slider=slider, control=control) -> tuple[int, str]:  # type: ignore[no-untyped-def]
            """Which frame is seen, and its picture; its value stands beside the control."""
            frames = slider.locator("img").all()
            (index,) = [i for i, frame in enumerate(frames) if frame.is_visible()]
            text = frames[index].get_attribute("data-text")
            assert slider.locator("output").inner_text() == text
            assert control.get_attribute("aria-valuetext") == text
            return index, str(frames[index].get_attribute("src"))

        control.focus()
        by_key = []
        for key in ("Home", "ArrowRight", "End", "ArrowLeft"):
            page.keyboard.press(key)
            by_key.append(shown())
        assert [index for index, _ in by_key] == [0, 1, last, last - 1]
        assert len({picture for _, picture in by_key[:2]}) == 2
        box = control.bounding_box()
        assert box is not None
        by_mouse = []
        for x in (box["width"] - 2, 2):
            control.click(position={"x": x, "y": box["height"] / 2})
            by_mouse.append(shown())
        assert [index for index, _ in by_mouse] == [last, 0]
        assert by_mouse[0][1] != by_mouse[1][1]
    record_property("sliders", len(sliders))


def luminance(colour: tuple[int, int, int]) -> float:
    """Relative luminance, by WCAG 2."""
    shares = [number / 255 for number in colour]
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


@some_pages
def test_figures_can_be_read_in_the_dark(visit: Visit, record_property: Count) -> None:
    from PIL import Image

    with visit.dark():
        seen = 0
        for figure in visit.page.locator("main img").all():
            if not figure.is_visible() or figure.evaluate("part => part.width") < 100:
                continue
            seen += 1
            # what is on the screen, the theme's filters and backgrounds included
            shot = Image.open(BytesIO(figure.screenshot())).convert("RGB")
            corners = [(x, y) for x in (14, shot.width - 15) for y in (14, shot.height - 15)]
            paper = min(luminance(shot.getpixel(corner)) for corner in corners)  # type: ignore[arg-type]
            colours = shot.getcolors(1 << 24) or []
            ink = min(luminance(colour) for _, colour in colours)  # type: ignore[arg-type]
            contrast = (paper + 0.05) / (ink + 0.05)
            assert contrast >= 7, f"{contrast:.1f}: {figure.get_attribute('alt')}"
    record_property("figures seen in the dark", seen)


@some_pages
def test_axe_finds_nothing_but_exceptions(visit: Visit, record_property: Count) -> None:
    found = axe.violations(visit)
    with visit.dark():
        found += [broken._replace(rule=f"{broken.rule}, dark") for broken in axe.violations(visit)]
    new = [broken for broken in found if (broken.rule, broken.selector) not in axe.EXCEPTIONS]
    record_property("violations", len(new))
    record_property("listed exceptions", len(found) - len(new))
    assert not new, as_lines(new)


@pytest.mark.parametrize("opened", each("site", FEW), indirect=True)
def test_listed_exceptions_still_occur(visit: Visit) -> None:
    found = {(broken.rule, broken.selector) for broken in axe.violations(visit)}
    with visit.dark():
        found |= {(f"{broken.rule}, dark", broken.selector) for broken in axe.violations(visit)}
    listed = {key for key, (page, _) in axe.EXCEPTIONS.items() if visit.page.url.endswith(page)}
    assert listed <= found, f"mended, so no longer exceptions: {listed - found}"
