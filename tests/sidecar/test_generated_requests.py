"""Ten thousand valid requests of every shape, through a served sidecar: nothing changes but what should.

Each is made by protobuf's classes from a seed, unknown fields at every level included, and so is what should become
of it (``exact.corrected``). What arrives is compared as the wire would have it, unknown fields too, whichever requests
were sent on together.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

from benchmarks.sidecar.sink import Account, Connection
from skewd_sidecar.gateway import Signal
from skewd_sidecar.patch import Mode
from tests.shares import first
from tests.sidecar.exact import MASK, OURS, REQUEST, corrected, items
from tests.sidecar.otlp_wire import UNKNOWN
from tests.sidecar.sidecar_lab import sidecar
from tests.waiting import LIMIT_S

REQUESTS = 2500  # in each of four tests
AT_A_TIME = 8
T0 = 1_790_000_000_000_000_000
TEXTS = ("", "a", "Grüße 世界 🌍", "\x00\n", "clock.offset_ns", "x" * 130, "y" * 17_000)
WEIGHTS = (4, 8, 4, 2, 2, 2, 0.02)
KEYS = (*sorted(OURS), "clock.mine", "http.route", "", "k" * 127, "k" * 128)
TIMES = (0, 1, 2_999_999, 3_000_000, 3_000_001, (1 << 63) - 1, 1 << 63, MASK - 1, MASK)


class Kept(Account):
    """A next hop that keeps what it gets."""

    def __init__(self) -> None:
        super().__init__(None)
        self.bodies: list[bytes] = []

    def take(self, body: bytes) -> int:
        self.bodies.append(body)
        return 0


class Maker:
    """Valid requests, from one source of chance."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.spans = 0

    def unknown(self, message: Any) -> None:
        """Now and then: fields that the message's own definition does not have."""
        if self.chance.random() < 0.1:
            for raw in self.chance.choices(UNKNOWN[:5], k=self.chance.randrange(1, 3)):
                message.MergeFromString(raw)

    def text(self) -> str:
        return self.chance.choices(TEXTS, WEIGHTS)[0]

    def time(self) -> int:
        return T0 + self.chance.randrange(1 << 40) if self.chance.random() < 0.9 else self.chance.choice(TIMES)

    def value(self, into: Any, depth: int = 0) -> None:
        kind = self.chance.randrange(8 if depth < 2 else 6)
        if kind == 0:
            into.string_value = self.text()
        elif kind == 1:
            into.bool_value = self.chance.random() < 0.5
        elif kind == 2:
            into.int_value = self.chance.getrandbits(64) - (1 << 63)
        elif kind == 3:
            into.double_value = self.chance.choice((0.1, -0.0, float("inf"), 5e-324, self.chance.random()))
        elif kind == 4:
            into.bytes_value = self.chance.randbytes(self.chance.randrange(4))
        elif kind == 6:
            into.array_value.SetInParent()
            for _ in range(self.chance.randrange(3)):
                self.value(into.array_value.values.add(), depth + 1)
        elif kind == 7:
            into.kvlist_value.SetInParent()
            self.attributes(into.kvlist_value.values, depth + 1)
        self.unknown(into)

    def attributes(self, into: Any, depth: int = 0) -> None:
        for _ in range(self.chance.choice((0, 0, 1, 2, 5))):
            one = into.add(key=self.chance.choice(KEYS))
            if one.key == "clock.corrected":
                one.value.bool_value = False  # corrections that arrive have tests of their own
            elif self.chance.random() < 0.95:
                self.value(one.value, depth)
            self.unknown(one)

    def request(self, signal: Signal) -> Any:
        request = REQUEST[signal]()
        spans = signal is Signal.TRACES
        for _ in range(self.chance.choice((0, 1, 1, 1, 2))):
            resource = (request.resource_spans if spans else request.resource_logs).add(schema_url=self.text())
            if self.chance.random() < 0.9:
                resource.resource.SetInParent()
                for name in ("service.name", "service.instance.id"):
                    self.value(resource.resource.attributes.add(key=name).value)
                self.unknown(resource.resource)
            for _ in range(self.chance.choice((0, 1, 1, 2))):
                scope = (resource.scope_spans if spans else resource.scope_logs).add(schema_url=self.text())
                scope.scope.name = self.text()
                self.attributes(scope.scope.attributes)
                for _ in range(self.chance.choice((0, 1, 1, 2, 3))):
                    self.span(scope.spans.add()) if spans else self.record(scope.log_records.add())
                self.unknown(scope)
            self.unknown(resource)
        self.unknown(request)
        return request

    def span(self, span: Any) -> None:
        self.spans += 1
        span.trace_id = self.chance.randbytes(16)
        span.span_id = self.spans.to_bytes(8, "big")
        span.name = self.text()
        span.kind = self.chance.randrange(9)  # some that no version knows yet
        span.flags = self.chance.getrandbits(32)
        span.trace_state = self.text()
        span.start_time_unix_nano = self.time()
        span.end_time_unix_nano = self.time()
        span.dropped_links_count = self.chance.getrandbits(32)
        self.attributes(span.attributes)
        for _ in range(self.chance.choice((0, 0, 1, 2))):
            event = span.events.add(name=self.text(), time_unix_nano=self.time())
            self.attributes(event.attributes)
            self.unknown(event)
        for _ in range(self.chance.choice((0, 0, 1))):
            link = span.links.add(trace_id=self.chance.randbytes(16), span_id=self.chance.randbytes(8))
            self.attributes(link.attributes)
            self.unknown(link)
        if self.chance.random() < 0.5:
            span.status.message = self.text()
            span.status.code = self.chance.randrange(4)
        self.unknown(span)

    def record(self, record: Any) -> None:
        self.spans += 1
        record.span_id = self.spans.to_bytes(8, "big")
        record.time_unix_nano = self.time()
        record.observed_time_unix_nano = self.time()
        record.severity_text = self.text()
        record.event_name = self.text()
        self.value(record.body)
        self.attributes(record.attributes)
        self.unknown(record)


