"""The benchmarks still run, and do what they say: a few requests each, without the Collector."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.sidecar import compare, frames, load, report, sink, targets, work
from benchmarks.sidecar.compare import Measured
from benchmarks.sidecar.work import CASES


def test_spans_are_of_the_size_that_is_said_and_counted_by_their_name() -> None:
    for spans in (1, 10, 512):
        body = work.request(spans)
        assert work.sizes(body) == {work.SPAN_BYTES}
        assert body.count(work.MARK) == spans
        assert work.check_corrected(body, 0) is None
        assert work.check_corrected(body) is not None


@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_what_is_sent_is_counted_at_both_ends(protocol: str) -> None:
    account = sink.Account(None)
    server = await asyncio.get_running_loop().create_server(lambda: sink.Connection(account), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        said = await load.run(protocol, port, work.request(512), 20, 2, 2)
        assert (said["ok"], said["refused"]) == (20, 0)
        assert (account.requests, account.spans) == (20, 20 * 512)
        assert account.last == work.request(512)
        account.clear()
        said = await load.run(protocol, port, work.request(10), 1 << 30, 4, 2, seconds=0.2, rate=200)
        assert account.requests == said["ok"] > 0


def test_frames_survive_being_cut_anywhere() -> None:
    whole = frames.settings(table=0, window=7) + frames.frame(frames.DATA, frames.END_STREAM, 5, b"x" * 300)
    for at in range(len(whole)):
        reader = frames.Frames()
        found = reader.feed(whole[:at]) + reader.feed(whole[at:])
        assert [(kind, flags, stream, len(content)) for kind, flags, stream, content in found] == [
            (frames.SETTINGS, 0, 0, 12),
            (frames.DATA, frames.END_STREAM, 5, 300),
        ]
        assert frames.settings_of(found[0][3]) == {1: 0, 4: 7}


@pytest.mark.long
def test_the_bench_runs_on_this_checkout(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "benchmarks.sidecar.compare", "--quick", "--alone", "--cases", "http-10"]
    words += ["--json", str(tmp_path / "all.json"), "--out", str(tmp_path / "report.md")]
    done = subprocess.run(words, cwd=targets.ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "all.json").read_text())
    assert {(one["target"], one["case"]) for one in found} == {
        (target, "HTTP, 10 spans") for target in ("sink", "sidecar", "sidecar, minimal")
    }
    assert all(one["cpu_s_per_million"] > 0 and one["peak_bytes"] > 0 for one in found if one["target"] == "sidecar")
    text = (tmp_path / "report.md").read_text()
    assert "The sidecar alone: asked for with --alone" in text
    assert "the sidecar says: " in text


def measured(target: str, cost: float, peak: int) -> list[Measured]:
    return [Measured(target, case.name, cost, cost, 1e5, peak, peak, 500, 500) for case in CASES for _ in range(3)]


def test_ratios_say_what_is_reached_and_what_is_not() -> None:
    found = measured("sidecar", 1.0, 50 << 20) + measured("Collector", 4.0, 60 << 20) + measured("sink", 0, 0)
    text = compare.written(found, {}, compare.Effort(), ["a version"], None)
    assert "| gRPC, 512 spans | sidecar | 4.00 | 3 | yes | 1.20 | yes |" in text
    assert "| HTTP, 512 spans | sidecar | 4.00 | 8 | **no** | 1.20 | yes |" in text
    assert report.spread([1, 3, 2]) == "2.00 (1.00 to 3.00)"


def test_a_section_of_the_report_leaves_the_others_alone() -> None:
    text = report.replaced("", "overload", "the second")
    text = report.replaced(text, "cost", "the first")
    assert report.replaced(text, "overload", "the second") == text
    assert text.index("the first") < text.index("the second")
    again = report.replaced(text, "cost", "another")
    assert "another" in again
    assert "the first" not in again
    assert "the second" in again


def test_without_go_the_sidecar_is_measured_alone_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "BUILT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(targets.NoCollector, match="Go is not installed"):
        targets.build_collector()
    text = compare.written(measured("sidecar", 1.0, 1) + measured("sink", 0, 0), {}, compare.Effort(), [], "no Go")
    assert "**The sidecar alone: no Go.**" in text
    assert "Collector / sidecar" not in text
