"""How long after a step of the wall clock readers are told, on a clock that is really set.

A daemon runs in a kernel of its own (user-mode Linux, as in ``tests/daemon/own_kernel.py``); another process there sets
the clock at odd moments. Measured from just before the call that sets it to the moment at which the first knot of the
new era is in the shared memory: with the kernel telling (timerfd), and by polling, which is what serves where nobody
tells. The same of a virtual clock, whose page tells (page) or does not (page-polling). Beside them, in the same loop,
what it takes to wake up for a byte in a pipe: no notice can be faster than that. Without user-mode Linux only the
virtual clocks are measured, on the machine's own kernel.

    python -m benchmarks.step_latency [STEPS]

Figures of one machine, in a kernel that is slower than its host's: compare them with each other.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.daemon.own_kernel import NoKernelError, run_in_own_kernel

PAGES = ("page", "page-polling")

_INSIDE = """
import asyncio, os, random, statistics, struct, sys, time
from pathlib import Path
from skewd import daemon as running, hostclock
from skewd.clock import HostClock, VirtualClock, VirtualPage
from skewd.config import Config, MeshConfig, MetricsConfig, NodeConfig

STEPS, ROOT = int(sys.argv[1]), Path(sys.argv[2])

def set_clock(pipe, page):
    choose = random.Random(1)
    for index in range(STEPS):
        time.sleep(0.03 + choose.random() * 0.08)
        by = choose.choice([-1, 1]) * choose.choice([0.001, 0.01, 0.3, 5])
        began = time.monotonic_ns()
        if page is None:
            time.clock_settime_ns(time.CLOCK_REALTIME, time.time_ns() + int(by * 1e9))
        else:
            page.step_to(page.offset_ns + int(by * 1e9))
        told = time.monotonic_ns()
        os.write(pipe, struct.pack("qq", began, told))
        time.sleep(0.03 + choose.random() * 0.03)
        os.write(pipe, struct.pack("qq", -time.monotonic_ns(), 0))
    os._exit(0)

async def measure(kind):
    if kind.endswith("polling"):
        def none(*arguments):
            raise OSError("not wanted")
        hostclock.SetWatch = hostclock.FileWatch = none
    directory = ROOT / kind
    directory.mkdir()
    config = Config(
        node=NodeConfig(name="a", runtime_dir=directory, state_dir=directory),
        mesh=MeshConfig(listen=None, reference="a"), metrics=MetricsConfig(listen=None),
    )
    page = VirtualPage.create(directory / "page") if kind.startswith("page") else None
    daemon = running.Daemon(config, HostClock() if page is None else VirtualClock(page))
    there, here = os.pipe()
    seen, begun, woken = [], [], []

    async with daemon.running():
        publish, era = daemon._writer.publish, [daemon.node.wall.era]
        def noted(knot):
            publish(knot)
            if knot.era != era[0]:
                era[0] = knot.era
                seen.append(time.monotonic_ns())
        daemon._writer.publish = noted

        def readable():
            now = time.monotonic_ns()
            data = os.read(there, 16)
            began, told = struct.unpack("qq", data)
            if began < 0:
                woken.append(now + began)
            else:
                begun.append(began)
        asyncio.get_running_loop().add_reader(there, readable)
        await asyncio.sleep(1.5)
        if os.fork() == 0:
            set_clock(here, page)
        end = time.monotonic() + 60
        while len(woken) < STEPS and time.monotonic() < end:
            await asyncio.sleep(0.2)
        asyncio.get_running_loop().remove_reader(there)
    delays = []
    for began in begun:
        delays += [at - began for at in seen if at >= began][:1]
    print("SEEN", kind, len(seen), "of", STEPS, *sorted(delays))
    print("WOKE", kind, *sorted(woken))

for kind in sys.argv[3:]:
    asyncio.run(measure(kind))
"""


def row(name: str, ns: list[int]) -> str:
    """Minimum, median, 99th percentile and maximum, in microseconds."""
    picked = (ns[0], ns[len(ns) // 2], ns[min(len(ns) - 1, len(ns) * 99 // 100)], ns[-1])
    return f"{name:34}" + "".join(f"{value / 1e3:10.0f}" for value in picked)


def main() -> int:
    """Runs it and prints the table."""
    steps = sys.argv[1] if len(sys.argv) > 1 else "200"
    with tempfile.TemporaryDirectory(prefix="skl") as name:
        try:
            out = run_in_own_kernel(_INSIDE, Path(name), steps, "/run", "timerfd", "polling", *PAGES)
        except NoKernelError as error:
            print(f"user-mode Linux: {error}; the virtual clocks alone, on this kernel", file=sys.stderr)
            command = [sys.executable, "-c", _INSIDE, steps, name, *PAGES]
            out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    found = [line.split() for line in out.splitlines() if line.startswith(("SEEN", "WOKE"))]
    if not found:
        print(out, file=sys.stderr)
        return 1
    print(f"{'microseconds':34}{'min':>10}{'median':>10}{'p99':>10}{'max':>10}")
    for words in found:
        if words[0] == "SEEN":
            delays = [int(word) for word in words[5:]]
            within = sum(ns <= 10_000_000 for ns in delays)
            print(row(f"step to knot, {words[1]} ({words[2]} of {words[4]})", delays), f"  {within} within 10 ms")
        else:
            print(row(f"pipe to loop, {words[1]}", [int(word) for word in words[2:]]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
