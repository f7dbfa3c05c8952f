"""Brokers for the tests of the pipeline: the mock always, the real one where Java and its jars are, and Aeron's media
driver where its binding is."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from skewd_pipeline.broker_plan import kafka_version
from skewd_pipeline.kafka_broker import Broker, default_libs, open_broker


@pytest.fixture(scope="session")
def mock_broker() -> Iterator[Broker]:
    with open_broker(prefer="mock") as broker:
        yield broker


@pytest.fixture(scope="session")
def apache_possible() -> None:
    """Skips where there is no Java or no jar; where both are, a broker that does not start is a failure."""
    if shutil.which("java") is None:
        pytest.skip("no java on the PATH")
    if kafka_version(path.name for path in default_libs().glob("*.jar")) is None:
        pytest.skip(f"no jars of Apache Kafka in {default_libs()}")


@pytest.fixture(scope="session")
def apache_broker(apache_possible: None) -> Iterator[Broker]:
    with open_broker(prefer="apache", warm_messages=0) as broker:
        yield broker


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
        assert process.wait(20) == 0
