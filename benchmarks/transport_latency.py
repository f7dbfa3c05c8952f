"""How long one hop takes: one-way latency of the pipeline's transports at a steady, low rate.

Two processes, as between two stages: this one sends, a child receives and compares with CLOCK_MONOTONIC, which both
share. The sender waits inside the transport between two messages, as a stage does. What the figures are for: the
separation of two spans in the experiment is the work between them plus this, so this says how much of it is the
transport's.

    python benchmarks/transport_latency.py --rates 40,100 --messages 400 --broker auto

Figures of one machine, at one load: compare them with each other only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skewd_pipeline.kafka_broker import free_ports, open_broker
from skewd_pipeline.transports import HopConfig, Message, open_inbox, open_outbox

WARM_MESSAGES = 100
READY_LIMIT_S = 20.0


def receive(config: HopConfig, messages: int) -> None:
    """The child: latencies of ``messages`` messages after the warm ones, as JSON on standard output."""
    inbox = open_inbox(config)
    print("READY", flush=True)
    latencies_ns: list[int] = []
    while len(latencies_ns) < WARM_MESSAGES + messages:
        message = inbox.receive(10.0)
        now_ns = time.monotonic_ns()
        if message is None:
            break
        latencies_ns.append(now_ns - int(message.headers["sent_ns"]))
    inbox.close()
    print(json.dumps(latencies_ns[WARM_MESSAGES:]), flush=True)


def measure(config: HopConfig, rate: float, messages: int, size: int) -> dict[str, Any]:
    """One row: sends at ``rate`` per second and asks the child what it saw."""
    command = [sys.executable, __file__, "--receive", json.dumps(config.to_dict()), "--messages", str(messages)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None, "asked for above"
    try:
        child.stdout.readline()
        outbox = open_outbox(config)
        body = bytes(size)
        due = time.monotonic()
        for _ in range(WARM_MESSAGES + messages):
            due += 1 / rate
            outbox.pump(due - time.monotonic())
            outbox.send(Message({"sent_ns": str(time.monotonic_ns())}, body))
        outbox.close()
        latencies = sorted(json.loads(child.stdout.readline()))
    finally:
        child.terminate()
        child.wait()
    return {
        "rate_per_s": rate,
        "sent": messages,
        "received": len(latencies),
        **{name: round(_quantile(latencies, q) / 1000) for name, q in _QUANTILES.items()},
    }


_QUANTILES = {"min_us": 0.0, "p50_us": 0.5, "p90_us": 0.9, "p99_us": 0.99, "max_us": 1.0}


def _quantile(ordered: Sequence[int], q: float) -> float:
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--receive", help=argparse.SUPPRESS)
    parser.add_argument("--transports", default="zmq,kafka")
    parser.add_argument("--rates", default="40,100", help="messages per second")
    parser.add_argument("--messages", type=int, default=400)
    parser.add_argument("--size", type=int, default=1024, help="bytes of a body")
    parser.add_argument("--broker", choices=("auto", "apache", "mock"), default="auto")
    parser.add_argument("--libs", type=Path, help="directory of Apache Kafka's jars")
    parser.add_argument("--warm", type=int, default=50_000, help="messages that warm a real broker")
    parser.add_argument("--fetch-wait-ms", type=int, help="how long the broker holds an empty fetch")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.receive:
        receive(HopConfig.from_dict(json.loads(options.receive)), options.messages)
        return
    rows = []
    rates = [float(rate) for rate in options.rates.split(",")]
    if "zmq" in options.transports:
        for rate in rates:
            config = HopConfig("zmq", "a", "b", endpoint=f"tcp://127.0.0.1:{free_ports(1)[0]}")
            rows.append({"transport": "zmq", **measure(config, rate, options.messages, options.size)})
    if "kafka" in options.transports:
        started = time.monotonic()
        with open_broker(libs=options.libs, prefer=options.broker, warm_messages=options.warm) as broker:
            print(f"{broker.label}: ready in {time.monotonic() - started:.1f} s ({broker.reason})", file=sys.stderr)
            for number, rate in enumerate(rates):
                topic = f"latency-{number}"
                broker.create_topics([topic])
                config = HopConfig(
                    "kafka",
                    "a",
                    "b",
                    bootstrap=broker.bootstrap,
                    topic=topic,
                    fetch_wait_ms=options.fetch_wait_ms,
                )
                rows.append(
                    {"transport": f"kafka ({broker.kind})", **measure(config, rate, options.messages, options.size)}
                )
            stopping = time.monotonic()
        print(f"{broker.label}: stopped in {time.monotonic() - stopping:.1f} s", file=sys.stderr)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    names = list(rows[0])
    print(" | ".join(f"{name:>14}" for name in names))
    for row in rows:
        print(" | ".join(f"{row[name]!s:>14}" for name in names))


if __name__ == "__main__":
    main()
