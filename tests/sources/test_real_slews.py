"""Claims while the wall clock is really slewed as fast as chrony can, in a kernel of its own (``own_kernel.py``)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.daemon.own_kernel import NoKernelError, run_in_own_kernel

_INSIDE = """
import asyncio, ctypes, threading, time
from skewd.clock import HostClock, read_wall
from skewd.hostclock import KernelReader as Settings, _Timex, _libc
from skewd.sources.claim import Refused
from skewd.sources.kernel import KernelReader

ADJ_MAXERROR, ADJ_ESTERROR, ADJ_STATUS, ADJ_TICK = 4, 8, 16, 0x4000

def steer(tick):
    timex = _Timex()
    timex.modes = ADJ_MAXERROR | ADJ_ESTERROR | ADJ_STATUS | ADJ_TICK
    timex.maxerror, timex.esterror, timex.status, timex.tick = 1501, 10, 0, tick
    assert _libc.adjtimex(ctypes.byref(timex)) >= 0

async def main():
    steer(10_000)
    read, settings = KernelReader(HostClock(), 100), Settings()
    for tick in (10_000, 10_833, 9_167):
        steer(tick)
        claims, refused = 0, 0
        for _ in range(100):
            earlier = read_wall(HostClock()).wall_minus_raw
            try:
                claim = await read()
            except Refused as error:
                refused += 1
                continue
            later = read_wall(HostClock()).wall_minus_raw
            # The kernel says that UTC is the wall clock's time, within 2 ms, at some instant in between.
            claims += claim.utc_minus_raw.intersect(earlier.hull(later)) is not None
            assert claim.utc_minus_raw.width < 10_000_000
        print("STEADY", settings.rate_ppb() // 1_000_000, claims, refused)
    done = threading.Event()
    def turn_round():
        while not done.is_set():
            for tick in (10_833, 9_167):
                steer(tick)
                time.sleep(0.0007)
    threading.Thread(target=turn_round).start()
    claims, refused = 0, 0
    end = time.monotonic() + 3
    while time.monotonic() < end and claims < 200:
        earlier = read_wall(HostClock()).wall_minus_raw
        try:
            claim = await read()
        except Refused:
            refused += 1
            continue
        later = read_wall(HostClock()).wall_minus_raw
        claims += claim.utc_minus_raw.intersect(earlier.hull(later)) is not None
    done.set()
    print("TURNING", claims, refused)

asyncio.run(main())
"""


@pytest.mark.long
def test_claims_are_made_at_the_fastest_slews(tmp_path: Path) -> None:
    try:
        out = run_in_own_kernel(_INSIDE, tmp_path)
    except NoKernelError as error:
        pytest.skip(f"user-mode Linux: {error}")
    said = [line.split() for line in out.splitlines() if line.startswith(("STEADY", "TURNING"))]
    assert [line[:2] for line in said[:3]] == [["STEADY", "0"], ["STEADY", "83"], ["STEADY", "-84"]], out
    for _, _, claims, refused in said[:3]:
        assert (int(claims), int(refused)) == (100, 0), out
    # Where it turns round within a question there are claims, too.
    assert int(said[3][1]) > int(said[3][2]), out
