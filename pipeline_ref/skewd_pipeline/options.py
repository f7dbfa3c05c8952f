"""What one run of the experiment is asked to do, checked before anything is started.

A sweep takes minutes and starts a dozen processes; a typing mistake must be found in the first millisecond, and the
message must say what to write instead. So everything that can be known to be wrong from the words alone is refused
here, purely: no file is opened and no module loaded (a model that cannot be imported is the experiment's to report).

Skews are milliseconds, since that is the unit of the question ("at how many milliseconds does it break?"); a unit is
taken too (``2s``, ``250us``). Every other duration needs its unit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path

from skewd.durations import parse_duration_ns

STAGES = ("producer", "preprocess", "inference", "postprocess", "consumer")
DIRECTIONS = ("behind", "ahead")
TRANSPORTS = ("zmq", "kafka", "aeron")
KAFKA_CLIENTS = ("latency", "default")
AERON_CHANNELS = ("ipc", "udp")
MODES = ("off", "tag", "rewrite")

SKEWS_MAX = 64
SKEW_MAX_MS = 3_600_000.0
MESSAGES_MAX = 1_000_000
RATE_MAX = 100_000.0
SERVICE_FLOOR_MAX_NS = 10_000_000_000
LOADS_MAX = 16
MAX_AGE_MAX_NS = 3_600_000_000_000
DURATION_MIN_NS = 10_000_000_000
DURATION_MAX_NS = 86_400_000_000_000
REAL_DURATION_MAX_NS = 3_600_000_000_000
"""A real long run keeps its spans until its end, some 2 GB an hour at 20 messages a second."""

DRIFT_MAX_PPB = 90_000
"""A node's clock is declared to drift by 100 ppm at most, and its daemon may rely on it."""

USUAL_DRIFT_PPB = 50_000
DEMO_MESSAGES = 60
DEMO_ROUNDS = 3

_MODEL = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_HOST_PORT = re.compile(r"[^\s,/]+:\d{1,5}")


