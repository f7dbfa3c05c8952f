"""What a node tells of itself, as one typed value: the answer of ``GET /v1/status`` and of ``skewd status --json``.

The problem: a status that is a dictionary is taken apart by every reader in its own way, and each has its own opinion
of a missing key. The insight: it is one value. The daemon makes it (``telling.py``), and everything that shows or
judges it (the screen, the check, ``waitsync``, the metrics, the page, the log) reads it from this type, whether it was
made in the same process or came over the socket.

Its keys are promised to programs: one that is not known is None, none is ever left out. A reader is lenient to what an
older or newer daemon says: unknown keys are passed over, missing ones are unknown; of a daemon that tells no problems
yet, the lines of ``messages`` are taken for them. A value of another kind is refused, or with ``odd_is_unknown``
counts as unknown.

Limits: whole numbers of 64 bits. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from skewd.interval import Interval
from skewd.lean import msgspec
from skewd.problems import Problem, Severity, gravest_first

field = msgspec.field

UNSYNCHRONIZED = "unsynchronized"


class UnreadableStatus(ValueError):
    """What a daemon answered is no status; the message is one line that says what to do."""

    def __init__(self) -> None:
        super().__init__("the daemon's answer cannot be read; do its version and this command's agree?")


class ToldProblem(msgspec.Struct, frozen=True):
    """One :class:`~skewd.problems.Problem` as it is told; ``code`` is empty where an old daemon gave none."""

    code: str = ""
    severity: str = Severity.WARNING.value
    subject: str = ""
    text: str = ""
    remedy: str = ""

    @property
    def line(self) -> str:
        """``what is wrong; what to do``."""
        return f"{self.text}; {self.remedy}" if self.remedy else self.text


class Seen(msgspec.Struct, frozen=True):
    """What was observed of a pair's drift or wander against its declared limit (``bounds/observed.py``)."""

    verdict: str
    limit: int
    at_least: int | None = None
    at_most: int | None = None
    window_s: int | None = None
    age_s: int | None = None


class Assumptions(msgspec.Struct, frozen=True):
    """Whether a pair of clocks keeps within the declared limits; drift in ppb, wander in ppb/s."""

    drift: Seen
    wander: Seen
    contradicted_age_s: int | None = None


class _Bounded(msgspec.Struct, frozen=True):
    """What has a bound: the other clock minus this one. Each kind names the three fields where they stand in JSON."""

    if TYPE_CHECKING:
        offset_ns: int | None = None
        lower_ns: int | None = None
        upper_ns: int | None = None

    def __post_init__(self) -> None:
        if self.lower_ns is not None and self.upper_ns is not None and self.lower_ns > self.upper_ns:
            raise ValueError("the lower end of a bound is above its upper end")

    @property
    def bound(self) -> Interval | None:
        """Where the offset lies; None while unknown."""
        if self.lower_ns is None or self.upper_ns is None:
            return None
        return Interval(self.lower_ns, self.upper_ns)

    @property
    def farthest_ns(self) -> int | None:
        """The largest distance from the offset that is applied to an end of the bound."""
        bound, applied = self.bound, self.applied_ns
        return None if bound is None or applied is None else bound.farthest(applied)

    @property
    def applied_ns(self) -> int | None:
        """The offset that the daemon applies, or the middle where it names none or one outside its own bound."""
        bound = self.bound
        if bound is None:
            return None
        return bound.midpoint if self.offset_ns is None else bound.clamp(self.offset_ns)


class LinkUse(msgspec.Struct, frozen=True):
    """What of a peer came over one link in the last minute."""

    link: str | None = None
    address: str | None = None
    rtt_min_ns: int | None = None
    age_s: float | None = None
    messages: int | None = None


class PeerRow(_Bounded, frozen=True, kw_only=True):
    """One member of the mesh: see ``telling.py``."""

    name: str | None = None
    address: str | None = None
    link: str | None = None
    offset_ns: int | None = None
    lower_ns: int | None = None
    upper_ns: int | None = None
    drift_ppb: int | None = None
    rtt_min_ns: int | None = None
    age_s: float | None = None
    heard_s: float | None = None
    trust: str | None = None
    path: list[list[str]] = field(default_factory=list)
    state: str | None = None
    lower_link: str | None = None
    upper_link: str | None = None
    links: list[LinkUse] = field(default_factory=list)
    assumptions: Assumptions | None = None


class SourceRow(_Bounded, frozen=True, kw_only=True):
    """One source of UTC."""

    name: str | None = None
    type: str | None = None
    offset_ns: int | None = None
    lower_ns: int | None = None
    upper_ns: int | None = None
    rtt_min_ns: int | None = None
    root_distance_ns: int | None = None
    """How far from UTC its server may be, by that server's own account; no part of the round trip."""
    age_s: float | None = None
    state: str | None = None
    leap: str | None = None
    smear: bool | None = None
    configured: bool | None = None
    assumptions: Assumptions | None = None
    server: str | None = None
    stratum: int | None = None
    counters: dict[str, int] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)
    """How many questions ended how: used, unchanged, refused, unusable, timeout, failed."""


