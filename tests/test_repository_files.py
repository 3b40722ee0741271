"""The files around the course: workflows, citation, changelog, links, commands."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import attn_course

ROOT = Path(__file__).resolve().parents[1]
ROOT_PAGES = sorted(ROOT.glob("*.md"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))
PAGES_WITH_COMMANDS = ["README.md", "CONTRIBUTING.md", "book/how_to_use.md"]

FENCE = re.compile(r"^(```+|~~~+)[^\n]*\n(.*?)^\1[ \t]*$", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\]\(<?([^()\s>]+)>?(?:\s+\"[^\"]*\")?\)")


def read(path: str | Path) -> str:
    """Return the text of a file, by its path from the root."""
    return (ROOT / path).read_text(encoding="utf-8")


def make_targets(makefile: str) -> set[str]:
    """Return the targets that a Makefile has rules for."""
    rules = re.findall(r"^([A-Za-z][\w .-]*?)\s*::?(?![:=])", makefile, re.MULTILINE)
    return {target for names in rules for target in names.split()}


def make_commands(markdown: str) -> set[str]:
    """Return every ``X`` of a ``make X`` that stands in the code of a Markdown text."""
    blocks = [body for _, body in FENCE.findall(markdown)]
    spans = CODE_SPAN.findall(FENCE.sub("", markdown))
    commands = re.findall(r"^\s*(?:\$ )?make[ \t]+([a-z][\w-]*)", "\n".join(blocks + spans), re.M)
    return set(commands)


def path_patterns(contributing: str) -> list[str]:
    """Return the first column of the table of written and made files, as globs."""
    table = contributing.split("| File | What | Made by |\n", 1)[1].split("\n\n", 1)[0]
    patterns = []
    for row in table.splitlines()[1:]:
        path = row.split("|")[1].strip().strip("`")
        path = path.replace("NN_name", "[0-9][0-9]_*").replace("<mechanism>", "*")
        patterns.append(path)
    return patterns


def check_schema(schema: str, *paths: Path) -> None:
    """Fail unless every file matches one of the schemas that check-jsonschema carries."""
    if importlib.util.find_spec("check_jsonschema") is None:
        pytest.skip("check-jsonschema is not installed; it is in the test group")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema]
    result = subprocess.run([*command, *map(str, paths)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_workflows_match_the_schema() -> None:
    """Workflows are what GitHub accepts."""
    assert WORKFLOWS, "no workflows found"
    check_schema("vendor.github-workflows", *WORKFLOWS)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_are_bounded(path: Path) -> None:
    """A workflow starts with reading rights only, and each of its jobs ends."""
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert "timeout-minutes" in job, f"{path.name}: {name} has no timeout-minutes"
        assert "concurrency" in workflow or "concurrency" in job, f"{path.name}: {name}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_use_named_versions_and_no_secrets(path: Path) -> None:
    """Actions are GitHub's own, in a version; no step is given a secret or the token."""
    text = path.read_text(encoding="utf-8")
    for action in re.findall(r"\buses:\s*(\S+)", text):
        assert re.fullmatch(r"actions/[\w-]+@(v\d+|[0-9a-f]{40})", action), action
    assert text.count("actions/checkout@") == text.count("persist-credentials: false")
    assert not re.search(r"\bsecrets\b|github\.token", text)


def test_the_workflows_cover_every_way_to_use_the_course() -> None:
    """All Pythons, the oldest versions, the wheel, the book, Colab, Windows and macOS."""
    yaml = pytest.importorskip("yaml")
    steps: dict[str, list[str]] = {}
    for path in WORKFLOWS:
        for name, job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].items():
            steps[f"{path.stem}.{name}"] = [step.get("run", "") for step in job["steps"]]
    commands = {name: "\n".join(lines) for name, lines in steps.items()}
    assert "make test" in commands["test.linux"]
    assert "make oldest" in commands["test.oldest"]
    assert "pip wheel" in commands["test.wheel"] and "--pyargs" in commands["test.wheel"]
    assert "install_d2l" in commands["test.other"]
    assert "make book" in commands["pages.build"]
    assert "tools.colab" in commands["colab.notebooks"]


def test_citation_matches_the_schema_and_the_version() -> None:
    """CITATION.cff is valid and cites the version that is here."""
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load(read("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == attn_course.__version__
    check_schema("vendor.citation-file-format", ROOT / "CITATION.cff")


def test_the_changelog_knows_the_version() -> None:
    """The newest numbered heading of the changelog is the package's version."""
    numbered = re.findall(r"^## \[?(\d[^\]\s]*)", read("CHANGELOG.md"), re.MULTILINE)
    assert numbered[0] == attn_course.__version__


@pytest.mark.parametrize("page", PAGES_WITH_COMMANDS)
def test_named_make_targets_exist(page: str) -> None:
    """Every ``make X`` in a page is a target of the Makefile."""
    named = make_commands(read(page))
    assert named, f"{page} names no make command"
    unknown = named - make_targets(read("Makefile"))
    assert not unknown, f"{page} names targets that the Makefile lacks: {sorted(unknown)}"


@pytest.mark.parametrize("page", ROOT_PAGES, ids=lambda path: path.name)
def test_local_links_resolve(page: Path) -> None:
    """Links of the root's pages to files lead somewhere."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = [link.split("#")[0] for link in LINK.findall(text)]
    local = [target for target in targets if target and not re.match(r"[a-z]+:", target)]
    missing = [target for target in local if not (page.parent / target).exists()]
    assert not missing, f"{page.name} links to {missing}"


def test_the_table_of_files_names_files_that_exist() -> None:
    """Each row of CONTRIBUTING's table stands for at least one file, stored runs excepted."""
    patterns = path_patterns(read("CONTRIBUTING.md"))
    results = "attn_course/benchmarks/results/"
    assert f"{results}*.json" in patterns
    missing = [
        path for path in patterns if not path.startswith(results) and not any(ROOT.glob(path))
    ]
    assert not missing, f"no file matches {missing}"


def test_the_example_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """The README's Python example does what its comments say."""
    import torch

    example = re.search(r"^```python\n(.*?)^```", read("README.md"), re.MULTILINE | re.DOTALL)
    assert example
    names: dict[str, torch.Tensor] = {}
    exec(compile(example[1], "README.md", "exec"), names)
    assert names["output"].shape == (2, 1)
    torch.testing.assert_close(names["output"], names["query"].sin(), atol=0.1, rtol=0)
    torch.testing.assert_close(names["weights"].sum(-1), torch.ones(2))
    assert capsys.readouterr().out.count("tensor(") == 2
