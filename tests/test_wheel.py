"""The built package: complete, and usable without this checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

#: Calls the build backend as pip does; it writes both files into a folder.
BUILD = """\
import sys
from setuptools import build_meta
folder = sys.argv[1]
build_meta.build_sdist(folder)
build_meta.build_wheel(folder)
"""

#: Imports every module and reads every file of data, from an installed copy.
USE = """\
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
import attn_course
from attn_course.benchmarks import results
from attn_course.data import checkpoints, pretrained
assert Path(attn_course.__file__).is_relative_to(sys.argv[1]), attn_course.__file__
for module in walk_packages(attn_course.__path__, "attn_course."):
    if not module.name.endswith("__main__"):
        import_module(module.name)
models = sorted(checkpoints.FOLDER.glob("*.safetensors"))
for path in models:
    config, state = pretrained(path.stem)
    assert config and state, path
print(len(models), len(list(results.RESULTS.rglob("*.json"))))
"""


def run(*command: str | Path, folder: Path) -> str:
    """What a command of this Python prints in ``folder``, which has nothing of the checkout."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def stored(folder: str) -> set[str]:
    """The files of a folder that git knows."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", folder]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.split("\0") if name and (ROOT / name).exists()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive and the wheel, made from a copy of what git knows."""
    pytest.importorskip("setuptools", minversion="77")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in stored("."):
        copy = source / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / name).read_bytes())
    run("-c", BUILD, target, folder=source)
    return target


def test_the_wheel_is_the_package(built: Path) -> None:
    """Every file of the package, and no other."""
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == stored("attn_course")


def test_the_source_archive_is_enough_to_build(built: Path) -> None:
    """The package, what it is built from, and none of the tests."""
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.split("/", 1)[1] for name in opened.getnames() if "/" in name}
    assert stored("attn_course") | {"pyproject.toml", "README.md", "LICENSE"} <= names
    assert not any(name.startswith("tests") for name in names)


def test_the_wheel_works_away_from_the_checkout(built: Path, tmp_path: Path) -> None:
    """Installed elsewhere, every module can be imported and every file of data read."""
    (wheel,) = built.glob("*.whl")
    place = tmp_path / "site"
    run("-m", "pip", "install", "-q", "--no-deps", "--target", place, wheel, folder=tmp_path)
    program = f"import sys\nsys.path.insert(0, {str(place)!r})\n{USE}"
    models, runs = map(int, run("-c", program, place, folder=tmp_path).split()[-2:])
    files = stored("attn_course")
    assert models == sum(name.endswith(".safetensors") for name in files)
    assert runs == sum(name.endswith(".json") for name in files)
