"""Do two clocks keep within the limits that were declared for them? What messages alone can tell.

**The problem.** Every bound here rests on declared limits on drift and wander. The filter (``pair.py``) cannot vouch
for them: it keeps only the states that they allow, so the drift it reports lies within the limit by construction. A
violation leaves it without a state sooner or later, but it can say neither by how much, nor that all is well.

**The insight.** Two exchanges bound the offset at two instants with no limit assumed. So the *mean* drift between
them lies in an interval that follows from the messages, and by the mean value theorem the drift itself took that
value somewhere in between. If the whole interval is beyond the limit, the limit was broken, by at least what is
lacking. Likewise the mean drifts of two adjacent windows, lengths T1 and T2, differ by at most
wander x (T1 + T2) / 2. Short windows see fast changes but coarsely (an offset known within 200 us gives 25 ppm over
8 s), long ones slow changes finely: so several lengths are kept, each doubling the former twice.

What can be said, and no more: *violated* (proven, with figures), *within the limits* (the latest mean drift over some
window is proven to be), *cannot tell yet* (the interval still holds both). A mean within the limits says nothing of
excursions shorter than its window.

Within one exchange the offset is carried from one proof's instant to the other's with ``CARRY_PPM`` (or ten times the
declared limit), which no working oscillator reaches; it is the only assumption. Limits: constant memory, four
anchors for each of the ``WINDOWS_S``. Late proofs are not used. Pure.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from skewd.interval import Interval

WINDOWS_S = (8, 32, 128, 512, 2048)
CARRY_PPM = 1_000
RECENT_NS = 3_600_000_000_000
"""A violation longer ago than this is history: an hour."""

_SECOND_NS = 1_000_000_000
_CARRY_MAX_NS = 10 * _SECOND_NS
_NEVER = -(1 << 63)
_ANCHORS_MAX = 3


class Verdict(StrEnum):
    """What can be said of a limit."""

    WITHIN = "within"
    VIOLATED = "violated"
    UNKNOWN = "unknown"


class Seen(NamedTuple):
    """The size of a drift (ppb) or wander (ppb/s): at least and at most, over a window, known at a local instant."""

    least: int
    most: int
    window_ns: int
    at_ns: int


class WindowState(NamedTuple):
    """One window length: its open period (None: none was opened), and (instant, lowest, highest offset) of its best
    offset and its anchors."""

    open_period: int | None
    open: tuple[int, int, int] | None
    anchors: tuple[tuple[int, int, int], ...]


class ObservedState(NamedTuple):
    """All that an :class:`Observed` is; one window for each of ``WINDOWS_S``."""

    drift_ppb: float
    wander_ppb_per_s: float
    windows: tuple[WindowState, ...]
    upper: tuple[int, int] | None
    lower: tuple[int, int] | None
    drift: tuple[tuple[int, Seen], ...]
    wander: tuple[tuple[int, Seen], ...]
    drift_broken: Seen | None
    wander_broken: Seen | None
    broken_ns: int | None


@dataclass(slots=True)
class _Window:
    """One window length: the narrowest offset of the first half of each period."""

    period_ns: int
    open_period: int = _NEVER
    open: tuple[int, Interval] | None = None
    anchors: list[tuple[int, Interval]] = field(default_factory=list)


class Observed:
    """What one pair's messages tell about its drift, whatever was declared.

    Args:
        max_drift_ppm: the pair's declared limit (``pair.pair_limits``), to be judged.
        max_wander_ppb_per_s: the same of its rate of change.
    """

    __slots__ = (
        "_broken_ns",
        "_carry_ppb",
        "_drift",
        "_drift_broken",
        "_drift_ppb",
        "_lower",
        "_upper",
        "_wander",
        "_wander_broken",
        "_wander_ppb_per_s",
        "_windows",
        "revision",
    )

    def __init__(self, *, max_drift_ppm: float, max_wander_ppb_per_s: float) -> None:
        self._drift_ppb, self._wander_ppb_per_s = max_drift_ppm * 1_000, float(max_wander_ppb_per_s)
        self._carry_ppb = max(CARRY_PPM * 1_000, round(10 * self._drift_ppb))
        self._windows = [_Window(seconds * _SECOND_NS) for seconds in WINDOWS_S]
        self._upper: tuple[int, int] | None = None
        self._lower: tuple[int, int] | None = None
        # The latest of each window length, and the worst that was proven lately to be beyond the limit.
        self._drift: dict[int, Seen] = {}
        self._wander: dict[int, Seen] = {}
        self._drift_broken: Seen | None = None
        self._wander_broken: Seen | None = None
        self._broken_ns: int | None = None
        self.revision: int = 0
        """Another number whenever a window learnt something: two proofs, one of each side, that left it alone might
        as well never have met."""

    def outgoing(self, sent_local_ns: int, received_remote_ns: int) -> None:
        """A message left here at ``sent_local_ns`` (or later) and had arrived there by ``received_remote_ns``."""
        self._upper = (sent_local_ns, received_remote_ns - sent_local_ns)
        self._pair()

    def incoming(self, sent_remote_ns: int, received_local_ns: int) -> None:
        """A message left there at ``sent_remote_ns`` (or later) and had arrived here by ``received_local_ns``."""
        self._lower = (received_local_ns, sent_remote_ns - received_local_ns)
        self._pair()

    def contradiction(self, at_ns: int) -> None:
        """The filter was left without a possible state: some assumption broke, whichever it was."""
        self._broken_ns = at_ns
        self.revision += 1
        # Proofs from before and after a jump make no exchange. The anchors stay: a jump between two of them breaks
        # the limit on drift as surely as a fast clock does, and their difference says by how much.
        self._upper = self._lower = None

    def _pair(self) -> None:
        """The latest two proofs, one of each side, bound the offset at the later one's instant."""
        if self._upper is None or self._lower is None:
            return
        (up_ns, high), (low_ns, low) = self._upper, self._lower
        apart = abs(up_ns - low_ns)
        if apart > _CARRY_MAX_NS:
            return
        carry = apart * self._carry_ppb // _SECOND_NS + 1
        if low - carry > high + carry:
            return  # a contradiction, which the filter sees too
        at_ns, lo, hi = max(up_ns, low_ns), low - carry, high + carry
        for window in self._windows:
            # Most messages do not change a window: it is open, and knows a narrower offset or is in its second half.
            begin = window.open_period * window.period_ns
            known = window.open
            if (
                known is not None
                and begin <= at_ns <= begin + window.period_ns // 2
                and hi - lo > known[1].hi - known[1].lo
            ):
                continue
            self._take(window, at_ns, Interval(lo, hi))

    def _take(self, window: _Window, at_ns: int, offset: Interval) -> None:
        period, into = divmod(at_ns, window.period_ns)
        if period < window.open_period:
            return
        if period > window.open_period:
            self.revision += 1
            self._close(window)
            window.open_period, window.open = period, None
        if 2 * into > window.period_ns:
            self.revision += 1
            self._close(window)
            window.open_period = period + 1
        elif window.open is None or offset.width <= window.open[1].width:
            self.revision += 1
            window.open = (at_ns, offset)

    def _close(self, window: _Window) -> None:
        """Takes the anchor of the period that is over, and judges the windows that end there."""
        if window.open is None:
            return
        window.anchors = [*window.anchors[-2:], window.open]
        window.open = None
        if len(window.anchors) < 2:
            return
        slopes = [_slope(*pair) for pair in itertools.pairwise(window.anchors)]
        (began, _), (ended, _) = window.anchors[-2:]
        seen = _size(slopes[-1], 1.0, ended - began, ended)
        self._drift[window.period_ns] = seen
        self._drift_broken = _worse(self._drift_broken, seen, self._drift_ppb)
        if len(slopes) == 2:
            span = ended - window.anchors[0][0]
            seen = _size(slopes[1] - slopes[0], span / 2 / _SECOND_NS, span, ended)
            self._wander[window.period_ns] = seen
            self._wander_broken = _worse(self._wander_broken, seen, self._wander_ppb_per_s)

    # -- kept and replayed ---------------------------------------------------------------------------------------

    @property
    def latest(self) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
        """The latest proof of each side, (local instant, limit on the offset there): upper and lower, None if none."""
        return self._upper, self._lower

    def expect(self, upper: tuple[int, int] | None, lower: tuple[int, int] | None) -> None:
        """Has the next proofs meet these, of :attr:`latest` of another watch, or none."""
        self._upper, self._lower = upper, lower

    @property
    def seen(self) -> tuple[dict[int, Seen], dict[int, Seen]]:
        """The latest drift and wander by their window's length, ns."""
        return self._drift, self._wander

    def state(self) -> ObservedState:
        """All that this watch is; :meth:`restored` makes another one that is the same."""
        return ObservedState(
            self._drift_ppb,
            self._wander_ppb_per_s,
            tuple(
                WindowState(
                    None if window.open_period == _NEVER else window.open_period,
                    None if window.open is None else _flat(window.open),
                    tuple(map(_flat, window.anchors)),
                )
                for window in self._windows
            ),
            self._upper,
            self._lower,
            tuple(self._drift.items()),
            tuple(self._wander.items()),
            self._drift_broken,
            self._wander_broken,
            self._broken_ns,
        )

    @classmethod
    def restored(cls, state: ObservedState) -> Observed:
        """The watch whose :meth:`state` this was.

        Raises:
            ValueError: it is the state of no watch.
        """
        limits = (state.drift_ppb, state.wander_ppb_per_s)
        if not all(math.isfinite(limit) and limit >= 0 for limit in limits) or len(state.windows) != len(WINDOWS_S):
            raise ValueError("these numbers are the state of no watch")
        watch = cls(max_drift_ppm=state.drift_ppb / 1_000, max_wander_ppb_per_s=state.wander_ppb_per_s)
        watch._drift_ppb = state.drift_ppb
        watch._carry_ppb = max(CARRY_PPM * 1_000, round(10 * state.drift_ppb))
        for window, told in zip(watch._windows, state.windows, strict=True):
            anchors = [_anchor(anchor) for anchor in told.anchors]
            instants = [at_ns for at_ns, _ in anchors]
            if len(anchors) > _ANCHORS_MAX or sorted(set(instants)) != instants:
                raise ValueError("these numbers are the state of no watch")
            window.open_period = _NEVER if told.open_period is None else told.open_period
            window.open = None if told.open is None else _anchor(told.open)
            window.anchors = anchors
        watch._upper, watch._lower = state.upper, state.lower
        watch._drift, watch._wander = dict(state.drift), dict(state.wander)
        watch._drift_broken, watch._wander_broken = state.drift_broken, state.wander_broken
        watch._broken_ns = state.broken_ns
        return watch

    def told(self, now_ns: int) -> dict[str, Any]:
        """What ``status --json`` says under ``assumptions``; unknown is None."""
        broken = self._broken_ns is not None and now_ns - self._broken_ns <= RECENT_NS
        return {
            "contradicted_age_s": round((now_ns - self._broken_ns) / 1e9) if broken and self._broken_ns else None,
            "drift": _told(self._drift, self._drift_broken, self._drift_ppb, now_ns),
            "wander": _told(self._wander, self._wander_broken, self._wander_ppb_per_s, now_ns),
        }


