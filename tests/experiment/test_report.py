"""results.json and the report made from it."""

from __future__ import annotations

import builtins
import csv
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from skewd_pipeline import report
from skewd_pipeline.results import Results, load, save, skew_label
from tests.experiment.made_results import made_page, made_results, over_time

CONTRACT = {
    *("transport", "broker", "stage", "direction", "skew_ms", "mode", "rule", "messages", "edges", "violations"),
    *("violation_rate", "predicted_rate", "verdicts", "residual_max_ns", "bound_misses", "throughput_per_s"),
    *("outputs_correct", "separation_ms"),
}


class Reader(HTMLParser):
    """Collects what the page refers to and whether its elements are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data") and value:
                self.references.append(value)
            if name == "id" and value:
                self.ids.append(value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in ("meta", "link", "br", "img"):
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_results_survive_the_file(tmp_path: Path) -> None:
    results = made_results()
    save(results, tmp_path / "out" / "results.json")
    assert load(tmp_path / "out" / "results.json") == results
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["results.json"]


def test_the_file_has_the_keys_others_rely_on(tmp_path: Path) -> None:
    save(made_results(), tmp_path / "results.json")
    stored: dict[str, Any] = msgspec.json.decode((tmp_path / "results.json").read_bytes())
    assert {"runs", "host", "versions", "throughput", "floor0", "checks"} <= stored.keys()
    for run in stored["runs"]:
        assert run.keys() >= CONTRACT
        assert run["separation_ms"].keys() == {"min", "p1", "p50", "p99"}


def test_a_file_of_something_else_or_of_the_future_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text('{"runs": 3}')
    with pytest.raises(ValueError, match=r"not a results\.json"):
        load(path)
    results = made_results()
    results.schema = 99
    save(results, path)
    with pytest.raises(ValueError, match="schema 99"):
        load(path)


def test_the_report_says_the_threshold_first_and_calls_a_mock_a_mock() -> None:
    page = made_page()
    text = re.sub(r"<svg.*?</svg>|<style.*?</style>|<title.*?</title>", "", page, flags=re.DOTALL)
    words = [line for line in unescape(re.sub(r"<[^>]*>", "\n", text)).splitlines() if line.strip()]
    assert words[0] == (
        "The threshold lies at the pipeline's minimum separation: here 3.7 ms, because each stage works for at least "
        "3.5 ms"
    )
    assert "mock cluster, not a broker" in page
    assert "kafka (mock)" in page
    assert ">kafka<" not in page
    assert "Change the floor and the threshold moves with it" in page
    assert "a &lt;claim&gt;" in page
    assert "3 &amp; 4" in page


def test_the_report_needs_nothing_from_elsewhere() -> None:
    pytest.importorskip("matplotlib")
    page = made_page()
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert all(reference.startswith("#") for reference in reader.references)
    assert len(set(reader.ids)) == len(reader.ids)
    assert {reference[1:] for reference in reader.references} <= set(reader.ids)
    assert "<script" not in page
    assert "url(http" not in page
    assert "@import" not in page
    # Two rules on two transports, the cells, the floors on ZeroMQ, a story twice, two of heuristics, tags and bounds.
    assert page.count("<svg") == 4 + 1 + 1 + 2 + 2 + 2 + 2
    assert "var(--raw)" in page


@pytest.mark.long
def test_the_same_results_give_the_same_report() -> None:
    assert report.render(made_results()) == made_page()


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if matplotlib were not installed."""
    original = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(f"No module named '{name}'", name="matplotlib")
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)


@pytest.mark.usefixtures("no_pictures")
def test_without_matplotlib_the_tables_stand_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.write(made_results(), tmp_path / "page.html", exports=tmp_path / "files")
    page = (tmp_path / "page.html").read_text()
    assert "No pictures: the package matplotlib is not installed" in page
    assert "<table>" in page
    assert "no PNG" in capsys.readouterr().err
    assert (tmp_path / "files" / "rows.csv").exists()


def test_an_empty_run_still_makes_a_page() -> None:
    assert "No cell was run" in report.render(Results(runs=[], host={}, versions={}))


def test_the_report_tells_the_whole_of_it() -> None:
    page = unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", made_page())))
    for words in (
        "P(violation | s ) = F( s )",
        "32 of 32 cells are inside their 99% interval",
        "together than the skew are as many as were violated, to 0.0% in every one of 32 cells",
        "stepped by +20 ms: now ahead",
        "0 of 1 200 say something that is not so",
        "stamped backwards, and no clock did it",
        "client-server (Zipkin's rule)",
        "librdkafka mock (a mock)",
        "python 3.13.0",
        "The same seed gives the same schedule of work",
    ):
        assert words in page, words


