"""The sidecar among its real neighbours: ``make test-neighbours``.

Builds what takes too long to build for ``make test`` (Jaeger, a Collector that reads Kafka, and the programs of four
languages' SDKs; once, into ``build/``), runs the tests that need it, and writes what they showed into
docs/reports/sidecar.md. ``make test`` runs the same tests with what is there, and says what it left out.
"""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.sidecar import report
from skewd_pipeline.broker_plan import kafka_version
from skewd_pipeline.kafka_broker import default_libs
from tests.sidecar import jaeger, kafka_collector
from tests.sidecar.captures import record

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "build" / "neighbours.xml"
TESTS = (
    "tests/sidecar/test_jaeger.py",
    "tests/sidecar/test_kafka_receiver.py",
    "tests/sidecar/test_live_sdks.py",
    "tests/sidecar/test_captures.py",
)
PINNED = {
    "javascript": ("package.json", r'"@opentelemetry/exporter-trace-otlp-http": "([\d.]+)"'),
    "java": ("pom.xml", r"<artifactId>opentelemetry-sdk</artifactId>\s*<version>([\d.]+)"),
    "go": ("go.mod", r"go.opentelemetry.io/otel/sdk v([\d.]+)"),
}


def prepare() -> list[str]:
    """Builds everything; what could not be, and why."""
    missing = []
    for name, build in {"Jaeger": jaeger.build, "the Collector's Kafka receiver": kafka_collector.build}.items():
        try:
            build()
        except RuntimeError as problem:
            missing.append(f"{name}: {problem}")
    for language in record.PROGRAMS:
        try:
            record.make(language)
        except (OSError, subprocess.CalledProcessError) as problem:
            missing.append(f"{language}: {problem}")
    return missing


def versions() -> list[str]:
    from importlib.metadata import version

    found = [f"Python's SDK {version('opentelemetry-sdk')}"]
    for language, (file, pattern) in PINNED.items():
        text = (record.HERE / language / file).read_text()
        found += [f"{language} {number}" for number in re.findall(pattern, text)[:1]]
    found += [f"Jaeger {jaeger.VERSION}", f"the Collector's Kafka receiver and exporter {kafka_collector.VERSION}"]
    if (kafka := kafka_version(path.name for path in default_libs().glob("*.jar"))) is not None:
        found.append(f"Apache Kafka {kafka}")
    return found


def written(results: Path, missing: list[str]) -> str:
    """The report's section."""
    rows = []
    for case in ElementTree.parse(results).getroot().iter("testcase"):
        outcome = "passed"
        for kind in ("failure", "error", "skipped"):
            if (said := case.find(kind)) is not None:
                outcome = f"{kind}: {said.get('message', '')[:120]}"
        name, _, which = case.get("name", "").partition("[")
        rows.append([name.removeprefix("test_").replace("_", " "), which.rstrip("]"), outcome])
    parts = [
        "## Who stands beside it",
        f"`make test-neighbours` writes this (last on {datetime.now(UTC):%Y-%m-%d}): {', '.join(versions())}.",
        "Jaeger's `/api/v3` tells our times and integers exactly. `/api/traces`, which its pages use, tells times in "
        "whole microseconds, integers up to 2^53 as numbers and larger ones as strings: nothing of ours is rounded "
        "there but the times themselves. A trace with an infinite attribute, which JSON cannot say, it does not tell "
        "at all (500; `/api/v3` does), with a sidecar and without.",
        "Behind Kafka: `skewd sidecar --forward kafka://...` writes to a real broker, topics of four partitions; the "
        "Collector reads them with the configuration of [operations](../operations.md) and sends on to a recording "
        "next hop. Every span, log record and metric is there once, with its resource and scope, as the SDK sent it "
        "and the sidecar corrected it; a message's key is the trace id in hex of all its spans. Keys, partitions and "
        "content are those of the Collector's own exporter with `partition_traces_by_id`; it makes a message of each "
        "scope of a trace, and writes an empty status where a span has none. Alone, once the Collector is built: "
        "`.venv/bin/pytest tests/sidecar/test_kafka_receiver.py`.",
        *(f"**Not run**: {one}." for one in missing),
        report.table(["what", "which", "outcome"], rows),
    ]
    return "\n\n".join(parts)


def main() -> int:
    missing = prepare()
    for one in missing:
        print(f"neighbours: without {one}", file=sys.stderr, flush=True)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "pytest", "-q", f"--junitxml={RESULTS}", *TESTS, *sys.argv[1:]]
    code = subprocess.run(words, cwd=ROOT).returncode
    if RESULTS.exists():
        report.put("neighbours", written(RESULTS, missing))
    return code


if __name__ == "__main__":
    sys.exit(main())