class LinkRow(msgspec.Struct, frozen=True):
    """One link: its transport, whether it works, and what became of its messages."""

    transport: str | None = None
    address: str | None = None
    direction: str | None = None
    trouble: str | None = None
    counters: dict[str, int] = field(default_factory=dict)


class TimescaleRow(msgspec.Struct, frozen=True):
    """The timescale that is followed, and whose clock keeps it now."""

    origin: str | None = None
    epoch: int | None = None
    keeper: str | None = None
    carried: bool | None = None


class MeshRow(msgspec.Struct, frozen=True):
    """What all members together say."""

    members: int | None = None
    bounded: int | None = None
    liars: int | None = None
    agreed: bool | None = None
    timescale: TimescaleRow | None = None
    epochs: int | None = None
    asked: int | None = None
    convicted: list[str] = field(default_factory=list)
    disputed: list[str] = field(default_factory=list)
    contested: list[str] = field(default_factory=list)
    oldest_record_s: float | None = None
    records: dict[str, int] = field(default_factory=dict)


class KernelRow(msgspec.Struct, frozen=True):
    """What the kernel holds of its clock (``kernel_clock.KernelClock.told``)."""

    rate_ppb: int | None = None
    tick_us: int | None = None
    synchronized: bool | None = None
    max_error_ns: int | None = None
    estimated_error_ns: int | None = None
    leap: str | None = None
    tai_offset_s: int | None = None


class ClockRow(msgspec.Struct, frozen=True):
    """What this host's kernel says of its clocks."""

    clock_source: str | None = None
    raw_era: int | None = None
    slew_ppb: int | None = None
    steps_seen_by: str | None = None
    machine_watched_by: str | None = None
    time_namespace_shift_ns: int | None = None
    kernel: KernelRow | None = None


class WidthsRow(msgspec.Struct, frozen=True):
    """How wide the published bounds on the present reference were: a count for each width up to ``le_ns``, and one for
    all that were wider."""

    reference: str | None = None
    le_ns: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    sum_ns: int = 0


class LoopRow(msgspec.Struct, frozen=True):
    """How the daemon itself is doing (``loop_facts.py``)."""

    lag_s: float | None = None
    """The longest that anything waited for the loop within the last minute or two."""
    publish_age_s: float | None = None
    reference_changed_s: float | None = None
    """How long ago the reference, or its epoch, became another one."""
    widths: WidthsRow | None = None


class ConfigRow(msgspec.Struct, frozen=True):
    """What became of the configuration when it was last read."""

    last_reload_successful: bool = True
    needs_restart: list[str] = field(default_factory=list)


class DisciplineRow(msgspec.Struct, frozen=True):
    """What ``[discipline]`` does to this clock (``steering.py``)."""

    mode: str = "off"
    state: str = "off"
    reason: str | None = None
    rate_ppb: int | None = None
    learned_ppb: int | None = None
    found_ppb: int | None = None
    limit_ppb: int = 0


class NodeStatus(_Bounded, frozen=True, kw_only=True):
    """Everything that a node tells of itself; the offset is the reference minus this node's wall clock."""

    node: str | None = None
    era: int | None = None
    status: str = UNSYNCHRONIZED
    reference: str | None = None
    offset_ns: int | None = None
    lower_ns: int | None = None
    upper_ns: int | None = None
    uncertainty_ns: int | None = None
    drift_ppb: int | None = None
    age_s: float | None = None
    trust: str | None = None
    path: list[list[str]] = field(default_factory=list)
    peers: list[PeerRow] = field(default_factory=list)
    peers_left_out: int = 0
    peers_configured: int | None = None
    """Addresses that are to be asked: of ``[mesh] peers`` (but one's own), what ``[mesh] dns`` has, each link's."""
    peers_heard: int | None = None
    """Peers that this node has heard itself, and not forgotten (15 minutes)."""
    peers_bounded: int | None = None
    """Those of them on whose clock it has a bound."""
    sources: list[SourceRow] = field(default_factory=list)
    links: list[LinkRow] = field(default_factory=list)
    mesh: MeshRow | None = None
    virtual: bool = False
    contradictions: int = 0
    uptime_s: float | None = None
    at_ns: int | None = None
    """This node's wall clock at the instant that the bounds are of."""
    problems: list[ToldProblem] = field(default_factory=list)
    problems_left_out: int = 0
    """How many more there are, each of a code that is told with another subject."""
    messages: list[str] = field(default_factory=list)
    """The problems as lines, for command lines of before."""
    clock: ClockRow | None = None
    loop: LoopRow | None = None
    metrics: str | None = None
    version: str | None = None
    found: str | None = None
    faults: dict[str, int] = field(default_factory=dict)
    config: ConfigRow | None = None
    discipline: DisciplineRow | None = None

    def with_problems(self, problems: Iterable[Problem]) -> NodeStatus:
        """The same with these problems, the gravest first."""
        all_of_them = {one.identity: one for one in problems}
        told = [told_problem(one) for one in gravest_first(all_of_them.values())]
        left_out = len(all_of_them) - len(told)
        lines = [one.line for one in told]
        return msgspec.structs.replace(self, problems=told, problems_left_out=left_out, messages=lines)

    def and_problem(self, problem: Problem) -> NodeStatus:
        """The same with one more problem, that this command has found itself."""
        return msgspec.structs.replace(self, problems=[*self.problems, told_problem(problem)])


