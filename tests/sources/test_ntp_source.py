"""The NTP source against a small server on loopback."""

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from typing import cast

import pytest

from skewd import kernel_stamps
from skewd.sources.ntp import NtpSample, NtpSource, State
from tests.sources.at_once import wall_minus_raw
from tests.waiting import until

S = 1_000_000_000
NTP_TO_UNIX_S = 2_208_988_800
INTERVAL_NS = 20_000_000
PATIENT_NS = 60 * S
"""Nobody who answers is too late."""
Reply = Callable[[bytes, int], list[bytes]]


class Clock:
    """A raw clock with an epoch of its own, and a wall clock that is wrong."""

    def __init__(self, epoch_ns: int = 10**15, wall_error_ns: int = 0) -> None:
        self.epoch_ns, self.wall_error_ns = epoch_ns, wall_error_ns

    def raw_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW) + self.epoch_ns

    def wall_ns(self) -> int:
        return time.time_ns() + self.wall_error_ns

    def at_host_raw(self, host_raw_ns: int) -> int:
        return host_raw_ns + self.epoch_ns


def stamp(unix_ns: int) -> int:
    return ((unix_ns + NTP_TO_UNIX_S * S) << 32) // S & ((1 << 64) - 1)


def packet(
    question: bytes,
    receive_ns: int,
    transmit_ns: int | None = None,
    *,
    stratum: int = 1,
    leap: int = 0,
    reference_id: bytes = b"GPS\0",
    origin: bytes | None = None,
) -> bytes:
    return struct.pack(
        "!BBbbII4sQ8sQQ",
        leap << 6 | 4 << 3 | 4,
        stratum,
        6,
        -23,
        0,
        66,
        reference_id,
        0,
        question[40:48] if origin is None else origin,
        stamp(receive_ns),
        stamp(time.time_ns() if transmit_ns is None else transmit_ns),
    )


class Server(asyncio.DatagramProtocol):
    """Answers each question with the datagrams that ``reply(question, received at)`` gives."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.questions: list[bytes] = []
        self.address = ""
        self.transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)
        self.address = "{}:{}".format(*transport.get_extra_info("sockname"))

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        received_ns = time.time_ns()
        self.questions.append(data)
        for answer in self.reply(data, received_ns):
            self.transport.sendto(answer, addr)


class Bench:
    """One server and one source."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.samples: list[NtpSample] = []
        self.server: Server
        self.source: NtpSource

    async def start(self, reply: Reply, *, interval_ns: int = INTERVAL_NS, timeout_ns: int = PATIENT_NS) -> None:
        _, self.server = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: Server(reply), local_addr=("127.0.0.1", 0)
        )
        await self.ask(self.server.address, interval_ns=interval_ns, timeout_ns=timeout_ns)

    async def ask(self, address: str, *, interval_ns: int = INTERVAL_NS, timeout_ns: int = PATIENT_NS) -> None:
        self.source = await NtpSource.open(
            "test", address, self.clock, self.samples.append, interval_ns, timeout_ns=timeout_ns
        )

    async def close(self) -> None:
        if hasattr(self, "source"):
            await self.source.close()
        if hasattr(self, "server"):
            self.server.transport.close()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.close()


async def test_samples_bound_the_truth(bench: Bench) -> None:
    await bench.start(lambda question, received: [packet(question, received)])
    assert str(bench.source.state) == "pending"
    await until(lambda: len(bench.samples) >= 5)
    utc_minus_raw = wall_minus_raw(bench.clock.raw_ns)
    for sample in bench.samples:
        (sent_raw, utc_after), (utc_before, received_raw) = sample.proofs()
        # The host's wall clock is UTC here; NTP may slew it by a little during the test.
        assert utc_before - received_raw - 100_000 <= utc_minus_raw <= utc_after - sent_raw + 100_000
        assert 0 <= sample.delay_ns < S
        assert (sample.stratum, sample.root_dispersion_ns) == (1, 1007081)
    assert bench.source.state is State.REACHABLE
    assert bench.source.reason is None
    assert bench.source.last == bench.samples[-1]
    assert len({question[40:] for question in bench.server.questions}) == len(bench.server.questions)


async def test_answers_to_another_question_are_counted_and_the_real_one_is_waited_for(bench: Bench) -> None:
    def reply(question: bytes, received: int) -> list[bytes]:
        return [
            packet(question, received - 50 * S, origin=b"whatever"),
            b"short",
            packet(question, received - 60 * S, origin=bytes(8)),
            packet(question, received),
        ]

    await bench.start(reply)
    await until(lambda: len(bench.samples) >= 2)
    assert bench.source.counters["wrong_origin"] >= 4
    assert bench.source.counters["malformed"] >= 2
    assert all(abs(sample.server_receive_ns - time.time_ns()) < 20 * S for sample in bench.samples)


