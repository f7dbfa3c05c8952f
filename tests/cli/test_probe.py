"""`skewd probe`: one question, what its answer proves, and what is said when none comes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from skewd.cli import main
from skewd.clock import WallSample
from skewd.interval import Interval
from skewd.keys import generate_key_file
from skewd.probe import kinds_of
from skewd.probe_view import explain, from_ntp
from skewd.sources.ntp_wire import NtpSample
from skewd.wall import WallMap
from tests.cli.test_services import Service
from tests.waiting import LIMIT_S, wait_until

S = 1_000_000_000
MS = 1_000_000
AHEAD_NS = 250 * MS
NTP_TO_UNIX_S = 2_208_988_800
Reply = Callable[[bytes, int], list[bytes]]


def stamp(unix_ns: int) -> int:
    return ((unix_ns + NTP_TO_UNIX_S * S) << 32) // S


def packet(
    question: bytes, received_ns: int, *, stratum: int = 2, leap: int = 0, reference: bytes = b"\x0a\0\0\1"
) -> bytes:
    origin = question[40:48]
    first = struct.pack("!BBbbII4sQ8s", leap << 6 | 4 << 3 | 4, stratum, 6, -23, 65, 33, reference, 0, origin)
    return first + struct.pack("!QQ", stamp(received_ns + AHEAD_NS), stamp(time.time_ns() + AHEAD_NS))


class Server:
    """A UDP server on loopback that says what a function makes of each question."""

    def __init__(self, reply: Reply) -> None:
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind(("127.0.0.1", 0))
        self._sock.settimeout(0.05)
        self.address = f"127.0.0.1:{self._sock.getsockname()[1]}"
        self._reply = reply
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._ended.is_set():
            try:
                question, source = self._sock.recvfrom(2048)
            except TimeoutError:
                continue
            for answer in self._reply(question, time.time_ns()):
                self._sock.sendto(answer, source)

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._sock.close()


@pytest.fixture
def serve() -> Iterator[Callable[[Reply], str]]:
    servers: list[Server] = []

    def start(reply: Reply) -> str:
        servers.append(Server(reply))
        return servers[-1].address

    yield start
    for server in servers:
        server.close()


def test_an_ntp_server(serve: Any, capsys: pytest.CaptureFixture[str]) -> None:
    address = serve(lambda question, at: [packet(question, at)])
    assert main(["probe", address, "--timeout", "60s", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["type"], told["address"], told["stratum"], told["name"]) == ("ntp", address, 2, "10.0.0.1")
    assert told["lower_ns"] <= AHEAD_NS <= told["upper_ns"]
    assert told["at_least_ns"] <= AHEAD_NS <= told["at_most_ns"]
    assert told["root_delay_ns"] == 991_822
    assert told["error_ns"] > 991_822 // 2 + told["root_dispersion_ns"]
    assert told["uncertainty_ns"] <= (told["rtt_ns"] + 2 * told["error_ns"]) // 2 + 10_000
    assert told["error"] is None
    assert main(["probe", address, "--as", "ntp", "--timeout", "60s"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{address} is an NTP server; this clock is ")
    assert "behind UTC" in out


def test_a_server_that_follows_its_own_clock_is_said_to(serve: Any, capsys: pytest.CaptureFixture[str]) -> None:
    address = serve(lambda question, at: [packet(question, at, stratum=1, reference=b"LOCL")])
    assert main(["probe", address, "--timeout", "60s", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["own_clock"] == "its reference id is 'LOCL'"
    assert main(["probe", address, "--as", "ntp", "--timeout", "60s"]) == 0
    assert "this is not UTC" in capsys.readouterr().out


GOLDEN = """\
192.0.2.1:123 is an NTP server; this clock is 1.5 ms ahead of UTC (+-3.1 ms) by what the server says

  question    left here before it arrived there: UTC - here is at most +1.5011ms
  answer      left there before it arrived here: UTC - here is at least -4.5011ms
  bound       -4.5011ms to +1.5015ms, 6.01ms wide, however unequal the two ways are
  round trip  6ms on the way, 2ms there
  server      within 1us of UTC, by its own account: root delay 0ns / 2 + root dispersion 999ns + precision 1ns
  stratum     1 (reference GPS)
  leap        none announced
