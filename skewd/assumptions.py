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
from collections.abc import Iterator, Mapping
from typing import Any

from skewd.check import CRITICAL, MAX_AGE_S, OK, UNKNOWN, VIRTUAL, WARNING, WORDS, CheckResult

_NAMED_MAX = 3
_UNITS = {"drift": ("ppm", 1_000, "[clock] max_drift_ppm"), "wander": ("ppb/s", 1, "[clock] max_wander_ppb_per_s")}


def judge(
    status: Mapping[str, Any], *, peer: str | None = None, strict: bool = False, max_age_s: float = MAX_AGE_S
) -> CheckResult:
    """The verdict on a daemon's status (``status --json``), on all pairs or on the one with ``peer``."""
    try:
        rows = list(_rows(status, peer, max_age_s))
    except (TypeError, ValueError, AttributeError, KeyError):
        message = "the daemon's answer cannot be read; do its version and this command's agree?"
        return _result(UNKNOWN, message, [], status, strict)
    by_verdict = {verdict: [row for row in rows if row["verdict"] == verdict] for verdict in _WORST_FIRST}
    if not rows or len(by_verdict["stale"]) == len(rows):
        what = f"nothing was heard of '{peer[:63]}'" if peer is not None else "no peer and no source was heard"
        message = f"cannot tell: {what} {'lately' if rows else 'yet'}; 'skewd status' says why"
        return _result(UNKNOWN, message, rows, status, strict)
    if by_verdict["violated"]:
        broken = by_verdict["violated"]
        whose = ""
        if len(broken) > 1 and len(broken) == len(rows):
            whose = "; it is so against all, so this node's clock is the likely one"
        return _result(CRITICAL, f"violated {_named(broken, _broken)}{whose}", rows, status, strict)
    unclear = by_verdict["unknown"] + by_verdict["stale"]
    if unclear:
        return _result(
            CRITICAL if strict else WARNING, f"cannot tell yet {_named(unclear, _unclear)}", rows, status, strict
        )
    return _result(OK, f"within the limits {_named(by_verdict['within'], _seen)}", rows, status, strict)


_WORST_FIRST = ("violated", "stale", "unknown", "within")


def _rows(status: Mapping[str, Any], peer: str | None, max_age_s: float) -> Iterator[dict[str, Any]]:
    for kind in ("peer", "source"):
        for row in status.get(f"{kind}s") or []:
            told = row.get("assumptions")
            if (peer is not None and (kind != "peer" or row["name"] != peer)) or told is None:
                continue
            age_s = row.get("age_s")
            if age_s is None:
                continue  # never heard
            yield {
                "name": str(row["name"])[:63],
                "kind": kind,
                "verdict": "stale" if age_s > max_age_s and _verdict(told) != "violated" else _verdict(told),
                "age_s": age_s,
                **told,
            }


def _verdict(told: Mapping[str, Any]) -> str:
    verdicts = {told["drift"]["verdict"], told["wander"]["verdict"]}
    if told["contradicted_age_s"] is not None or "violated" in verdicts:
        return "violated"
    return "unknown" if "unknown" in verdicts else "within"


def summary(status: Mapping[str, Any]) -> str | None:
    """In a few words for the screen; None where a daemon does not say."""
    try:
        found = [row["verdict"] for row in _rows(status, None, math.inf)]
    except (TypeError, ValueError, AttributeError, KeyError):
        return None
    if not found:
        return None
    if "violated" in found:
        return f"drift or wander violated against {found.count('violated')} of {len(found)}"
    if "unknown" in found:
        return f"cannot tell yet against {found.count('unknown')} of {len(found)}"
    return f"drift and wander within the limits against {'all ' if len(found) > 1 else ''}{len(found)}"


def violations(name: str, told: Mapping[str, Any]) -> list[str]:
    """What the daemon says of a pair that breaks its limits: lines of what is wrong, and what to do."""
    return [
        f"against {name}: {_figure(told, of, 'at_least')}; raise {_UNITS[of][2]} on the node whose clock it is, "
        "or replace that clock"
        for of in ("drift", "wander")
        if told[of]["verdict"] == "violated"
    ]


def _named(rows: list[dict[str, Any]], say: Any) -> str:
    shown = [f"against {row['name']}: {say(row)}" for row in rows[:_NAMED_MAX]]
    more = f"; and {len(rows) - _NAMED_MAX} more, see --json" if len(rows) > _NAMED_MAX else ""
    return "; ".join(shown) + more


def _broken(row: Mapping[str, Any]) -> str:
    figures = [_figure(row, of, "at_least") for of in ("drift", "wander") if row[of]["verdict"] == "violated"]
    if row["contradicted_age_s"] is not None:
        figures.append(f"messages excluded every state that the limits allow, {row['contradicted_age_s']} s ago")
    return " and ".join(figures)


def _unclear(row: Mapping[str, Any]) -> str:
    if row["verdict"] == "stale":
        return f"last heard {row['age_s']:.0f} s ago"
    return " and ".join(_figure(row, of, "at_most") for of in ("drift", "wander") if row[of]["verdict"] == "unknown")


def _seen(row: Mapping[str, Any]) -> str:
    return " and ".join(_figure(row, of, "at_most") for of in ("drift", "wander"))


def _figure(told: Mapping[str, Any], of: str, end: str) -> str:
    """``drift at most 3.21 ppm over 512 s (limit 200)``."""
    unit, scale, _ = _UNITS[of]
    one = told[of]
    if one[end] is None:
        return f"{of} not observed yet"
    least = end == "at_least"
    return (
        f"{of} at {'least' if least else 'most'} {_rounded(one[end] / scale, up=not least)} {unit} "
        f"over {one['window_s']} s (limit {one['limit'] / scale:.6g})"
    )


def _rounded(value: float, *, up: bool) -> str:
    """Three digits or so, towards what is surely true."""
    scale = 100 if value < 10 else 10 if value < 100 else 1
    return f"{(math.ceil if up else math.floor)(value * scale) / scale:g}"


def _result(code: int, text: str, rows: list[dict[str, Any]], status: Mapping[str, Any], strict: bool) -> CheckResult:
    node = status.get("node")
    virtual = status.get("virtual") is True
    message = " ".join(f"{node or 'this node'}: {text}{f' [{VIRTUAL}]' if virtual else ''}".replace("|", "/").split())
    counts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in _WORST_FIRST}
    unclear = counts["unknown"] + counts["stale"]
    perfdata = f"within={counts['within']} unclear={unclear} violated={counts['violated']}"
    data = {
        "code": code,
        "status": WORDS[code],
        "message": message,
        "node": node,
        "assumptions": rows,
        "strict": strict,
        "virtual": virtual,
        "perfdata": perfdata,
    }
    return CheckResult(code, f"{WORDS[code]}: {message}", perfdata, data)