@pytest.mark.usefixtures("no_pictures")
def test_exceptions_of_the_law_are_listed() -> None:
    results = made_results()
    results.law[3].agrees = False
    page = report.render(results)
    assert "the exceptions are listed" in page
    assert page.count("<td>NO</td>") == 1
    assert page.count("<th>own separations</th>") == 2, "those by themselves, and among all"


@pytest.mark.usefixtures("no_pictures")
def test_a_simulated_run_has_a_report_too() -> None:
    page = report.render(over_time())
    assert "Simulated: true time" in page
    assert "A clock drifts, is stepped and slewed" in page
    assert "No cell was run" not in page


@pytest.mark.usefixtures("no_pictures")
def test_two_runs_make_one_report_and_two_of_the_same_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = made_results(), made_results()
    one.runs = [run for run in one.runs if run.transport == "zmq"]
    other.runs = [run for run in other.runs if run.transport == "kafka"]
    other.windows, other.long_runs, other.confusion, other.heuristics = [], [], [], []
    for name, results in (("one", one), ("other", other)):
        save(results, tmp_path / name / "results.json")
    assert report.build([tmp_path / "one", tmp_path / "other"], tmp_path / "both.html") == 0
    page = (tmp_path / "both.html").read_text()
    assert "kafka (mock)" in page
    assert "<td>zmq</td>" in page
    assert report.build([tmp_path / "one", tmp_path / "one"], None) == 1
    assert "two of the results have the row" in capsys.readouterr().err
    one.runs = []
    save(one, tmp_path / "story" / "results.json")
    assert report.build([tmp_path / "story", tmp_path / "story"], None) == 1
    assert "two of the results have the long run" in capsys.readouterr().err


@pytest.mark.long
def test_both_directions_stand_on_one_page_and_are_judged_together(tmp_path: Path) -> None:
    behind, ahead = made_results(), made_results()
    ahead.windows, ahead.long_runs, ahead.confusion, ahead.heuristics = [], [], [], []
    for run in ahead.runs:
        run.stage, run.direction = "preprocess", "ahead"
        if (run.transport, run.skew_ms, run.mode) == ("zmq", 5.0, "off"):
            run.violation_rate = 0.25
    for name, results in (("behind", behind), ("ahead", ahead)):
        save(results, tmp_path / name / "results.json")
    assert report.build([tmp_path / "behind", tmp_path / "ahead"], tmp_path / "both.html") == 0
    page = (tmp_path / "both.html").read_text()
    for way in ("zmq, inference behind", "zmq, preprocess ahead", "kafka (mock), preprocess ahead"):
        assert f"Violation rate over skew, {way}" in page
    assert "at <em>inference</em>, was set behind; then at <em>preprocess</em>, was set ahead" in page
    assert page.count("at 5 ms on zmq, at least 90% of the child spans start too early") == 1
    assert "25.0% (preprocess ahead), the least of 2" in page
    assert "25%</b> of child spans start before their parent at 5 ms on zmq, preprocess ahead" in page


def test_exports_are_tables_and_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = made_results()
    results.runs = [run for run in results.runs if (run.transport, run.rule) == ("zmq", "span-start")]
    results.floor0, results.heuristics = [], []
    save(results, tmp_path / "results.json")
    assert report.build([tmp_path], None, exports=tmp_path / "files") == 0
    names = {path.name for path in (tmp_path / "files").iterdir()}
    assert {"rows.csv", "law.csv", "windows.csv", "clock.csv", "separations.csv"} <= names
    assert {"law-zmq-inference-behind-span-start.png", "agreement.png", "story-model-simulated-wide.png"} <= names
    with (tmp_path / "files" / "law.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 32
    assert rows[0]["edge"] == "preprocess>inference"
    for path in (tmp_path / "files").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_rebuilding_from_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(Results(runs=[], host={}, versions={}), tmp_path / "results.json")
    assert report.main([str(tmp_path)]) == 0
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert report.main([str(tmp_path / "nothing.json")]) == 1
    assert "nothing.json" in capsys.readouterr().err
    assert report.main([]) == 64


def test_skews_are_written_as_people_do() -> None:
    assert [skew_label(value) for value in (0.0, 2.5, 50.0, 2000.0)] == ["0 ms", "2.5 ms", "50 ms", "2 s"]
