"""Every shipped kernel compiles for its architecture, without a GPU."""

import inspect
import json
import os
import subprocess
import sys
from importlib import import_module

import pytest

from attn_course import _aot, _triton

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    environment.pop("TRITON_INTERPRET", None)
    run = subprocess.run(
        [sys.executable, "-m", "attn_course._aot"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert run.stdout, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_all_compile_and_fit(compiled: list[dict]) -> None:
    errors = [f"{row['label']}: {row['error']}" for row in compiled if "error" in row]
    assert not errors, "\n".join(errors)
    for row in compiled:
        assert 0 < row["instructions"] and row["shared"] <= _triton.SHARED_MEMORY[row["arch"]]
        assert row["aligned"], f"{row['label']}: compiled for pointers to anywhere"


def test_every_kernel_ships_for_every_architecture(compiled: list[dict]) -> None:
    have = {(row["kernel"], row["arch"]) for row in compiled}
    for name in _triton.kernel_modules():
        module = import_module(name)
        kernels = [n for n, _ in inspect.getmembers(module) if n.endswith("_kernel")]
        assert kernels, f"{name} has no function named _..._kernel"
        for kernel in kernels:
            for arch in _triton.ARCHITECTURES:
                assert (kernel, arch) in have, f"{name}: shipped() lacks {kernel} for sm_{arch}"


def test_kernels_are_found_by_the_name_of_their_file() -> None:
    found = _triton.kernel_modules()
    assert {
        "attn_course.kernel_regression.kernel",
        "attn_course.heatmaps.kernel",
        "attn_course.scoring.kernel",
        "attn_course.scoring.additive_kernel",
        "attn_course.dot_product.kernel",
        "attn_course.dot_product.backward_kernel",
        "attn_course.positional.kernel",
    } <= set(found)
    assert not any(name.split(".")[1] == "exercises" for name in found)


def test_pointers_and_strides_are_taken_to_be_aligned() -> None:
    kinds = {"query_ptr": "*fp32", "n": "i32", "stride_qm": "i32", "scale": "fp32", "DIM": "i32"}
    kinds |= {"stride_qd": "constexpr"}
    shipped = _triton.Shipped(None, 80, kinds, {"stride_qd": 1})
    assert _aot.aligned(shipped) == ["query_ptr", "stride_qm"]


def test_a_kernel_that_asks_for_too_much_is_refused() -> None:
    code = (
        "import os; os.environ['TRITON_INTERPRET'] = '0'; "
        "from attn_course import _aot, _triton; _triton.SHARED_MEMORY[75] = 1; "
        "from attn_course.kernel_regression import kernel; "
        "_aot.compile_shipped(next(kernel.shipped()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode and "bytes of shared memory; sm_75 has 1" in run.stderr