@dataclass(frozen=True, slots=True)
class ExperimentOptions:
    """One sweep: every skew x transport x mode, at one stage, in one direction.

    Attributes:
        skews_ms: how far the skewed stage's clock is off, milliseconds, none negative; 0 is always run too. None: 0, 3,
            5 and 10 (the paper's), the predicted median, and one far beyond.
        stage: the stage whose node has the skewed clock.
        direction: ``behind`` (its clock shows too little) or ``ahead``.
        transports: ``zmq``, ``kafka``, ``aeron``.
        modes: the sidecar modes that see the same traffic side by side: ``off``, ``tag``, ``rewrite``.
        messages: messages counted in each cell.
        rate: messages offered per second, at most 40 % of what the pipeline takes; None: that.
        rounds: how many blocks each cell is run in, turn about; None: blocks of some 50 messages, two at least.
        seed: decides the order of the work; the same seed gives the same schedule.
        reference: the stage whose node is the reference of all corrections; never the skewed one.
        service_floor_ns: each stage's work lasts at least this long; 0 for no floor. None: chosen for each transport so
            that the median separation is 4 ms, where the hop alone allows.
        max_age_ns: the skewed stage drops messages that are older than this by its own wall clock; None: it drops none.
        stamp_offset_ns: what the skewed stage's application adds to its stamps, its clock left as it is.
        overload: also run a synchronized cell on an overloaded CPU.
        loads: also run a cell at ``load_skew_ms`` for each of these shares of the capacity.
        duration_ns: also run for this long while the clock drifts, is stepped and slewed; None: no such run.
        drift_ppb: how fast the skewed clock runs away in that run, towards ``direction``.
        simulated: that run alone, and not on processes but on simulated time.
        separations: a results.json whose measured separations the simulated run draws from; None: a model's.
        kafka_bootstrap: ``host:port[,host:port]`` of a broker to use instead of one started for the run.
        kafka_clients: ``latency`` (nothing waits for company) or ``default`` (librdkafka's own waits, 5 ms of linger).
        aeron_dir: of a running media driver, instead of one started for the run.
        aeron_channel: ``ipc`` (shared memory) or ``udp`` (on loopback).
        inband_only: the clocks are compared over the transport under test and over nothing else.
        model: ``module:callable`` that takes bytes and returns a label, instead of the model that comes with it.
        out: the directory that results.json and report.html are written to.
        demo: run the short form that ``make demo`` runs.

    Raises:
        ValueError: a value that cannot work; the message names the option and what to write.
    """

    skews_ms: tuple[float, ...] | None = None
    stage: str = "inference"
    direction: str = "behind"
    transports: tuple[str, ...] = ("zmq", "kafka")
    modes: tuple[str, ...] = ("off", "tag", "rewrite")
    messages: int = 200
    rate: float | None = None
    rounds: int | None = None
    seed: int = 1
    reference: str = "preprocess"
    service_floor_ns: int | None = None
    max_age_ns: int | None = None
    stamp_offset_ns: int = 0
    overload: bool = False
    loads: tuple[float, ...] = ()
    load_skew_ms: float = 5.0
    duration_ns: int | None = None
    drift_ppb: int = USUAL_DRIFT_PPB
    simulated: bool = False
    separations: Path | None = None
    kafka_bootstrap: str | None = None
    kafka_clients: str = "latency"
    aeron_dir: Path | None = None
    aeron_channel: str = "ipc"
    inband_only: bool = False
    model: str | None = None
    out: Path = Path("out/experiment")
    demo: bool = False

    def __post_init__(self) -> None:
        skews_ms = (0.0,) if self.skews_ms is None else self.skews_ms
        if not 1 <= len(skews_ms) <= SKEWS_MAX:
            raise ValueError(f"--skews: give 1 to {SKEWS_MAX} skews, not {len(skews_ms)}")
        for skew in skews_ms:
            if not 0 <= skew <= SKEW_MAX_MS:
                raise ValueError(_skew_range(f"{skew:g}"))
        _one_of("--stage", self.stage, STAGES)
        _one_of("--direction", self.direction, DIRECTIONS)
        _one_of("--reference", self.reference, STAGES)
        _some_of("--transports", self.transports, TRANSPORTS)
        _some_of("--modes", self.modes, MODES)
        if self.stage == self.reference:
            others = ", ".join(stage for stage in STAGES if stage != self.stage)
            raise ValueError(
                f"--reference: '{self.reference}' is the skewed stage, and a reference must not be; "
                f"choose one of {others}"
            )
        if (self.stage, self.direction) == (STAGES[0], "behind"):
            raise ValueError(
                f"--direction: nothing is sent to the {self.stage}, so its clock being behind breaks no edge; "
                "write --direction ahead"
            )
        if (self.stage, self.direction) == (STAGES[-1], "ahead"):
            raise ValueError(
                f"--direction: the {self.stage} sends nothing on, so its clock being ahead breaks no edge; "
                "write --direction behind"
            )
        if not 1 <= self.messages <= MESSAGES_MAX:
            raise ValueError(f"--messages: {self.messages} is not between 1 and {MESSAGES_MAX}")
        if self.rounds is not None and not 1 <= self.rounds <= self.messages:
            raise ValueError(f"--rounds: {self.rounds} is not between 1 and the {self.messages} messages of a cell")
        if self.rate is not None and not 0 < self.rate <= RATE_MAX:
            raise ValueError(f"--rate: {self.rate:g} is not between 0 and {RATE_MAX:g} messages per second")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"--seed: {self.seed} is not a whole number from 0 to 2^63 - 1")
        if self.service_floor_ns is not None and not 0 <= self.service_floor_ns <= SERVICE_FLOOR_MAX_NS:
            raise ValueError("--service-floor: choose auto, or from 0ms to 10s")
        if self.max_age_ns is not None and not 0 < self.max_age_ns <= MAX_AGE_MAX_NS:
            raise ValueError("--max-age: choose from 1ns to 1h")
        if abs(self.stamp_offset_ns) > SKEW_MAX_MS * 1e6:
            raise ValueError("--stamp-offset: choose from -1h to 1h")
        if len(self.loads) > LOADS_MAX or not all(0 < load < 1 for load in self.loads):
            raise ValueError(f"--loads: give at most {LOADS_MAX} shares of the capacity, each between 0 and 1")
        self._check_over_time()
        if self.kafka_bootstrap is not None and not all(
            _HOST_PORT.fullmatch(part) for part in self.kafka_bootstrap.split(",")
        ):
            raise ValueError(f"--kafka-bootstrap: '{self.kafka_bootstrap}' is not host:port; write 127.0.0.1:9092")
        _one_of("--kafka-clients", self.kafka_clients, KAFKA_CLIENTS)
        _one_of("--aeron-channel", self.aeron_channel, AERON_CHANNELS)
        if self.model is not None and not _MODEL.fullmatch(self.model):
            raise ValueError(f"--model: '{self.model}' is not module:callable; write mymodel:classify")

    def _check_over_time(self) -> None:
        most_ns = DURATION_MAX_NS if self.simulated else REAL_DURATION_MAX_NS
        if self.duration_ns is not None and not DURATION_MIN_NS <= self.duration_ns <= most_ns:
            raise ValueError("--duration: choose from 10s to 1h, or to 24h with --simulated")
        if not 1 <= self.drift_ppb <= DRIFT_MAX_PPB:
            raise ValueError(
                f"--drift: choose from 1ppb to {DRIFT_MAX_PPB // 1000}ppm, the way is --direction's; "
                "a node's bounds rely on a drift of at most 100 ppm"
            )
        if self.simulated and self.duration_ns is None:
            raise ValueError("--simulated: say for how long; write --duration 10m")
        if self.separations is not None and not self.simulated:
            raise ValueError("--separations: only a simulated run draws from a file; write --simulated too")
        if self.duration_ns is not None:
            at = STAGES.index(self.stage)
            if not 0 < at < len(STAGES) - 1:
                raise ValueError(
                    f"--duration: the {self.stage} has an edge on one side only, and the clock goes both ways; "
                    f"choose --stage {_listing(STAGES[1:-1])}"
                )
            if self.reference not in (STAGES[at - 1], STAGES[at + 1]) and self.simulated:
                raise ValueError(f"--reference: simulated, choose {STAGES[at - 1]} or {STAGES[at + 1]}")


