"""A run over time: a clock that drifts, is stepped and is slewed, and what each moment's traces made of it.

The problem: a sweep holds the skew still, and no clock does. What people see is a rate of negative spans that comes
and goes, and they cannot tell whether it went because somebody fixed something. The insight: nothing new is needed.
The law holds at every instant, with the skew of that instant; so the rate in a window is the mean of F over the
window's edges, and it falls, rises or settles as the effective skew does. And a bound that follows the clock makes
the same spans come out in order throughout.

`schedule` is the story: left alone the clock runs away; a step of 20 ms takes it to the other side, so that the other
edge breaks; a step back; then it is slewed to where it should be, and held. `Trajectory` is the truth about it.
`Story` takes the spans as they come, window by window, and keeps counts only, so that a long run needs no more memory
than a short one.

Skews here are *behind*: positive when the clock shows less than the reference's. An edge that goes into the stage is
violated by a positive one, an edge that goes out by a negative one.

The 30 s signal: ``healthy for the clock`` while no ``skewed`` verdict was given for 30 s, judged on tagged child spans,
which are what a trace viewer shows; the truth beside it is whether the clock really turned any of them round in those
30 s.

A process may be kept waiting anywhere: between a stamp and the note of its true instant, or between a change of the
clock and the note of it. So neither note is an instant. A span's start lies between a reading of the host's raw clock
before it and one after, a change likewise, and where the two stretches meet, two truths are possible: such a span is
``ambiguous``, and its bound a miss only when it holds neither.

Limits: a further stamp's true instant is the one noted before the span's start plus the stamps' difference; edges
within ``NEAR_STEP_NS`` of a step are therefore not judged against the truth (their spans' bounds are). Stamps in the
stretch of readings that a step back repeats are ambiguous to everyone, and their uncertainty says so: a rewritten gap
that is negative within the two spans' summed uncertainty is ``indeterminate``, counted beside the violations. A span
whose parent comes more than ``WAIT_NS`` later is not matched. Pure.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from skewd.interval import Interval
from skewd_pipeline.confusion import CLOCK, Tally, truth_of
from skewd_pipeline.law import edge_name, shorter
from skewd_pipeline.pairs import Edge, host_separation_ns, uncertainty_ns, verdict_of
from skewd_pipeline.results import RULES, STAGES, ClockEvent, ClockSample, Window
from skewd_pipeline.spans import HOST_RAW, HOST_RAW_AFTER, RECEIVED, SENT, SpanRecord

STEP_NS = 20_000_000
HEALTH_NS = 30_000_000_000
"""How long the signal stays down after the last edge that the clock turned round."""

WINDOWS = 60
SAMPLES = 240
NEAR_STEP_NS = 250_000_000
WAIT_NS = 120_000_000_000
STALE_NS = 5_000_000_000
"""A bound of an older span than this is not shown as the present one's."""

_PPB = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Change:
    """What is done to the clock: a step of ``step_ns``, and from then on ``steer_ppb`` beside its own drift."""

    at_ns: int
    what: str
    text: str
    step_ns: int
    steer_ppb: int


