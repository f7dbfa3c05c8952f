"""What a stage is told: once when it starts, and for each run of messages.

Values alone, and nothing imported for them: a stage's process reads its own before it takes on its node's clock, and
OpenTelemetry may be imported only after that.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StageConfig:
    """What a stage's process is told once.

    Attributes:
        stage: its name; the node's too.
        page: the node's clock (see ``skewd_pipeline.skew``); empty where the host's own is the node's.
        exporters: OTLP/HTTP base address by name: one per sidecar, and ``direct`` to the collector.
        model: ``module:callable`` or None, for the inference stage.
        items: the file with the items and their expected labels (see ``corpus.py``).
        stamp_offset_ns: what this application adds to every stamp it makes; 0 leaves stamps to the SDK. Only for the
            comparison with experiments that skew stamps and not clocks (see ``stage_config.py``).
        max_age_ns: a message that is older than this by this node's wall clock is dropped; None: none is.
    """

    stage: str
    page: str
    exporters: dict[str, str]
    model: str | None
    items: str
    stamp_offset_ns: int = 0
    max_age_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of messages.

    Attributes:
        name: told apart from other cells' messages and spans by this.
        exporters: which of the stage's exporters get this cell's spans.
        rate: messages a second; None sends as fast as the pipeline takes them.
        items: the producer's: which item each message carries, in order.
        sent_at_s: the producer's: when it sends each message, from the beginning, instead of at an even ``rate``.
        idle_limit_s: a stage that hears nothing for so long ends the cell with what it has; None: it is told.
    """

    name: str
    transport: str
    messages: int
    floor_ns: int
    exporters: list[str]
    rate: float | None = None
    items: list[int] | None = None
    sent_at_s: list[float] | None = None
    idle_limit_s: float | None = None
