"""What the daemon and the check cost: ``python benchmarks/daemon_cost.py``.

The problem: "at most 1 % of a core" depends on the core, and on who else uses it. So everything here is processor
time (never wall time), of real daemons in real processes on loopback, and is told as a multiple of a yardstick that
runs in the same seconds on the same machine: a bare asyncio process that only wakes as often as the daemon's loop,
and receives and answers as many datagrams (16 a second: each peer asks and is asked once).

- **mesh**: nine daemons, each with the other eight as peers at 1 Hz, on this host's real clocks. All nine have the
  same work, so all are measured: median and range of the processor time, and of the resident memory.
- **asking**: one daemon that asks eight peers at 1 Hz and is asked by none: half of the mesh's work.
- **many**: one daemon with 100 peers at 1 Hz, of whom a single process speaks the real protocol for all 100 names,
  each on a socket of its own. They ask it too: 200 requests and 200 replies a second.
- **check**: ``skewd check`` against a daemon of the mesh, beside ``python -c pass`` and ``python -S -c pass``, in turn;
  what it costs beyond starting Python is ours.

Limits: Linux (``/proc``). Processor time of all threads, from the scheduler's own count in nanoseconds where the
kernel keeps one, else in ticks of 10 ms. Nothing here sets a clock; everything stays on loopback and in a temporary
directory.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

PAGE_BYTES = resource.getpagesize()
MIB = 1 << 20
STARTED_LIMIT_S = 60.0
WAKES_PER_S = 20
DATAGRAM_BYTES = 256

# ---------------------------------------------------------------------------------------------------------------------
# Reading /proc


def cpu_ns(pid: int) -> int:
    """Processor time of a process, all of its threads that still run."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)
    except (FileNotFoundError, ProcessLookupError):  # a thread has ended meanwhile
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


def pss_bytes(pid: int) -> int:
    """Resident memory with what is shared between processes (Python itself) divided among them; 0 if not told."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


# ---------------------------------------------------------------------------------------------------------------------
# Processes, none of which outlives this one


class Children:
    def __init__(self) -> None:
        self.all: list[subprocess.Popen[bytes]] = []

    def start(self, words: Sequence[str], env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            words, env={**os.environ, **(env or {})}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.all.append(child)
        return child

    def stop(self) -> None:
        for child in self.all:
            child.send_signal(signal.SIGTERM)
        for child in self.all:
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self.all.clear()


@contextlib.contextmanager
def children() -> Iterator[Children]:
    started = Children()
    try:
        yield started
    finally:
        started.stop()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def daemon_environment(directory: Path, name: str, port: int, peers: Sequence[int], metrics: bool) -> dict[str, str]:
    home = directory / name
    home.mkdir()
    return {
        "SKEWD_NODE__NAME": name,
        "SKEWD_NODE__RUNTIME_DIR": str(home),
        "SKEWD_NODE__STATE_DIR": str(home),
        "SKEWD_MESH__KEY": "none",
        "SKEWD_MESH__LISTEN": f"127.0.0.1:{port}",
        "SKEWD_MESH__PEERS": json.dumps([f"127.0.0.1:{peer}" for peer in peers]),
        "SKEWD_MESH__INTERVAL": "1s",
        "SKEWD_METRICS__LISTEN": "127.0.0.1:0" if metrics else "off",
        "SKEWD_CLOCKBOUND__ENABLED": "false",
    }


def until_bounded(socket_path: Path, peers: int) -> None:
    """Waits for a daemon that has a bound on that many peers."""
    from skewd.api_client import NoDaemonError, get_status

    deadline = time.monotonic() + STARTED_LIMIT_S
    known = 0
    while time.monotonic() < deadline:
        with contextlib.suppress(NoDaemonError):
            known = sum(row["lower_ns"] is not None for row in get_status(socket_path)["peers"])
            if known >= peers:
                return
        time.sleep(0.2)
    raise SystemExit(f"{socket_path}: bounds on {known} of {peers} peers after {STARTED_LIMIT_S:g} s")


def shares(pids: Sequence[int], seconds: float) -> list[float]:
    """Which share of a core each process used, in per cent, over the same seconds."""
    began, before = time.monotonic(), [cpu_ns(pid) for pid in pids]
    time.sleep(seconds)
    after = [cpu_ns(pid) for pid in pids]
    elapsed_ns = (time.monotonic() - began) * 1e9
    return [(later - earlier) / elapsed_ns * 100 for earlier, later in zip(before, after, strict=True)]


# ---------------------------------------------------------------------------------------------------------------------
# The yardstick: what asyncio itself takes for as many wakes and datagrams


async def be_yardstick(packets_per_s: int) -> None:
    """Wakes 20 times a second; half of the datagrams are answers to its own, half are asked of it by a neighbour."""
    loop = asyncio.get_running_loop()
    here, there = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    for sock in (here, there):
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))

    def readable() -> None:
        data, source = here.recvfrom(DATAGRAM_BYTES + 1)
        here.sendto(data, source)

    loop.add_reader(here, readable)
    print(here.getsockname()[1], flush=True)
    assert packets_per_s > 0
    while True:
        await asyncio.sleep(1 / WAKES_PER_S)


def be_neighbour(port: int, packets_per_s: int) -> None:
    """Sends the yardstick its datagrams, evenly, and takes the answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(1)
        sock.connect(("127.0.0.1", port))
        while True:
            time.sleep(1 / packets_per_s)
            with contextlib.suppress(OSError):
                sock.send(bytes(DATAGRAM_BYTES))
                sock.recv(DATAGRAM_BYTES + 1)


