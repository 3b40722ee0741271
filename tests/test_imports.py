"""The import rules: one direction, heavy things late, triton in one place."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import attn_course
from attn_course import CHAPTERS, MECHANISMS

PACKAGE = Path(attn_course.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
#: Inside a mechanism's folder: file -> the siblings it may import. ``kernel`` also stands
#: for ``<name>_kernel``, a second kernel file beside it.
SIBLINGS = {
    "reference": set(),
    "blocked": {"reference"},
    "kernel": {"kernel"},
    "ops": {"reference", "blocked", "kernel", "fronts", "scan"},
    "layer": {"ops", "reference", "cache", "loading", "packing", "sublayers", "_checks"}
    | {"causal", "projection", "hard"},
}
#: Parts that every chapter shares; they know no layer.
SHARED = ("data", "training", "heatmaps")


def imported(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, by full name."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ids(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_triton_is_imported_in_one_place(path: Path) -> None:
    if path.name in ("_triton.py", "_aot.py"):
        return
    assert not any(name.split(".")[0] == "triton" for name in imported(path))


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_d2l_is_imported_in_one_place(path: Path) -> None:
    assert path.name == "_d2l.py" or not any(n.split(".")[0] == "d2l" for n in imported(path))


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_one_direction_inside_a_mechanism(mechanism: str) -> None:
    folder = PACKAGE / mechanism
    for path in folder.glob("*.py"):
        if role(path.stem) not in SIBLINGS:
            continue
        prefix = f"attn_course.{mechanism}."
        siblings = {
            n.removeprefix(prefix).split(".")[0] for n in imported(path) if n.startswith(prefix)
        }
        modules = siblings & {p.stem for p in folder.glob("*.py")}
        allowed = SIBLINGS[role(path.stem)]
        assert {role(m) for m in modules} <= allowed, f"{path.name} imports {modules}"
        assert path.stem != "kernel" or not modules, f"{path.name} imports {modules}"


def role(stem: str) -> str:
    return "kernel" if stem.endswith("_kernel") else stem


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_mechanism_imports_earlier_ones_through_their_front_door(mechanism: str) -> None:
    earlier = MECHANISMS[: MECHANISMS.index(mechanism)]
    for path in (PACKAGE / mechanism).glob("*.py"):
        for name in imported(path):
            parts = name.split(".")
            if parts[0] != "attn_course" or len(parts) < 2 or parts[1] in ("_triton", mechanism):
                continue
            # A translator is words before it is numbers: "data" holds vocabularies and trained
            # weights, and knows no mechanism in turn (see the test below).
            if parts[1] in (*MECHANISMS, "data"):
                known = (*earlier, "data")
                assert parts[1] in known, f"{path.name} imports the later {name}"
                inside = PACKAGE / parts[1] / f"{parts[2]}.py" if len(parts) > 2 else None
                assert inside is None or not inside.exists(), f"{path.name} reaches into {name}"
            else:
                assert parts[1].startswith("_"), f"{path.name} imports {name}"


@pytest.mark.parametrize("part", SHARED)
def test_shared_parts_know_no_layer(part: str) -> None:
    for path in (PACKAGE / part).glob("*.py"):
        for name in imported(path):
            parts = name.split(".")
            assert parts[0] != "attn_course" or len(parts) < 2 or parts[1] not in MECHANISMS


def test_the_mechanisms_are_the_folders_that_hold_operations() -> None:
    assert set(CHAPTERS.values()) <= set(MECHANISMS)
    folders = {path.parent.name for path in PACKAGE.glob("*/ops.py")}
    assert folders <= set(MECHANISMS)
    assert all((PACKAGE / mechanism / "__init__.py").exists() for mechanism in MECHANISMS)


def test_each_mechanism_names_its_chapter() -> None:
    for chapter, mechanism in CHAPTERS.items():
        tree = ast.parse((PACKAGE / mechanism / "__init__.py").read_text(encoding="utf-8"))
        first = (ast.get_docstring(tree) or "").splitlines()[0]
        assert f"chapter {chapter}" in first


def loaded(statement: str) -> set[str]:
    """Top-level modules that are there after ``statement``, in a fresh process."""
    code = f"import sys, json; {statement}; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in json.loads(run.stdout)}


def test_importing_the_package_is_cheap() -> None:
    """Nothing but Python itself: that is what keeps it in single milliseconds."""
    outside = loaded("import attn_course") - set(sys.stdlib_module_names) - loaded("pass")
    assert {name for name in outside if not name.startswith("_")} == {"attn_course"}


def test_everything_but_kernels_works_without_triton() -> None:
    hide = "sys.modules['triton'] = None"
    run = (
        "import torch; from importlib import import_module; "
        "from attn_course.kernel_regression import kernel_regression as f; "
        "from attn_course import MECHANISMS, heatmaps, data, training, _triton; "
        "[import_module('attn_course.' + name) for name in MECHANISMS]; "
        "x = torch.zeros(2, 1); f(x, x, x); assert not _triton.AVAILABLE; "
        "assert 'triton' in _triton.REASON"
    )
    assert "attn_course" in loaded(f"{hide}; {run}")


def test_a_wrong_mode_is_reported() -> None:
    early = "import os; os.environ['TRITON_INTERPRET'] = '0'; import triton.language"
    late = "os.environ['TRITON_INTERPRET'] = '1'; from attn_course import _triton"
    check = "assert not _triton.AVAILABLE and 'before attn_course' in _triton.REASON"
    pytest.importorskip("triton")
    assert "attn_course" in loaded(f"{early}; {late}; {check}")
