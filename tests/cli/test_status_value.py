"""A status as a value: what is encoded is what is read again, of this version, an older and a newer one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from skewd.problems import CODES, Problem, Severity
from skewd.status import NodeStatus, UnreadableStatus, decode, encode, plain
from skewd.status_view import render_status
from tests.cli.fake_daemon import status_of

KEYS = (
    *("node", "era", "status", "reference", "offset_ns", "lower_ns", "upper_ns", "uncertainty_ns", "drift_ppb"),
    *("age_s", "trust", "path", "peers", "peers_left_out", "sources", "links", "mesh", "virtual", "contradictions"),
    *("uptime_s", "problems", "messages", "clock", "metrics", "version", "found", "config", "discipline"),
)


def test_no_key_is_ever_left_out() -> None:
    assert set(json.loads(encode(NodeStatus()))) >= set(KEYS)


def test_what_is_told_is_read_again() -> None:
    told = decode(status_of(-5, 9)).with_problems([Problem("holdover", "", "silent", "look"), critical()])
    assert decode(json.loads(encode(told))) == told
    assert plain(told) == json.loads(encode(told))


def critical() -> Problem:
    return Problem("sources-unheard", "", "no source has answered yet", "")


def test_problems_are_told_the_gravest_first_and_as_lines() -> None:
    told = NodeStatus().with_problems([Problem("holdover", "", "silent", "look"), critical()])
    assert [(one.code, one.severity) for one in told.problems] == [
        ("sources-unheard", "critical"),
        ("holdover", "warning"),
    ]
    assert told.messages == ["no source has answered yet", "silent; look"]


def test_a_newer_daemon_may_say_more() -> None:
    newer: dict[str, Any] = status_of(0, 9, unheard_of={"a": [1]})
    newer["peers"][0]["also"] = 7
    newer["problems"] = [{"code": "not-known-here", "severity": "graver", "text": "odd", "remedy": "", "more": 1}]
    (problem,) = decode(newer).problems
    assert problem.code == "not-known-here"
    assert "  ! odd\n" in render_status(newer)


def test_an_older_daemons_lines_are_taken_for_problems() -> None:
    older = status_of(0, 9, messages=["source far is unreachable", "odd; do this"])
    assert [(one.code, one.text, one.remedy) for one in decode(older).problems] == [
        ("", "source far is unreachable", ""),
        ("", "odd", "do this"),
    ]


def test_what_makes_no_sense_is_refused_or_counts_as_unknown() -> None:
    odd = status_of(0, 9, era="one", peers=[{"name": 7, "address": "there:9957"}, "no row"], sources={}, mesh=[])
    with pytest.raises(UnreadableStatus, match="do its version and this command's agree"):
        decode(odd)
    read = decode(odd, odd_is_unknown=True)
    assert (read.node, read.lower_ns, read.era, read.sources, read.mesh) == ("inference", 0, None, [], None)
    assert [(row.name, row.address) for row in read.peers] == [(None, "there:9957")]
    assert decode(status_of(9, 0), odd_is_unknown=True).bound is None


def test_what_is_worth_knowing_is_not_said_to_be_wrong() -> None:
    told = decode(status_of(0, 9))
    leap = Problem("leap-announced", "", "a leap second is announced", "")
    assert leap.severity is Severity.INFO
    screen = render_status(told.with_problems([leap]))
    assert "nothing is wrong\n\nworth knowing\n  - a leap second is announced\n" in screen
    screen = render_status(told.with_problems([leap, critical()]))
    assert "what is wrong, and what to do\n  ! no source has answered yet\n\nworth knowing\n" in screen


def test_codes_are_sorted_words_with_a_meaning() -> None:
    assert list(CODES) == sorted(CODES)
    for code, (severity, meaning) in CODES.items():
        assert code.replace("-", "").isalnum()
        assert code == code.lower()
        assert severity in Severity
        assert meaning
        assert not meaning.endswith(".")
