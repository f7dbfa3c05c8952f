"""results.json and the report made from it."""

from __future__ import annotations

import csv
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest

from skewd_pipeline import report
from skewd_pipeline.paper import SAME, findings
from skewd_pipeline.results import Calibration, Rate, Results, Run, load, save, skew_label
from tests.experiment.made_results import busy, demo, failing, made_page, over_time, rate_of, run_of, whole

CONTRACT = {
    *("transport", "broker", "stage", "direction", "skew_ms", "mode", "rule", "messages", "edges", "violations"),
    *("violation_rate", "predicted_rate", "verdicts", "residual_max_ns", "bound_misses", "throughput_per_s"),
    *("outputs_correct", "separation_ms"),
}
MEBIBYTE = 1 << 20


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


def words(page: str) -> str:
    """What is read, its pictures and styles left out."""
    text = re.sub(r"<svg.*?</svg>|<style.*?</style>|<title.*?</title>", "", page, flags=re.DOTALL)
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text))).strip()


def first_line(results: Results) -> str:
    """The page's heading."""
    found = re.search(r"<h1>(.*?)</h1>", report.render(results))
    assert found is not None
    return unescape(found[1])


# -- the file ----------------------------------------------------------------------------------------------------------


def test_results_survive_the_file(tmp_path: Path) -> None:
    results = whole()
    save(results, tmp_path / "out" / "results.json")
    assert load(tmp_path / "out" / "results.json") == results
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["results.json"]


def test_the_file_has_the_keys_others_rely_on(tmp_path: Path) -> None:
    save(demo(), tmp_path / "results.json")
    stored: dict[str, Any] = msgspec.json.decode((tmp_path / "results.json").read_bytes())
    assert {"runs", "host", "versions", "calibration", "claims"} <= stored.keys()
    for run in stored["runs"]:
        assert run.keys() >= CONTRACT
        assert run["separation_ms"].keys() == {"min", "p1", "p50", "p99"}
    asked = {"capacity_per_s", "offered_per_s", "floor_ms", "hop_p50_ms", "predicted_threshold_ms"}
    assert all(each.keys() >= asked for each in stored["calibration"].values())
    assert all(claim.keys() >= {"id", "kind", "verdict", "figure"} for claim in stored["claims"])


def test_a_file_of_something_else_or_of_the_future_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text('{"runs": 3}')
    with pytest.raises(ValueError, match=r"not a results\.json"):
        load(path)
    results = demo()
    results.schema = 99
    save(results, path)
    with pytest.raises(ValueError, match="schema 99"):
        load(path)


def test_skews_are_written_as_people_do() -> None:
    assert [skew_label(value) for value in (0.0, 2.5, 50.0, 2000.0)] == ["0 ms", "2.5 ms", "50 ms", "2 s"]


# -- what stands first -------------------------------------------------------------------------------------------------


def test_the_headline_says_what_the_run_showed_and_no_more() -> None:
    assert first_line(demo()) == (
        "On this machine ZeroMQ breaks between 3 and 4.02 ms (predicted 3.7), "
        "Kafka mock breaks between 3 and 5 ms (predicted 4.6)"
    )
    assert "Kafka mock breaks between 5.31 and 10 ms (predicted 8.6)" in first_line(demo(4.0))
    none = demo()
    none.runs = [run_of("zmq", skew, "off", "span-start") for skew in (0.0, 3.0)]
    assert first_line(none) == "On this machine ZeroMQ does not break up to 3 ms (predicted 3.7)"
    none.runs[0].violations = 1
    assert first_line(none) == "On this machine ZeroMQ breaks with no skew at all (predicted 3.7)"
    assert first_line(over_time()).startswith("A clock drifts, is stepped and slewed")


def test_the_trace_the_curve_and_four_sentences_stand_before_what_is_folded() -> None:
    page = report.render(demo())
    top = page[: page.index("<details")]
    assert top.count("<svg") == 4, "a trace and a curve, for wide screens and for narrow ones"
    said = words(top)
    for sentence in (
        "One message over ZeroMQ, inference 5 ms behind",
        "As stamped, inference seems to start before its own cause",
        "A clock that is 5 ms off makes child spans start before their parents. as predicted 97% on ZeroMQ, "
        "46% on Kafka mock. 5 of the 5 cells that can tell are inside their prediction.",
        "Throughput and answers do not notice. holds 100% of the answers are right at every skew",
        "Every bound holds the truth, and the verdicts are right. holds 0 of 24,000 spans",
        "After rewriting nothing is inverted beyond the bounds. holds 0 of 19,200 edges",
        "All 4 claims that must hold on any machine hold: 0 of 64,800 checks failed.",
    ):
        assert sentence in said, sentence
    assert page.index('id="paper" open') < page.index('id="claims"><summary>')
    assert page.count(" open>") == 1


def test_a_mock_is_called_a_mock_everywhere() -> None:
    page = made_page()
    assert "mock cluster, not a broker" in page
    drawn = re.sub(r"kafka_|kafka\b(?=[^<]*</(?:dt|style)>)", "", page)
    for found in re.finditer(r"Kafka(?! mock)[^<]{0,30}", drawn):
        assert found[0].startswith(("Kafka is", "Kafka and ZeroMQ alike")), found[0]


