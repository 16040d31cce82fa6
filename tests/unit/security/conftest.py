"""One small grid per test: a few milliseconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from security.testing import TestGrid


@pytest.fixture
def grid(tmp_path: Path) -> Iterator[TestGrid]:
    made = TestGrid(tmp_path / "grid")
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared_grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestGrid]:
    """For tests that only make credentials."""
    made = TestGrid(tmp_path_factory.mktemp("shared") / "grid")
    yield made
    made.close()
