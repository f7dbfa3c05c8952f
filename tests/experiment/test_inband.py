"""In-band only: what nodes are configured with, and what is said of their bounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from skewd.config import parse_config
from skewd_pipeline.export import tables
from skewd_pipeline.inband import BoundsTally, InBand, messages_used
from skewd_pipeline.nodes import node_toml
from skewd_pipeline.report import render
from skewd_pipeline.results import Missing, Spread, merged
from skewd_pipeline.spans import SpanRecord
from tests.experiment.made_results import made_results, run_of

TRUTH = {"inference": 5_000, "preprocess": 0, "consumer": 0}


def span(stage: str, offset_ns: int | None, uncertainty_ns: int = 100) -> SpanRecord:
    tags = {} if offset_ns is None else {"clock.offset_ns": offset_ns, "clock.uncertainty_ns": uncertainty_ns}
    return SpanRecord("s", "", "t", stage, 0, 1, tags, {})


def toml(only: InBand | None, tmp_path: Path) -> str:
    return node_toml(
        "inference", tmp_path, key=tmp_path / "key", peers=(), reference="preprocess", link="ipc:///tmp/l", only=only
    )


@pytest.mark.parametrize("transport", ["zmq", "aeron", "kafka"])
def test_a_node_speaks_no_udp_and_believes_the_one_path_there_is(transport: str, tmp_path: Path) -> None:
    only = InBand(transport, "127.0.0.1:9092", "clocks") if transport == "kafka" else InBand(transport)
    config = parse_config(toml(only, tmp_path).encode(), Path("node.toml"), {}).config
    assert (config.mesh.listen, config.mesh.liars, config.mesh.peers) == (None, 0, ())
    links = [(link.transport, link.address, link.topic) for link in config.link]
    assert links[0] == ("zmq", "ipc:///tmp/l", None)
    assert links[1:] == ([("kafka", "127.0.0.1:9092", "clocks")] if transport == "kafka" else [])


def test_otherwise_udp_is_on(tmp_path: Path) -> None:
    config = parse_config(toml(None, tmp_path).encode(), Path("node.toml"), {}).config
    assert config.mesh.listen == "127.0.0.1:0"
    assert config.mesh.liars == 1


def test_bounds_are_judged_by_the_truth_and_without_the_references_own() -> None:
    tally = BoundsTally()
    spans = [
        span("inference", 5_100),
        span("inference", 5_101),
        span("consumer", 0, 900),
        span("preprocess", 0, 0),
        span("consumer", None),
    ]
    rows = [run_of("aeron", 5.0, "rewrite", rule) for rule in ("send-receive", "span-start")]
    tally.add("aeron", None, spans, TRUTH, rows)
    (found,) = tally.bounds(inband_only=True, reference="preprocess", used={"aeron": {"stamps": 7}})
    assert (found.transport, found.path) == ("aeron", "in-band only")
    assert (found.spans, found.spans_unsynchronized, found.coverage) == (5, 1, 0.75)
    assert found.width_ns == Spread(200, 200, 1_800)
    assert found.width_p50_ns == {"inference": 200, "consumer": 1_800}
    assert (found.residual_max_ns, found.residuals_beyond) == (12_000, 0)
    assert found.messages == {"stamps": 7}


def test_nothing_bounded_has_no_coverage_rather_than_a_perfect_one() -> None:
    tally = BoundsTally()
    tally.add("zmq", None, [span("inference", None)], TRUTH, [])
    (found,) = tally.bounds(inband_only=False, reference="preprocess", used={})
    assert (found.coverage, found.width_ns, found.path) == (None, None, "UDP and in-band")


def test_the_daemons_counters_are_summed_over_nodes_and_links() -> None:
    statuses: list[dict[str, object]] = [
        {"links": [{"counters": {"requests": 1, "stamps": 2, "else": 9}}, {"counters": {"requests": 3}}]},
        {"links": [{"counters": {"accepted": 5}}]},
        {},
    ]
    assert messages_used(statuses) == {"requests": 4, "stamps": 2, "accepted": 5}


def test_the_report_has_the_bounds_of_each_transport_and_what_is_missing(tmp_path: Path) -> None:
    tally = BoundsTally()
    tally.add("zmq", None, [span("inference", 5_000, 600_000)], TRUTH, [])
    results = made_results()
    results.bounds = tally.bounds(inband_only=True, reference="preprocess", used={})
    results.missing = [Missing(transport="aeron", reason="Aeron needs Python 3.12 or newer")]
    page = render(results)
    assert "in-band only" in page
    assert "1.20 ms" in page
    assert "100.0000%" in page
    assert "aeron was not run: Aeron needs Python 3.12 or newer." in page
    assert "bounds" in tables(results)


def test_two_ways_of_one_transport_are_not_told_as_one() -> None:
    parts = []
    for client, skew in (("ipc", 5.0), ("udp", 7.0)):
        part = made_results()
        part.runs = [run_of("aeron", skew, "off", "span-start")]
        part.runs[0].client = client
        parts.append(part)
    with pytest.raises(ValueError, match=r"aeron with ipc, another with udp.*give each its own report"):
        merged(parts)
