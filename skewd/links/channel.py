"""Aeron channels, as people write them. Pure; the link itself is in ``aeron.py``.

Limits: IPC and UDP. Further parameters pass through unread, but for the endpoint and the term length.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from dataclasses import dataclass

from skewd.ports import is_loopback, split_address

# The default is 64 MiB three times per publication: made for throughput, and messages here are few.
_TERM_LENGTH = "64k"


@dataclass(frozen=True, slots=True)
class Channel:
    """An Aeron channel. ``shared``: who publishes to it is heard by everybody who subscribes."""

    uri: str
    host: str | None
    port: int
    shared: bool

    @property
    def stays_here(self) -> bool:
        """Whether nothing that is sent to it leaves this machine."""
        return self.host is None or is_loopback(self.host)


def parse_channel(text: str) -> Channel:
    """``aeron:ipc``, ``aeron:udp?endpoint=host:port`` (with further parameters), or just ``host:port``.

    Raises:
        ValueError: none of these; the message says what to write.
    """
    uri = text if text.startswith("aeron:") else f"aeron:udp?endpoint={text}"
    match = re.fullmatch(r"aeron:(ipc|udp)(?:\?([^?\s]+))?", uri)
    advice = "write aeron:ipc, aeron:udp?endpoint=host:port or host:port"
    if match is None:
        raise ValueError(f"'{text[:80]}' is no Aeron channel; {advice}")
    parameters = dict(part.partition("=")[::2] for part in (match[2] or "").split("|") if part)
    if "term-length" not in parameters:
        uri += ("|" if parameters else "?") + f"term-length={_TERM_LENGTH}"
    if match[1] == "ipc":
        return Channel(uri, None, 0, shared=True)
    if not parameters.get("endpoint"):
        raise ValueError(f"'{text[:80]}' has no endpoint; {advice}")
    host, port = split_address(parameters["endpoint"])
    if port == 0:
        raise ValueError(f"'{text[:80]}' has port 0, which no peer can know; write a port of its own, as {host}:9959")
    multicast = False
    with contextlib.suppress(ValueError):
        multicast = ipaddress.ip_address(host).is_multicast
    return Channel(uri, host, port, shared=multicast)
