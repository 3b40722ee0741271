"""Fixtures of the tests of a chapter's exercises, whose modules have a ``PAGE``."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from attn_course.exercises import Accesses


@pytest.fixture(scope="module")
def solved(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The names that the page's cells define, with their solutions."""
    names: dict[str, Any] = request.module.PAGE.run_cells(
        tmp_path_factory.mktemp("solved"), solved=True
    )
    return names


@pytest.fixture
def without_record(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks of kernels see no loads and stores, as on a GPU."""
    checks = request.module.PAGE.module
    monkeypatch.setattr(checks, "watch", lambda: contextlib.nullcontext(Accesses()))
