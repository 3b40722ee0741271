"""The API reference: what a package exports, read from its source text.

A page of ``book/api`` holds the directive ``{api} <package>``. It lists the names in the
package's ``__all__`` with their signatures and docstrings. Griffe parses the files; nothing
is imported, so that the book needs no torch.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pprint import pformat
from typing import Any, cast

import griffe
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from attn_course import MECHANISMS
from tools.course import ROOT, branch, repository

OPTIONS = griffe.GoogleOptions(
    returns_multiple_items=False, returns_named_value=False, warn_unknown_params=False
)

#: Packages that belong to no chapter alone, in the order of the reference.
SHARED = ("heatmaps", "data", "training", "benchmarks", "exercises")


#: Packages whose names other pages link to; ``exercises`` has ``watch`` and ``triton``.
CITED = (*MECHANISMS, *(name for name in SHARED if name != "exercises"))


def packages() -> list[str]:
    """Every package that has a page, in the order in which the course needs them."""
    return [*MECHANISMS, *SHARED]


@cache
def _course() -> griffe.Module:
    loader = griffe.GriffeLoader(
        search_paths=[ROOT],
        allow_inspection=False,
        docstring_parser="google",
        docstring_options=cast(Any, OPTIONS),
    )
    module = loader.load("attn_course")
    loader.resolve_aliases(external=False)
    return cast(griffe.Module, module)


def exports(package: str) -> dict[str, griffe.Object]:
    """What a package exports, by name, in the order of its ``__all__``.

    Example:
        >>> list(exports("training"))
        ['History', 'fit', 'seed_everything']
    """
    module = _course()[package]
    found = {}
    for name in sorted(module.exports, key=lambda name: (_rank(name), name.lower())):
        # By its import: a function may be called as the module it comes from.
        member = _course()[module.imports[name].removeprefix("attn_course.")]
        found[name] = member.final_target if member.is_alias else member
    return found


def _rank(name: str) -> int:
    """Classes, then functions, then constants, as their names tell."""
    return 2 if name.isupper() else 1 if name.islower() else 0


@cache
def _homes() -> dict[str, list[str]]:
    """In which packages a name is public."""
    homes: dict[str, list[str]] = {}
    for package in packages():
        for name in exports(package):
            homes.setdefault(name, []).append(package)
    return homes


def render(package: str) -> list[str]:
    """The reference of a package, as MyST Markdown.

    Args:
        package: Its name within ``attn_course``.

    Returns:
        Lines.
    """
    module = _course()[package]
    return [
        "```{py:module} " + f"attn_course.{package}",
        "```",
        "",
        *_module_text(module, package),
        "",
        *(line for name, item in exports(package).items() for line in _item(name, item, package)),
    ]


def _module_text(module: griffe.Module, package: str) -> list[str]:
    """A package's docstring without its first line, which names it and its chapter."""
    text = module.docstring.value if module.docstring else ""
    return _linked(text.partition("\n")[2].strip(), module, package)


def _item(name: str, item: griffe.Object, package: str) -> Iterator[str]:
    """A class, function or constant with its docstring."""
    if isinstance(item, griffe.Class):
        yield from _directive(6, "class", f"{name}{_call(item)}", _class_body(item, package))
    elif isinstance(item, griffe.Function):
        body = [*_sections(item, package), "", _source(item)]
        yield from _directive(6, "function", f"{name}{_call(item)}", body)
    else:
        body = [*_value(item), "", *_linked("\n".join(_comment(item)), item, package)]
        yield from _directive(6, "data", name, [*body, "", _source(item)])


def _class_body(item: griffe.Class, package: str) -> Iterator[str]:
    bases = [str(base) for base in item.bases if not str(base).startswith("_")]
    if bases:
        yield ""
        yield from _linked(f"*Extends* {', '.join(f'``{base}``' for base in bases)}", item, package)
        yield ""
    yield from _sections(item, package)
    for name, member in item.members.items():
        if not member.docstring or (name.startswith("_") and name != "__call__"):
            continue
        member = cast(griffe.Object, member)
        if isinstance(member, griffe.Function):
            kinds = [
                f":{label}:" for label in ("classmethod", "staticmethod") if label in member.labels
            ]
            body = [*kinds, *_sections(member, package)]
            yield from _directive(5, "method", f"{name}{_call(member)}", body)
        else:
            shown = getattr(member, "annotation", None)
            body = [
                *_sections(member, package),
                *(["", f"*Type:* ``{_type(shown)}``"] if shown else []),
            ]
            yield from _directive(5, "property", name, body)
    yield ""
    yield _source(item)


