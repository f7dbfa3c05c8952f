"""What is wrong with a node: one value for each thing, with a code that programs can rely on.

The problem: a sentence is read by a person once and by programs for years. A screen, a check, a metric, a log line
and a page that each take sentences apart disagree as soon as a sentence is improved.

The insight: a problem is a value. Its *code* is a stable word and never changes its meaning; its *severity* follows
from the code; its *subject* names the peer, source, link, file or key that it is about; its *text* says what is wrong
and its *remedy* what to do. Every output is derived from these values. Two problems are the same problem when code and
subject are the same, whatever ages and counts their texts name: that is what logs compare.

A problem is told while it lasts, and no longer: each part of the daemon derives its list anew from its present state.

Limits: ``PROBLEMS_MAX`` problems are told, the gravest first. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

PROBLEMS_MAX = 64


class Severity(StrEnum):
    """How grave a problem is."""

    INFO = "info"  # worth knowing; what is published is as good as it should be
    WARNING = "warning"  # something configured does not work, or bounds are worse than they could be
    CRITICAL = "critical"  # the node is not, or may not be, what its configuration asks for


class Problem(NamedTuple):
    """One thing that is wrong, or worth knowing.

    Attributes:
        code: one of ``CODES``.
        subject: the name of the peer, source, link, file or key that it is about; empty for the node itself.
        text: what is wrong, in one sentence without a full stop.
        remedy: what to do, in one sentence without a full stop; empty where there is nothing to do but wait.
    """

    code: str
    subject: str
    text: str
    remedy: str

    @property
    def severity(self) -> Severity:
        """As the code has it."""
        return CODES[self.code].severity

    @property
    def identity(self) -> tuple[str, str]:
        """What makes two tellings the same problem."""
        return self.code, self.subject

    def told(self) -> dict[str, str]:
        """As ``status --json`` has it."""
        return {
            "code": self.code,
            "severity": self.severity.value,
            "subject": self.subject,
            "text": self.text,
            "remedy": self.remedy,
        }


class Code(NamedTuple):
    """What a code means; documentation is made of this."""

    severity: Severity
    meaning: str


_I, _W, _C = Severity.INFO, Severity.WARNING, Severity.CRITICAL

CODES: dict[str, Code] = {}
"""Every code there is. A code that was released is never given another meaning."""


def gravest_first(problems: Iterable[Problem]) -> list[Problem]:
    """Each problem once, critical ones first, in a stable order; at most ``PROBLEMS_MAX``."""
    once: dict[tuple[str, str], Problem] = {}
    for problem in problems:
        once.setdefault(problem.identity, problem)
    order = list(Severity)[::-1]
    return sorted(once.values(), key=lambda one: order.index(one.severity))[:PROBLEMS_MAX]
