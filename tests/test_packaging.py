"""pyproject.toml, constraints.txt and environment.yml agree."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tools.colab import replaced
from tools.oldest import oldest

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def group(name: str) -> list[Requirement]:
    found = []
    for entry in PROJECT["dependency-groups"][name]:
        if isinstance(entry, dict):
            found += group(entry["include-group"])
        else:
            found.append(Requirement(entry))
    return found


def constraints() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {}
    for line in lines:
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", line
            pinned[canonicalize_name(requirement.name)] = Version(specifier.version)
    return pinned


DIRECT = [Requirement(text) for text in PROJECT["project"]["dependencies"]] + group("test")


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_each_requirement_is_pinned_within_its_range(requirement: Requirement) -> None:
    version = constraints().get(canonicalize_name(requirement.name))
    assert version is not None, f"constraints.txt lacks {requirement.name}"
    assert version in requirement.specifier


def test_environment_lists_the_groups() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip[:2] == ["-c constraints.txt", "-e ."]
    wanted = {canonicalize_name(r.name) for r in group("test")}
    assert {canonicalize_name(name) for name in pip[2:]} == wanted


def test_python_versions_agree() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert PROJECT["project"]["requires-python"] == ">=3.11"
    assert "python>=3.11,<3.14" in environment["dependencies"]
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    assert {"3.11", "3.12", "3.13"} <= set(re.findall(r"3\.\d+", workflow))


def test_lower_bounds_are_tested_by_a_workflow() -> None:
    bounds = [oldest(text) for text in PROJECT["project"]["dependencies"]]
    assert len(bounds) == len({bound.partition("==")[0] for bound in bounds})
    for text, bound in zip(PROJECT["project"]["dependencies"], bounds, strict=True):
        assert Version(bound.partition("==")[2]) in Requirement(text).specifier
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    assert "run: make oldest\n" in workflow


def test_colab_versions_are_within_the_ranges() -> None:
    """Else the set-up cell would replace what Colab brought."""
    lines = (ROOT / "tools" / "colab.txt").read_text(encoding="utf-8").splitlines()
    colab = [Requirement(line) for line in lines if line and not line.startswith("#")]
    ranges = {r.name: r.specifier for r in map(Requirement, PROJECT["project"]["dependencies"])}
    pinned = [r for r in colab if r.specifier and r.name in ranges]
    assert {"torch", "triton", "numpy", "matplotlib"} <= {r.name for r in pinned}
    for requirement in pinned:
        (specifier,) = requirement.specifier
        assert specifier.version in ranges[requirement.name], requirement


def test_what_an_installation_replaced_is_named() -> None:
    before, after = {"torch": "2.11.0", "tqdm": "4.67", "a": "1"}, {"torch": "2.15.0", "a": "1"}
    assert replaced(before, before | {"lxml": "6.1"}) == []
    assert replaced(before, after) == ["torch 2.11.0 -> 2.15.0", "tqdm 4.67 -> none"]


def test_d2l_is_no_requirement() -> None:
    names = {canonicalize_name(r.name) for r in DIRECT} | set(constraints())
    assert "d2l" not in names
