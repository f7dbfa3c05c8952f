"""What may be asked of a patch, and what it says of what it did.

These are the values that cross its border, in configuration, counters and the native twin alike: everything else in
the package depends on them, and they on nothing in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from skewd.bounds.history import Correction

PREFIX_MAX_BYTES = 64
"""Longest attribute prefix, in UTF-8."""


class Mode(StrEnum):
    """What happens to a span: nothing, attributes only, or times and attributes."""

    OFF = "off"
    TAG = "tag"
    REWRITE = "rewrite"


class Placement(StrEnum):
    """Where attributes go: all on each span; facts on the Resource; or that, and no originals."""

    SPAN = "span"
    RESOURCE = "resource"
    MINIMAL = "minimal"


class Stamps(StrEnum):
    """How applications take their stamps: nobody knows, or each by a reading of the node's wall clock."""

    UNKNOWN = "unknown"
    WALL = "wall"


class Incoming(StrEnum):
    """What becomes of attributes under our names that arrive: believed, or removed unread."""

    TRUST = "trust"
    REPLACE = "replace"


class Action(StrEnum):
    """What happened to a span or log record: contract names of ``skewd_spans_total{action}``."""

    TAGGED = "tagged"
    REWRITTEN = "rewritten"
    UNSYNCHRONIZED = "unsynchronized"
    UNCHANGED = "unchanged"
    PASSED = "passed"


@dataclass(frozen=True, slots=True)
class PatchOptions:
    """How spans are patched.

    Attributes:
        mode: what is done to them.
        node: the node that made the stamps, for ``clock.node.name``.
        prefix: what the attributes' names begin with.
        keep_original: whether a rewritten span carries its times from before (never under ``Placement.MINIMAL``).
        placement: where the attributes go.
        incoming: what becomes of attributes under our names that arrive.
        stamps: how the stamps were taken, so whether each is corrected by itself or all of a span by the start's.

    Raises:
        ValueError: the prefix is empty or longer than ``PREFIX_MAX_BYTES``.
    """

    mode: Mode
    node: str
    prefix: str = "clock."
    keep_original: bool = True
    placement: Placement = Placement.SPAN
    incoming: Incoming = Incoming.TRUST
    stamps: Stamps = Stamps.UNKNOWN

    def __post_init__(self) -> None:
        if not 0 < len(self.prefix.encode()) <= PREFIX_MAX_BYTES:
            raise ValueError(
                f"the attribute prefix {self.prefix[:80]!r} has {len(self.prefix.encode())} bytes; "
                f"it needs 1 to {PREFIX_MAX_BYTES}, as 'clock.'"
            )

    @property
    def trusts(self) -> bool:
        """Whether what arrives under our names stays and is believed; where nothing is patched nothing is removed."""
        return self.incoming is Incoming.TRUST or self.mode is Mode.OFF


@dataclass(frozen=True, slots=True)
class PatchResult:
    """The request to send on, how many spans or log records it holds, and how many were treated how (``Action``)."""

    body: bytes
    spans: int
    actions: dict[str, int]


CorrectionAt: TypeAlias = Callable[[int], Correction]
"""The correction for a stamp (ns since 1970) of the node's wall clock."""
