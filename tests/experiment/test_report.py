"""results.json and the report made from it."""

from __future__ import annotations

import builtins
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from skewd_pipeline import report
from skewd_pipeline.results import Results, load, save, skew_label
from tests.experiment.made_results import made_results

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
    page = report.render(made_results())
    text = re.sub(r"<svg.*?</svg>|<style.*?</style>|<title.*?</title>", "", page, flags=re.DOTALL)
    words = [line for line in unescape(re.sub(r"<[^>]*>", "\n", text)).splitlines() if line.strip()]
    assert words[0] == (
        "The threshold lies at the pipeline's minimum separation: here 3.7 ms, because each stage works for at least "
        "3.5 ms"
    )
    assert "mock cluster, not a broker" in page
    assert "kafka (mock)" in page
    assert ">kafka<" not in page
    assert "The same skew, without the floor" in page
    assert "a &lt;claim&gt;" in page
    assert "3 &amp; 4" in page


def test_the_report_needs_nothing_from_elsewhere() -> None:
    pytest.importorskip("matplotlib")
    page = report.render(made_results())
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert all(reference.startswith("#") for reference in reader.references)
    assert len(set(reader.ids)) == len(reader.ids)
    assert {reference[1:] for reference in reader.references} <= set(reader.ids)
    assert "<script" not in page
    assert "url(http" not in page
    assert "@import" not in page
    assert page.count("<svg") == 3
    assert "var(--raw)" in page


def test_the_same_results_give_the_same_report() -> None:
    assert report.render(made_results()) == report.render(made_results())


def test_without_matplotlib_the_tables_stand_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(f"No module named '{name}'", name="matplotlib")
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    page = report.render(made_results())
    assert "No pictures: the package matplotlib is not installed" in page
    assert "<table>" in page


def test_an_empty_run_still_makes_a_page() -> None:
    assert "No cell was run" in report.render(Results(runs=[], host={}, versions={}))


def test_rebuilding_from_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(made_results(), tmp_path / "results.json")
    assert report.main([str(tmp_path)]) == 0
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert report.main([str(tmp_path / "nothing.json")]) == 1
    assert "nothing.json" in capsys.readouterr().err
    assert report.main([]) == 64


def test_skews_are_written_as_people_do() -> None:
    assert [skew_label(value) for value in (0.0, 2.5, 50.0, 2000.0)] == ["0 ms", "2.5 ms", "50 ms", "2 s"]
