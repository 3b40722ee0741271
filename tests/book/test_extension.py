"""What the book's Sphinx extension changes in pages."""

from __future__ import annotations

import pytest
from docutils import nodes
from pybtex.database import Entry, Person

from tools import book_extension as extension


@pytest.mark.parametrize(
    "before, after, kept",
    [
        ("at a place ", ": the rest", "x:"),
        ("a share (", ") of it", "(x)"),
        ("both ", "-shaped", "x"),
        ("the end ", "...", "x..."),
        ("", "", "x"),
    ],
)
def test_a_formula_keeps_its_comma(before: str, after: str, kept: str) -> None:
    paragraph = nodes.paragraph("", "", nodes.Text(before), nodes.math("", "x"), nodes.Text(after))
    extension.keep_together(None, nodes.section("", paragraph))
    assert paragraph.astext() == f"{before}x{after}"
    (whole,) = paragraph.findall(nodes.inline)
    assert whole["classes"] == ["unbroken"] and whole.astext() == kept


def test_a_title_s_formula_stays_as_it_is() -> None:
    title = nodes.title("", "", nodes.math("", "x"), nodes.Text(": why"))
    extension.keep_together(None, nodes.section("", title))
    assert not list(title.findall(nodes.inline))


def test_only_long_code_in_tables_may_break() -> None:
    short, long = nodes.literal("", "x[0]"), nodes.literal("", "a line with a comment behind it")
    outside = nodes.literal("", long.astext())
    cells = [nodes.entry("", nodes.paragraph("", "", code)) for code in (short, long)]
    extension.mark_long_code(None, nodes.section("", *cells, nodes.paragraph("", "", outside)))
    assert (short["classes"], long["classes"], outside["classes"]) == ([], ["long"], [])


def test_mending_twice_changes_nothing() -> None:
    once = extension.mend(
        '<div class="pst-scrollable-table-container"><th class="head"><p></p></th>'
    )
    assert once == (
        '<div class="pst-scrollable-table-container" tabindex="0"><td class="head"></td>'
    )
    assert extension.mend(once) == once


def test_references_stand_by_name_whatever_its_accents_and_braces() -> None:
    entries = [
        Entry("misc", fields={"year": year}, persons={"author": [Person(name)]})
        for name, year in (
            ("Zhu, Chen", "2021"),
            ("Hochreiter, Sepp", "1997"),
            ("{NVIDIA}", "2020"),
            (r"H{\"a}rdle, Wolfgang", "1990"),
            ("Mächler, Martin", "2012"),
            ("Hochreiter, Sepp", "1991"),
            ("Mnih, Volodymyr", "2014"),
        )
    ]
    by_name = sorted(entries, key=extension.ByName().sorting_key)
    assert [str(e.persons["author"][0]).split(",")[0] + e.fields["year"] for e in by_name] == [
        r'H{\"a}rdle1990', "Hochreiter1991", "Hochreiter1997", "Mächler2012", "Mnih2014",
        "{NVIDIA}2020", "Zhu2021",
    ]  # fmt: skip
