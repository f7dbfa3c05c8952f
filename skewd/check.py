"""Is this clock within what was asked? The answer of a monitoring plugin, with its reasons.

The problem: a check that compares one measured number with a threshold says OK while it does not know, and alarms
when the network was slow. The insight: the offset is known to lie in [lower, upper], so three answers are possible
for a threshold: surely within, surely beyond, and *cannot be proven*. The third is said aloud, with what would cure
it (a nearer source, another peer), and never as OK.

With ``w`` the warning and ``c`` the critical threshold, and near and far the smallest and largest distance from zero
in the bound:

=====================  ======================  ========================================
far <= w               OK                      surely within warning
near > c               CRITICAL                surely beyond critical
far > c                WARNING (strict:        critical cannot be proven
                       CRITICAL)
near > w               WARNING                 surely beyond warning, surely within critical
otherwise              WARNING                 within critical; warning cannot be proven
no bound, stale,       UNKNOWN                 nothing is known, or what this node's configuration asks for
unsynchronized                                 is lacking
=====================  ======================  ========================================

Rounding for people is outward: the printed uncertainty covers the bound, whatever was cut off the printed offset.

Limits: it judges one answer of the daemon (``status --json``); it keeps no state and sees no history. A bound grows
while nothing is heard, so an old one is wide, not wrong; but a peer that is silent may have stepped its clock since,
so a peer not heard of for ``max_age_s`` is stale. That a bound rests on others' word (``composed``), that the mesh does
not agree on the reference, and that a peer is convicted of lying is said beside the verdict and does not change it: the
bound holds, or is said to be in dispute. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from skewd.interval import Interval
from skewd.problems import Severity
from skewd.status import UNSYNCHRONIZED, NodeStatus, PeerRow, SourceRow, UnreadableStatus, decode

OK, WARNING, CRITICAL, UNKNOWN = 0, 1, 2, 3
WORDS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
MAX_AGE_S = 60.0

NEVER_OK = frozenset({"peers-lost"})
"""With one of these problems the verdict on this node is at least WARNING, however near the bound."""

KEYLESS = "mesh WITHOUT A KEY: any process on this machine could speak as a peer"

VIRTUAL = "VIRTUAL CLOCK: a test hook, not this host's time"


class CheckResult(NamedTuple):
    """What a check found.

    Attributes:
        code: the exit code: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.
        line: one line for people, beginning with the word of the code; without the performance data.
        perfdata: performance data in the monitoring-plugins format, seconds.
        data: the same for programs (``skewd check --json``); unknown is None, times are whole nanoseconds.
    """

    code: int
    line: str
    perfdata: str
    data: dict[str, Any]


class _Question(NamedTuple):
    warning_ns: int
    critical_ns: int
    peer: str | None
    strict: bool
    max_age_s: float
    said: str = ""
    thresholds_known: bool = True


class _Facts(NamedTuple):
    """What the daemon says about the clock in question."""

    node: str
    against: str
    offset_ns: int
    bound: Interval
    rtt_ns: int | None
    age_s: float | None
    trust: str | None
    notes: tuple[str, ...]


class _NothingKnown(Exception):
    """There is nothing to judge; the message says why and what to do."""


def judge(
    told: NodeStatus | Mapping[str, Any] | None,
    *,
    warning_ns: int,
    critical_ns: int,
    peer: str | None = None,
    strict: bool = False,
    max_age_s: float = MAX_AGE_S,
    said: str = "",
    thresholds_known: bool = True,
) -> CheckResult:
    """The verdict on a daemon's status, as read or as told: on this node against the reference, or against ``peer``.

    Args:
        told: None means that no daemon answered.
        strict: what cannot be proven is CRITICAL.
        said: what is wrong beside the clock, a mistake in the configuration: it is said, and changes no verdict.
        thresholds_known: whether the thresholds are what was asked for; otherwise nothing is OK.

    Raises:
        ValueError: the thresholds are not 0 < warning <= critical.
    """
    if not 0 < warning_ns <= critical_ns:
        raise ValueError(
            f"the warning ({short(warning_ns)}) must be above zero and not above the critical ({short(critical_ns)})"
        )
    question = _Question(warning_ns, critical_ns, peer, strict, max_age_s, said, thresholds_known)
    if told is None:
        return _unknown(
            "no daemon answers; start one with 'skewd run', or name its configuration with --config", question
        )
    try:
        status = decode(told)
    except UnreadableStatus as error:
        return _unknown(str(error), question)
    try:
        facts = _facts(status, question)
    except _NothingKnown as reason:
        return _unknown(str(reason), question, status)
    return _known(facts, question, status)


def unknown(
    reason: str,
    *,
    warning_ns: int | None = None,
    critical_ns: int | None = None,
    peer: str | None = None,
    said: str = "",
) -> CheckResult:
    """UNKNOWN for a reason of the caller's: no daemon, a configuration that is refused, a wrong command line."""
    return _unknown(reason, _Question(warning_ns or 0, critical_ns or 0, peer, False, MAX_AGE_S, said))


