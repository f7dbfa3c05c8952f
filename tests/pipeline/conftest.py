"""Brokers for the tests of the pipeline: the mock always, the real one where Java and its jars are."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

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