def start_yardstick(started: Children, packets_per_s: int) -> int:
    yardstick = started.start([sys.executable, __file__, "--yardstick", str(packets_per_s)])
    assert yardstick.stdout is not None
    port = yardstick.stdout.readline().decode().strip()
    started.start([sys.executable, __file__, "--neighbour", port, str(packets_per_s)])
    return yardstick.pid


# ---------------------------------------------------------------------------------------------------------------------
# Many peers in one process


async def be_swarm(target: int, ports: Sequence[int]) -> None:
    """Speaks for a peer on each port, towards a daemon on the port ``target``."""
    # Here, so that the yardstick stays what it is said to be: bare.
    from skewd.clock import HostClock, read_wall
    from skewd.config import parse_config
    from skewd.kernel_stamps import SocketStamps
    from skewd.links.protocol import LinkProtocol, Timebases
    from skewd.links.udp import UdpLink
    from skewd.node import Node

    clock = HostClock()
    links = []
    for number, port in enumerate(ports):
        loaded = parse_config(None, None, {"SKEWD_NODE__NAME": f"peer-{number:03d}"})
        node = Node(loaded.config, boot=secrets.token_bytes(16), first=read_wall(clock), virtual=False)
        protocol = LinkProtocol(
            link="udp", key=None, describe=node.describe, random=secrets.token_bytes, timebases=Timebases()
        )
        links.append(
            await UdpLink.open(
                f"127.0.0.1:{port}",
                protocol,
                clock,
                lambda proofs: None,
                [f"127.0.0.1:{target}"],
                1_000_000_000,
                stamps=SocketStamps(clock, lambda: 1_000_000),
            )
        )
    print("ready", flush=True)
    await asyncio.Event().wait()


# ---------------------------------------------------------------------------------------------------------------------
# The measurements


def measure_mesh(options: argparse.Namespace, directory: Path, started: Children) -> dict[str, Any]:
    ports = free_ports(options.nodes)
    names = [f"node-{number}" for number in range(options.nodes)]
    daemons = []
    for name, port in zip(names, ports, strict=True):
        env = daemon_environment(directory, name, port, [other for other in ports if other != port], options.metrics)
        daemons.append(started.start([*SKEWD, "run"], env).pid)
    peers = options.nodes - 1
    yardstick = start_yardstick(started, 2 * peers)
    for name in names:
        until_bounded(directory / name / "skewd.sock", peers)
    time.sleep(options.warm)
    used = shares([*daemons, yardstick], options.seconds)
    daemon_shares, unit = used[:-1], used[-1]
    memory = [rss_bytes(pid) / MIB for pid in daemons]
    share = statistics.median(daemon_shares)
    return {
        "daemons": options.nodes,
        "peers": peers,
        "seconds": options.seconds,
        "cpu_percent": {"median": share, "least": min(daemon_shares), "most": max(daemon_shares)},
        "yardstick_percent": unit,
        "ratio": share / unit,
        "rss_mb": {"median": statistics.median(memory), "most": max(memory)},
        "pss_mb": statistics.median(pss_bytes(pid) / MIB for pid in daemons),
        "yardstick_rss_mb": rss_bytes(yardstick) / MIB,
    }