def _facts(status: NodeStatus, question: _Question) -> _Facts:
    node = status.node or "this node"
    if question.peer is not None:
        return _peer_facts(status, node, question)
    against = (status.reference or "the reference").removeprefix("node:")
    same = [row for row in status.peers if row.name == against]
    bound, offset = status.bound, status.applied_ns
    if bound is None or offset is None:
        raise _NothingKnown(_why_no_bound(status))
    if status.status == UNSYNCHRONIZED:
        raise _NothingKnown(f"this node is unsynchronized{_reason(status)}")
    measured: Sequence[PeerRow | SourceRow] = status.sources if status.reference == "utc" else same
    age_s = status.age_s
    if age_s is None and same:
        age_s = min((row.age_s for row in same if row.age_s is not None), default=None)
    _refuse_stale(f"the bound against {against}", age_s, question.max_age_s)
    notes = (
        "" if status.status == "synchronized" else status.status,
        _rests_on(status),
        _not_agreed(status),
        KEYLESS if _keyless(status) else "",
        VIRTUAL if status.virtual else "",
    )
    return _Facts(
        node=node,
        against=against,
        offset_ns=offset,
        bound=bound,
        rtt_ns=_smallest(measured),
        age_s=age_s,
        trust=status.trust,
        notes=tuple(note for note in notes if note),
    )


def _peer_facts(status: NodeStatus, node: str, question: _Question) -> _Facts:
    peer = question.peer or ""
    mine = [row for row in status.peers if row.name == peer]
    if not mine:
        if peer == node:
            raise _NothingKnown(f"{peer} is this node itself; name another with --peer, or leave it out")
        names = sorted({row.name for row in status.peers if row.name})
        known = f"the peers are {', '.join(names[:20])}" if names else "no peer has been heard of yet"
        more = len(names) - 20 + max(status.peers_left_out, 0)
        if len(names) > 20 and more > 0:
            known += f" and {more} more"
        raise _NothingKnown(f"no peer is named '{peer[:63]}'; {known}")
    bounded = [(bound.width, place) for place, row in enumerate(mine) if (bound := row.bound) is not None]
    if not bounded:
        state = mine[0].state
        if mine[0].trust == _COMPOSED:
            raise _NothingKnown(
                f"no bound on {peer}{f' ({state})' if state else ''}: this node does not ask it, and too few others"
                " tell of it; name it in [mesh] peers"
            )
        raise _NothingKnown(
            f"no bound on {peer} yet{f' ({state})' if state else ''}; is it running, reachable, and given the same key?"
        )
    row = mine[min(bounded)[1]]
    bound, offset = row.bound, row.applied_ns
    assert bound is not None
    assert offset is not None
    composed = row.trust == _COMPOSED
    _refuse_stale(f"the bound on {peer}", row.age_s, question.max_age_s, "oldest record" if composed else "")
    notes = (_rests_on(row), _STATES.get(row.state or "", ""), VIRTUAL if status.virtual else "")
    return _Facts(
        node=node,
        against=peer,
        offset_ns=offset,
        bound=bound,
        rtt_ns=_smallest([row]),
        age_s=row.age_s,
        trust=row.trust,
        notes=tuple(note for note in notes if note),
    )


def _known(facts: _Facts, question: _Question, status: NodeStatus) -> CheckResult:
    far = facts.bound.farthest(0)
    near = 0 if facts.bound.contains(0) else min(abs(facts.bound.lo), abs(facts.bound.hi))
    warning, critical = question.warning_ns, question.critical_ns
    where = f"{facts.node} {_where(facts)}"
    if far <= warning:
        code, text = OK, f"{where}, within {short(warning)}"
    elif near > critical:
        code, text = CRITICAL, f"{where}, beyond {short(critical)}"
    elif far > critical:
        code = CRITICAL if question.strict else WARNING
        beyond = f", beyond {short(warning)}" if near > warning else ""
        text = f"{_cannot_prove(critical, facts)}; {where}{beyond}"
    elif near > warning:
        code, text = WARNING, f"{where}, beyond {short(warning)}, within {short(critical)}"
    else:
        code, text = WARNING, f"{_cannot_prove(warning, facts)}; {where}, within {short(critical)}"
    if question.peer is None:
        code, text = _at_least(code, text, status)
    if code == OK and not question.thresholds_known:
        code, text = WARNING, f"{text}, but [check] cannot be read, so this may not be the limit that was meant"
    return _result(code, text, facts.notes, question, facts, status)


