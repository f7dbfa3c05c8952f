"""A stage's process on its node's clock: what ordinary code and the unmodified SDK then see."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from skewd.clock import VirtualPage
from tests.waiting import LIMIT_S

OFFSET_NS = -123_456_789_000_000_000  # nearly four years slow: nothing else is this wrong
CLOSE_NS = 60_000_000_000


def _run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=LIMIT_S)


def _answer(code: str, page: Path) -> Any:
    done = _run("import json, sys\nfrom skewd_pipeline import skew\n" + code, str(page))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "node.page"
    VirtualPage.create(path, offset_ns=OFFSET_NS).close()
    return path


READERS = {
    "time.time": "time.time() * 1e9",
    "time.time_ns": "time.time_ns()",
    "time.clock_gettime": "time.clock_gettime(time.CLOCK_REALTIME) * 1e9",
    "time.clock_gettime_ns": "time.clock_gettime_ns(time.CLOCK_REALTIME)",
    "coarse clock": "time.clock_gettime_ns(5)",
    "TAI": "time.clock_gettime_ns(11) - tai_ahead",
    "time.localtime": "time.mktime(time.localtime()) * 1e9",
    "time.gmtime": "calendar.timegm(time.gmtime()) * 1e9",
    "time.ctime": "time.mktime(time.strptime(time.ctime())) * 1e9",
    "time.asctime": "time.mktime(time.strptime(time.asctime())) * 1e9",
    "time.strftime": "time.mktime(time.strptime(time.strftime('%Y %m %d %H %M %S'), '%Y %m %d %H %M %S')) * 1e9",
    "datetime.now": "datetime.datetime.now().timestamp() * 1e9",
    "datetime.now(tz)": "datetime.datetime.now(datetime.UTC).timestamp() * 1e9",
    "datetime.utcnow": "datetime.datetime.utcnow().replace(tzinfo=datetime.UTC).timestamp() * 1e9",
    "datetime.today": "datetime.datetime.today().timestamp() * 1e9",
    "date.today": "time.mktime(datetime.date.today().timetuple()) * 1e9",
    "logging": "logging.makeLogRecord({}).created * 1e9",
}


def test_every_ordinary_reading_of_the_wall_clock_is_the_nodes(page: Path) -> None:
    readings = ", ".join(f"{name!r}: int({expression})" for name, expression in READERS.items())
    seen = _answer(
        "import calendar, time, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "host_ns, tai_ahead = time.time_ns(), time.clock_gettime_ns(11) - time.time_ns()\n"
        "skew.install(sys.argv[1])\n"
        "import datetime, logging\n"
        f"print(json.dumps({{'host': host_ns, 'seen': {{{readings}}}}}))",
        page,
    )
    day_ns = 86_400_000_000_000
    for name, reading in seen["seen"].items():
        allowed = day_ns + CLOSE_NS if name == "date.today" else CLOSE_NS
        assert abs(reading - seen["host"] - OFFSET_NS) < allowed, name


def test_what_is_no_wall_clock_is_left_alone(page: Path) -> None:
    seen = _answer(
        "import time\n"
        "before = [time.monotonic_ns(), time.perf_counter_ns(), time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)]\n"
        "skew.install(sys.argv[1])\n"
        "after = [time.monotonic_ns(), time.perf_counter_ns(), time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)]\n"
        "print(json.dumps([b - a for a, b in zip(before, after)] + [time.ctime(0), time.gmtime(0).tm_year]))",
        page,
    )
    assert all(0 <= difference < CLOSE_NS for difference in seen[:3])
    assert seen[3:] == [seen[3], 1970]


def test_datetime_still_behaves_like_datetime(page: Path) -> None:
    seen = _answer(
        "import datetime as dt, pickle, copy\n"
        "old = dt.datetime(2020, 1, 2, 3, 4, 5)\n"
        "class Before(dt.datetime): pass\n"
        "skew.install(sys.argv[1])\n"
        "class After(dt.datetime): pass\n"
        "now = dt.datetime.now()\n"
        "print(json.dumps([\n"
        "    isinstance(old, dt.datetime), isinstance(now, dt.datetime), isinstance(now, dt.date),\n"
        "    isinstance(dt.date.today(), dt.datetime), issubclass(Before, dt.datetime), isinstance(now, After),\n"
        "    isinstance(After(2020, 1, 1), After), pickle.loads(pickle.dumps(now)) == now, copy.deepcopy(now) == now,\n"
        "    old == dt.datetime(2020, 1, 2, 3, 4, 5), (now - old) > dt.timedelta(0),\n"
        "    isinstance(old + (now - old), dt.datetime),\n"
        "    repr(dt.datetime(2020, 1, 2)), repr(dt.date(2020, 1, 2)), dt.datetime.now(dt.UTC).tzinfo is dt.UTC,\n"
        "    type(After.now()).__name__,\n"
        "]))",
        page,
    )
    assert seen == [
        *[True, True, True, False, True, False, True, True, True, True, True, True],
        *["datetime.datetime(2020, 1, 2, 0, 0)", "datetime.date(2020, 1, 2)", True, "After"],
    ]


def test_a_step_of_the_nodes_clock_is_seen_at_once(page: Path) -> None:
    seen = _answer(
        "import time\n"
        "from skewd.clock import VirtualPage\n"
        "skew.install(sys.argv[1])\n"
        "before = time.time_ns()\n"
        "VirtualPage.open(sys.argv[1]).step_to(0)\n"
        "print(json.dumps(time.time_ns() - before))",
        page,
    )
    assert abs(seen + OFFSET_NS) < CLOSE_NS


def test_the_unmodified_sdk_stamps_its_spans_with_the_nodes_clock(page: Path) -> None:
    seen = _answer(
        "import time\n"
        "host_ns = time.time_ns()\n"
        "skew.install(sys.argv[1])\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "from opentelemetry.sdk.trace.export import SimpleSpanProcessor\n"
        "from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter\n"
        "exporter = InMemorySpanExporter()\n"
        "provider = TracerProvider(shutdown_on_exit=False)\n"
        "provider.add_span_processor(SimpleSpanProcessor(exporter))\n"
        "with provider.get_tracer('test').start_as_current_span('work') as span:\n"
        "    span.add_event('event')\n"
        "(span,) = exporter.get_finished_spans()\n"
        "print(json.dumps([host_ns, span.start_time, span.events[0].timestamp, span.end_time]))",
        page,
    )
    host_ns, start, event, end = seen
    assert start <= event <= end
    assert abs(start - host_ns - OFFSET_NS) < CLOSE_NS
    assert abs(end - host_ns - OFFSET_NS) < CLOSE_NS


def test_after_the_sdk_was_imported_it_is_refused(page: Path) -> None:
    done = _run(
        "import sys\n"
        "import opentelemetry.sdk.trace\n"
        "import time\n"
        "from skewd_pipeline import skew\n"
        "before = time.time_ns\n"
        "try:\n"
        "    skew.install(sys.argv[1])\n"
        "except skew.SkewError as error:\n"
        "    assert time.time_ns is before and skew.installed() is None\n"
        "    sys.exit(str(error))",
        str(page),
    )
    assert done.returncode == 1
    assert "opentelemetry.sdk" in done.stderr
    assert "before importing OpenTelemetry" in done.stderr


def test_one_process_is_on_one_node(page: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.page"
    VirtualPage.create(other).close()
    done = _run(
        "import sys\n"
        "from skewd_pipeline import skew\n"
        "assert skew.install(sys.argv[1]) is skew.install(sys.argv[1]) is skew.installed()\n"
        "try:\n"
        "    skew.install(sys.argv[2])\n"
        "except skew.SkewError as error:\n"
        "    sys.exit(str(error))",
        str(page),
        str(other),
    )
    assert done.returncode == 1
    assert "one process is on one node" in done.stderr


@pytest.mark.parametrize("content", [None, b"", b"x" * 64])
def test_what_is_no_page_is_refused_before_anything_is_replaced(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bad.page"
    if content is not None:
        path.write_bytes(content)
    done = _run(
        "import sys, time\n"
        "from skewd_pipeline import skew\n"
        "before = time.time_ns\n"
        "try:\n"
        "    skew.install(sys.argv[1])\n"
        "except (OSError, ValueError):\n"
        "    sys.exit(3 if time.time_ns is before else 4)",
        str(path),
    )
    assert done.returncode == 3, done.stderr
