"""The rules of axe-core, and the few places where the theme breaks them."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests.browser.reader import AXE_PACKAGE, Visit


class Violation(NamedTuple):
    """A rule, and an element that breaks it."""

    rule: str
    selector: str
    says: str


#: What cannot be mended from here: (rule, selector), a page that shows it, and the reason.
#: A row that its page no longer needs fails a test.
EXCEPTIONS: dict[tuple[str, str], tuple[str, str]] = {}

CONTRAST = "color-contrast"


@cache
def script() -> str:
    """axe-core itself."""
    spec = importlib.util.find_spec(AXE_PACKAGE)
    assert spec is not None and spec.origin is not None
    return (Path(spec.origin).parent / "axe.min.js").read_text(encoding="utf-8")


# Contrast is slow to measure, and elements look alike where they and all their parents have
# the same tags, classes and styles: the first of each kind is asked. A formula is thousands of
# elements of one colour: a letter takes its place meanwhile.
RUN = """
async (contrast) => {
  const formulas = [...document.querySelectorAll("mjx-container")].map(formula => {
    const letter = document.createTextNode("x");
    formula.replaceWith(letter);
    return [letter, formula];
  });
  const known = new Map([[null, ""]]), kinds = new Map();
  const kind = (part) => {
    if (!known.has(part))
      known.set(part, `${kind(part.parentElement)} ${part.tagName}.${part.className}`
                      + (part.getAttribute("style") || ""));
    return known.get(part);
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const part = texts.currentNode.parentElement;
    if (texts.currentNode.data.trim() && !part.closest("script, style, noscript")
        && !kinds.has(kind(part)))
      kinds.set(kind(part), part);
  }
  const options = {preload: false, resultTypes: ["violations"]};
  const runs = [await axe.run({include: [...kinds.values()]},
                              {...options, runOnly: [contrast]})];
  if (document.documentElement.dataset.theme !== "dark")
    runs.push(await axe.run(document, {...options, rules: {[contrast]: {enabled: false}}}));
  for (const [letter, formula] of formulas) letter.replaceWith(formula);
  return runs.flatMap(run => run.violations).flatMap(broken => broken.nodes.map(
    node => [broken.id, node.target.flat().join(" "),
             `${node.html.slice(0, 160)} ${node.failureSummary}`]));
}
"""


def violations(visit: Visit) -> list[Violation]:
    """What a page breaks as it stands: of contrast alone where it is dark, else of all rules."""
    visit.page.evaluate(script())
    with visit.unfolded():
        return [Violation(*found) for found in visit.ask(RUN, CONTRAST)]