def _at_least(code: int, text: str, status: NodeStatus) -> tuple[int, str]:
    """What would be OK, and is not: for what is wrong, or since what is applied contradicts what is known."""
    if code != OK:
        return code, text
    wrong = [one for one in status.problems if one.code in NEVER_OK]
    if wrong:
        return WARNING, f"{text}, but {wrong[0].line}"
    if status.offset_ns is not None and status.bound is not None and not status.bound.contains(status.offset_ns):
        return WARNING, f"{text}, but what is applied to spans is {short(status.offset_ns)}, outside of the bound"
    return code, text


def _unknown(reason: str, question: _Question, status: NodeStatus | None = None) -> CheckResult:
    said = [] if status is None else [(KEYLESS, _keyless(status)), (VIRTUAL, status.virtual)]
    notes = tuple(note for note, is_so in said if is_so)
    return _result(UNKNOWN, reason, notes, question, None, status)


def _result(
    code: int,
    text: str,
    notes: tuple[str, ...],
    question: _Question,
    facts: _Facts | None,
    status: NodeStatus | None,
) -> CheckResult:
    # A '|' would begin performance data, and a plugin's first line is all that most screens show.
    notes = (*notes, question.said) if question.said else notes
    message = " ".join(f"{text}{''.join(f' [{note}]' for note in notes)}".replace("|", "/").split())
    line = f"{WORDS[code]}: {message}"
    perfdata = _perfdata(facts, question)
    problems = [] if status is None or question.peer is not None else _deciding(code, status)
    data: dict[str, Any] = {
        "code": code,
        "status": WORDS[code],
        "message": message,
        "node": None if status is None else status.node,
        "against": facts.against if facts else question.peer,
        "reference": None if status is None else status.reference,
        "clock_status": None if status is None else status.status,
        "offset_ns": facts.offset_ns if facts else None,
        "lower_ns": facts.bound.lo if facts else None,
        "upper_ns": facts.bound.hi if facts else None,
        "uncertainty_ns": facts.bound.farthest(facts.offset_ns) if facts else None,
        "warning_ns": question.warning_ns or None,
        "critical_ns": question.critical_ns or None,
        "rtt_min_ns": facts.rtt_ns if facts else None,
        "age_s": facts.age_s if facts else None,
        "trust": facts.trust if facts else None,
        "strict": question.strict,
        "virtual": status is not None and status.virtual,
        "problems": problems,
        "perfdata": perfdata,
    }
    return CheckResult(code, line, perfdata, data)


def _perfdata(facts: _Facts | None, question: _Question) -> str:
    """``label=value;warning;critical`` with ranges that alarm on both sides of zero; ``U`` is the format's unknown."""
    limits = ""
    if question.warning_ns and question.critical_ns:
        warning, critical = seconds(question.warning_ns), seconds(question.critical_ns)
        limits = f";-{warning}:{warning};-{critical}:{critical}"
    if facts is None:
        return f"offset=U{limits}"
    parts = [
        f"offset={seconds(facts.offset_ns)}s{limits}",
        f"lower={seconds(facts.bound.lo)}s",
        f"upper={seconds(facts.bound.hi)}s",
        f"uncertainty={seconds(facts.bound.farthest(facts.offset_ns))}s",
    ]
    if facts.rtt_ns is not None:
        parts.append(f"rtt={seconds(facts.rtt_ns)}s")
    return " ".join(parts)


def _cannot_prove(threshold_ns: int, facts: _Facts) -> str:
    half = (facts.bound.width + 1) // 2
    rtt = f", best RTT {short(rounded_up(facts.rtt_ns))}" if facts.rtt_ns is not None else ""
    return f"cannot prove {short(threshold_ns)}: bound +-{short(rounded_up(half))}{rtt}; add a peer or a nearer source"


def _where(facts: _Facts) -> str:
    if facts.node == facts.against:
        return f"is the reference itself ({_spread(facts)})" if facts.bound.width else "is the reference itself"
    # The offset is the other clock's minus this one's: a negative one means that this clock shows too much.
    if facts.offset_ns == 0:
        return f"agrees with {facts.against} ({_spread(facts)})"
    offset, spread = describe(facts.offset_ns, facts.bound)
    return f"is {offset} {'ahead of' if facts.offset_ns < 0 else 'behind'} {facts.against} ({spread})"


def _spread(facts: _Facts) -> str:
    return describe(facts.offset_ns, facts.bound)[1]