def test_what_does_not_hold_is_said_before_anything_else() -> None:
    said = words(report.render(failing()))
    assert said.index("1 of the claims that must hold on any machine fails. fails the true offset") < said.index("Five")
    assert "not as predicted 97% on ZeroMQ, 46% on Kafka mock. 4 of the 5 cells" in said
    assert "the verdicts are right. fails 3 of 24,000 spans" in said
    assert "that must hold on any machine hold" not in said
    said = words(report.render(busy()))
    assert "Inconclusive: the machine was too busy to judge all claims that must hold. inconclusive after" in said
    assert "that must hold on any machine hold" not in said


# -- the paper ---------------------------------------------------------------------------------------------------------


def why(results: Results, says: str, rule: str = "span-start") -> tuple[str, str]:
    """What was measured for a finding, and why it differs."""
    found = [each for each in findings(results) if each.says.startswith(says) and each.rule in (rule, "")]
    assert len(found) == 1
    return found[0].measured, found[0].why


def test_every_finding_of_the_paper_is_answered_by_both_rules() -> None:
    results = whole()
    assert why(results, "No violations") == ("ZeroMQ 0% at 0 ms, 0% at 3 ms; Kafka mock 0% at 0 ms, 0% at 3 ms", SAME)
    measured, reason = why(results, "No violations", "send-receive")
    assert measured == "ZeroMQ 0% at 0 ms, 100% at 3 ms; Kafka mock 0% at 0 ms, 92% at 3 ms"
    assert reason.startswith("ZeroMQ: a hop takes 0.30 ms. Kafka mock: a hop takes 1.28 ms. Such an edge breaks once")
    assert why(results, "Clear") == ("ZeroMQ 97% at 5 ms; Kafka mock 46% at 5 ms", SAME)
    assert why(results, "Throughput")[1] == why(results, "Outputs")[1] == SAME
    assert why(results, "Over long runs") == (
        "0% to 100% over 24 windows",
        "It does not differ. The skew of each moment says how many: on average 0.0% apart.",
    )
    assert "A hop takes ZeroMQ 0.30 ms, Kafka mock 1.28 ms." in why(results, "Kafka and ZeroMQ")[1]
    assert why(results, "Kafka and ZeroMQ", "send-receive")[1] == SAME
    assert why(results, "Aeron")[0] == "not run: no wheel of pyaeron for this Python"


def test_a_finding_that_this_run_does_not_show_is_explained() -> None:
    assert why(demo(4.0), "Clear") == (
        "ZeroMQ 97% at 5 ms; Kafka mock 0% at 5 ms",
        "Kafka mock: the least separation is 8.6 ms here; the threshold lies there.",
    )
    results = demo()
    results.calibration["zmq"].predicted_threshold_ms = 2.4
    row = next(row for row in results.runs if (row.transport, row.skew_ms, row.mode) == ("zmq", 3.0, "off"))
    assert row.rule == "send-receive"
    early = next(row for row in results.runs if (row.skew_ms, row.mode, row.rule) == (3.0, "off", "span-start"))
    early.violations, early.violation_rate = 40, 0.2
    assert why(results, "No violations")[1] == "ZeroMQ: its spans can start 2.4 ms apart, which is less."
    assert why(demo(), "Over long runs")[0].startswith("not part of this run")


# -- the page as a page ------------------------------------------------------------------------------------------------


def test_the_report_needs_nothing_from_elsewhere() -> None:
    page = made_page()
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert reader.references == []
    assert len(set(reader.ids)) == len(reader.ids)
    for named in re.findall(r'aria-labelledby="([^"]*)"', page):
        assert set(named.split()) <= set(reader.ids)
    for outside in ("<script", "url(", "@import", "<img", "<iframe"):
        assert outside not in page
    # The trace, both rules, a load, a story; each for wide screens and for narrow ones.
    assert page.count("<svg") == page.count("<desc") == 2 * 5
    assert page.count("<table") == page.count("<caption")
    assert "prefers-color-scheme: dark" in page


def test_what_comes_from_the_results_is_escaped() -> None:
    assert "a &lt;claim&gt; &amp; more" in made_page()
    results = demo()
    assert results.trace is not None
    results.trace.spans[0].stage = results.host["<b>"] = "<script>"
    assert "<script" not in report.render(results)


def test_the_report_tells_the_whole_of_it() -> None:
    said = words(made_page())
    for told in (
        "stepped by +20 ms: now ahead",
        "0 of 1,200 say something that is not so",
        "stamped backwards, and no clock did it",
        "centring (Jaeger's rule)",
        "librdkafka mock (a mock)",
        "python 3.13.0",
        "The same seed gives the same schedule of work",
        "skewd of inference 0.4",
        "0.997 (0.985 to 1.010)",
        "ZeroMQ 80% 136/s 4.02 ms 12% 9.9 ms 11.0 ms 12.1 ms",
        "ZeroMQ inference behind span-start 4.02 ms 63% (54-72%) 63% (54-72%) inside 0% 126 skewed",
        "ZeroMQ 151/s 40/s 3.60 ms 0.12 / 0.30 / 1.89 3.74 / 3.92 / 5.51 3.74 ms 5.6 ms",
        "Aeron was not run: no wheel of pyaeron for this Python.",
    ):
        assert told in said, told


