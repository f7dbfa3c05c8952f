"""Calls between two stages: one asks, waits and is answered, as the pipeline's own messages never do.

The problem: what trace tools' heuristics are made for are calls, and the pipeline passes messages on without waiting.
The insight: its stages are processes on nodes with clocks of their own; let the reference's one ask the skewed one for
a document, over a socket of their own, and the same SDK, sidecars and bounds tell a trace of a call. Questions are
short and answers are long, so the way back takes longer, as it does in life; and when it has answered, the server
writes a record of it, under a span that nobody waits for.

A trace: ``request`` (the client's root), ``client`` inside it, ``server`` (the other host's), ``audit`` (its
asynchronous child).

Limits: one call at a time; an answer that takes longer than ``ANSWER_LIMIT_MS`` ends the run.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from typing import Any

import zmq
from opentelemetry.trace import Span, SpanKind, set_span_in_context

from skewd_pipeline.spans import CELL, HOST_RAW, ROLE
from skewd_pipeline.stage_orders import Cell
from skewd_pipeline.telemetry import Telemetry

ANSWER_LIMIT_MS = 10_000
POLL_MS = 20
QUESTION = b"?" * 200
ANSWER_BYTES = 256 << 10
AUDIT_S = 0.001


def _host_raw_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)


def _described(span: Span, cell: Cell, role: str, host_raw_ns: int) -> None:
    span.set_attributes({CELL: cell.name, ROLE: role, HOST_RAW: host_raw_ns})


def serve_calls(
    cell: Cell, telemetry: Telemetry, *, listening: Callable[[str], None], ended: Callable[[], bool],
    idle: Callable[[], None],
) -> int:  # fmt: skip
    """Answers until ``ended``; how many calls.

    Args:
        listening: told the address.
        idle: called while nobody asks.
    """
    document = bytes(ANSWER_BYTES)
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REP)
    answered = 0
    try:
        socket.linger = 0
        listening(f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}")
        while not ended():
            if not socket.poll(POLL_MS):
                idle()
                continue
            headers, question = socket.recv_multipart()
            begun_ns = time.monotonic_ns()
            host_raw_ns = _host_raw_ns()
            context = telemetry.propagator.extract(json.loads(headers))
            span = telemetry.tracer.start_span("document", context=context, kind=SpanKind.SERVER)
            _described(span, cell, "server", host_raw_ns)
            digest = hashlib.sha256(question + document).digest()
            rest_s = (begun_ns + cell.floor_ns - time.monotonic_ns()) / 1e9
            if rest_s > 0:
                time.sleep(rest_s)
            span.end()
            socket.send_multipart((digest, document))
            answered += 1
            host_raw_ns = _host_raw_ns()
            audit = telemetry.tracer.start_span("audit", context=set_span_in_context(span))
            _described(audit, cell, "audit", host_raw_ns)
            hashlib.sha256(document).digest()
            time.sleep(AUDIT_S)
            audit.end()
    finally:
        socket.close()
    return answered


def make_calls(
    cell: Cell, telemetry: Telemetry, address: str, *, ended: Callable[[], bool], wait: Callable[[float], None]
) -> int:
    """Asks ``cell.messages`` times at ``cell.rate``; how many answers were right.

    Raises:
        zmq.Again: no answer came in time.
    """
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
    right = 0
    expected = hashlib.sha256(QUESTION + bytes(ANSWER_BYTES)).digest()
    try:
        socket.linger = 0
        socket.rcvtimeo = ANSWER_LIMIT_MS
        socket.connect(address)
        begun_ns = time.monotonic_ns()
        for number in range(cell.messages):
            wait_ns = begun_ns + round(number / (cell.rate or 40.0) * 1e9) - time.monotonic_ns()
            if wait_ns > 0:
                wait(wait_ns / 1e9)
            if ended():
                break
            host_raw_ns = _host_raw_ns()
            request = telemetry.tracer.start_span("request", kind=SpanKind.INTERNAL)
            _described(request, cell, "request", host_raw_ns)
            host_raw_ns = _host_raw_ns()
            span = telemetry.tracer.start_span("document", context=set_span_in_context(request), kind=SpanKind.CLIENT)
            _described(span, cell, "client", host_raw_ns)
            headers: dict[str, Any] = {}
            telemetry.propagator.inject(headers, context=set_span_in_context(span))
            socket.send_multipart((json.dumps(headers).encode(), QUESTION))
            digest, _ = socket.recv_multipart()
            span.end()
            right += digest == expected
            request.end()
    finally:
        socket.close()
    return right