def measure_asking(options: argparse.Namespace, directory: Path, started: Children) -> dict[str, Any]:
    """One daemon that asks its peers and is asked by nobody, as where each pair is configured on one side only."""
    target, *ports = free_ports(options.nodes)
    for number, port in enumerate(ports):
        env = daemon_environment(directory, f"quiet-{number}", port, [], options.metrics)
        started.start([*SKEWD, "run"], env)
    env = daemon_environment(directory, "z-asks", target, ports, options.metrics)
    daemon = started.start([*SKEWD, "run"], env).pid
    yardstick = start_yardstick(started, len(ports))
    until_bounded(directory / "z-asks" / "skewd.sock", len(ports))
    time.sleep(options.warm)
    share, unit = shares([daemon, yardstick], options.seconds)
    return {
        "peers": len(ports),
        "seconds": options.seconds,
        "cpu_percent": share,
        "yardstick_percent": unit,
        "ratio": share / unit,
        "rss_mb": rss_bytes(daemon) / MIB,
    }


def measure_many(options: argparse.Namespace, directory: Path, started: Children) -> dict[str, Any]:
    target, *ports = free_ports(options.many + 1)
    env = daemon_environment(directory, "a-hub", target, ports, options.metrics)
    daemon = started.start([*SKEWD, "run"], env).pid
    swarm = started.start([sys.executable, __file__, "--swarm", json.dumps([target, *ports])])
    yardstick = start_yardstick(started, 2 * options.many)
    until_bounded(directory / "a-hub" / "skewd.sock", options.many)
    time.sleep(options.warm)
    share, unit, swarm_share = shares([daemon, yardstick, swarm.pid], options.seconds)
    return {
        "peers": options.many,
        "seconds": options.seconds,
        "cpu_percent": share,
        "yardstick_percent": unit,
        "ratio": share / unit,
        "rss_mb": rss_bytes(daemon) / MIB,
        "swarm_percent": swarm_share,
    }


def once(words: Sequence[str], env: dict[str, str]) -> tuple[float, float]:
    """Processor time and wall time of one command, in ms."""
    began = time.monotonic()
    child = subprocess.Popen(words, env={**os.environ, **env}, stdout=subprocess.DEVNULL)
    _, _, used = os.wait4(child.pid, 0)
    child.returncode = 0
    return (used.ru_utime + used.ru_stime) * 1000, (time.monotonic() - began) * 1000


def measure_check(options: argparse.Namespace, runtime: Path) -> dict[str, Any]:
    env = {"SKEWD_NODE__RUNTIME_DIR": str(runtime)}
    commands: dict[str, Sequence[str]] = {
        "python -S -c pass": [sys.executable, "-S", "-c", "pass"],
        "python -c pass": [sys.executable, "-c", "pass"],
        "skewd check": [*SKEWD, "check"],
    }
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(options.checks):
        for name, words in commands.items():
            measured[name].append(once(words, env))
    cpu = {name: statistics.median(cpu for cpu, _ in runs) for name, runs in measured.items()}
    wall = {name: statistics.median(wall for _, wall in runs) for name, runs in measured.items()}
    return {
        "runs": options.checks,
        "cpu_ms": cpu,
        "wall_ms": wall,
        "ratio": cpu["skewd check"] / cpu["python -c pass"],
        "ratio_bare": cpu["skewd check"] / cpu["python -S -c pass"],
    }