def _directive(fence: int, kind: str, head: str, body: Iterable[str]) -> Iterator[str]:
    """A MyST directive of the Python domain; inner ones have shorter fences."""
    ticks = "`" * fence
    yield from ["", f"{ticks}{{py:{kind}}} {head}", *body, ticks, ""]


def _call(item: griffe.Class | griffe.Function) -> str:
    """The signature without types: these stand with the parameters."""
    kinds = griffe.ParameterKind
    parts: list[str] = []
    starred = False
    for parameter in item.parameters:
        if parameter.name in ("self", "cls"):
            continue
        prefix = {kinds.var_positional: "*", kinds.var_keyword: "**"}.get(
            cast(griffe.ParameterKind, parameter.kind), ""
        )
        if parameter.kind is kinds.keyword_only and not starred:
            parts.append("*")
        starred |= parameter.kind in (kinds.var_positional, kinds.keyword_only)
        default = f"={parameter.default}" if parameter.default and not prefix else ""
        parts.append(f"{prefix}{parameter.name}{default}")
    if isinstance(item, griffe.Class) and "NamedTuple" in map(str, item.bases):
        fields = (
            a for a in item.attributes.values() if a.annotation and "property" not in a.labels
        )
        parts = [f"{a.name}={a.value}" if a.value is not None else a.name for a in fields]
    return f"({', '.join(parts)})"


def _sections(item: griffe.Object, package: str) -> Iterator[str]:
    """A docstring: prose as it stands, its sections as definition lists."""
    yield ""
    untold = list(_untold(item)) if isinstance(item, griffe.Function) else []
    for section in item.docstring.parsed if item.docstring else ():
        value: Any = section.value
        kind = section.kind.value
        if untold and kind not in ("text", "parameters", "attributes"):
            yield from untold
            untold = []
        if kind == "text":
            yield from ["", *_linked(value, item, package)]
        elif kind == "admonition" and value.kind == "example":
            lines = re.sub(r" +# doctest: \+\w+", "", value.contents).splitlines()
            yield from ["", "**Example**", "", "```pycon", *lines, "```"]
        elif kind == "admonition":
            yield from ["", f"**{section.title}.** {' '.join(value.contents.split())}"]
        else:
            yield from ["", f"**{HEADINGS[kind]}**", ""]
            for entry in value:
                term = [f"``{name}``" for name in [getattr(entry, "name", "")] if name]
                shown, said = _annotation(entry, item), entry.description
                if kind in ("returns", "yields") and isinstance(entry.annotation, str):
                    # griffe takes what stands before a colon for the type: here it is a sentence
                    shown, said = str(getattr(item, "returns", "") or ""), f"{shown}: {said}"
                term += [f"``{shown}``"] if shown else []
                yield " ".join(term)
                text = _linked(said, item, package)
                yield from (
                    f"{':' if not i else ' '} {line}".rstrip() for i, line in enumerate(text)
                )
                yield ""
    yield from untold


def _untold(item: griffe.Function) -> Iterator[str]:
    """Types that no section of the docstring shows: of parameters, and of what is returned."""
    told = {section.kind.value for section in item.docstring.parsed} if item.docstring else set()
    parameters = [p for p in item.parameters if p.name not in ("self", "cls") and p.annotation]
    if "parameters" not in told and parameters:
        yield from ["", "**Parameters**", ""]
        for parameter in parameters:
            yield from [f"``{parameter.name}``: ``{_type(parameter.annotation)}``", ""]
    if not told & {"returns", "yields"} and str(item.returns) != "None":
        yield from ["", "**Returns**", "", f"``{_type(item.returns)}``", ""]


#: A value with more characters stands below its name.
LONGEST = 60

