"""Kernel stamps on real sockets over loopback, against user space's own."""

from __future__ import annotations

import itertools
import select
import socket
import time
from collections.abc import Iterator

import pytest

from skewd import kernel_stamps
from skewd.clock import HostClock, VirtualClock, VirtualPage, read_wall
from skewd.kernel_stamps import Sends, SocketStamps, ask_for_stamps, receive, sent
from skewd.stamps import raw_of_stamp
from tests.waiting import LIMIT_S

S = 1_000_000_000


@pytest.fixture(params=[(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["ipv4", "ipv6"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A sender that is connected to a receiver."""
    family, host = request.param
    with socket.socket(family, socket.SOCK_DGRAM) as sender, socket.socket(family, socket.SOCK_DGRAM) as receiver:
        try:
            receiver.bind((host, 0))
        except OSError as error:
            pytest.skip(f"no {host} here: {error.strerror}")
        sender.connect(receiver.getsockname())
        for each in (sender, receiver):
            each.setblocking(False)
        yield sender, receiver


def wait(sock: socket.socket, events: int) -> int:
    poll = select.poll()
    poll.register(sock, events)
    ready = poll.poll(LIMIT_S * 1000)
    assert ready, "nothing came"
    return ready[0][1]


def until_stamped(sender: socket.socket, receiver: socket.socket) -> int:
    """The kernel begins to stamp a little after it is asked to: how many packets came before."""
    end = time.monotonic() + LIMIT_S
    for number in itertools.count(1):
        sender.send(b"first")
        wait(receiver, select.POLLIN)
        sent(sender)
        if receive(receiver, 100).wall_ns is not None:
            return number
        assert time.monotonic() < end, "no stamp"
    raise AssertionError


def test_both_ends_are_stamped_and_the_stamps_lie_between_ours(pair: tuple[socket.socket, socket.socket]) -> None:
    sender, receiver = pair
    if not (ask_for_stamps(sender) and ask_for_stamps(receiver, sends=Sends.NOT)):
        pytest.skip("this kernel refuses SO_TIMESTAMPING")
    host = HostClock()
    skipped = until_stamped(sender, receiver)
    for number in range(skipped, skipped + 20):
        before = read_wall(host)
        asked = host.raw_ns()
        sender.send(b"x" * number)
        wait(sender, 0)
        stamps = sent(sender)
        wait(receiver, select.POLLIN)
        received = receive(receiver, 60_000)
        answered = host.raw_ns()
        after = read_wall(host)
        assert (received.data, received.address[:2]) == (b"x" * number, sender.getsockname()[:2])
        assert [stamp.number for stamp in stamps] == [number]
        assert received.wall_ns is not None
        left = raw_of_stamp(stamps[0].wall_ns, before, after, 1_000_000)
        came = raw_of_stamp(received.wall_ns, before, after, 1_000_000)
        assert left is not None
        assert came is not None
        assert asked <= left.hi
        assert left.lo <= came.hi
        assert came.lo <= answered
    # The error queue is empty again: nothing to wake up for.
    poll = select.poll()
    poll.register(sender, 0)
    assert poll.poll(0) == []
    assert sent(sender) == []


def test_without_the_option_there_are_no_stamps(pair: tuple[socket.socket, socket.socket]) -> None:
    sender, receiver = pair
    sender.send(b"data")
    wait(receiver, select.POLLIN)
    assert receive(receiver, 3)[::2] == (b"dat", None)
    assert sent(sender) == []
    with pytest.raises(BlockingIOError):
        receive(receiver, 100)


def test_an_icmp_error_is_the_receiver_s_business(pair: tuple[socket.socket, socket.socket]) -> None:
    sender, receiver = pair
    ask_for_stamps(sender)
    receiver.close()
    sender.send(b"to nobody")
    wait(sender, 0)
    with pytest.raises(ConnectionRefusedError):
        receive(sender, 100)
    assert [stamp.number for stamp in sent(sender)] in ([0], [])


def test_a_virtual_node_reads_its_own_raw_clock_at_the_host_s_instants() -> None:
    clock = VirtualClock(VirtualPage.create(None, drift_ppb=80_000, epoch_ns=10**15, at_host_raw_ns=0))
    host = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
    assert clock.at_host_raw(host) == host + 10**15 + host * 80_000 // S
    before = clock.at_host_raw(HostClock().raw_ns())
    between = clock.raw_ns()
    assert before <= between <= clock.at_host_raw(HostClock().raw_ns())
    assert HostClock().at_host_raw(5) == 5


class _Shifted:
    """Made-up clocks of the host: raw as it is, wall at a difference that a test sets."""

    virtual = False

    def __init__(self) -> None:
        self.raw, self.wall_minus_raw = 10 * S, 1_790_000_000 * S

    def raw_ns(self) -> int:
        self.raw += 100
        return self.raw

    def wall_ns(self) -> int:
        self.raw += 100
        return self.raw + self.wall_minus_raw

    def at_host_raw(self, host_raw_ns: int) -> int:
        return host_raw_ns + 7 * S


@pytest.fixture
def shifted(monkeypatch: pytest.MonkeyPatch) -> _Shifted:
    clock = _Shifted()
    monkeypatch.setattr(kernel_stamps, "_HOST", clock)
    return clock


class TestEarliest:
    def test_it_is_not_later_than_the_send_and_hardly_earlier(self, shifted: _Shifted) -> None:
        stamps = SocketStamps(shifted, lambda: 500_000)
        before = stamps.look()
        user = shifted.raw_ns()
        left = shifted.raw_ns() + 30_000
        shifted.raw = left + 5_000
        earliest = stamps.earliest_ns(left + shifted.wall_minus_raw, before, user + 7 * S, shifted.raw_ns() + 7 * S)
        assert earliest is not None
        assert user + 7 * S <= left + 7 * S - 500 < earliest <= left + 7 * S

    @pytest.mark.parametrize("step_ns", [-1_000_000, -5_000, 5_000, 1_000_000])
    def test_a_step_in_between_makes_it_useless_whichever_side_it_is_on(self, shifted: _Shifted, step_ns: int) -> None:
        for stepped_first in (False, True):
            stamps = SocketStamps(shifted, lambda: 500_000)
            before = stamps.look()
            user = shifted.raw_ns()
            if stepped_first:
                shifted.wall_minus_raw += step_ns
            left = shifted.raw_ns() + 10_000
            stamp = left + shifted.wall_minus_raw
            shifted.raw = left
            if not stepped_first:
                shifted.wall_minus_raw += step_ns
            earliest = stamps.earliest_ns(stamp, before, user + 7 * S, shifted.raw_ns() + 7 * S)
            assert earliest is None

    def test_what_contradicts_our_own_readings_is_not_used(self, shifted: _Shifted) -> None:
        stamps = SocketStamps(shifted, lambda: 500_000)
        before = stamps.look()
        user = shifted.raw_ns()
        for off in (-50_000, 50_000):
            stamp = user + shifted.wall_minus_raw + off
            assert stamps.earliest_ns(stamp, before, user + 7 * S, shifted.raw_ns() + 7 * S) is None

    def test_user_space_s_own_stamp_is_the_least(self, shifted: _Shifted) -> None:
        stamps = SocketStamps(shifted, lambda: 500_000)
        before = stamps.look()
        user = shifted.raw_ns()
        stamp = user + shifted.wall_minus_raw  # at once: the reading's width would round it to before
        assert stamps.earliest_ns(stamp, before, user + 7 * S, shifted.raw_ns() + 7 * S) == user + 7 * S
