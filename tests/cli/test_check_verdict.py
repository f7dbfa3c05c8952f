"""The judgement of `skewd check`, in every region between its thresholds."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from skewd.check import CRITICAL, OK, UNKNOWN, WARNING, CheckResult, describe, judge, rounded_up, seconds, short
from skewd.interval import Interval
from tests.cli.fake_daemon import status_of

MS = 1_000_000


def verdict(status: dict[str, Any] | None, **options: Any) -> CheckResult:
    return judge(status, **{"warning_ns": MS, "critical_ns": 3 * MS, **options})


@pytest.mark.parametrize(
    ("lower", "upper", "code", "strict_code", "says"),
    [
        (-MS, MS, OK, OK, "within 1ms"),
        (0, 0, OK, OK, "agrees with producer"),
        (-500_000, -400_000, OK, OK, "ahead of producer"),
        (-MS - 1, MS, WARNING, WARNING, "cannot prove 1ms"),
        (900_000, 1_100_000, WARNING, WARNING, "cannot prove 1ms"),
        (-3 * MS, 3 * MS, WARNING, WARNING, "cannot prove 1ms"),
        (MS + 1, 3 * MS, WARNING, WARNING, "beyond 1ms, within 3ms"),
        (-3 * MS, -MS - 1, WARNING, WARNING, "beyond 1ms, within 3ms"),
        (2 * MS, 4 * MS, WARNING, CRITICAL, "cannot prove 3ms"),
        (-14 * MS, 14 * MS, WARNING, CRITICAL, "cannot prove 3ms"),
        (3 * MS, 3 * MS + 1, WARNING, CRITICAL, "cannot prove 3ms"),
        (3 * MS + 1, 3 * MS + 1, CRITICAL, CRITICAL, "beyond 3ms"),
        (-9 * MS, -4 * MS, CRITICAL, CRITICAL, "beyond 3ms"),
    ],
)
@pytest.mark.parametrize("peer", [None, "producer"])
def test_every_region(lower: int, upper: int, code: int, strict_code: int, says: str, peer: str | None) -> None:
    found = verdict(status_of(lower, upper), peer=peer)
    assert (found.code, found.data["code"]) == (code, code)
    assert says in found.line
    assert found.line.startswith(("OK: ", "WARNING: ", "CRITICAL: ")[code])
    assert verdict(status_of(lower, upper), peer=peer, strict=True).code == strict_code


@given(
    ends=st.tuples(st.integers(-20 * MS, 20 * MS), st.integers(-20 * MS, 20 * MS)).map(sorted),
    thresholds=st.tuples(st.integers(1, 10 * MS), st.integers(1, 10 * MS)).map(sorted),
    strict=st.booleans(),
    peer=st.sampled_from([None, "producer"]),
)
@example(ends=[-MS, MS], thresholds=[MS, MS], strict=False, peer=None)
def test_says_only_what_every_point_of_the_bound_supports(
    ends: list[int], thresholds: list[int], strict: bool, peer: str | None
) -> None:
    warning, critical = thresholds
    found = judge(status_of(*ends), warning_ns=warning, critical_ns=critical, strict=strict, peer=peer)
    far = max(abs(ends[0]), abs(ends[1]))
    near = 0 if ends[0] <= 0 <= ends[1] else min(abs(ends[0]), abs(ends[1]))
    assert (found.code == OK) == (far <= warning)
    if not strict:
        assert (found.code == CRITICAL) == (near > critical)
    else:
        assert (found.code == CRITICAL) == (far > critical)
    assert found.code != UNKNOWN


def test_says_by_how_much_and_how_sure() -> None:
    found = verdict(status_of(-5_092_000, -4_912_000), peer="producer")
    assert found.line == "CRITICAL: inference is 5.002 ms ahead of producer (+-0.09 ms), beyond 3ms"
    behind = verdict(status_of(4_912_000, 5_092_000))
    assert "inference is 5.002 ms behind producer (+-0.09 ms)" in behind.line


def test_says_what_would_help_when_the_bound_is_too_wide() -> None:
    found = verdict(status_of(-14 * MS, 14 * MS, rtt_min_ns=28 * MS))
    assert "cannot prove 3ms: bound +-14ms, best RTT 28ms; add a peer or a nearer source" in found.line


def test_the_reference_of_a_mesh_agrees_with_itself() -> None:
    found = verdict(status_of(0, 0, node="producer"))
    assert (found.code, found.line) == (OK, "OK: producer is the reference itself, within 1ms")


def test_against_utc_the_best_round_trip_is_that_of_a_source() -> None:
    sources = [{"name": "ntp", "rtt_min_ns": 7 * MS}, {"name": "kernel"}]
    found = verdict(status_of(-5 * MS, 5 * MS, reference="utc", sources=sources))
    assert "best RTT 7ms" in found.line
    assert "of utc" in verdict(status_of(-6 * MS, -5 * MS, reference="utc")).line


@pytest.mark.parametrize(
    ("status", "options", "says"),
    [
        (None, {}, "no daemon"),
        (status_of(None, None), {}, "no bound on the reference"),
        (status_of(None, None, peers=[]), {}, "no source and no peer"),
        (status_of(None, None), {"peer": "producer"}, "no bound on producer yet"),
        (status_of(0, 0), {"peer": "postprocess"}, "no peer is named 'postprocess'; the peers are producer"),
        (status_of(0, 0, peers=[]), {"peer": "x"}, "no peer has been heard of"),
        (status_of(0, 0), {"peer": "inference"}, "is this node itself"),
        (status_of(0, 0, age_s=61.0), {}, "stale"),
        (status_of(0, 0, age_s=61.0), {"peer": "producer"}, "stale: last heard 61 s ago"),
        (status_of(5, 4), {}, "cannot be read"),
        (status_of(0, 0, peers="many"), {}, "cannot be read"),
        ({**status_of(0, 0), "lower_ns": "0"}, {}, "cannot be read"),
        ({}, {}, "no source and no peer"),
    ],
)
def test_unknown_is_never_dressed_up(status: dict[str, Any] | None, options: dict[str, Any], says: str) -> None:
    found = verdict(status, **options)
    assert found.code == UNKNOWN
    assert found.line.startswith("UNKNOWN: ")
    assert says in found.line
    assert found.perfdata == "offset=U;-0.001:0.001;-0.003:0.003"
    assert found.data["offset_ns"] is None
    assert verdict(status, strict=True, **options).code == UNKNOWN


def test_age_within_the_limit_is_not_stale() -> None:
    assert verdict(status_of(0, 0, age_s=61.0), max_age_s=62).code == OK


def test_of_several_ways_to_a_peer_the_narrowest_counts() -> None:
    wide, narrow = status_of(-9 * MS, 9 * MS)["peers"][0], status_of(-10, 10)["peers"][0]
    assert verdict(status_of(0, 0, peers=[wide, narrow]), peer="producer").code == OK


@pytest.mark.parametrize("status", [status_of(0, 0, virtual=True), status_of(None, None, virtual=True)])
def test_a_virtual_clock_is_said_loudly(status: dict[str, Any]) -> None:
    for options in ({}, {"peer": "producer"}):
        found = verdict(status, **options)
        assert "VIRTUAL CLOCK" in found.line
        assert found.data["virtual"] is True


def test_holdover_and_hearsay_are_mentioned() -> None:
    assert "[holdover]" in verdict({**status_of(0, 9), "status": "holdover"}).line
    status = status_of(0, 9)
    status["peers"][0]["trust"] = "composed"
    assert "[composed]" in verdict(status, peer="producer").line


@pytest.mark.parametrize(("warning", "critical"), [(0, 1), (2, 1), (-1, 5)])
def test_thresholds_that_make_no_sense_are_refused(warning: int, critical: int) -> None:
    with pytest.raises(ValueError, match="warning"):
        judge(status_of(0, 0), warning_ns=warning, critical_ns=critical)


PERFDATUM = re.compile(r"([a-z]+)=(-?\d+(?:\.\d+)?)s(?:;-(\d[\d.]*):(\d[\d.]*);-(\d[\d.]*):(\d[\d.]*))?")


@given(ends=st.tuples(st.integers(-(10**13), 10**13), st.integers(-(10**13), 10**13)).map(sorted))
def test_performance_data_is_in_the_format_and_exact(ends: list[int]) -> None:
    found = verdict(status_of(*ends))
    values = {}
    for part in found.perfdata.split(" "):
        match = PERFDATUM.fullmatch(part)
        assert match, part
        values[match[1]] = Decimal(match[2]) * 10**9
        if match[1] == "offset":
            assert match.groups()[2:] == ("0.001", "0.001", "0.003", "0.003")
    assert values["lower"] == ends[0]
    assert values["upper"] == ends[1]
    assert values["lower"] <= values["offset"] <= values["upper"]
    assert values["uncertainty"] == max(values["upper"] - values["offset"], values["offset"] - values["lower"])


@given(name=st.text(max_size=80), reason=st.text(max_size=80))
def test_a_line_is_one_line_without_the_mark_of_performance_data(name: str, reason: str) -> None:
    for found in (verdict(status_of(0, 0, node=name, status=reason)), verdict(status_of(0, 0), peer=name)):
        assert len(found.line.splitlines()) == 1
        assert "|" not in found.line


@given(
    ends=st.tuples(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12)).map(sorted),
    part=st.fractions(0, 1),
)
def test_what_is_printed_covers_the_bound(ends: list[int], part: Any) -> None:
    bound = Interval(*ends)
    offset = bound.lo + int(bound.width * part)
    size, spread = describe(offset, bound)
    unit = size.split(" ")[1]
    assert spread.endswith(f" {unit}")
    scale = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}[unit]
    shown = Decimal(size.split(" ")[0]) * scale * (-1 if offset < 0 else 1)
    reach = Decimal(spread.split(" ")[0].removeprefix("+-")) * scale
    assert shown - reach <= bound.lo
    assert shown + reach >= bound.hi
    # ... and is not needlessly wide: within a twentieth, or a few nanoseconds, of the truth.
    assert reach <= Decimal(bound.farthest(offset)) * Decimal("1.21") + 2


@pytest.mark.parametrize(
    ("ns", "text"),
    [(3 * MS, "3ms"), (2_500_000, "2.5ms"), (250_000, "250us"), (0, "0ns"), (-1_500, "-1.5us"), (90 * 10**9, "90s")],
)
def test_short_durations(ns: int, text: str) -> None:
    assert short(ns) == text


@given(st.integers(0, 10**15))
def test_rounding_up_never_shrinks(ns: int) -> None:
    assert ns <= rounded_up(ns) <= ns * 1.01 + 1


@given(st.integers(-(10**18), 10**18))
def test_seconds_are_exact(ns: int) -> None:
    assert Decimal(seconds(ns)) * 10**9 == ns
