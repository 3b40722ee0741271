"""A page of exercises as tests see it: its cells, its checks, and answers to try on them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from attn_course.exercises import CheckFailed
from attn_course.exercises.framework import _exact

ROOT = Path(__file__).resolve().parents[2]
CELL = re.compile(r"^```\{code-cell\} ipython3\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SOLUTION = re.compile(
    r"^([ \t]*)### BEGIN SOLUTION\n.*?### END SOLUTION$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Kernel:
    """A Triton kernel that a page asks for, and what to compile it for.

    Arguments named ``..._ptr`` are pointers to float32 unless ``types`` says otherwise.

    Attributes:
        number: Of the exercise.
        name: The kernel's.
        types: Of other arguments.
        constants: Compile-time constants.
    """

    number: str
    name: str
    types: dict[str, str]
    constants: dict[str, int]


@dataclass(frozen=True, eq=False)
class Page:
    """A chapter's exercises.

    Attributes:
        chapter: Its number.
        name: The mechanism's.
        kernels: What needs triton.
    """

    chapter: int
    name: str
    kernels: tuple[Kernel, ...]

    @property
    def kernel_numbers(self) -> list[str]:
        """The exercises that need triton."""
        return sorted({kernel.number for kernel in self.kernels})

    @cached_property
    def text(self) -> str:
        path = ROOT / "book" / "exercises" / f"{self.chapter:02}_{self.name}.md"
        return path.read_text(encoding="utf-8")

    @property
    def module(self) -> Any:
        """Where its checks are."""
        return import_module(f"attn_course.exercises.{self.name}")

    @cached_property
    def checks(self) -> dict[str, Callable[..., None]]:
        """Number -> the page's check, in the order of the numbers."""
        members = vars(self.module).items()
        found = [check for name, check in members if name.startswith("check_")]
        return {check.number: check for check in sorted(found, key=lambda check: check.number)}

    @cached_property
    def mistakes(self) -> list[Any]:
        """Every known mistake."""
        module = import_module(f"attn_course.exercises.{self.name}_mistakes")
        tables = [table for name, table in vars(module).items() if name.endswith("_MISTAKES")]
        return [mistake for table in tables for mistake in table]

    @cached_property
    def answers(self) -> Any:
        """The module with ``RIGHT`` and ``WRONG`` answers, and the ``TABLES`` of mistakes."""
        return import_module(f"tests.exercises.{self.name}_answers")

    @cached_property
    def parts(self) -> list[str]:
        """The text of each exercise."""
        return re.split(r"^## ", self.text, flags=re.M)[1:]

    def arguments(self, number: str) -> list[str]:
        """The student's functions that a check takes, as its cell calls it."""
        call = re.search(rf"^{self.checks[number].__name__}\((.*)\)$", self.text, re.M)
        assert call is not None
        return call[1].split(", ")

    def run_cells(self, folder: Path, solved: bool) -> dict[str, Any]:
        """Run the cells but those with tags and the checks.

        Each runs from a file of its own, and in a module with a name, as triton needs.
        """
        namespace: dict[str, Any] = {"__name__": "cells"}
        for number, cell in enumerate(CELL.findall(self.text)):
            if cell.startswith((":tags:", "check_")):
                continue
            if not solved:
                cell = SOLUTION.sub(r'\1raise NotImplementedError("your code here")', cell)
            path = folder / f"cell_{number}.py"
            path.write_text(cell, encoding="utf-8")
            exec(compile(cell, str(path), "exec"), namespace)
        return namespace

    def param(self, number: str, *values: Any, id: str = "") -> Any:
        """A parameter set that begins with page and number, marked if it needs triton."""
        marks = [pytest.mark.triton] if number in self.kernel_numbers else []
        return pytest.param(self, number, *values, id=f"{number} {id}".strip(), marks=marks)


