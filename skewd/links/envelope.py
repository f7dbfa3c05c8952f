"""Labels for messages on a medium that several nodes hear: for whom, and from whom.

A link message names its receiver only once that is known, and reading the name inside costs a look at every message
of everybody. On a shared medium the labels come first, so that what is for others is passed over at once. They are
labels and no more: anyone on the medium can write any. Who a message is from and for is known from the message
itself, which is authenticated; a false label only sends a reply where nobody waits for it.

::

    "skA1" | receiver: length u8, name (length 0: whoever hears this) | sender: length u8, name | message

Limits: names as everywhere, 63 bytes at most; the message inside is not looked at.
"""

from __future__ import annotations

from typing import NamedTuple

from skewd.links.wire import MAX_NAME_BYTES, is_name

_MAGIC = b"skA1"
MAX_ENVELOPE_BYTES = len(_MAGIC) + 2 * (1 + MAX_NAME_BYTES)


class Labelled(NamedTuple):
    """A message with its labels; an empty receiver stands for whoever hears it."""

    receiver: str
    sender: str
    message: bytes


def wrap(receiver: str, sender: str, message: bytes) -> bytes:
    """``message`` with its labels.

    Raises:
        ValueError: a label that is no node's name.
    """
    if not is_name(sender) or (receiver and not is_name(receiver)):
        raise ValueError("a label is a node's name")
    return b"".join(
        (_MAGIC, bytes((len(receiver),)), receiver.encode(), bytes((len(sender),)), sender.encode(), message)
    )


def unwrap(data: bytes) -> Labelled | None:
    """What ``wrap`` made; ``None`` for anything else."""
    if data[: len(_MAGIC)] != _MAGIC:
        return None
    at = len(_MAGIC)
    names: list[str] = []
    for _ in range(2):
        length = data[at] if at < len(data) else 255
        name = data[at + 1 : at + 1 + length]
        if length > MAX_NAME_BYTES or len(name) != length:
            return None
        names.append(name.decode("ascii", "replace"))
        at += 1 + length
    receiver, sender = names
    if not is_name(sender) or (receiver and not is_name(receiver)):
        return None
    return Labelled(receiver, sender, data[at:])