def as_run(options: ExperimentOptions) -> ExperimentOptions:
    """The options as run: the demo's short form where the user left the defaults."""
    if not options.demo:
        return options
    usual = ExperimentOptions()
    return replace(
        options,
        messages=DEMO_MESSAGES if options.messages == usual.messages else options.messages,
        rounds=DEMO_ROUNDS if options.rounds is None else options.rounds,
    )


def default_reference(stage: str, direction: str) -> str:
    """The reference when none is named: the other end of the edge that the skew can violate.

    That is the stage before when the clock is behind, the one after when it is ahead. The edge is then judged by a
    single first-hand bound, and not by the sum of two.
    """
    return STAGES[(STAGES.index(stage) + (-1 if direction == "behind" else 1)) % len(STAGES)]


def parse_skews(text: str) -> tuple[float, ...]:
    """``0,1,2.5`` (milliseconds) or with units (``0,250us,2s``), as milliseconds in the order given.

    Raises:
        ValueError: an entry is no number, is negative, beyond an hour, or given twice.
    """
    skews: list[float] = []
    for part in _parts("--skews", text):
        try:
            skew = float(Decimal(part))
        except InvalidOperation:
            try:
                skew = parse_duration_ns(part) / 1e6
            except ValueError:
                raise ValueError(
                    f"--skews: '{part[:40]}' is not a skew; write milliseconds, as 0,1,2.5, or a unit, as 250us,2s"
                ) from None
        if not 0 <= skew <= SKEW_MAX_MS:  # also refuses NaN
            raise ValueError(_skew_range(part[:40]))
        if skew in skews:
            raise ValueError(f"--skews: '{part}' is given twice; each skew is run once")
        skews.append(skew)
    return tuple(skews)


def parse_service_floor_ns(text: str) -> int | None:
    """``auto`` (None) or a duration.

    Raises:
        ValueError: it is neither.
    """
    if text == "auto":
        return None
    try:
        return parse_duration_ns(text)
    except ValueError as error:
        raise ValueError(f"--service-floor: {error}; or write auto") from None


def parse_loads(text: str) -> tuple[float, ...]:
    """``0.2,0.5,0.9``: shares of the capacity.

    Raises:
        ValueError: an entry is no number.
    """
    loads = []
    for part in _parts("--loads", text):
        try:
            loads.append(float(Decimal(part)))
        except InvalidOperation:
            raise ValueError(f"--loads: '{part[:40]}' is no share of the capacity; write 0.2,0.5,0.9") from None
    return tuple(loads)


def parse_drift_ppb(text: str) -> int:
    """``50ppm`` or ``500ppb``, in parts per billion.

    Raises:
        ValueError: it is no rate.
    """
    for unit, scale in (("ppm", 1000), ("ppb", 1)):
        if text.endswith(unit):
            try:
                return int(Decimal(text.removesuffix(unit)) * scale)
            except (InvalidOperation, ValueError, OverflowError):
                break
    raise ValueError(f"--drift: '{text[:40]}' is not a rate; write 50ppm or 500ppb")


def parse_names(option: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """``zmq,kafka`` as names, each one of ``known`` and given once.

    Raises:
        ValueError: an unknown or repeated name; the message lists the known ones.
    """
    names = tuple(_parts(option, text))
    _some_of(option, names, known)
    return names


def _parts(option: str, text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise ValueError(f"{option}: '{text[:80]}' has an empty entry; write a list with commas between")
    return parts


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{option}: '{value[:40]}' is unknown; choose {_listing(known)}")


def _some_of(option: str, values: tuple[str, ...], known: tuple[str, ...]) -> None:
    if not values:
        raise ValueError(f"{option}: nothing is chosen; choose from {_listing(known)}")
    for value in values:
        _one_of(option, value, known)
    if len(set(values)) != len(values):
        raise ValueError(f"{option}: a name is given twice")


def _listing(known: tuple[str, ...]) -> str:
    return ", ".join(known[:-1]) + f" or {known[-1]}"


def _skew_range(text: str) -> str:
    if text.startswith("-"):
        return f"--skews: '{text}' is negative; write {text[1:]} with --direction behind or ahead"
    return f"--skews: '{text}' is not between 0 and one hour"