HEADINGS = {
    "parameters": "Parameters",
    "attributes": "Attributes",
    "returns": "Returns",
    "yields": "Yields",
    "raises": "Raises",
    "warns": "Warns",
}


def _annotation(entry: Any, item: griffe.Object) -> str:
    """The type of a parameter, an attribute, or what is returned or raised."""
    found = entry.annotation
    if found is None and isinstance(item, griffe.Class):
        found = getattr(item.attributes.get(getattr(entry, "name", "")), "annotation", None)
    return "" if found is None else _type(found)


def _type(annotation: object) -> str:
    """A type as it is written, without the module that it comes from."""
    return re.sub(r"\b[a-z_]+\.(?=[A-Z])", "", str(annotation))


def _linked(text: str, item: griffe.Object, package: str) -> list[str]:
    """Docstring text in which names of the package in double backquotes are links."""

    def link(match: re.Match[str]) -> str:
        name = match[1]
        homes = [home for home in _homes().get(name, []) if home in (package, *CITED)]
        home = package if package in homes else homes[0] if len(homes) == 1 else None
        if home is None or name == item.name or name in own:
            return match[0]
        return f"{{py:obj}}`{name} <attn_course.{home}.{name}>`"

    own = {*item.members, *(item.parent.members if isinstance(item.parent, griffe.Class) else ())}
    return re.sub(r"(?<!d2l's )``([A-Za-z_]\w*)``", link, TABLE.sub(_as_list, text)).splitlines()


#: A table as docstrings draw it: lines of equals signs, and between them rows of cells.
TABLE = re.compile(r"^(=+(?: +=+)+)\n(?:(.*)\n\1\n)?((?:.*\n)+?)\1$", re.MULTILINE)


def _as_list(match: re.Match[str]) -> str:
    """The table as a list: Markdown has no such tables, and a phone no room for one."""
    starts = [border.start() for border in re.finditer("=+", match[1])]
    spans = list(zip(starts, [*starts[1:], None], strict=True))
    rows: list[list[str]] = []
    for line in match[3].splitlines():
        cells = [line[start:stop].strip() for start, stop in spans]
        if cells[0]:
            rows.append(cells)
        else:  # the row before goes on
            rows[-1] = [f"{a} {b}".strip() for a, b in zip(rows[-1], cells, strict=True)]
    head = match[2] or ""
    heads = [head[start:stop].strip() for start, stop in spans]
    # What one column alone says needs no name.
    heads = [f"*{text}:* " if text and len(heads) > 2 else "" for text in heads]
    return "\n".join(
        f"- {name}: {'. '.join(a + b for a, b in zip(heads[1:], rest, strict=True))}"
        for name, *rest in rows
    )


def _value(item: griffe.Object) -> Iterator[str]:
    """What a constant is, where it is said in a line or is a list of plain texts and numbers."""
    text = str(cast(griffe.Attribute, item).value)
    try:
        text = pformat(ast.literal_eval(text), width=80, compact=True, sort_dicts=False)
    except ValueError:  # it is computed
        if "\n" in text or len(text) > LONGEST or re.search(r"\b_", text):
            return
    if "\n" in text or len(text) > LONGEST:
        yield from ["", "```python", *text.splitlines(), "```"]
    else:
        yield f":value: {text}"


def _comment(item: griffe.Object) -> list[str]:
    """The comment ``#:`` above a constant."""
    lines = item.lines_collection[cast(Any, item.filepath)]
    comment: list[str] = []
    for line in reversed(lines[: (item.lineno or 1) - 1]):
        if not line.startswith("#:"):
            break
        comment.insert(0, line.removeprefix("#:").strip())
    return comment


def _source(item: griffe.Object) -> str:
    path = item.relative_package_filepath
    return f"[{path}]({repository()}/blob/{branch()}/{path})"


class Api(SphinxDirective):
    """``{api} <package>``: the reference of a package of the course."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The nodes; the page is made anew when one of the package's files changes."""
        package = self.arguments[0]
        for path in (__file__, *(ROOT / "attn_course" / package).glob("*.py")):
            self.env.note_dependency(str(path))
        return self.parse_text_to_nodes("\n".join(render(package)))
