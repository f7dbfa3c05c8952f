"""The sidecar under three times what it can do: ``python -m benchmarks.sidecar.overload``, ``--help`` for what else.

The problem: when more comes than can go on, something has to give. It must not be memory, which the kernel takes back
with everything in it, nor what was acknowledged; it must be new requests, at once, told in the words that make an
exporter keep its data and come again; and when the flood ends, it must be as if nothing had been.

Two bottlenecks, since they fill different queues: a **next hop** that takes only so much a second, and the **sidecar
itself**, whose own rate is measured first. Three times that rate is offered for a minute, whatever becomes of it, while
the resident memory is read ten times a second and an ordinary gRPC client asks five times a second what a refused
exporter is told. Then, once the last of the flood is answered, one sender goes on alone: recovered is when twenty
answers in a row are good and none took longer than an answer may (``SOON_S``), counted from the end of the flood.

Limits: loopback; Linux. Memory is that of the whole process: what it grows by is set against the limit on what may be
under way. Offered is what the generator could send: with many connections all waiting for an answer, it has none left.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from benchmarks.sidecar import report, targets
from benchmarks.sidecar.compare import active
from benchmarks.sidecar.load import GRPC_PATH
from benchmarks.sidecar.targets import Broken, Sink, Target
from benchmarks.sidecar.work import request

MIB = 1 << 20
SECONDS = 60.0
TIMES = 3.0
HOP_SPANS_PER_S = 20_000.0
LIMIT_BYTES = 64 * MIB
SOON_S = 0.25
IN_A_ROW = 20
RECOVERY_LIMIT_S = 30.0
RETRYABLE = {"200", "429", "502", "503", "504", "OK", "CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE"}
RETRYABLE |= {"UNAVAILABLE", "DATA_LOSS"}
"""What OTLP tells a client to try again (and success); RESOURCE_EXHAUSTED only with a hint when."""


@dataclass(frozen=True)
class Scene:
    """One overload: by which protocol, of how many spans a request, and how many spans a second the next hop takes."""

    protocol: str
    spans: int
    hop: float | None
    connections: int
    streams: int

    @property
    def name(self) -> str:
        what = "the next hop" if self.hop is not None else "the sidecar"
        return f"{self.protocol}, {self.spans} spans a request; {what} is the bottleneck"


SCENES = (
    Scene("http", 512, HOP_SPANS_PER_S, 192, 1),
    Scene("grpc", 512, HOP_SPANS_PER_S, 24, 8),
    Scene("http", 10, None, 512, 1),
    Scene("grpc", 10, None, 64, 16),
)


@dataclass
class Watch:
    """What was seen of a sidecar while it was flooded."""

    peak_bytes: int = 0
    told: Counter[str] = field(default_factory=Counter)


@contextlib.contextmanager
def watched(target: Target) -> Iterator[Watch]:
    """Reads its memory, and asks it as an exporter would, until the block ends."""
    seen = Watch()
    over = threading.Event()

    def memory() -> None:
        while not over.wait(0.1):
            with contextlib.suppress(OSError, KeyError):
                seen.peak_bytes = max(seen.peak_bytes, targets.memory_bytes(target.pid)[0])

    def ask() -> None:
        with grpc.insecure_channel(f"127.0.0.1:{target.ports['grpc']}") as channel:
            call = channel.unary_unary(GRPC_PATH, None, None)
            while not over.wait(0.2):
                seen.told[answer_of(call, 10.0)] += 1

    threads = [threading.Thread(target=memory), threading.Thread(target=ask)]
    for each in threads:
        each.start()
    try:
        yield seen
    finally:
        over.set()
        for each in threads:
            each.join()


def answer_of(call: Any, timeout_s: float) -> str:
    """What one small request is told."""
    try:
        call(request(10), timeout=timeout_s)
    except grpc.RpcError as error:
        code = error.code().name
        trailing: Any = error.trailing_metadata() or ()
        hinted = any(key == "grpc-status-details-bin" for key, _ in trailing)
        return f"{code} with a hint" if hinted else str(code)
    return "OK"


def recovered_after(target: Target, soon_s: float = SOON_S) -> float | None:
    """Seconds until answers are good and prompt again; None if they are not within ``RECOVERY_LIMIT_S``."""
    began = time.monotonic()
    good, first = 0, began
    with grpc.insecure_channel(f"127.0.0.1:{target.ports['grpc']}") as channel:
        call = channel.unary_unary(GRPC_PATH, None, None)
        while time.monotonic() - began < RECOVERY_LIMIT_S:
            sent = time.monotonic()
            said = answer_of(call, RECOVERY_LIMIT_S)
            if said == "OK" and time.monotonic() - sent <= soon_s:
                good += 1
                if good == 1:
                    first = sent
                if good == IN_A_ROW:
                    return first - began
            else:
                good = 0
                if said != "OK":
                    time.sleep(0.02)
    return None


def play(scene: Scene, seconds: float, max_bytes: int = LIMIT_BYTES) -> dict[str, Any]:
    """Floods one sidecar, whose ``[sidecar] max_bytes`` is given.

    Raises:
        Broken: a process ended, or something acknowledged did not arrive.
    """
    with (
        targets.sink(scene.hop) as sink,
        targets.sidecar(scene.protocol, sink.port, metrics=True, settings={"max_bytes": str(max_bytes)}) as target,
    ):
        idle = warmed(scene, target)
        capacity = scene.hop if scene.hop is not None else own_rate(scene, target, min(3.0, seconds))
        sink.stats()
        words = targets.load_words(
            scene.protocol,
            target.ports[scene.protocol],
            scene.spans,
            seconds=seconds,
            rate=TIMES * capacity / scene.spans,
            connections=scene.connections,
            streams=scene.streams,
        )
        with watched(target) as seen:
            done = subprocess.run(
                words, env=targets.clean_environment(), capture_output=True, text=True, cwd=targets.ROOT
            )
        if done.returncode:
            raise Broken(f"{scene.name}: the load generator: {done.stderr.strip()[-800:]}")
        recovery = recovered_after(target)
        said: dict[str, Any] = json.loads(done.stdout)
        return {
            "scene": scene.name,
            "capacity_spans_per_s": capacity,
            "offered_spans_per_s": (said["ok"] + said["refused"]) * scene.spans / said["seconds"],
            "due_spans_per_s": TIMES * capacity,
            "acknowledged_spans_per_s": said["ok"] * scene.spans / said["seconds"],
            "acknowledged": said["ok"],
            "refused": said["refused"],
            "unsent": said["unsent"],
            "statuses": said["statuses"],
            "retry_after": said["retry_after"],
            "told": dict(seen.told),
            "bound_bytes": max_bytes,
            "idle_bytes": idle,
            "peak_bytes": seen.peak_bytes,
            "recovery_s": None if recovery is None else said["drain_s"] + recovery,
            "lost": lost(scene, sink, said["ok"]),
            "active": active(target),
        }


def warmed(scene: Scene, target: Target) -> int:
    """Resident memory after ordinary work by both protocols: what the flood adds is counted from here."""
    for protocol in ("grpc", "http"):
        targets.load(protocol, target.ports[protocol], scene.spans, requests=16, connections=2, streams=2)
    return targets.memory_bytes(target.pid)[0]


def own_rate(scene: Scene, target: Target, seconds: float) -> float:
    """Spans a second that it takes when it has always a few requests under way."""
    said = targets.load(
        scene.protocol, target.ports[scene.protocol], scene.spans, seconds=seconds, connections=8, streams=2
    )
    return float(said["ok"] * scene.spans / said["seconds"])


def lost(scene: Scene, sink: Sink, acknowledged: int) -> int:
    """Spans that were acknowledged and did not arrive (the client's and the last sender's own arrive on top)."""
    arrived: int = sink.stats()["spans"]
    return max(0, acknowledged * scene.spans - arrived)


def unfit(said: dict[str, Any]) -> list[str]:
    """Words that a refused exporter was told and that would make it drop its data."""
    words = [
        *said["statuses"],
        *(word.removesuffix(" with a hint") for word in said["told"] if "EXHAUSTED" not in word),
    ]
    return sorted({*(set(words) - RETRYABLE), *(word for word in said["told"] if word == "RESOURCE_EXHAUSTED")})


def written(results: list[dict[str, Any]], seconds: float) -> str:
    """The report's section."""
    rows = []
    for said in results:
        refused = said["refused"] + said["unsent"]
        grown = (said["peak_bytes"] - said["idle_bytes"]) / MIB
        rows.append(
            [
                said["scene"],
                f"{said['due_spans_per_s'] / 1000:.0f}k ({said['capacity_spans_per_s'] / 1000:.0f}k)",
                f"{said['acknowledged_spans_per_s'] / 1000:.1f}k",
                f"{100 * refused / (refused + said['acknowledged']):.0f} %",
                f"{said['idle_bytes'] / MIB:.0f} -> {said['peak_bytes'] / MIB:.0f} (+{grown:.0f})",
                "never" if said["recovery_s"] is None else f"{said['recovery_s']:.2f} s",
                f"{said['lost']}",
            ]
        )
    told = [
        f"- {said['scene']}: HTTP {said['statuses'] or 'none'}, {said['retry_after']} of them with Retry-After; "
        f"a gRPC client was told {said['told']}; {said['unsent']} requests were due while all connections waited."
        for said in results
    ]
    head = ["bottleneck", "offered (capacity), spans/s", "acknowledged/s", "refused or not sent", "memory, MiB"]
    wrong = [f"{said['scene']}: {', '.join(bad)}" for said in results if (bad := unfit(said))]
    return "\n\n".join(
        [
            "## What it bears",
            f"`python -m benchmarks.sidecar.overload` writes this: {TIMES:g} times what can be done, for {seconds:g} s "
            f"(the module says how). {report.machine()}; {results[0]['active']}.",
            report.table([*head, "prompt again, after its end", "spans lost"], rows),
            f"Memory for what is under way is limited to {results[0]['bound_bytes'] / MIB:.0f} MiB. What was told:",
            "\n".join(told),
            f"**Told to drop their data**: {'; '.join(wrong)}." if wrong else "Nobody was told to drop their data.",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="overload", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--scenes", default="0,1,2,3", help="which of them, by number; all unless given")
    parser.add_argument("--max-bytes", type=int, default=LIMIT_BYTES, help="[sidecar] max_bytes")
    parser.add_argument("--json", metavar="FILE", help="what was measured, too")
    parser.add_argument("--out", metavar="FILE", type=Path, help="instead of the report")
    chosen = parser.parse_args(argv)
    results = []
    for number in map(int, chosen.scenes.split(",")):
        results.append(play(SCENES[number], chosen.seconds, chosen.max_bytes))
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    text = written(results, chosen.seconds)
    if chosen.json:
        Path(chosen.json).write_text(json.dumps(results, indent=1))
    print(text)
    if chosen.out:
        chosen.out.write_text(text + "\n")
    elif chosen.seconds >= SECONDS and len(results) == len(SCENES):
        report.put("overload", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
