"""A media driver for the tests of the pipeline, where Aeron's binding is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import LIMIT_S


@pytest.fixture(scope="session")
def media_driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of a media driver, started as a run starts one."""
    pytest.importorskip("pyaeron", reason="pyaeron is not here: it needs Python 3.12 and x86_64")
    directory = tmp_path_factory.mktemp("aeron") / "driver"
    process = subprocess.Popen(
        [sys.executable, "-m", "skewd_pipeline.aeron_driver", str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline().startswith("READY ")
        yield directory
        process.stdin.close()
        assert process.wait(LIMIT_S) == 0
