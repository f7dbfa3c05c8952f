"""No test may move the clock of its machine, nor fail because that is busy; and the brokers that tests share.

The capability to set clocks is given up before the first test begins: tests often run as root. What this process does
not hold, and can't get back, none of its children holds either. Hypothesis times what it tries only if a test asks.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from skewd_pipeline.kafka_broker import Broker

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    # Else each of the many processes that tests start would compile all that it imports.
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = str(Path(__file__).parents[1] / "build" / "bytecode")
    sys.dont_write_bytecode = False

_CAP_SYS_TIME = 25
_PR_CAPBSET_DROP = 24
_VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def _give_up_setting_clocks() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = _Header(_VERSION_3, 0), (_Data * 2)()
    libc.prctl(_PR_CAPBSET_DROP, _CAP_SYS_TIME, 0, 0, 0)  # refused without privilege, and then nothing is held
    if libc.capget(ctypes.byref(header), sets) == 0:
        for name in ("effective", "permitted", "inheritable"):
            setattr(sets[0], name, getattr(sets[0], name) & ~(1 << _CAP_SYS_TIME))
        libc.capset(ctypes.byref(header), sets)


def _held() -> bool:
    lines = Path("/proc/self/status").read_text().splitlines()
    return any(
        int(line.split()[1], 16) >> _CAP_SYS_TIME & 1 for line in lines if line.startswith(("CapEff:", "CapPrm:"))
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    """A real broker takes ten seconds of processor time to start and end: what needs one is long, and shares one."""
    for item in items:
        if item.get_closest_marker("real_kafka") is not None:
            item.add_marker(pytest.mark.long)
            if item.get_closest_marker("xdist_group") is None:
                item.add_marker(pytest.mark.xdist_group("real_kafka"))


@pytest.fixture(scope="module")
def mock_broker() -> Iterator[Broker]:
    """librdkafka's mock: no broker, and enough for the protocol. It never rests, so it ends with its module."""
    from skewd_pipeline.kafka_broker import open_broker

    with open_broker(prefer="mock") as broker:
        yield broker


@pytest.fixture(scope="session")
def apache_possible() -> None:
    """Skips where there is no Java or no jar; where both are, a broker that does not start is a failure."""
    from skewd_pipeline.broker_plan import kafka_version
    from skewd_pipeline.kafka_broker import default_libs

    if shutil.which("java") is None:
        pytest.skip("no java on the PATH")
    if kafka_version(path.name for path in default_libs().glob("*.jar")) is None:
        pytest.skip(f"no jars of Apache Kafka in {default_libs()}")


@pytest.fixture(scope="session")
def apache_broker(apache_possible: None) -> Iterator[Broker]:
    """A real Apache Kafka."""
    from skewd_pipeline.kafka_broker import open_broker

    with open_broker(prefer="apache", warm_messages=0) as broker:
        yield broker


_give_up_setting_clocks()
if _held():
    raise RuntimeError("these tests would run with CAP_SYS_TIME, and it can't be given up here; run them without it")
