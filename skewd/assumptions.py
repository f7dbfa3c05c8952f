"""``skewd check --assumptions``: do the clocks keep within the limits that all bounds rest on?

Every bound holds whenever the declared limits hold (``[clock] max_drift_ppm``, ``max_wander_ppb_per_s``), so somebody
has to look at them. ``bounds/observed.py`` says, for each peer and source, what the messages alone prove about drift
and wander; here that becomes one verdict, with a check's exit codes:

==============  ======================  =================================================================
0 OK            within the limits       the latest mean drift and wander are proven to be, for all asked about
1 WARNING       cannot tell yet         for some, longer observation or a shorter way is needed (strict: CRITICAL)
2 CRITICAL      violated                proven within the last hour, for some
3 UNKNOWN       nothing to observe      no daemon, no peer or source heard, or not lately
==============  ======================  =================================================================

Limits: what messages prove is about pairs of clocks; which of the two broke its limit they do not say, except that
UTC does not drift. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from skewd.check import CRITICAL, MAX_AGE_S, OK, UNKNOWN, VIRTUAL, WARNING, WORDS, CheckResult
from skewd.lean import msgspec
from skewd.problems import Problem
from skewd.status import Assumptions, NodeStatus, Seen, UnreadableStatus, decode

_NAMED_MAX = 3
_UNITS = {"drift": ("ppm", 1_000, "[clock] max_drift_ppm"), "wander": ("ppb/s", 1, "[clock] max_wander_ppb_per_s")}


def judge(
    told: NodeStatus | Mapping[str, Any],
    *,
    peer: str | None = None,
    strict: bool = False,
    max_age_s: float = MAX_AGE_S,
    said: str = "",
) -> CheckResult:
    """The verdict on a daemon's status, as read or as told, on all pairs or on the one with ``peer``.

    ``said``: what is wrong beside the clocks, a mistake in the configuration; it changes no verdict.
    """
    try:
        status = decode(told)
    except UnreadableStatus as error:
        return _result(UNKNOWN, f"{error}{f' [{said}]' if said else ''}", [], NodeStatus(), strict)
    code, text, rows = _verdict_on(status, peer, strict, max_age_s)
    return _result(code, f"{text}{f' [{said}]' if said else ''}", rows, status, strict)


def _verdict_on(status: NodeStatus, peer: str | None, strict: bool, max_age_s: float) -> tuple[int, str, list[_Pair]]:
    rows = _pairs(status, peer, max_age_s)
    by_verdict = {verdict: [row for row in rows if row.verdict == verdict] for verdict in _WORST_FIRST}
    if not rows or len(by_verdict["stale"]) == len(rows):
        what = f"nothing was heard of '{peer[:63]}'" if peer is not None else "no peer and no source was heard"
        message = f"cannot tell: {what} {'lately' if rows else 'yet'}; 'skewd status' says why"
        return UNKNOWN, message, rows
    if by_verdict["violated"]:
        broken = by_verdict["violated"]
        whose = ""
        if len(broken) > 1 and len(broken) == len(rows):
            whose = "; it is so against all, so this node's clock is the likely one"
        return CRITICAL, f"violated {_named(broken, _broken)}{whose}", rows
    unclear = by_verdict["unknown"] + by_verdict["stale"]
    if unclear:
        return CRITICAL if strict else WARNING, f"cannot tell yet {_named(unclear, _unclear)}", rows
    return OK, f"within the limits {_named(by_verdict['within'], _seen)}", rows


_WORST_FIRST = ("violated", "stale", "unknown", "within")


class _Pair(NamedTuple):
    """What is known of this clock and one other."""

    name: str
    kind: str
    verdict: str
    age_s: float
    told: Assumptions

    @property
    def data(self) -> dict[str, Any]:
        """As ``check --assumptions --json`` has it."""
        row: dict[str, Any] = {"name": self.name, "kind": self.kind, "verdict": self.verdict, "age_s": self.age_s}
        return {**row, **msgspec.to_builtins(self.told)}


def _pairs(status: NodeStatus, peer: str | None, max_age_s: float) -> list[_Pair]:
    found = []
    for kind, rows in (("peer", status.peers), ("source", status.sources)):
        for row in rows:
            told = row.assumptions
            if (peer is not None and (kind != "peer" or row.name != peer)) or told is None or row.age_s is None:
                continue
            verdict = _verdict(told)
            stale = row.age_s > max_age_s and verdict != "violated"
            found.append(_Pair((row.name or "")[:63], kind, "stale" if stale else verdict, row.age_s, told))
    return found


def _verdict(told: Assumptions) -> str:
    verdicts = {told.drift.verdict, told.wander.verdict}
    if told.contradicted_age_s is not None or "violated" in verdicts:
        return "violated"
    return "unknown" if "unknown" in verdicts else "within"


def summary(status: NodeStatus) -> str | None:
    """In a few words for the screen; None where a daemon does not say."""
    found = [pair.verdict for pair in _pairs(status, None, math.inf)]
    if not found:
        return None
    if "violated" in found:
        return f"drift or wander violated against {found.count('violated')} of {len(found)}"
    if "unknown" in found:
        return f"cannot tell yet against {found.count('unknown')} of {len(found)}"
    return f"drift and wander within the limits against {'all ' if len(found) > 1 else ''}{len(found)}"


def problems(name: str, told: Assumptions) -> list[Problem]:
    """What the daemon says of a pair that breaks its limits."""
    found = [
        Problem(
            f"{of}-violated",
            name,
            f"against {name}: {_figure(seen, of, 'at_least')}",
            f"raise {_UNITS[of][2]} on the node whose clock it is, or replace that clock",
        )
        for of, seen in (("drift", told.drift), ("wander", told.wander))
        if seen.verdict == "violated"
    ]
    if told.contradicted_age_s is not None:
        wrong = (
            f"against {name}: a clock moved by more than its declared limits ([clock] max_drift_ppm,"
            f" max_wander_ppb_per_s) {told.contradicted_age_s} s ago, or a raw clock jumped"
        )
        remedy = "if that happens again, see 'skewd check --assumptions' on both nodes"
        found.append(Problem("clocks-contradict", name, wrong, remedy))
    return found


def _named(rows: list[_Pair], say: Callable[[_Pair], str]) -> str:
    shown = [f"against {row.name}: {say(row)}" for row in rows[:_NAMED_MAX]]
    more = f"; and {len(rows) - _NAMED_MAX} more, see --json" if len(rows) > _NAMED_MAX else ""
    return "; ".join(shown) + more


def _limits(pair: _Pair) -> tuple[tuple[str, Seen], tuple[str, Seen]]:
    return ("drift", pair.told.drift), ("wander", pair.told.wander)


def _broken(pair: _Pair) -> str:
    figures = [_figure(seen, of, "at_least") for of, seen in _limits(pair) if seen.verdict == "violated"]
    if pair.told.contradicted_age_s is not None:
        figures.append(f"messages excluded every state that the limits allow, {pair.told.contradicted_age_s} s ago")
    return " and ".join(figures)


def _unclear(pair: _Pair) -> str:
    if pair.verdict == "stale":
        return f"last heard {pair.age_s:.0f} s ago"
    return " and ".join(_figure(seen, of, "at_most") for of, seen in _limits(pair) if seen.verdict == "unknown")


def _seen(pair: _Pair) -> str:
    return " and ".join(_figure(seen, of, "at_most") for of, seen in _limits(pair))


def _figure(one: Seen, of: str, end: str) -> str:
    """``drift at most 3.21 ppm over 512 s (limit 200)``."""
    unit, scale, _ = _UNITS[of]
    least = end == "at_least"
    value = one.at_least if least else one.at_most
    if value is None:
        return f"{of} not observed yet"
    return (
        f"{of} at {'least' if least else 'most'} {_rounded(value / scale, up=not least)} {unit} "
        f"over {one.window_s} s (limit {one.limit / scale:.6g})"
    )


def _rounded(value: float, *, up: bool) -> str:
    """Three digits or so, towards what is surely true."""
    scale = 100 if value < 10 else 10 if value < 100 else 1
    return f"{(math.ceil if up else math.floor)(value * scale) / scale:g}"


def _result(code: int, text: str, rows: list[_Pair], status: NodeStatus, strict: bool) -> CheckResult:
    node, virtual = status.node, status.virtual
    message = " ".join(f"{node or 'this node'}: {text}{f' [{VIRTUAL}]' if virtual else ''}".replace("|", "/").split())
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in _WORST_FIRST}
    unclear = counts["unknown"] + counts["stale"]
    perfdata = f"within={counts['within']} unclear={unclear} violated={counts['violated']}"
    data = {
        "code": code,
        "status": WORDS[code],
        "message": message,
        "node": node,
        "assumptions": [row.data for row in rows],
        "strict": strict,
        "virtual": virtual,
        "perfdata": perfdata,
    }
    return CheckResult(code, f"{WORDS[code]}: {message}", perfdata, data)