SKEWD = [str(Path(sys.executable).with_name("skewd"))]


def say(result: dict[str, Any]) -> None:
    print(f"load {result['load']:.1f} on {result['cores']} cores, Python {result['python']}")
    if (mesh := result.get("mesh")) is not None:
        cpu, rss = mesh["cpu_percent"], mesh["rss_mb"]
        print(
            f"{mesh['peers']} peers at 1 Hz, and asked by them: {cpu['median']:.2f} % of a core"
            f" ({cpu['least']:.2f} to {cpu['most']:.2f}, {mesh['daemons']} daemons, {mesh['seconds']:g} s);"
            f" yardstick {mesh['yardstick_percent']:.2f} %: x {mesh['ratio']:.1f}"
        )
        print(
            f"  resident {rss['median']:.1f} MiB (at most {rss['most']:.1f}; its share of what is shared counted once:"
            f" {mesh['pss_mb']:.1f}); yardstick {mesh['yardstick_rss_mb']:.1f}"
        )
    if (check := result.get("check")) is not None:
        for name, ms in check["cpu_ms"].items():
            print(f"{name:20} {ms:6.1f} ms of processor time, {check['wall_ms'][name]:6.1f} ms in all")
        print(f"  x {check['ratio']:.1f} python -c pass, x {check['ratio_bare']:.1f} python -S -c pass")
    for name in ("asking", "many"):
        if (many := result.get(name)) is None:
            continue
        how = "asked by none" if name == "asking" else "and asked by them"
        print(
            f"{many['peers']} peers at 1 Hz, {how}: {many['cpu_percent']:.2f} % of a core ({many['seconds']:g} s),"
            f" yardstick {many['yardstick_percent']:.2f} %: x {many['ratio']:.1f}; {many['rss_mb']:.1f} MiB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="measured, after the warm-up")
    parser.add_argument("--warm", type=float, default=10.0, help="seconds that are not measured")
    parser.add_argument("--nodes", type=int, default=9)
    parser.add_argument("--many", type=int, default=100, help="peers of the one daemon")
    parser.add_argument("--checks", type=int, default=21, help="runs of each command")
    parser.add_argument("--only", default="mesh,check,asking,many", help="which of them")
    parser.add_argument(
        "--no-metrics", dest="metrics", action="store_false", help="daemons without their HTTP listener"
    )
    parser.add_argument("--json", action="store_true")
    for hidden, count in (("--yardstick", 1), ("--neighbour", 2), ("--swarm", 1)):
        parser.add_argument(hidden, nargs=count, help=argparse.SUPPRESS)
    options = parser.parse_args()
    role: Callable[[], None] | None = None
    if options.yardstick:
        role = lambda: asyncio.run(be_yardstick(int(options.yardstick[0])))  # noqa: E731
    elif options.neighbour:
        role = lambda: be_neighbour(*map(int, options.neighbour))  # noqa: E731
    elif options.swarm:
        target, *ports = json.loads(options.swarm[0])
        role = lambda: asyncio.run(be_swarm(target, ports))  # noqa: E731
    if role is not None:
        with contextlib.suppress(KeyboardInterrupt):
            role()
        return
    wanted = options.only.split(",")
    result: dict[str, Any] = {
        "load": os.getloadavg()[0],
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
    }
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        if "mesh" in wanted or "check" in wanted:
            with children() as started:
                if "mesh" in wanted:
                    result["mesh"] = measure_mesh(options, directory, started)
                    runtime = directory / "node-1"
                else:
                    runtime = directory / "node-0"
                    env = daemon_environment(directory, "node-0", free_ports(1)[0], [], options.metrics)
                    started.start([*SKEWD, "run"], env)
                    until_bounded(runtime / "skewd.sock", 0)
                if "check" in wanted:
                    result["check"] = measure_check(options, runtime)
        if "asking" in wanted:
            with children() as started:
                result["asking"] = measure_asking(options, directory, started)
        if "many" in wanted:
            with children() as started:
                result["many"] = measure_many(options, directory, started)
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        say(result)


if __name__ == "__main__":
    main()