"""


def still_wall(until_ns: int) -> WallMap:
    """A wall clock that equals the raw clock and is known to stand still against it."""
    wall = WallMap(WallSample(0, Interval(0, 0)))
    for at in range(0, until_ns, 100 * MS):
        wall.sample(WallSample(at, Interval(0, 0)))
    wall.sample(WallSample(until_ns, Interval(0, 0)))
    return wall


def sample(sent: int, arrived: int, left: int, received: int) -> NtpSample:
    return NtpSample(sent, received, arrived, left, 0, 999, 0, 1, 1, 6, int.from_bytes(b"GPS\0", "big"))


def test_it_is_explained_with_exact_numbers() -> None:
    asked = sample(2900 * MS, 2901_500_000, 2903_500_000, 2908 * MS)
    wall = still_wall(2908 * MS)
    found = from_ntp(asked, wall, address="192.0.2.1:123", drift_ppm=50, wander_ppb_per_s=10)
    assert explain(found) == GOLDEN


def test_a_server_that_contradicts_itself_only_widens() -> None:
    # It claims to have held the question for longer than the whole exchange took.
    asked = sample(2900 * MS, 2901 * MS, 2903 * MS, 2901 * MS)
    found = from_ntp(asked, still_wall(2901 * MS), address="x", drift_ppm=50, wander_ppb_per_s=10)
    assert found.rtt_ns == -MS
    assert found.error_ns == MS + 1000
    assert found.at_least_ns <= found.at_most_ns


def with_peer(tmp_path: Path, services: list[Service], *more: str) -> str:
    file = tmp_path / "peer.toml"
    file.write_text(
        f'[node]\nname = "there"\nruntime_dir = "{tmp_path}/run"\nstate_dir = "{tmp_path}"\n'
        '[metrics]\nlisten = "off"\n[mesh]\nlisten = "127.0.0.1:0"\n' + "".join(more or ('key = "none"\n',))
    )
    services.append(Service("run", "--config", str(file), "--virtual-clock", "offset=-7ms", directory=tmp_path))
    return str(services[-1].ready()["mesh"])


@pytest.fixture
def services() -> Iterator[list[Service]]:
    started: list[Service] = []
    yield started
    for service in started:
        service.close()


def test_a_peer(tmp_path: Path, services: list[Service], capsys: pytest.CaptureFixture[str]) -> None:
    address = with_peer(tmp_path, services)
    assert main(["probe", address, "--timeout", "60s", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["type"], told["name"], told["max_drift_ppm"]) == ("peer", "there", 100)
    assert told["lower_ns"] <= -7 * MS <= told["upper_ns"]
    assert told["at_least_ns"] <= -7 * MS <= told["at_most_ns"]
    # Little more than the round trip: what the clocks may have been slewed by meanwhile grows with it.
    assert told["upper_ns"] - told["lower_ns"] < 1.01 * told["rtt_ns"] + 100_000 + 2 * told["error_ns"]
    assert main(["probe", address, "--timeout", "60s"]) == 0
    out = capsys.readouterr().out
    assert f"{address} is the skewd node there; this clock is " in out
    assert "ahead of there" in out
    # It believed nothing of what the probe said about itself.
    assert main(["status", "--json", "--config", str(tmp_path / "peer.toml")]) == 0
    assert json.loads(capsys.readouterr().out)["peers"] == []


def test_a_peer_answers_its_own_key_only(
    tmp_path: Path, services: list[Service], capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "mesh.key"
    generate_key_file(key)
    address = with_peer(tmp_path, services, f'key_file = "{key}"\n')
    words = ["probe", address, "--as", "peer"]
    assert main([*words, "--timeout", "300ms"]) == 1
    err = capsys.readouterr().err
    assert f"no answer from a skewd node on {address} within 0.3 s" in err
    assert "keeps silent to another mesh key ([mesh] key_file)" in err
    assert main([*words, "--timeout", "60s", "--config", str(tmp_path / "peer.toml")]) == 0
    assert "this clock is" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (lambda q, at: [packet(q, at, stratum=0, reference=b"RATE")], "refuses with 'RATE': ask it less often"),
        (lambda q, at: [packet(q, at, stratum=0, reference=b"DENY")], "refuses with 'DENY': it serves others only"),
        (lambda q, at: [packet(q, at, leap=3)], "answered, but gives no time: the server is not synchronized"),
        (lambda q, at: [b"what?"], "answered as no NTP server would"),
        (lambda q, at: [packet(bytes(48), at)], "answered as no NTP server would"),
        (lambda q, at: [], "no answer from an NTP server on 127.0.0.1:"),
    ],
)
def test_what_gives_no_time(serve: Any, capsys: pytest.CaptureFixture[str], reply: Reply, says: str) -> None:
    address = serve(reply)
    # Where something else may still come it waits for the whole time: give it more only where this machine is slow.
    for timeout in ("200ms", "5s", "60s"):
        assert main(["probe", address, "--as", "ntp", "--timeout", timeout, "--json"]) == 1
        told = json.loads(capsys.readouterr().out)
        assert told["offset_ns"] is None
        if says in told["error"]:
            break
    assert says in told["error"]
    assert main(["probe", address, "--as", "ntp", "--timeout", timeout]) == 1
    assert says in capsys.readouterr().err


CHRONYD = shutil.which("chronyd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@pytest.mark.skipif(CHRONYD is None or os.geteuid() != 0, reason="needs chronyd, and root to start it")
def test_chronyd(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    file = tmp_path / "chrony.conf"
    file.write_text(
        f"port {port}\nbindaddress 127.0.0.1\nallow 127.0.0.1\nlocal stratum 5\ncmdport 0\nbindcmdaddress /\n"
        f"pidfile {tmp_path}/chronyd.pid\n"
    )
    assert CHRONYD is not None
    # It serves this machine's clock and must never be able to touch it.
    powerless = ["setpriv", "--bounding-set", "-sys_time", "--inh-caps", "-sys_time"]
    words = [*powerless, CHRONYD, "-x", "-d", "-u", "root", "-f", str(file)]
    with (tmp_path / "chronyd.err").open("wb") as errors:
        process = subprocess.Popen(words, stdout=errors, stderr=errors)
    try:
        address = f"127.0.0.1:{port}"
        wait_until(lambda: main(["probe", address, "--as", "ntp", "--json"]) == 0, "chronyd answers")
        told = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert told["stratum"] == 5
        assert told["lower_ns"] <= 0 <= told["upper_ns"]  # its clock is ours
        assert told["held_ns"] >= 0
    finally:
        # A chronyd that is about to wait for its sockets may sleep over the signal: it is told again.
        for _ in range(10):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=3)
                break
        else:
            process.kill()
            process.wait(timeout=LIMIT_S)


def test_others_answers_are_passed_over(serve: Any) -> None:
    address = serve(lambda question, at: [packet(bytes(48), at), b"", packet(question, at)])
    assert main(["probe", address, "--timeout", "60s"]) == 0


def test_a_lost_question_is_repeated(serve: Any) -> None:
    heard: list[bytes] = []

    def deaf_at_first(question: bytes, at: int) -> list[bytes]:
        heard.append(question)
        return [packet(question, at)] if len(heard) > 1 else []

    assert main(["probe", serve(deaf_at_first), "--as", "ntp", "--timeout", "60s"]) == 0
    assert len(heard) >= 2


def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    assert main(["probe", f"127.0.0.1:{port}"]) == 1
    err = capsys.readouterr().err
    assert f"nobody listens on 127.0.0.1:{port}/udp (asked as an NTP server)" in err
    assert "(asked as a skewd node)" in err


def test_a_name_that_never_resolves(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ended = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: ended.wait(LIMIT_S) and [])
    assert main(["probe", "time.example", "--as", "ntp", "--timeout", "100ms"]) == 1
    ended.set()
    assert "time.example did not resolve in time" in capsys.readouterr().err


def test_beyond_this_machine_a_key_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "192.0.2.1", "--as", "peer", "--timeout", "100ms"]) == 1
    assert "nodes answer only with the mesh's key; name it in [mesh] key_file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "kind", "asked"),
    [
        ("a", None, [("ntp", "a", 123), ("peer", "a", 9957)]),
        ("a:123", None, [("ntp", "a", 123)]),
        ("[::1]:9957", None, [("peer", "::1", 9957)]),
        ("::1", "ntp", [("ntp", "::1", 123)]),
        ("a:1", None, [("ntp", "a", 1), ("peer", "a", 1)]),
        ("a:123", "peer", [("peer", "a", 123)]),
    ],
)
def test_what_is_asked(address: str, kind: str | None, asked: list[tuple[str, str, int]]) -> None:
    assert kinds_of(address, kind) == asked


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["a:b:c"], "is not an address"),
        (["127.0.0.1:0"], "names port 0"),
        (["a", "--as", "ptp"], "--as: 'ptp' is unknown"),
        (["a", "--timeout", "2"], "--timeout: '2' has no unit"),
        ([], "ADDRESS"),
    ],
)
def test_wrong_words(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", *words]) == 64
    assert says in capsys.readouterr().err
