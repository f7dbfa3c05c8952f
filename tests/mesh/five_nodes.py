"""Five real daemons, each in a network namespace of its own, with clocks whose truth is known to the nanosecond.

The namespaces hang on one bridge, in a sixth; nothing of it touches this machine's own network. Each daemon is
``skewd run`` as a service manager would start it, without CAP_SYS_TIME, on a virtual clock (``skewd/clock.py``) whose
page this process maps as well. So what one clock reads more than another is a formula of this machine's raw clock, and
any two clocks can be compared at any instant, also after a daemon was killed.

A daemon is asked between two readings of the raw clock: its answer is about an instant between them. In that time two
clocks part by some nanoseconds, which is how sure the truth is; an answer that took too long is asked for again.

Needs root, iproute2 and setpriv; :func:`network` skips the test, and says so, where they lack.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from skewd.api_client import NoDaemonError, SlowDaemonError, get_now, get_status
from skewd.clock import HostClock, VirtualPage, read_wall
from skewd.interval import Interval
from skewd.keys import generate_key_file
from tests.waiting import LIMIT_S

ROOT = Path(__file__).parents[2]
NAMES = ("ann", "bob", "cyd", "dan", "eve")
OFFSETS_NS = (3_000_000, -7_000_000, 11_000_000, -2_000_000, 250_000)
DRIFTS_PPB = (20_000, -35_000, 41_000, -3_000, 12_000)
RATE_PPM = 200
"""How fast two of these clocks part at most."""

PORT = 9957
SLOW_NS = 20_000_000
"""An answer that took longer is asked for again."""

ROUNDING_NS = 2
"""A page rounds each reading down, so a difference of two is known to two nanoseconds."""

_CLONE_NEWNET = 0x40000000
_HOST = HostClock()


def address(index: int) -> str:
    """Where the node of that number is."""
    return f"10.78.0.{index + 1}"


class Network:
    """Five namespaces on a bridge."""

    def __init__(self) -> None:
        self._name = f"skewd-{os.getpid()}"
        self.hub = f"{self._name}-hub"

    def of(self, index: int) -> str:
        """The name of a node's namespace."""
        return f"{self._name}-{index}"

    @contextlib.contextmanager
    def inside(self, namespace: str) -> Iterator[None]:
        """This *thread* in a namespace: sockets that it opens stay there."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net", "rb") as here, open(f"/run/netns/{namespace}", "rb") as there:
            if libc.setns(there.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"can't enter {namespace}")
            try:
                yield
            finally:
                if libc.setns(here.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "can't leave a namespace")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=LIMIT_S)


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """Made, connected, and taken down again."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("setpriv"):
        pytest.skip("needs root, iproute2 and setpriv to make network namespaces")
    made = Network()
    with contextlib.ExitStack() as stack:
        try:
            for name in (made.hub, *(made.of(index) for index in range(len(NAMES)))):
                _ip("netns", "add", name)
                stack.callback(subprocess.run, ["ip", "netns", "del", name], capture_output=True, timeout=LIMIT_S)
            _ip("-n", made.hub, "link", "add", "br0", "type", "bridge")
            _ip("-n", made.hub, "link", "set", "br0", "up")
            _ip("-n", made.hub, "address", "add", "10.78.0.254/24", "dev", "br0")
            for index in range(len(NAMES)):
                there = made.of(index)
                _ip("link", "add", f"p{index}", "netns", made.hub, "type", "veth", "peer", "name", "w0", "netns", there)
                _ip("-n", made.hub, "link", "set", f"p{index}", "master", "br0", "up")
                _ip("-n", there, "address", "add", f"{address(index)}/24", "dev", "w0")
                _ip("-n", there, "link", "set", "lo", "up")
                _ip("-n", there, "link", "set", "w0", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        yield made


@dataclass(frozen=True)
class Answer:
    """What a daemon said, and the instants of the host's raw clock between which it said it."""

    status: dict[str, Any]
    before_ns: int
    after_ns: int
    host_wall_minus_raw: Interval


class Node:
    """One daemon and its clock."""

    def __init__(self, net: Network, index: int, directory: Path) -> None:
        self.net, self.index, self.name = net, index, NAMES[index]
        self.directory = directory / self.name
        self.directory.mkdir()
        self.epoch_ns = (index + 1) * 10**15
        self.page = VirtualPage.create(
            self.directory / "clock",
            offset_ns=OFFSETS_NS[index],
            drift_ppb=DRIFTS_PPB[index],
            epoch_ns=self.epoch_ns,
        )
        self.config = self.directory / "skewd.toml"
        self.log = self.directory / "log"
        self.process: subprocess.Popen[str] | None = None

    @property
    def socket(self) -> Path:
        return self.directory / "run" / "skewd.sock"

    def start(self) -> None:
        """Starts it; :meth:`ready` waits."""
        with self.log.open("a") as errors:
            self.process = subprocess.Popen(
                [
                    *("ip", "netns", "exec", self.net.of(self.index)),
                    *("setpriv", "--pdeathsig", "KILL", "--bounding-set", "-sys_time", "--inh-caps", "-sys_time"),
                    *(sys.executable, "-m", "skewd", "run", "--config", str(self.config)),
                    *("--virtual-clock", f"page={self.directory / 'clock'}"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
            )

    def ready(self) -> None:
        """Until it says that it listens."""
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("READY"), f"{self.name} said {line!r}\n{self.log.read_text()}"

    def end(self, number: signal.Signals) -> int:
        """Ends it; its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        try:
            return self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(LIMIT_S)
            raise
        finally:
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    def skewd(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The command line, as an administrator of this node has it."""
        return subprocess.run(
            [sys.executable, "-m", "skewd", *words, "--config", str(self.config)],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        )

    def ask(self) -> Answer:
        """Its status, answered within ``SLOW_NS``."""
        return self._asked(get_status)

    def ask_now(self) -> Answer:
        """The reference's time by its account."""
        return self._asked(get_now)

    def _asked(self, get: Callable[[Path], dict[str, Any]]) -> Answer:
        deadline = time.monotonic() + LIMIT_S
        while True:
            before = _HOST.raw_ns()
            try:
                status = get(self.socket)
            except SlowDaemonError:  # this machine is busy with something else
                if time.monotonic() > deadline:
                    raise
                continue
            after = _HOST.raw_ns()
            if after - before <= SLOW_NS or time.monotonic() > deadline:
                # How the host's own wall clock moved in between lies far below a nanosecond.
                return Answer(status, before, after, read_wall(_HOST).wall_minus_raw)

    def status(self) -> dict[str, Any]:
        return self.ask().status

    # -- the truth

    def ahead_ns(self, host_raw_ns: int) -> int:
        """By how much its wall clock is ahead of the host's."""
        return self.page.offset_ns + self.page.at_host_raw(host_raw_ns) - host_raw_ns - self.epoch_ns

    def ahead(self, answer: Answer) -> Interval:
        """The same, at some instant while ``answer`` was given."""
        ends = [self.ahead_ns(answer.before_ns), self.ahead_ns(answer.after_ns)]
        return Interval(min(ends), max(ends))

    def raw(self, answer: Answer) -> Interval:
        """What its raw clock read then, minus what the host's did."""
        ends = [self.page.at_host_raw(at) - at for at in (answer.before_ns, answer.after_ns)]
        return Interval(min(ends), max(ends))


def truth_between(here: Node, there: Node, answer: Answer) -> Interval:
    """The wall clock of ``there`` minus that of ``here``, at an instant while ``answer`` was given."""
    ends = [there.ahead_ns(at) - here.ahead_ns(at) for at in (answer.before_ns, answer.after_ns)]
    return Interval(min(ends), max(ends)).widen(ROUNDING_NS)


@dataclass
class Mesh:
    """All five."""

    net: Network
    nodes: list[Node]
    widths_ns: dict[str, list[int]] = field(default_factory=dict)
    """Of every bound on a member that was looked at, by its trust."""
    checked: int = 0

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    @property
    def living(self) -> list[Node]:
        return [node for node in self.nodes if node.process is not None]

    def log_of(self, name: str) -> str:
        return self.node(name).log.read_text()

    def start(self) -> None:
        """All at once."""
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            node.ready()

    def check_peers(self, answer: Answer, here: Node) -> set[str]:
        """Every bound that a node has on a peer holds the truth; returns which peers have one."""
        bounded = set()
        for row in answer.status["peers"]:
            if row["lower_ns"] is None:
                continue
            there = self.node(row["name"])
            bound = Interval(row["lower_ns"], row["upper_ns"])
            truth = truth_between(here, there, answer)
            assert bound.intersect(truth) is not None, f"{here.name} bounds {there.name} by {bound}; it is {truth}"
            # Were the truth less sure than the bound, this would show nothing.
            assert truth.width <= bound.width
            bounded.add(there.name)
            self.widths_ns.setdefault(row["trust"], []).append(bound.width)
            self.checked += 1
        return bounded

    def check_reference(self, answer: Answer, here: Node) -> str | None:
        """The bound on the reference holds the truth, where the reference is a node's wall clock."""
        told = answer.status
        scale = (told.get("mesh") or {}).get("timescale")
        if told["lower_ns"] is None or scale is None or scale["carried"]:
            return None
        bound = Interval(told["lower_ns"], told["upper_ns"])
        truth = truth_between(here, self.node(scale["origin"]), answer)
        assert bound.intersect(truth) is not None, f"{here.name} has {bound} of {scale}; it is {truth}"
        # The line that corrects times follows its bound slowly, and may be beside it: its uncertainty allows for that.
        assert truth.shift(-told["offset_ns"]).intersect(Interval(0, 0).widen(told["uncertainty_ns"])) is not None
        self.checked += 1
        return str(scale["origin"])

    def look(self) -> list[Answer]:
        """Asks all that live; every bound that they name holds the truth."""
        answers = []
        for here in self.living:
            answer = here.ask()
            self.check_peers(answer, here)
            self.check_reference(answer, here)
            answers.append(answer)
        return answers

    def until(self, true: Callable[[list[dict[str, Any]]], object], what: str) -> list[Answer]:
        """Looks, and looks again, until something is true of what all say; all bounds hold all the time."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            answers = self.look()
            if true([answer.status for answer in answers]):
                return answers
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {LIMIT_S:g} s: {what}\n{self.report(answers)}")
            time.sleep(0.05)

    def watch(self, looks: int) -> None:
        """Looks so many times."""
        for _ in range(looks):
            self.look()
            time.sleep(0.02)

    def report(self, answers: Iterable[Answer]) -> str:
        """For a failure's message."""
        lines = []
        for answer in answers:
            told = answer.status
            peers = {row["name"]: (row["state"], row["trust"], row["age_s"]) for row in told["peers"]}
            lines.append(f"{told['node']}: {told['status']} {told['reference']} {told['mesh']} {peers}")
            lines.append(f"    {told['messages']} {[link['trouble'] for link in told['links']]}")
        return "\n".join([*lines, *(f"-- {node.name}\n{node.log.read_text()[-2000:]}" for node in self.nodes)])


def agreed(told: Sequence[dict[str, Any]]) -> str | None:
    """The one reference that all name and know to be everybody's, if there is one and all have a bound on it."""
    scales = [(one.get("mesh") or {}).get("timescale") for one in told]
    if not all(one["mesh"] and one["mesh"]["agreed"] and one["offset_ns"] is not None for one in told):
        return None
    first = scales[0]
    return str(first["keeper"]) if first is not None and all(scale == first for scale in scales) else None


def whole(told: Sequence[dict[str, Any]]) -> bool:
    """Whether everybody has a bound on everybody else."""
    names = {one["node"] for one in told}
    return all(
        {row["name"] for row in one["peers"] if row["lower_ns"] is not None} >= names - {one["node"]} for one in told
    )


@contextlib.contextmanager
def mesh(
    net: Network, configure: Callable[[int], str], *, udp: bool = True, interval: str = "200ms", liars: int = 1
) -> Iterator[Mesh]:
    """Five daemons, not started yet; all ended at the end, and none of them before it.

    Args:
        configure: what a node of that number has in its ``[mesh]`` beyond the usual, and after it.
    """
    with tempfile.TemporaryDirectory(prefix="skd") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        key = directory / "mesh.key"
        generate_key_file(key)
        made = Mesh(net, [Node(net, index, directory) for index in range(len(NAMES))])
        for index, node in enumerate(made.nodes):
            listen = f"{address(index)}:{PORT}" if udp else "off"
            node.config.write_text(
                f'[node]\nname = "{node.name}"\nruntime_dir = "{node.directory}/run"\n'
                f'state_dir = "{node.directory}/state"\n[metrics]\nlisten = "off"\n'
                f'[sidecar]\ngrpc = "off"\nhttp = "off"\n'
                f'[mesh]\nkey_file = "{key}"\ninterval = "{interval}"\nlisten = "{listen}"\nliars = {liars}\n'
                f"{configure(index)}\n"
            )
        stack.callback(_end_all, made)
        yield made
        for node in made.living:
            assert node.process is not None
            assert node.process.poll() is None, f"{node.name} died\n{node.log.read_text()}"
        for node in made.living:
            assert node.end(signal.SIGTERM) == 0, node.log.read_text()


def _end_all(made: Mesh) -> None:
    for node in made.living:
        assert node.process is not None
        node.process.kill()
    for node in made.living:
        with contextlib.suppress(subprocess.TimeoutExpired):
            node.end(signal.SIGKILL)


def others(index: int) -> list[int]:
    """The numbers of the other nodes."""
    return [other for other in range(len(NAMES)) if other != index]


def over_udp(neighbours: Callable[[int], Iterable[int]] = others) -> Callable[[int], str]:
    """Who asks whom over UDP."""
    return lambda index: f"peers = {[f'{address(other)}:{PORT}' for other in neighbours(index)]}".replace("'", '"')


def over_zmq(index: int) -> str:
    """Everybody asks everybody over ZeroMQ."""
    peers = ", ".join(f'"tcp://{address(other)}:{PORT}"' for other in others(index))
    return f'[[link]]\ntransport = "zmq"\naddress = "tcp://{address(index)}:{PORT}"\npeers = [{peers}]'


def over_aeron(index: int) -> str:
    """Over Aeron's UDP, each with a driver of its own."""
    peers = ", ".join(f'"{address(other)}:{PORT}"' for other in others(index))
    return f'[[link]]\ntransport = "aeron"\naddress = "{address(index)}:{PORT}"\npeers = [{peers}]'


def over_aeron_ipc(directory: Path) -> Callable[[int], str]:
    """Over Aeron's shared memory: one driver for all, that runs in ``directory``."""

    def configure(index: int) -> str:
        peers = ", ".join(f'"{NAMES[other]}"' for other in others(index))
        return f'[[link]]\ntransport = "aeron"\naddress = "aeron:ipc"\ndirectory = "{directory}"\npeers = [{peers}]'

    return configure


def over_kafka(bootstrap: str, topic: str) -> Callable[[int], str]:
    """Over one topic of a broker that every namespace reaches on its loopback (:class:`Relay`)."""
    return lambda _: f'[[link]]\ntransport = "kafka"\naddress = "{bootstrap}"\ntopic = "{topic}"'


class Relay:
    """A TCP port of this machine's loopback, made reachable on the loopback of every namespace.

    A broker tells its clients the address at which it believes to be; behind this that is true everywhere. Closed and
    opened again it is a broker that restarts.
    """

    def __init__(self, net: Network, port: int) -> None:
        self._net, self._port = net, port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Relay:
        self._thread.start()
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT_S)
        self._loop.close()

    def open(self) -> None:
        """Listens."""
        sockets: list[socket.socket] = []

        def listen() -> None:
            for index in range(len(NAMES)):
                with self._net.inside(self._net.of(index)):
                    sockets.append(socket.create_server(("127.0.0.1", self._port)))

        maker = threading.Thread(target=listen)
        maker.start()
        maker.join(LIMIT_S)
        assert len(sockets) == len(NAMES)
        asyncio.run_coroutine_threadsafe(self._serve(sockets), self._loop).result(LIMIT_S)

    def close(self) -> None:
        """Closes every connection and every port."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(LIMIT_S)

    async def _serve(self, sockets: list[socket.socket]) -> None:
        self._servers = [await asyncio.start_server(self._on_client, sock=one) for one in sockets]

    async def _stop(self) -> None:
        for server in self._servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._servers = []

    async def _on_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError):
                there, back = await asyncio.open_connection("127.0.0.1", self._port)
                try:
                    await asyncio.gather(_pump(reader, back), _pump(there, writer))
                finally:
                    back.transport.abort()
        except asyncio.CancelledError:
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    raise ConnectionResetError  # one side is gone: so is the other


def gone(node: Node) -> bool:
    """Whether nobody answers there."""
    try:
        get_status(node.socket)
    except NoDaemonError:
        return True
    return False