async def test_only_wrong_origins_are_silence(bench: Bench) -> None:
    answers = [b"whatever"] * 40
    await bench.start(
        lambda question, received: [packet(question, received, origin=origin) for origin in answers], timeout_ns=S // 5
    )
    await until(lambda: bench.source.state is State.UNREACHABLE)
    assert bench.samples == []
    assert "did not answer within 0.2 s" in (bench.source.reason or "")
    assert bench.source.counters["timeouts"] >= 3


@pytest.mark.parametrize("code", [b"DENY", b"RSTR"])
async def test_a_server_that_sends_us_away_is_not_asked_again(bench: Bench, code: bytes) -> None:
    await bench.start(lambda question, received: [packet(question, received, stratum=0, leap=3, reference_id=code)])
    await until(lambda: bench.source.stopped)
    assert bench.source.state is State.UNREACHABLE
    assert len(bench.server.questions) == 1
    assert code.decode() in (bench.source.reason or "")
    assert "choose another server" in (bench.source.reason or "")


async def test_a_server_that_asks_for_less_gets_less(bench: Bench) -> None:
    def reply(question: bytes, received: int) -> list[bytes]:
        if len(bench.server.questions) <= 2:
            return [packet(question, received, stratum=0, reference_id=b"RATE")]
        return [packet(question, received)]

    await bench.start(reply)
    await until(lambda: bench.samples)
    assert bench.source.interval_ns == 4 * INTERVAL_NS
    assert bench.source.counters["kiss"] == 2
    assert bench.source.state is State.REACHABLE


async def test_a_forged_kiss_changes_nothing(bench: Bench) -> None:
    def reply(question: bytes, received: int) -> list[bytes]:
        forged = packet(question, received, stratum=0, reference_id=b"DENY", origin=b"whatever")
        return [forged, packet(question, received)]

    await bench.start(reply)
    await until(lambda: len(bench.samples) >= 3)
    assert not bench.source.stopped
    assert bench.source.counters["kiss"] == 0


async def test_a_server_without_the_time_is_unreachable_and_comes_back(bench: Bench) -> None:
    stratum = 16
    await bench.start(lambda question, received: [packet(question, received, stratum=stratum)])
    await until(lambda: bench.source.state is State.UNREACHABLE)
    assert bench.samples == []
    assert "not synchronized (stratum 16" in (bench.source.reason or "")
    stratum = 2
    await until(lambda: bench.source.state is State.REACHABLE)
    assert bench.source.reason is None


async def test_nobody_there(bench: Bench) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*free.getsockname())
    await bench.ask(address)
    await until(lambda: bench.source.state is State.UNREACHABLE)
    assert f"{address} can't be reached: Connection refused" in (bench.source.reason or "")
    assert not bench.source.stopped


async def test_a_name_that_does_not_resolve(bench: Bench) -> None:
    await bench.ask("no-such-host.invalid", timeout_ns=5 * S)
    await until(lambda: bench.source.reason is not None)
    assert "no-such-host.invalid does" in (bench.source.reason or "")