def schedule(duration_ns: int, drift_ppb: int, direction: str) -> list[Change]:
    """The story of a run, its clock's own drift being ``drift_ppb`` towards ``direction``.

    Before it begins the clock is steered so that it stands still.
    """
    behind = 1 if direction == "behind" else -1
    begin_slew, end_slew = duration_ns * 65 // 100, duration_ns * 85 // 100
    away = drift_ppb * begin_slew // _PPB
    back_ppb = drift_ppb + away * _PPB // (end_slew - begin_slew)
    one, other = ("behind", "ahead") if behind > 0 else ("ahead", "behind")
    ppm, step = f"{drift_ppb / 1000:g} ppm", f"{STEP_NS / 1e6:g} ms"
    sign = "+" if behind > 0 else "-"
    opposite = "-" if behind > 0 else "+"
    return [
        Change(0, "drift", f"left alone, runs {one} by {ppm}", 0, 0),
        Change(duration_ns * 35 // 100, "step", f"stepped by {sign}{step}: now {other}", behind * STEP_NS, 0),
        Change(duration_ns * 55 // 100, "step", f"stepped by {opposite}{step}", -behind * STEP_NS, 0),
        Change(begin_slew, "slew", f"slewed back, {back_ppb / 1000:.0f} ppm", 0, behind * back_ppb),
        Change(end_slew, "hold", "held", 0, behind * drift_ppb),
    ]


def events(changes: Iterable[Change]) -> list[ClockEvent]:
    """As results.json has them."""
    return [ClockEvent(at_s=change.at_ns / 1e9, what=change.what, text=change.text) for change in changes]


class Trajectory:
    """How far a clock was from the true one at each instant: lines, each from an instant on, in order."""

    def __init__(self) -> None:
        self._from: list[int] = []
        self._since: list[int] = []
        self._lines: list[tuple[int, int]] = []
        self.steps_ns: list[int] = []

    def line(
        self, from_ns: int, deviation_ns: int, rate_ppb: int, *, step: bool = False, since_ns: int | None = None
    ) -> None:
        """From this instant on: ``deviation_ns`` there, and changing by ``rate_ppb``.

        Args:
            since_ns: the earliest instant at which this may have begun, if that is not known; until ``from_ns`` the
                line before may have held.

        Raises:
            ValueError: earlier than the line before.
        """
        since_ns = from_ns if since_ns is None else min(since_ns, from_ns)
        if self._from and since_ns < self._from[-1]:
            raise ValueError(f"a line from {since_ns} is earlier than the one before, from {self._from[-1]}")
        self._from.append(from_ns)
        self._since.append(since_ns)
        self._lines.append((deviation_ns, rate_ppb))
        if step:
            self.steps_ns.append(from_ns)

    def at(self, instant_ns: int) -> int:
        """Clock minus true time, ns; before the first line, as at its beginning."""
        place = bisect_right(self._from, instant_ns) - 1
        if place < 0:
            return self._lines[0][0] if self._lines else 0
        return self._along(place, instant_ns)

    def _along(self, place: int, instant_ns: int) -> int:
        deviation_ns, rate_ppb = self._lines[place]
        return deviation_ns + rate_ppb * (instant_ns - self._from[place]) // _PPB

    def between(self, first_ns: int, last_ns: int) -> list[Interval]:
        """What the clock may have deviated by at an instant that lies between these two, one interval per line.

        More than one: the clock was changed about then, and nobody can say on which side the instant lies. Rounded
        outward, also for rates in whole ppb. Before the first line, as at its beginning.
        """
        first_ns = max(first_ns, self._from[0])
        last_ns = max(last_ns, first_ns)
        found = []
        for place in range(max(bisect_right(self._from, first_ns) - 1, 0), bisect_right(self._since, last_ns)):
            end_ns = self._from[place + 1] if place + 1 < len(self._from) else last_ns
            ends = [
                self._along(place, instant_ns)
                for instant_ns in (max(first_ns, self._since[place]), min(last_ns, end_ns))
            ]
            rounded_ns = 1 + abs(last_ns - self._from[place]) // _PPB
            found.append(Interval(min(ends), max(ends)).widen(rounded_ns))
        return found

    def near_step(self, instant_ns: int, within_ns: int = NEAR_STEP_NS) -> bool:
        """Whether the clock was stepped about then."""
        place = bisect_left(self.steps_ns, instant_ns - within_ns)
        return place < len(self.steps_ns) and self.steps_ns[place] <= instant_ns + within_ns


@dataclass(slots=True)
class _Count:
    """One window's, of one mode, rule and edge."""

    edges: int = 0
    violations: int = 0
    indeterminate: int = 0
    predicted: float = 0.0
    shorter: int = 0
    measured: int = 0
    skew_sum_ns: int = 0
    skew_least_ns: int = 1 << 62
    skew_most_ns: int = -(1 << 62)
    verdicts: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _SpanCount:
    spans: int = 0
    misses: int = 0
    unsynchronized: int = 0
    ambiguous: int = 0


class Story:
    """What a long run's spans say, in windows.

    Args:
        run: the run's name in the results.
        stage: whose clock it is that moves; the others' stand still.
        deviation: of that clock, by host raw instants; may still grow, as long as it is ahead of the spans.
        begin_ns: the host raw instant at which the run began.
        known: ascending separations by (rule, edge's name), from a synchronized cell.
    """

    def __init__(
        self,
        *,
        run: str,
        transport: str,
        stage: str,
        deviation: Trajectory,
        begin_ns: int,
        duration_ns: int,
        known: Mapping[tuple[str, str], Sequence[int]],
    ) -> None:
        self.run = run
        self.transport = transport
        self.stage = stage
        self.window_ns = max(1_000_000_000, duration_ns // WINDOWS)
        self.tally = Tally()
        self.spans = self.unsynchronized = self.bound_misses = self.ambiguous = 0
        self._deviation = deviation
        self._begin_ns = begin_ns
        self._duration_ns = duration_ns
        self._known = known
        at = STAGES.index(stage)
        self._direction = {(STAGES[at - 1], stage): "behind", (stage, STAGES[at + 1]): "ahead"}
        self._seen: dict[str, dict[str, SpanRecord]] = {}
        self._waiting: dict[str, dict[str, list[SpanRecord]]] = {}
        self._order: dict[str, deque[tuple[int, str]]] = {}
        self._counts: dict[tuple[str, str, str, int], _Count] = {}
        self._span_counts: dict[tuple[str, int], _SpanCount] = {}
        self._blamed: list[int] = []
        self._impossible: list[int] = []
        self._turned: list[int] = []
        self._bounds: list[tuple[int, int, int]] = []

    def add(self, mode: str, spans: Iterable[SpanRecord]) -> None:
        """Takes spans of one mode, in any order; a span seen before is dropped."""
        seen = self._seen.setdefault(mode, {})
        waiting = self._waiting.setdefault(mode, {})
        order = self._order.setdefault(mode, deque())
        for span in spans:
            instant = span.attributes.get(HOST_RAW)
            if span.span_id in seen or not isinstance(instant, int):
                continue
            seen[span.span_id] = span
            order.append((instant, span.span_id))
            self._judge_span(mode, span, instant)
            parent = seen.get(span.parent_id)
            if parent is not None:
                self._pair(mode, parent, span)
            elif span.parent_id:
                waiting.setdefault(span.parent_id, []).append(span)
            for child in waiting.pop(span.span_id, ()):
                self._pair(mode, span, child)
        while order and order[0][0] < order[-1][0] - WAIT_NS:
            _, old = order.popleft()
            gone = seen.pop(old, None)
            if gone is not None:
                waiting.pop(gone.parent_id, None)

    def _window(self, instant_ns: int) -> int | None:
        place = (instant_ns - self._begin_ns) // self.window_ns
        return place if 0 <= place * self.window_ns < self._duration_ns else None

    def _judge_span(self, mode: str, span: SpanRecord, instant: int) -> None:
        window = self._window(instant)
        if mode == "off" or window is None:
            return
        count = self._span_counts.setdefault((mode, window), _SpanCount())
        count.spans += 1
        self.spans += 1
        offset, uncertainty = (span.attributes.get(f"clock.{name}") for name in ("offset_ns", "uncertainty_ns"))
        if not isinstance(offset, int) or not isinstance(uncertainty, int):
            count.unsynchronized += 1
            self.unsynchronized += 1
            return
        after = span.attributes.get(HOST_RAW_AFTER)
        last = after if isinstance(after, int) else instant
        truths = self._deviation.between(instant, last) if span.stage == self.stage else [Interval(0, 0)]
        said = Interval(-offset - uncertainty, -offset + uncertainty)
        missed = all(said.intersect(truth) is None for truth in truths)
        count.ambiguous += len(truths) > 1
        self.ambiguous += len(truths) > 1
        count.misses += missed
        self.bound_misses += missed
        if mode == "tag" and span.stage == self.stage:
            self._bounds.append((instant, offset - uncertainty, offset + uncertainty))

    def _pair(self, mode: str, sender: SpanRecord, receiver: SpanRecord) -> None:
        direction = self._direction.get((sender.stage, receiver.stage))
        if direction is None:
            return
        name = edge_name((sender.stage, receiver.stage))
        for rule in RULES:
            if rule == "span-start":
                edge = Edge(sender, receiver, sender.start_ns, receiver.start_ns)
            elif SENT in sender.events and RECEIVED in receiver.events:
                edge = Edge(sender, receiver, sender.events[SENT], receiver.events[RECEIVED])
            else:
                continue
            self._judge(mode, rule, direction, name, edge)

    def _judge(self, mode: str, rule: str, direction: str, name: str, edge: Edge) -> None:
        received_at = int(edge.receiver.attributes[HOST_RAW]) + edge.received_ns - edge.receiver.start_ns
        sent_at = int(edge.sender.attributes[HOST_RAW]) + edge.sent_ns - edge.sender.start_ns
        window = self._window(received_at)
        if window is None:
            return
        moves = received_at if direction == "behind" else sent_at
        behind = -self._deviation.at(moves)
        skew = behind if direction == "behind" else -behind
        near_step = self._deviation.near_step(moves)
        count = self._counts.setdefault((mode, rule, direction, window), _Count())
        count.edges += 1
        count.skew_sum_ns += skew
        count.skew_least_ns = min(count.skew_least_ns, skew)
        count.skew_most_ns = max(count.skew_most_ns, skew)
        known = self._known.get((rule, name))
        if known:
            count.predicted += shorter(known, skew) / len(known)
        separation = host_separation_ns(edge, rule)
        if separation is not None:
            count.measured += 1
            count.shorter += separation < skew
        negative = edge.gap_ns < 0
        if mode == "rewrite" and negative:
            bound = uncertainty_ns(edge)
            within = bound is not None and -edge.gap_ns <= bound
            count.indeterminate += within
            negative = not within
        count.violations += negative
        if mode != "tag":
            return
        verdict = verdict_of(edge)
        count.verdicts[verdict] = count.verdicts.get(verdict, 0) + 1
        shown = rule == "span-start"
        if shown and verdict == "skewed":
            self._blamed.append(received_at)
        elif shown and verdict == "impossible":
            self._impossible.append(received_at)
        if near_step:
            if shown and edge.gap_ns < 0:
                self._turned.append(received_at)
            return
        truth = truth_of(edge.gap_ns, edge.gap_ns + skew)
        self.tally.add("over time", self.transport, rule, truth, verdict)
        if shown and truth == CLOCK:
            self._turned.append(received_at)

    # -- what came of it -----------------------------------------------------------------------------------------

    def windows(self) -> list[Window]:
        """All windows that had an edge, by mode, rule and direction."""
        found = []
        for (mode, rule, direction, place), count in sorted(self._counts.items()):
            spans = self._span_counts.get((mode, place), _SpanCount())
            known = self._known.get((rule, self._name(direction)))
            skews = (count.skew_least_ns, count.skew_sum_ns / count.edges, count.skew_most_ns)
            least, mean, most = (round(value / 1e6, 4) for value in skews)
            end_ns = min((place + 1) * self.window_ns, self._duration_ns)
            found.append(
                Window(
                    run=self.run,
                    mode=mode,
                    rule=rule,
                    direction=direction,
                    start_s=place * self.window_ns / 1e9,
                    end_s=end_ns / 1e9,
                    skew_ms=(least, mean, most),
                    edges=count.edges,
                    violations=count.violations,
                    violation_rate=round(count.violations / count.edges, 6),
                    predicted_rate=round(count.predicted / count.edges, 6) if known and mode != "rewrite" else None,
                    own_rate=round(count.shorter / count.edges, 6) if count.measured == count.edges else None,
                    indeterminate=count.indeterminate,
                    verdicts=count.verdicts,
                    spans=spans.spans,
                    bound_misses=spans.misses,
                    ambiguous=spans.ambiguous,
                )
            )
        return found

    def _name(self, direction: str) -> str:
        return next(edge_name(edge) for edge, way in self._direction.items() if way == direction)

    def clock(self, samples: int = SAMPLES) -> list[ClockSample]:
        """The clock, its bound and the signal at evenly spaced moments."""
        for times in (self._blamed, self._impossible, self._turned, self._bounds):
            times.sort()
        instants = [bound[0] for bound in self._bounds]
        found = []
        for number in range(samples + 1):
            at_ns = self._begin_ns + self._duration_ns * number // samples
            place = bisect_right(instants, at_ns) - 1
            fresh = place >= 0 and at_ns - instants[place] <= STALE_NS
            # The bound of the latest span, at that span's instant: shown where it was made, not carried on.
            shown_ns = instants[place] if fresh else at_ns
            blamed = _any_within(self._blamed, at_ns)
            found.append(
                ClockSample(
                    at_s=round((shown_ns - self._begin_ns) / 1e9, 3),
                    skew_ms=round(-self._deviation.at(shown_ns) / 1e6, 5),
                    least_ms=round(self._bounds[place][1] / 1e6, 5) if fresh else None,
                    greatest_ms=round(self._bounds[place][2] / 1e6, 5) if fresh else None,
                    health_clock=not blamed,
                    health_any=not blamed and not _any_within(self._impossible, at_ns),
                    clock_innocent=not _any_within(self._turned, at_ns),
                )
            )
        return found


def _any_within(times: Sequence[int], at_ns: int) -> bool:
    place = bisect_right(times, at_ns) - 1
    return place >= 0 and times[place] > at_ns - HEALTH_NS


def false_alarms(samples: Iterable[ClockSample]) -> int:
    """How often the signal blamed a clock that had turned no edge round."""
    return sum(not sample.health_clock and sample.clock_innocent for sample in samples)