def parts(request: Any, signal: Signal) -> Counter[bytes]:
    """What a request consists of, however requests are put together: its resources, and unknown fields of its own."""
    name = "resource_spans" if signal is Signal.TRACES else "resource_logs"
    found = Counter(each.SerializeToString(deterministic=True) for each in getattr(request, name))
    request.ClearField(name)
    rest = request.SerializeToString(deterministic=True)
    while rest:  # the unknown fields of a request are those of UNKNOWN, one after the other
        (one,) = (raw for raw in UNKNOWN[:5] if rest.startswith(raw))
        found[one] += 1
        rest = rest[len(one) :]
    return found


async def sent_through(bodies: list[bytes], signal: Signal, mode: Mode) -> list[bytes]:
    """What arrives behind a served sidecar, in whatever order."""
    kept = Kept()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(kept), "127.0.0.1", 0)
    left = iter(bodies)

    async def exporter(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for body in left:
            head = f"POST {signal.http_path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-protobuf\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LIMIT_S)
            assert answer.startswith(b"HTTP/1.1 200"), answer
            assert b"content-length: 0\r\n" in answer.lower(), answer
        writer.close()

    onward = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, sidecar(forward=onward, mode=mode) as running:
        await asyncio.gather(*(exporter(int(running.http.rpartition(":")[2])) for _ in range(AT_A_TIME)))
    return kept.bodies


@pytest.mark.parametrize("mode", first(1, [Mode.REWRITE, Mode.TAG]))
@pytest.mark.parametrize("signal", [Signal.TRACES, Signal.LOGS])
async def test_generated_requests_arrive_with_everything_but_times_and_ours_identical(
    signal: Signal, mode: Mode
) -> None:
    maker = Maker(REQUESTS)
    requests = [maker.request(signal) for _ in range(REQUESTS)]
    arrived = await sent_through([each.SerializeToString() for each in requests], signal, mode)
    wanted: Counter[bytes] = Counter()
    for request in requests:
        for item in items(request):
            corrected(item, mode)
        wanted += parts(request, signal)
    found: Counter[bytes] = Counter()
    for body in arrived:
        found += parts(REQUEST[signal].FromString(body), signal)
    assert sum(wanted.values()) > REQUESTS
    assert maker.spans > REQUESTS
    missing, extra = wanted - found, found - wanted
    assert not missing, f"{len(missing)} did not arrive as they should: {next(iter(missing))!r}"
    assert not extra