class NowAnswer(msgspec.Struct, frozen=True):
    """The answer of ``GET /v1/now``: the reference's time lies between these two, in nanoseconds since 1970."""

    earliest_ns: int | None = None
    latest_ns: int | None = None
    reference: str | None = None
    status: str = UNSYNCHRONIZED

    @property
    def time(self) -> Interval | None:
        """The same as an interval; None while unknown."""
        if self.earliest_ns is None or self.latest_ns is None or self.earliest_ns > self.latest_ns:
            return None
        return Interval(self.earliest_ns, self.latest_ns)


def decode_now(told: Mapping[str, Any]) -> NowAnswer:
    """What a daemon of this or another version told.

    Raises:
        UnreadableStatus: it makes no sense.
    """
    try:
        return msgspec.convert(_without_nulls(told), NowAnswer)
    except msgspec.ValidationError:
        raise UnreadableStatus from None


def told_problem(problem: Problem) -> ToldProblem:
    """A problem as it is told."""
    return ToldProblem(problem.code, problem.severity.value, problem.subject, problem.text, problem.remedy)


def told_in_line(lines: Iterable[str]) -> list[ToldProblem]:
    """What an older daemon, or one without codes, says in lines of ``what is wrong; what to do``."""
    parts = (" ".join(line.split()).partition("; ") for line in lines)
    return [ToldProblem(text=wrong, remedy=remedy) for wrong, _, remedy in parts]


def encode(status: NodeStatus | NowAnswer) -> bytes:
    """JSON, for the local API."""
    return msgspec.json.encode(status)


def plain(status: NodeStatus) -> dict[str, Any]:
    """The same as dictionaries and lists."""
    made: dict[str, Any] = msgspec.to_builtins(status)
    return made


def decode(told: NodeStatus | Mapping[str, Any], *, odd_is_unknown: bool = False) -> NodeStatus:
    """What a daemon of this or another version told.

    Args:
        odd_is_unknown: takes values that make no sense for unknown ones, for a screen that shows what there is.

    Raises:
        UnreadableStatus: it makes no sense.
    """
    if isinstance(told, NodeStatus):
        return told
    known = _without_nulls(told)
    try:
        found = msgspec.convert(known, NodeStatus)
    except msgspec.ValidationError:
        if not odd_is_unknown:
            raise UnreadableStatus from None
        found = _what_makes_sense(known, NodeStatus) or NodeStatus()
    if not found.problems and found.messages and "problems" not in told:
        found = msgspec.structs.replace(found, problems=told_in_line(found.messages))
    return found


def _without_nulls(told: Any) -> Any:
    """Unknown is the same as missing, also where there would be a list or a number."""
    if isinstance(told, Mapping):
        return {str(key): _without_nulls(value) for key, value in told.items() if value is not None}
    return [_without_nulls(each) for each in told] if isinstance(told, list) else told


_Kind = TypeVar("_Kind", bound=msgspec.Struct)


def _what_makes_sense(told: Mapping[str, Any], kind: type[_Kind]) -> _Kind | None:
    """The fields that can be read, one at a time and row by row; None where one is lacking that must be there."""
    made: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        value = told.get(name)
        if value is None:
            continue
        try:
            made[name] = msgspec.convert(value, hint)
            continue
        except msgspec.ValidationError:
            row = next((each for each in get_args(hint) if isinstance(each, type(msgspec.Struct))), None)
        if row is None:
            continue
        if get_origin(hint) is not list:
            made[name] = _what_makes_sense(value, row) if isinstance(value, Mapping) else None
        elif isinstance(value, list):
            rows = [_what_makes_sense(each, row) for each in value if isinstance(each, Mapping)]
            made[name] = [each for each in rows if each is not None]
    try:
        return kind(**made)
    except ValueError:  # the ends of its bound are no ends
        return kind(**{key: value for key, value in made.items() if key not in ("lower_ns", "upper_ns")})
    except TypeError:
        return None
