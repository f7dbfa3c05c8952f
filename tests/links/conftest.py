"""Media drivers for the tests of the links, where Aeron's binding is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def aeron_possible() -> None:
    """Skips where Aeron's binding is not."""
    pytest.importorskip("pyaeron", reason="pyaeron is not here: it needs Python 3.12 and x86_64")


@pytest.fixture
def driver_directory(aeron_possible: None, tmp_path: Path) -> Iterator[Path]:
    """A directory in which ``driver`` is a running media driver's, as an application would run one."""
    import pyaeron

    driver = pyaeron.MediaDriver(dir=str(tmp_path / "driver"))
    yield tmp_path
    driver.close()
