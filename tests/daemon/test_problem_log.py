"""What the log says of problems: changes, and not the ages that their texts name."""

from __future__ import annotations

from typing import Any

from skewd.problem_log import ProblemLog
from skewd.problems import CODES, PROBLEMS_MAX, Problem, Severity, gravest_first
from skewd.status import NodeStatus


class Lines:
    """A log that keeps its lines."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str, dict[str, Any]]] = []

    def info(self, event: str, **facts: Any) -> None:
        self.said.append(("info", event, facts))

    def warning(self, event: str, **facts: Any) -> None:
        self.said.append(("warning", event, facts))


def holdover(age_s: int) -> Problem:
    return Problem("holdover", "", f"holdover: the reference was last heard {age_s} s ago, the bound grows", "look")


def test_an_hour_of_holdover_is_two_lines() -> None:
    lines = Lines()
    log = ProblemLog(lines)
    for age_s in range(10, 3600, 10):
        log.say(NodeStatus().with_problems([holdover(age_s)]).problems)
    log.say([])
    log.say([])
    assert lines.said == [
        (
            "warning",
            "problem",
            {
                "code": "holdover",
                "severity": "warning",
                "text": "holdover: the reference was last heard 10 s ago, the bound grows",
                "remedy": "look",
            },
        ),
        ("info", "problem over", {"code": "holdover"}),
    ]


def test_one_code_of_two_subjects_is_two_problems() -> None:
    lines = Lines()
    log = ProblemLog(lines)
    both = [Problem("source-unreachable", name, f"source {name} is unreachable", "") for name in ("a", "b")]
    log.say(NodeStatus().with_problems(both).problems)
    log.say(NodeStatus().with_problems(both[1:]).problems)
    assert [(event, facts["subject"]) for _, event, facts in lines.said] == [
        ("problem", "a"),
        ("problem", "b"),
        ("problem over", "a"),
    ]


def test_what_is_only_worth_knowing_is_no_warning() -> None:
    lines = Lines()
    ProblemLog(lines).say(NodeStatus().with_problems([Problem("leap-announced", "", "a leap", "")]).problems)
    assert [level for level, _, _ in lines.said] == ["info"]


def test_many_subjects_of_one_code_hide_no_other_code() -> None:
    many = [Problem("clocks-contradict", f"n{number}", "", "") for number in range(5 * PROBLEMS_MAX)]
    few = [Problem(code, "", "", "") for code in CODES if code != "clocks-contradict"]
    kept = gravest_first([*many, *few])
    assert len(kept) == PROBLEMS_MAX
    assert {one.code for one in kept} == set(CODES) if len(CODES) <= PROBLEMS_MAX else len({*kept}) == PROBLEMS_MAX
    order = [Severity.CRITICAL, Severity.WARNING, Severity.INFO]
    assert [order.index(one.severity) for one in kept] == sorted(order.index(one.severity) for one in kept)
    told = NodeStatus().with_problems([*many, *few, many[0]])
    assert told.problems_left_out == len(many) + len(few) - PROBLEMS_MAX
