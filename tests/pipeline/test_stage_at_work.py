"""One stage at work, its neighbours played by the test: which messages it says it handled, drops, sends when."""

from __future__ import annotations

import gc
import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from skewd_pipeline.corpus import load_items, save_items
from skewd_pipeline.items import Expected
from skewd_pipeline.spans import HOST_RAW, HOST_RAW_AFTER, HOST_RAW_SENT, HOST_RAW_SENT_AFTER, SpanRecord, spans_of
from skewd_pipeline.stage_orders import Cell, StageConfig
from skewd_pipeline.transports import HopConfig, Inbox, Message, Outbox, open_inbox, open_outbox
from skewd_pipeline.worker import CELL_HEADER, ID_HEADER, ITEM_HEADER, SENT_HEADER, Commands, Stage
from tests.waiting import LIMIT_S

MS = 1_000_000
SECOND = 1_000_000_000


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Expected]]:
    """Three files and what a model of one line says about them."""
    directory = tmp_path_factory.mktemp("items")
    for name in ("one", "two", "three"):
        (directory / f"{name}.py").write_text(f"# {name}\n" * 40)
    (directory / "atwork.py").write_text("def label(body: bytes) -> str:\n    return str(len(body) % 7)\n")
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(directory))
        save_items(
            directory / "items", "atwork:label", count=3, cache_dir=directory / "cache", roots={"made": directory}
        )
    return directory / "items", load_items(directory / "items")


@pytest.fixture
def backend() -> Iterator[tuple[str, list[bytes]]]:
    """An OTLP/HTTP endpoint and the bodies it was given."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", bodies
        server.shutdown()
        thread.join()


class Bench:
    """A stage and the ends of its neighbours' hops."""

    def __init__(self, name: str, items: Path, otlp: str, directory: Path, **more: Any) -> None:
        before, after = (HopConfig("zmq", "a", name, endpoint=f"ipc://{directory}/in"),
                         HopConfig("zmq", name, "b", endpoint=f"ipc://{directory}/out"))  # fmt: skip
        self.stage = Stage(StageConfig(name, "", {"off": otlp}, None, str(items), **more), Commands(reads=False))
        self.outbox: Outbox | None = None
        self.inbox: Inbox | None = None
        if name != "producer":
            self.stage.listen(before)
            self.outbox = open_outbox(before)
        if name != "consumer":
            self.inbox = open_inbox(after)
            self.stage.connect(after)

    def run(self, messages: list[Message], **cell: Any) -> dict[str, Any]:
        """Gives these to the stage once it is armed; what it says of the cell. What it sent waits in the inbox."""

        def armed(_: str) -> None:
            for message in messages:
                assert self.outbox is not None
                self.outbox.send(message)

        told = Cell("c", "zmq", cell.pop("count", len(messages)), cell.pop("floor_ns", 0), ["off"], **cell)
        outcome = self.stage.cell(told, armed=armed)
        assert self.stage.flush()
        return outcome

    def arrived(self, count: int) -> list[Message]:
        """So many of the messages that the stage sent on."""
        assert self.inbox is not None
        found = []
        for _ in range(count):
            message = self.inbox.receive(LIMIT_S)
            assert message is not None
            found.append(message)
        assert self.inbox.receive(0) is None
        return found

    def close(self) -> None:
        for end in (self.stage, self.outbox, self.inbox):
            if end is not None:
                end.close()


Made = Callable[..., Bench]


@pytest.fixture
def bench(items: tuple[Path, list[Expected]], backend: tuple[str, list[bytes]], tmp_path: Path) -> Iterator[Made]:
    made: list[Bench] = []

    def make(name: str, **more: Any) -> Bench:
        made.append(Bench(name, items[0], backend[0], tmp_path, **more))
        return made[0]

    yield make
    for each in made:
        each.close()
    gc.unfreeze()


def spans(backend: tuple[str, list[bytes]]) -> list[SpanRecord]:
    found = [span for body in backend[1] for span in spans_of(body)]
    return sorted(found, key=lambda span: span.start_ns)


def raw_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)


def message(number: int, body: bytes, *, digest: str = "d", cell: str = "c", aged_ns: int | None = 0) -> Message:
    headers = {CELL_HEADER: cell, ID_HEADER: f"{cell}/{number}", ITEM_HEADER: digest}
    if aged_ns is not None:
        headers[SENT_HEADER] = str(time.time_ns() - aged_ns)
    return Message(headers, body)


