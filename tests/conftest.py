"""No test may move the clock of the machine it runs on, nor fail because that is busy.

The capability to set clocks is given up before the first test begins: tests often run as root. What this process does
not hold, and can't get back, none of its children holds either. Hypothesis times what it tries only if a test asks.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

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
    """A real broker takes ten seconds of processor time to start and end: what needs one is long."""
    for item in items:
        if item.get_closest_marker("real_kafka") is not None:
            item.add_marker(pytest.mark.long)


_give_up_setting_clocks()
if _held():
    raise RuntimeError("these tests would run with CAP_SYS_TIME, and it can't be given up here; run them without it")