async def test_a_negative_delay_is_survived(bench: Bench) -> None:
    await bench.start(lambda question, received: [packet(question, received, received + S // 2)])
    await until(lambda: len(bench.samples) >= 2)
    assert bench.source.state is State.REACHABLE
    assert bench.source.counters["negative_delay"] >= 2
    for sample in bench.samples:
        assert sample.delay_ns < 0
        (sent_raw, utc_after), (utc_before, received_raw) = sample.proofs()
        assert utc_before - received_raw <= utc_after - sent_raw


async def test_the_era_is_the_local_wall_clock_s(bench: Bench) -> None:
    # A wall clock beyond the rollover of 2036, and a server that answers from there.
    ahead_ns = 12 * 365 * 86400 * S
    bench.clock = Clock(wall_error_ns=ahead_ns)
    await bench.start(lambda question, received: [packet(question, received + ahead_ns, received + ahead_ns)])
    await until(lambda: bench.samples)
    assert abs(bench.samples[0].server_receive_ns - bench.clock.wall_ns()) < 60 * S


async def test_a_listener_that_fails_does_not_end_the_source(bench: Bench) -> None:
    await bench.start(lambda question, received: [packet(question, received)])
    await bench.source.close()

    def fail(sample: NtpSample) -> None:
        bench.samples.append(sample)
        raise RuntimeError("of the listener's own")

    bench.samples.clear()
    bench.source = await NtpSource.open("test", bench.server.address, bench.clock, fail, INTERVAL_NS)
    await until(lambda: len(bench.samples) >= 3)


async def test_an_address_that_cannot_be_read(bench: Bench) -> None:
    with pytest.raises(ValueError, match="write host:port"):
        await bench.ask("host:port:more")


def two_addresses(monkeypatch: pytest.MonkeyPatch, first: str, second: str) -> list[str]:
    """``pool.test`` has both; returns the list of its resolutions so far."""
    resolved: list[str] = []
    real = socket.getaddrinfo

    def resolve(host: str, port: int, *more: object, **options: object) -> list[object]:
        if host != "pool.test":
            return list(real(host, port, *more, **options))  # type: ignore[arg-type]
        resolved.append(host)
        ends = [text.rpartition(":") for text in (first, second)]
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (address, int(port))) for address, _, port in ends]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return resolved


async def test_every_address_of_a_name_is_tried_and_the_one_that_answers_is_kept(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        dead = "{}:{}".format(*free.getsockname())
    await bench.start(lambda question, received: [packet(question, received)])
    await bench.source.close()
    resolved = two_addresses(monkeypatch, dead, bench.server.address)
    bench.samples.clear()
    await bench.ask("pool.test")
    await until(lambda: len(bench.samples) >= 3)
    assert bench.source.counters["failed"] == 1
    assert len(resolved) == 1
    assert bench.source.describe()["server"] == bench.server.address


async def test_a_name_is_resolved_again_when_none_of_its_addresses_answers(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        dead = "{}:{}".format(*free.getsockname())
    resolved = two_addresses(monkeypatch, dead, dead)
    await bench.ask("pool.test")
    await until(lambda: bench.source.state is State.UNREACHABLE)
    await until(lambda: len(resolved) >= 3)
    await bench.start(lambda question, received: [packet(question, received)])


async def test_one_address_that_sends_us_away_leaves_the_others(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.start(lambda question, received: [packet(question, received, stratum=0, reference_id=b"DENY")])
    await until(lambda: bench.source.stopped)
    await bench.source.close()
    _, kind = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: Server(lambda question, received: [packet(question, received)]), local_addr=("127.0.0.1", 0)
    )
    try:
        two_addresses(monkeypatch, bench.server.address, kind.address)
        await bench.ask("pool.test")
        await until(lambda: len(bench.samples) >= 3)
        assert len(bench.server.questions) == 2
        assert bench.source.state is State.REACHABLE
    finally:
        kind.transport.close()


async def test_a_leap_second_is_announced_while_the_server_does(bench: Bench) -> None:
    leap = 1
    await bench.start(lambda question, received: [packet(question, received, leap=leap)])
    await until(lambda: bench.source.leap == "insert")
    leap = 2
    await until(lambda: bench.source.leap == "delete")
    leap = 0
    await until(lambda: bench.source.leap == "none")


async def test_the_kernel_s_stamps_sharpen_ours(bench: Bench) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        if not kernel_stamps.ask_for_stamps(probe):
            pytest.skip("this kernel refuses SO_TIMESTAMPING")
        await bench.start(lambda question, received: [packet(question, received)])
        counters = bench.source.counters
        await until(lambda: counters["kernel_sent"] and counters["kernel_received"])


async def test_stamps_that_cannot_be_are_not_believed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver whose stamps are off by minutes: ours serve."""
    real = kernel_stamps.receive

    def wrong(sock: socket.socket, size: int) -> kernel_stamps.Received:
        return real(sock, size)._replace(wall_ns=time.time_ns() - 600 * S)

    monkeypatch.setattr(kernel_stamps, "receive", wrong)
    await bench.start(lambda question, received: [packet(question, received)])
    await until(lambda: bench.source.counters["kernel_unusable"] >= 3)
    counters = bench.source.counters
    assert counters["kernel_received"] == 0
    assert all(0 <= sample.delay_ns < S for sample in bench.samples)


async def test_a_driver_without_send_stamps_is_no_hindrance(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_receives(sock: socket.socket) -> bool:
        return asked(sock, sends=kernel_stamps.Sends.NOT)

    asked = kernel_stamps.ask_for_stamps
    monkeypatch.setattr(kernel_stamps, "ask_for_stamps", only_receives)
    await bench.start(lambda question, received: [packet(question, received)])
    await until(lambda: len(bench.samples) >= 3)
    assert bench.source.counters["kernel_sent"] == 0
    assert bench.source.state is State.REACHABLE