def describe(offset_ns: int, bound: Interval) -> tuple[str, str]:
    """The size of an offset and its uncertainty for people: ``("5.002 ms", "+-0.09 ms")``.

    Both in one unit, with as many digits as the uncertainty is worth (two), the uncertainty rounded up so that the
    printed values still cover the bound.
    """
    uncertainty = bound.farthest(offset_ns)
    largest = max(abs(offset_ns), uncertainty)
    unit, places = next((unit, places) for unit, places, below in _UNITS if largest < below or unit == "s")
    # Two digits of the uncertainty: everything below is noise, and printing it would claim to know it.
    kept = max(0, len(str(uncertainty)) - 2) if uncertainty else 0
    step = 10 ** min(places, kept)
    shown = (abs(offset_ns) + step // 2) // step * step
    signed = shown if offset_ns >= 0 else -shown
    covering = -(-bound.farthest(signed) // step) * step
    digits = places - min(places, kept)
    return f"{_fixed(shown, places, digits)} {unit}", f"+-{_trimmed(covering, places)} {unit}"


_UNITS = (("ns", 0, 1_000), ("us", 3, 1_000_000), ("ms", 6, 1_000_000_000), ("s", 9, 0))


def short(ns: int) -> str:
    """A duration in few characters and exactly: ``3ms``, ``2.5ms``, ``250us``."""
    unit, places = next((unit, places) for unit, places, below in _UNITS if abs(ns) < below or unit == "s")
    return f"{'-' if ns < 0 else ''}{_trimmed(abs(ns), places)}{unit}"


def seconds(ns: int) -> str:
    """Nanoseconds as decimal seconds, exactly, without an exponent: ``-0.005002``."""
    return f"{'-' if ns < 0 else ''}{_trimmed(abs(ns), 9)}"


def rounded_up(ns: int) -> int:
    """A length of time rounded up to three significant digits: what it stands for is never larger than said."""
    step: int = 10 ** max(0, len(str(ns)) - 3)
    return -(-ns // step) * step


def _fixed(size: int, places: int, digits: int) -> str:
    """A whole number of units of 10^-places, with that many digits after the point; the rest is zero."""
    whole, rest = divmod(size, 10**places)
    return f"{whole}.{f'{rest:0{places}d}'[:digits]}" if digits else str(whole)


def _trimmed(size: int, places: int) -> str:
    text = _fixed(size, places, places)
    return text.rstrip("0").rstrip(".") if "." in text else text


def _why_no_bound(status: NodeStatus) -> str:
    if reason := _reason(status):
        return f"no bound{reason}"
    if not status.sources and not status.peers:
        return "no bound: there is no source and no peer; add [[source]] or [mesh] peers to the configuration"
    return "no bound on the reference yet; 'skewd status' shows what each source and peer says"


def _reason(status: NodeStatus) -> str:
    """The first of what is gravest, as the end of a sentence."""
    said = next((one for one in status.problems if one.severity == Severity.CRITICAL), None)
    return "" if said is None else f": {said.line}"


def _deciding(code: int, status: NodeStatus) -> list[str]:
    """The codes of the problems that made the verdict what it is."""
    if code == UNKNOWN:
        return list(dict.fromkeys(one.code for one in status.problems if one.severity == Severity.CRITICAL))
    return list(dict.fromkeys(one.code for one in status.problems if one.code in NEVER_OK)) if code == WARNING else []


_COMPOSED = "composed"
_NAMED_MAX = 4
_STATES = {
    "convicted": "CONVICTED: what it says of clocks contradicts the others, and nobody else's error explains it",
    "disputed": "disputed: members contradict each other about clocks, and nobody can be named",
}


def _rests_on(row: NodeStatus | PeerRow) -> str:
    """Said when the bound is not this node's own measurement: which other nodes it was proven over."""
    if row.trust != _COMPOSED:
        return "" if row.trust in (None, "first-hand") else row.trust or ""
    via = dict.fromkeys(">".join(way[:-1]) for way in row.path if len(way) > 1)
    shown = ", ".join(list(via)[:_NAMED_MAX]) + (f" and {len(via) - _NAMED_MAX} more" if len(via) > _NAMED_MAX else "")
    return f"composed via {shown}" if shown else _COMPOSED


def _not_agreed(status: NodeStatus) -> str:
    mesh = status.mesh
    if mesh is None or mesh.agreed is not False or mesh.timescale is None:
        return ""
    return "the reference is not agreed upon by all members"


def _keyless(status: NodeStatus) -> bool:
    return any(problem.code == "keyless-mesh" for problem in status.problems)


def _refuse_stale(what: str, age_s: float | None, max_age_s: float, which: str = "") -> None:
    if age_s is not None and age_s > max_age_s:
        last = f"its {which} is {age_s:.0f} s old" if which else f"last heard {age_s:.0f} s ago"
        raise _NothingKnown(f"{what} is stale: {last}, and --max-age is {max_age_s:g}s")


def _smallest(rows: Sequence[PeerRow | SourceRow]) -> int | None:
    return min((row.rtt_min_ns for row in rows if row.rtt_min_ns is not None), default=None)
