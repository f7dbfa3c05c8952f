"""Brokers and media drivers for the tests of the links: real ones where they can be had, and skipped with a reason."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from skewd_pipeline.broker_plan import kafka_version
from skewd_pipeline.kafka_broker import Broker, default_libs, open_broker


@pytest.fixture(scope="module")
def mock_broker() -> Iterator[Broker]:
    """librdkafka's mock: no broker, and enough for the protocol."""
    with open_broker(prefer="mock") as broker:
        yield broker


@pytest.fixture(scope="session")
def apache_possible() -> None:
    """Skips where there is no Java or no jar; where both are, a broker that does not start is a failure."""
    if shutil.which("java") is None:
        pytest.skip("no java on the PATH")
    if kafka_version(path.name for path in default_libs().glob("*.jar")) is None:
        pytest.skip(f"no jars of Apache Kafka in {default_libs()}")


@pytest.fixture(scope="module")
def apache_broker(apache_possible: None) -> Iterator[Broker]:
    """A real Apache Kafka."""
    with open_broker(prefer="apache", warm_messages=0) as broker:
        yield broker


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
