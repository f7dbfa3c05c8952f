"""What protects a mesh, taken away on purpose, piece by piece: the campaign has to notice each.

Not among them: a drift that is not clipped to its limit. It makes bounds wider, never false; ``test_carry.py`` has it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any
from unittest import mock

import skewd.membership
import skewd.pairing
from skewd.bounds import carry, compose
from skewd.bounds.compose import FirstHand
from skewd.bounds.mesh import Mesh, Verdict
from skewd.bounds.pair import pair_limits
from skewd.records import Record
from tests.mesh import fleet

_compose, _moved, _verdict = compose.compose, carry._moved, Mesh.verdict


def _one_path(**arguments: Any) -> Any:
    return _compose(**{**arguments, "liars_max": 0})


def _whoever_is_convicted(**arguments: Any) -> Any:
    return _compose(**{**arguments, "excluded": frozenset()})


def _narrowest(labels: list[Any], count: int) -> list[Any] | None:
    """The first that hold, though they may rely on the same members."""
    return labels[:count] if len(labels) >= count else None


def _without_wander(rate: int, elapsed: int, limit: int, wander: int) -> int:
    return _moved(rate, elapsed, limit, 0)


def _half_the_limits(*limits: float) -> tuple[float, float]:
    drift, wander = pair_limits(*limits)
    return drift / 2, wander / 2


def _everybody(
    first_hand: Mapping[str, FirstHand],
    records: Mapping[str, Record],
    liars_max: int = 1,
    excluded: Collection[str] = frozenset(),
) -> dict[bytes, str]:
    """Whoever signs a record exists."""
    met = {known.clock: name for name, known in first_hand.items() if known.clock is not None and name != "utc"}
    return {**{record.clock: name for name, record in records.items() if name not in met.values()}, **met}


def _any_suspect(self: Mesh, f: int = 1) -> Verdict:
    found = _verdict(self, f)
    return replace(found, convicted=min(found.disputed)) if found.disputed else found


MUTANTS: dict[str, tuple[tuple[Any, str, Any], ...]] = {
    "one path is enough": ((skewd.membership, "compose", _one_path),),
    "paths need not be disjoint": ((compose, "_agree", _narrowest),),
    "records are carried without wander": ((carry, "_moved", _without_wander),),
    "limits are halved": (
        (skewd.pairing, "pair_limits", _half_the_limits),
        (skewd.membership, "pair_limits", _half_the_limits),
    ),
    "whoever signs a record exists": ((compose, "confirmed", _everybody),),
    "the convicted are not left out": ((skewd.membership, "compose", _whoever_is_convicted),),
    "any suspect is convicted": ((Mesh, "verdict", _any_suspect),),
    "signatures are not checked": ((fleet, "_verify", lambda data, public_key: True),),
}


@contextlib.contextmanager
def made_wrong(mutant: str) -> Iterator[None]:
    """The code with that protection taken away."""
    fleet.forget()
    with contextlib.ExitStack() as stack:
        for where, name, instead in MUTANTS[mutant]:
            stack.enter_context(mock.patch.object(where, name, instead))
        yield
    fleet.forget()