def _flat(anchor: tuple[int, Interval]) -> tuple[int, int, int]:
    at_ns, offset = anchor
    return at_ns, offset.lo, offset.hi


def _anchor(flat: tuple[int, int, int]) -> tuple[int, Interval]:
    at_ns, lo, hi = flat
    return at_ns, Interval(lo, hi)


def _slope(before: tuple[int, Interval], after: tuple[int, Interval]) -> Interval:
    """The mean drift between two instants, in ppb, rounded outward."""
    elapsed = after[0] - before[0]
    change = after[1] - before[1]
    return Interval(change.lo * _SECOND_NS // elapsed, -(-change.hi * _SECOND_NS // elapsed))


def _size(value: Interval, per: float, window_ns: int, at_ns: int) -> Seen:
    """The size of ``value / per``, rounded outward."""
    least = 0 if value.contains(0) else min(abs(value.lo), abs(value.hi))
    most = max(abs(value.lo), abs(value.hi))
    return Seen(math.floor(least / per), math.ceil(most / per), window_ns, at_ns)


def _worse(known: Seen | None, seen: Seen, limit: float) -> Seen | None:
    if known is not None and seen.at_ns - known.at_ns > RECENT_NS:
        known = None
    if seen.least <= limit:
        return known
    return seen if known is None or seen.least >= known.least else known


def _told(by_window: dict[int, Seen], broken: Seen | None, limit: float, now_ns: int) -> dict[str, Any]:
    # The window that tells most.
    seen = min(by_window.values(), key=lambda seen: seen.most, default=None)
    if broken is not None and now_ns - broken.at_ns > RECENT_NS:
        broken = None
    if broken is not None:
        verdict, seen = Verdict.VIOLATED, broken
    elif seen is not None and seen.most <= limit:
        verdict = Verdict.WITHIN
    else:
        verdict = Verdict.UNKNOWN
    return {
        "verdict": verdict.value,
        "limit": round(limit),
        "at_least": None if seen is None else seen.least,
        "at_most": None if seen is None else seen.most,
        "window_s": None if seen is None else round(seen.window_ns / 1e9),
        "age_s": None if seen is None else round((now_ns - seen.at_ns) / 1e9),
    }