def test_a_full_experiment_stays_below_a_megabyte() -> None:
    results = whole()
    results.runs = [
        msgspec.structs.replace(run_of(transport, float(skew), mode, rule), stage=stage, direction=direction)
        for transport in ("zmq", "kafka")
        for stage, direction in (("inference", "behind"), ("preprocess", "ahead"), ("inference", "ahead"))
        for skew in range(15)
        for mode in ("off", "tag", "rewrite")
        for rule in ("send-receive", "span-start")
    ]
    results.separations = [
        msgspec.structs.replace(each, separations_ns=[value for value in each.separations_ns for _ in range(50)])
        for each in results.separations
    ]
    results.long_runs[0].clock = results.long_runs[0].clock * 30
    results.long_runs = [msgspec.structs.replace(results.long_runs[0], run=f"story {number}") for number in range(3)]
    results.claims = results.claims * 10
    assert len(report.render(results).encode()) < MEBIBYTE


def test_the_same_results_give_the_same_report() -> None:
    assert report.render(whole()) == made_page()


def test_an_empty_run_still_makes_a_page() -> None:
    assert "Nothing was run" in report.render(Results(runs=[], host={}, versions={}))


def test_a_simulated_run_has_a_report_too() -> None:
    page = report.render(over_time())
    assert "Simulated: true time" in page
    assert 'id="time" open' in page
    assert page.count("<svg") == 2
    assert "In four sentences" not in page


# -- rebuilding --------------------------------------------------------------------------------------------------------


def test_two_runs_make_one_report_and_two_of_the_same_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = whole(), demo()
    one.runs = [run for run in one.runs if run.transport == "zmq"]
    other.runs = [run for run in other.runs if run.transport == "kafka"]
    for name, results in (("one", one), ("other", other)):
        save(results, tmp_path / name / "results.json")
    assert report.build([tmp_path / "one", tmp_path / "other"], tmp_path / "both.html") == 0
    assert "On this machine ZeroMQ breaks between 3 and 4.02 ms" in (tmp_path / "both.html").read_text()
    assert report.build([tmp_path / "one", tmp_path / "one"], None) == 1
    assert "two of the results have the row" in capsys.readouterr().err
    one.runs = []
    save(one, tmp_path / "story" / "results.json")
    assert report.build([tmp_path / "story", tmp_path / "story"], None) == 1
    assert "two of the results have the long run" in capsys.readouterr().err


def test_both_directions_stand_on_one_page(tmp_path: Path) -> None:
    behind, ahead = demo(), demo()
    rows: list[Run | Rate | Calibration] = [*ahead.runs, *ahead.rates, *ahead.calibration.values()]
    for row in rows:
        row.stage, row.direction = "preprocess", "ahead"
    for name, results in (("behind", behind), ("ahead", ahead)):
        save(results, tmp_path / name / "results.json")
    assert report.build([tmp_path / "behind", tmp_path / "ahead"], tmp_path / "both.html") == 0
    page = (tmp_path / "both.html").read_text()
    said = words(page)
    assert "that of inference was set behind, then that of preprocess was set ahead" in said
    assert "How often a child span starts before its parent, preprocess's clock ahead" in said
    assert "ZeroMQ (preprocess ahead) 151/s" in said
    assert page.count("<svg") == 2 * 5, "a trace, and two rules for each of two clocks"


def test_exports_are_tables_and_pictures(tmp_path: Path) -> None:
    save(whole(), tmp_path / "results.json")
    assert report.build([tmp_path], None, exports=tmp_path / "files") == 0
    names = {path.name for path in (tmp_path / "files").iterdir()}
    assert {"rows.csv", "rates.csv", "calibration.csv", "windows.csv", "clock.csv", "separations.csv"} <= names
    pictures = {"trace.svg", "rates-span-start-inference-behind.svg", "loads-zmq.svg", "story-inference--simulated.svg"}
    assert pictures <= names
    with (tmp_path / "files" / "rates.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(whole().rates)
    assert float(rows[0]["predicted_rate"]) == rate_of("zmq", 3.0, "send-receive").predicted_rate
    for name in pictures:
        drawn = ElementTree.fromstring((tmp_path / "files" / name).read_text(encoding="utf-8"))
        assert drawn.tag.endswith("svg")
        assert "--early" in "".join(drawn.itertext()), "it stands alone, with its style"


def test_rebuilding_from_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(Results(runs=[], host={}, versions={}), tmp_path / "results.json")
    assert report.main([str(tmp_path)]) == 0
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert report.main([str(tmp_path / "nothing.json")]) == 1
    assert "nothing.json" in capsys.readouterr().err
    assert report.main([]) == 64