PAGES = {
    page.name: page
    for page in (
        Page(
            1,
            "kernel_regression",
            (
                Kernel(
                    "1.7",
                    "gaussian_stream_kernel",
                    {"width": "fp32"},
                    {"KEY_LEN": 40, "BLOCK": 16},
                ),
            ),
        ),
        Page(
            2,
            "scoring",
            (
                Kernel(
                    "2.7",
                    "softmax_backward_kernel",
                    {"valid_lens_ptr": "*i64"},
                    {"KEY_LEN": 40, "BLOCK": 64},
                ),
            ),
        ),
        Page(
            3,
            "seq2seq",
            (
                Kernel(
                    "3.8",
                    "weight_gradient_kernel",
                    {},
                    {"QUERY_LEN": 40, "KEY_LEN": 23, "HIDDEN": 6, "BLOCK": 16, "BLOCK_H": 8},
                ),
            ),
        ),
        Page(
            4,
            "multi_head",
            tuple(
                Kernel(
                    "4.7",
                    name,
                    {"scale": "fp32"},
                    {"QUERY_LEN": 40, "KEY_LEN": 23, "DIM": 20, "BLOCK": 16, "BLOCK_D": 32},
                )
                for name in ("score_kernel", "flash_kernel")
            ),
        ),
        Page(
            5,
            "positional",
            tuple(
                Kernel(
                    "5.6",
                    name,
                    dict.fromkeys(("stride_h", "stride_m", "stride_d"), "i32"),
                    {"LEN": 40, "HALF": 3, "BLOCK": 16, "BLOCK_P": 4},
                )
                for name in ("rotary_kernel", "rotary_backward_kernel")
            ),
        ),
        Page(
            6,
            "transformer",
            (
                Kernel("6.7", "layer_norm_kernel", {}, {"DIM": 20, "BLOCK": 32, "EPS": 1e-5}),
                Kernel(
                    "6.8",
                    "causal_kernel",
                    {},
                    {"LENGTH": 40, "DIM": 16, "BLOCK_M": 16, "BLOCK_N": 32},
                ),
            ),
        ),
        Page(
            7,
            "vision",
            (
                Kernel(
                    "7.6",
                    "patch_kernel",
                    {},
                    {"GRID_H": 3, "GRID_W": 5, "CHANNELS": 2, "PH": 3, "PW": 2}
                    | {"DIM": 20, "BLOCK_M": 8, "BLOCK_N": 16, "BLOCK_K": 8},
                ),
            ),
        ),
        Page(
            8,
            "long_sequences",
            (
                Kernel(
                    "8.6",
                    "window_kernel",
                    {"count_ptr": "*i32"},
                    {"LENGTH": 40, "DIM": 16, "LEFT": 5, "RIGHT": 2}
                    | {"BLOCK_M": 16, "BLOCK_N": 8},
                ),
            ),
        ),
        Page(
            9,
            "linformer",
            (
                Kernel(
                    "9.6",
                    "split_kernel",
                    {},
                    {"LENGTH": 40, "SLOTS": 6, "DIM": 20, "STRETCH": 10}
                    | {"BLOCK_K": 4, "BLOCK_N": 8, "BLOCK_D": 32},
                ),
            ),
        ),
        Page(
            10,
            "monotonic",
            (Kernel("10.7", "scan_kernel", {}, {"LENGTH": 40, "BLOCK": 16}),),
        ),
    )
}


def exact(case: Any) -> dict[str, Any]:
    """A case's inputs, those in floating point in float64."""
    return {name: _exact(value) for name, value in case.inputs.items()}


def told(check: Callable[..., None], *functions: Any) -> str:
    """What a check says of functions that it does not accept."""
    with pytest.raises(CheckFailed) as failure:
        check(*functions)
    return str(failure.value)


def assert_told_in_numbers(check: Callable[..., None], *functions: Any) -> None:
    """An answer that no mistake explains is told in numbers: the same, whatever ran before."""
    torch.manual_seed(1)
    first = told(check, *functions)
    torch.randn(5)
    assert told(check, *functions) == first
    assert "does not know" in first and re.search(r"expected \[*-?\d.* got \[*-?\d", first)


def run_script(folder: Path, lines: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run lines of Python in a fresh process that can import the tests."""
    script = folder / "script.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{lines}", encoding="utf-8")
    return subprocess.run(
        [sys.executable, str(script), str(folder)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
