"""What flows through the pipeline, and what must come out for it. Pure; the files are read in ``corpus.py``.

The problem: an experiment that breaks the work while it measures the clocks has measured nothing. The insight: give
every item an identity that depends on its content alone (its digest), work out the right answer for each once, before
anything is skewed, and compare each single result with it. Order and choice come from a seed, so that a run can be
repeated.

Limits: "right" means what the same model says about the same bytes when asked directly. Whether the model is right
about the world is not the pipeline's question (for the default model the tests ask it about known files).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Item:
    """One piece of work: a real file.

    Args:
        name: where it came from ("repository/README.md", "stdlib/json/decoder.py"); unique in a corpus.
        body: its content.
        digest: SHA-256 of the content, hexadecimal: its identity.
    """

    name: str
    body: bytes
    digest: str

    def read(self) -> bytes:
        """Its content."""
        return self.body


@dataclass(frozen=True, slots=True)
class Expected(Item):
    """An item with the right answer for it."""

    label: str

    def is_correct(self, digest: str, label: str) -> bool:
        """Whether a result is right: made from these very bytes, with the label that was computed beforehand."""
        return digest == self.digest and label == self.label


def digest_of(body: bytes) -> str:
    """SHA-256 of a content, hexadecimal."""
    return hashlib.sha256(body).hexdigest()


def make_item(name: str, body: bytes) -> Item:
    """An item, its digest computed."""
    return Item(name, body, digest_of(body))


def choose(candidates: Sequence[T], count: int, seed: int) -> list[T]:
    """At most ``count`` of the candidates in an order that only the candidates and the seed decide."""
    return random.Random(seed).sample(candidates, min(count, len(candidates)))