def test_a_message_that_a_stages_own_clock_calls_too_old_is_dropped(
    bench: Made, backend: tuple[str, list[bytes]]
) -> None:
    body = zlib.compress(b"x")
    stage = bench("preprocess", max_age_ns=3600 * SECOND)
    # Of a producer whose clock is behind this one's by more than a message may be old; or this one's is ahead.
    outcome = stage.run(
        [
            message(0, body),
            message(1, body, aged_ns=2 * 3600 * SECOND),
            message(2, body, aged_ns=-2 * 3600 * SECOND),
            message(3, body, aged_ns=None),
        ]
    )
    assert (outcome["received"], outcome["too_old"], outcome["handled"]) == (4, 1, "xxxx")
    assert [each.headers[ID_HEADER] for each in stage.arrived(3)] == ["c/0", "c/2", "c/3"]
    dropped = [span for span in spans(backend) if "message.dropped" in span.events]
    assert [span.attributes["messaging.message.id"] for span in dropped] == ["c/1"]
    assert "message.sent" not in dropped[0].events
    assert len(spans(backend)) == 4, "what is dropped has a span all the same"


def test_no_age_is_too_old_unless_that_is_asked_for(bench: Made) -> None:
    stage = bench("preprocess")
    outcome = stage.run([message(0, zlib.compress(b"x"), aged_ns=10**6 * SECOND)])
    assert (outcome["too_old"], outcome["handled"]) == (0, "x")


def test_a_stage_says_of_each_message_whether_it_had_it(bench: Made) -> None:
    body = zlib.compress(b"x")
    stage = bench("preprocess")
    others = [message(0, body, cell="before"), message(9, body)]
    outcome = stage.run([*others, message(3, body), message(1, b"not compressed"), message(3, body), message(3, body)],
                        count=5)  # fmt: skip
    # What is another cell's, or none of this one's, is noted nowhere; what could not be worked on was here.
    assert outcome["handled"] == "-x-x-"
    assert (outcome["received"], outcome["strange"], outcome["failed"]) == (5, 1, 1)
    assert [each.headers[ID_HEADER] for each in stage.arrived(4)] == ["c/9", "c/3", "c/3", "c/3"]


def test_a_stage_that_hears_nothing_ends_by_itself_if_it_may(bench: Made) -> None:
    outcome = bench("preprocess").run([], count=2, idle_limit_s=0.1)
    assert (outcome["received"], outcome["handled"]) == (0, "--")


def test_the_consumer_says_which_answers_were_right(bench: Made, items: tuple[Path, list[Expected]]) -> None:
    item, other = items[1][:2]

    def answer(number: int, of: Expected, label: str) -> Message:
        body = json.dumps({"item": item.digest, "digest": of.digest, "label": label}).encode()
        return message(number, body, digest=item.digest)

    stage = bench("consumer")
    right, wrong, mistaken = answer(0, item, item.label), answer(1, item, "another"), answer(3, other, other.label)
    outcome = stage.run([right, wrong, mistaken, mistaken])
    assert (outcome["handled"], outcome["correct"]) == ("cw-w", 1)


def test_the_producer_sends_when_it_is_told_to_and_stamps_between_two_readings(
    bench: Made, backend: tuple[str, list[bytes]], items: tuple[Path, list[Expected]]
) -> None:
    at_s = [0.0, 0.06, 0.07]
    stage, before_ns = bench("producer"), raw_ns()
    outcome = stage.run([], count=3, floor_ns=2 * MS, rate=1_000.0, items=[0, 2, 1], sent_at_s=at_s)
    assert (outcome["sent"], outcome["handled"]) == (3, "xxx")
    sent = stage.arrived(3)
    assert [each.headers[ID_HEADER] for each in sent] == ["c/0", "c/1", "c/2"]
    assert [each.headers[ITEM_HEADER] for each in sent] == [items[1][number].digest for number in (0, 2, 1)]
    found = spans(backend)
    for span, message, after_s in zip(found, sent, at_s, strict=True):
        readings = [int(span.attributes[name]) for name in (HOST_RAW, HOST_RAW_AFTER, HOST_RAW_SENT)]
        readings.append(int(span.attributes[HOST_RAW_SENT_AFTER]))
        assert readings == sorted(readings)
        assert readings[2] - readings[1] >= 2 * MS * 0.99, "the floor is worked for in between"
        # Not before its time; how long after is the machine's. Two clocks may run 0.1 % apart.
        assert readings[0] - before_ns >= after_s * SECOND * 0.999
        assert span.start_ns <= int(message.headers[SENT_HEADER]) <= span.events["message.sent"]


def test_without_times_of_its_own_the_producer_sends_evenly(bench: Made, backend: tuple[str, list[bytes]]) -> None:
    stage, before_ns = bench("producer"), raw_ns()
    stage.run([], count=3, rate=50.0, items=[0, 0, 0])
    for number, span in enumerate(spans(backend)):
        assert int(span.attributes[HOST_RAW]) - before_ns >= number * 20 * MS * 0.999
