"""The reference: a page for every package, with all that the package makes public."""

import ast
import builtins
import doctest
import re
import subprocess
import sys

import pytest

from attn_course import CHAPTERS, MECHANISMS
from tools import api
from tools.course import CHAPTERS as SOURCES
from tools.course import ROOT


def public(package: str) -> list[str]:
    """``__all__``, read without the reference's own reader."""
    tree = ast.parse((ROOT / "attn_course" / package / "__init__.py").read_text(encoding="utf-8"))
    return next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )


def test_every_package_has_a_page_in_the_book() -> None:
    packages = {path.parent.name for path in (ROOT / "attn_course").glob("*/__init__.py")}
    packages = {name for name in packages if "__all__" in _text(f"attn_course/{name}/__init__.py")}
    assert packages == set(api.packages()) >= set(MECHANISMS)
    toc, index = _text("_toc.yml"), _text("book/api.md")
    for package in packages:
        assert f"- file: book/api/{package}\n" in toc
        assert f"(api/{package}.md)" in index
        assert f"```{{api}} {package}\n" in _text(f"book/api/{package}.md")


def _text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("package", api.packages())
def test_every_public_name_is_described(package: str) -> None:
    text = "\n".join(api.render(package))
    parts = re.split(r"^``````\{py:\w+\} (\w+)", text, flags=re.MULTILINE)
    described = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert sorted(described) == sorted(public(package))
    for name, body in described.items():
        words = re.sub(r"\[attn_course/\S+\)|`+|\*\w+\*|^\(.*\)", "", body).split()
        assert len(words) > 2 or package == "exercises", f"{name} has no docstring"


def test_a_function_is_described_with_types_shapes_errors_and_an_example() -> None:
    text = "\n".join(api.render("linformer"))
    one = text.split("{py:function} project_sequence")[1].split("``````")[0]
    assert one.startswith("(x, projection, *, valid_lens=None, impl='auto')")
    for part in (
        "**Parameters**", "``valid_lens`` ``Tensor | None``\n: How many leading positions",
        "**Returns**", "``Tensor``\n: ``[batch, (num_heads,) projected_len, dim]``",
        "**Raises**", "``ValueError``\n: ", "**Example**\n\n```pycon\n>>> x = torch.tensor",
        "**Reference.** Wang et al. (2020)",
    ):  # fmt: skip
        assert part in one


def test_names_of_the_package_become_links_and_others_do_not() -> None:
    text = "\n".join(api.render("linformer"))
    assert "{py:obj}`LinformerBlock <attn_course.linformer.LinformerBlock>`" in text
    assert "{py:obj}`embed_dim" not in text


def test_tables_become_lists_whose_lines_stay_together() -> None:
    for package in api.packages():
        assert "====" not in "\n".join(api.render(package)), package
    text = "\n".join(api.render("kernel_regression"))
    assert "\n  - ``blocked``: PyTorch, a block of queries at a time; O(n + m) memory\n" in text
    assert "\n  - ``auto``: ``reference`` with ``need_weights``, or up to ``2^20`` pairs on" in text
    with_heads = "\n".join(api.render("monotonic"))
    assert "*steps of p; of q:* next key, with the same query; next key, with" in with_heads


def test_a_sentence_before_a_colon_is_no_type() -> None:
    for package in api.packages():
        for text in "\n".join(api.render(package)).split("**Returns**")[1:]:
            shown = text.strip().splitlines()[0]
            assert shown.count("``") in (0, 2), f"{package}: {shown}"
            assert " of " not in shown, f"{package}: {shown}"


def described(package: str, name: str) -> str:
    text = "\n".join(api.render(package))
    found = re.search(rf"^``````{{py:\w+}} {name}\b(.*?)^``````$", text, re.M | re.S)
    assert found is not None
    return found[1]


def test_a_tuple_takes_its_fields_and_no_properties() -> None:
    assert described("data", "Pair").startswith("(source, target, slices=frozenset(), links=())\n")
    assert described("data", "Letters").startswith("(source, target, target_lens, run, repeats)\n")
    assert described("long_sequences", "MemoryLedger").startswith("()\n")


def test_members_say_what_they_are() -> None:
    assert "{py:method} of(lens, length)\n:classmethod:\n" in described("multi_head", "Packing")
    texts = described("data", "Lines").split("{py:property} texts\n")[1]
    assert texts.split("`````")[0].rstrip().endswith("\n*Type:* ``list[str]``")
    assert "_MatrixApproach" not in described("long_sequences", "Approach1")
    assert "``Window``" in described("long_sequences", "WindowedSelfAttention")


def test_types_are_told_where_no_section_does() -> None:
    text = described("data", "detokenize")
    told = "**Parameters**\n\n``tokens``: ``Iterable[str]``\n\n\n**Returns**\n\n``str``\n\n"
    assert told in text and text.index(told) < text.index("**Example**")
    assert "**Returns**" not in described("training", "seed_everything")  # it returns nothing


def test_constants_show_plain_values() -> None:
    assert described("long_sequences", "BLANK").startswith("\n:value: 0\n")
    assert "```python\n('gaussian', 'boxcar'," in described("kernel_regression", "KERNELS")
    assert ":value:" not in described("benchmarks", "RESULTS")  # a path of this machine


def test_names_that_stand_for_something_else_are_no_links() -> None:
    assert "``triton``" in described("kernel_regression", "kernel_regression")  # a value of impl
    assert "d2l's ``MultiHeadAttention``" in described("multi_head", "MultiHeadAttention")
    assert "what ``split_heads`` gives" in described("multi_head", "Packing")  # its own method
    assert "{py:obj}`AttentionLayer <" in described("scoring", "AdditiveAttention")


def test_a_function_that_is_called_as_its_module_is_found() -> None:
    assert "{py:function} fit(model" in "\n".join(api.render("training"))


def names(tree: ast.AST) -> tuple[set[str], set[str]]:
    """Those that code reads, and those that it makes."""
    read, made = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else made).add(node.id)
        elif isinstance(node, ast.alias):
            made.add(node.asname or node.name.split(".")[0])
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            made.add(node.name)
        elif isinstance(node, ast.arg):
            made.add(node.arg)
    return read, made


@pytest.mark.parametrize("package", api.packages())
def test_examples_run_as_they_stand_with_torch_and_the_package(package: str) -> None:
    given = {*dir(builtins), "torch", *api.exports(package)}
    for item in api.exports(package).values():
        for one in (item, *(m for m in item.members.values() if not m.is_alias)):
            text = one.docstring.value if one.docstring else ""
            parts = doctest.DocTestParser().get_examples(text)
            read, made = names(ast.parse("".join(part.source for part in parts)))
            assert not read - made - given, f"{one.path}: its example lacks an import"


def test_the_reference_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from tools import api; api.render('monotonic')"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("number", CHAPTERS)
def test_a_chapter_links_to_the_reference_of_its_package(number: int) -> None:
    from tools import notebooks

    source = SOURCES / f"{number:02d}_{CHAPTERS[number]}.md"
    (target,) = [to for made, to, _ in notebooks.targets(str(number)) if made == source]
    badges = next(
        cell.source for cell in notebooks.derive(source, target).cells if "Colab" in cell.source
    )
    assert f"[attn_course.{CHAPTERS[number]}](../book/api/{CHAPTERS[number]}.md)" in badges
