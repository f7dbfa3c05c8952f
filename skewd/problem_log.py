"""What the log says of problems: that one came, and that it is over; never the same again while it lasts.

A text that names an age is another at each look, so texts are not compared: a problem is the same while its code and
its subject are (``problems.py``).

Limits: problems that come and go between two looks are not said. Lines are as many as the status has problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from skewd.problems import Severity
from skewd.status import ToldProblem


class Log(Protocol):
    """Where it is said."""

    def info(self, event: str, **facts: Any) -> Any: ...

    def warning(self, event: str, **facts: Any) -> Any: ...


class ProblemLog:
    """Says what has changed since the last look."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._lasting: dict[tuple[str, str], ToldProblem] = {}

    def say(self, problems: Sequence[ToldProblem]) -> None:
        """Takes what is wrong now."""
        now = {(one.code, one.subject): one for one in problems}
        for one in now.values():
            self.came(one)
        for code, subject in self._lasting.keys() - now.keys():
            self._log.info("problem over", code=code, **({"subject": subject} if subject else {}))
        self._lasting = now

    def came(self, one: ToldProblem) -> None:
        """Takes one that is found between two looks, or after the last."""
        if (one.code, one.subject) in self._lasting:
            return
        self._lasting[one.code, one.subject] = one
        say = self._log.info if one.severity == Severity.INFO else self._log.warning
        about = {"subject": one.subject} if one.subject else {}
        remedy = {"remedy": one.remedy} if one.remedy else {}
        say("problem", code=one.code, severity=one.severity, **about, text=one.text, **remedy)
