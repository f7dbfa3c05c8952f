"""How single values are written in a configuration: durations, addresses, choices, lists.

A :class:`Written` says what TOML must hold, how it becomes what the program holds, and back. Each refuses what it
cannot mean and says what to write instead, without knowing which key or file it stands in: the reader adds those.
Pure; names are never resolved here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from skewd.durations import parse_duration_ns
from skewd.lean import msgspec
from skewd.ports import format_address, split_address

ENTRIES_MAX = 1024
"""Entries in one list."""

# As text: ``re`` compiles (and keeps) those that are used, and `skewd check` counts milliseconds.
_NAME = r"[A-Za-z0-9._-]{1,63}"
_HOST = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252})"
_DOTTED = r"(25[0-5]|2[0-4]\d|1?\d?\d)(\.(25[0-5]|2[0-4]\d|1?\d?\d)){3}"
_FORWARD_SCHEMES = ("grpc", "grpcs", "http", "https", "kafka")
_SECOND = 1_000_000_000
_HEADER = r"[a-z0-9!#$%&'*+.^_`|~-]{1,64}"
_HEADERS_OF_THE_MESSAGE = (
    *("accept", "accept-encoding", "connection", "content-encoding", "content-length", "content-type", "expect"),
    *("host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "user-agent", "x-skewd-hop"),
)
UNIX_PATH_BYTES_MAX = 107
HEADERS_MAX = 16


class Written(msgspec.Struct, frozen=True):
    """How a value is written in TOML where that differs from what the program holds, and which limits it keeps."""

    kind: Any
    """The type that TOML (or the environment) must hold."""
    parse: Callable[[Any], Any]
    """From what is written to what is held; a ValueError says what to write instead."""
    show: Callable[[Any], Any] = lambda value: value
    """From what is held back to what is written."""


def exact_duration(ns: int) -> str:
    """A duration as it would be written, without rounding: ``1s``, ``1500us``."""
    for unit, scale in (("h", 3600 * _SECOND), ("m", 60 * _SECOND), ("s", _SECOND), ("ms", 10**6), ("us", 10**3)):
        if ns and ns % scale == 0:
            return f"{ns // scale}{unit}"
    return f"{ns}ns"


def address_parts(text: str) -> tuple[str, int]:
    """Host and port of ``host:port``, as :func:`skewd.ports.split_address`, with advice for the usual mistakes.

    Raises:
        ValueError: no port, no host, or neither a name nor an address; the message says what to write.
    """
    host, colon, port = text.rpartition(":")
    if text.isdecimal():
        raise ValueError(f"'{text[:80]}' has no host; write 127.0.0.1:{text[:80]}")
    if not colon or not port:
        raise ValueError(f"'{text[:80]}' has no port; write {text.rstrip(':')[:80] or '127.0.0.1'}:PORT")
    if not host:
        raise ValueError(f"'{text}' has no host; write 127.0.0.1:{port}, or 0.0.0.0:{port} for every address")
    name, number = split_address(text)
    dotted = re.fullmatch(r"[\d.]+", name) is not None
    if ":" not in name and (not re.fullmatch(_HOST, name) or (dotted and not re.fullmatch(_DOTTED, name))):
        raise ValueError(f"'{name[:80]}' is neither a host name nor an IP address; write host:port, as 10.0.0.5:{port}")
    return name, number


# How values are written. Each names its limits in its message.


def duration(lowest: str, highest: str) -> Written:
    """A duration with its unit, held as nanoseconds."""
    low_ns, high_ns = parse_duration_ns(lowest), parse_duration_ns(highest)

    def parse(text: str) -> int:
        value = parse_duration_ns(text)
        if not low_ns <= value <= high_ns:
            raise ValueError(f"{text.strip()} is out of range; choose from {lowest} to {highest}")
        return value

    return Written(kind=Duration, parse=parse, show=exact_duration)


class Duration:
    """Marks a duration as the kind of a value, so that a bare number gets the advice it deserves."""


def whole(lowest: int, highest: int) -> Written:
    """A whole number within limits."""

    def parse(value: int) -> int:
        if not lowest <= value <= highest:
            raise ValueError(f"{value} is out of range; choose from {lowest} to {highest}")
        return value

    return Written(kind=int, parse=parse)


def choice(*known: str) -> Written:
    """One of a few words."""

    def parse(text: str) -> str:
        if text not in known:
            raise ValueError(f"'{text[:60]}' is unknown{nearest(text, known)}; choose {either(known)}")
        return text

    return Written(kind=str, parse=parse)


def text_like(pattern: str, advice: str) -> Written:
    """Text of a certain form; ``advice`` ends the sentence that begins with what was written."""

    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"'{text[:80]}' {advice}")
        return text

    return Written(kind=str, parse=parse)


def _parse_listen(text: str) -> str | None:
    if text == "off":
        return None
    if not text:
        raise ValueError('it is empty; write host:port, or "off"')
    address_parts(text)
    return text


def _parse_intake(text: str) -> str | None:
    if not text.startswith("unix:"):
        return _parse_listen(text)
    path = text.removeprefix("unix://")
    if not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise ValueError(f"'{text[:80]}' has no absolute path; write unix:///run/skewd/otlp.sock")
    if len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX:
        raise ValueError(f"the path of '{text[:80]}' is longer than {UNIX_PATH_BYTES_MAX} bytes, Linux's limit")
    return text


def _parse_path(text: str) -> Path:
    if not text or "\0" in text:
        raise ValueError("it is not a path; write one, as /run/skewd")
    return Path(os.path.abspath(text))


def parse_reference(text: str) -> str:
    """``auto``, ``utc`` or a node's name, with or without ``node:`` before it."""
    # The attribute `clock.reference` spells it node:x, and people copy what they see.
    name = text.removeprefix("node:")
    if not re.fullmatch(_NAME, name):
        raise ValueError(f"'{text[:80]}' is neither auto, utc nor a node's name (letters, digits, '.', '_', '-')")
    return name


def parse_peer(text: str) -> str:
    """``host:port`` of somebody who listens, so never port 0."""
    if address_parts(text)[1] == 0:
        raise ValueError(f"'{text}' has port 0, where nobody listens; write the peer's own port, as 9957")
    return text


def parse_forward(text: str) -> str:
    """The URL of a collector."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        raise ValueError(f"'{text[:80]}' has no scheme; write grpc://{text[:80]} or http://{text[:80]}")
    if scheme not in _FORWARD_SCHEMES:
        raise ValueError(f"'{scheme}://' is unknown; choose {either(tuple(s + '://' for s in _FORWARD_SCHEMES))}")
    if not rest.strip("/"):
        raise ValueError(f"'{text}' has no host; write {scheme}://127.0.0.1:4317")
    return text


def parse_header(text: str) -> str:
    """The name of a request header that goes on with the request, in lower case."""
    name = text.strip().lower()
    if not re.fullmatch(_HEADER, name):
        raise ValueError(f"'{text[:80]}' is not a header's name; write it as x-scope-orgid")
    if name in _HEADERS_OF_THE_MESSAGE or name.startswith("grpc-"):
        raise ValueError(f"'{name}' belongs to the connection it came by, and is never passed on; remove it")
    if name.endswith("-bin"):
        raise ValueError(f"'{name}' is binary, which HTTP has no headers for; have it sent as text")
    return name


def many(parse: Callable[[str], str], at_most: int = ENTRIES_MAX) -> Written:
    """A list of texts, each once, each checked by ``parse``; held as a tuple."""

    def parse_all(texts: list[str]) -> tuple[str, ...]:
        if len(texts) > at_most:
            raise ValueError(f"there are {len(texts)} entries; at most {at_most}")
        values = tuple(parse(text) for text in texts)
        for place, value in enumerate(values):
            if value in values[:place]:
                raise ValueError(f"'{value}' is given twice; remove one")
        return values

    return Written(kind=list[str], parse=parse_all, show=list)


def _parse_forwards(written: str | list[str]) -> str | tuple[str, ...]:
    if isinstance(written, str):
        return parse_forward(written)
    if not written:
        raise ValueError("the list is empty; write an address, or leave it out")
    parsed: tuple[str, ...] = many(parse_forward).parse(written)
    return parsed


def parse_link_peer(text: str) -> str:
    """A link's peer; what it means depends on the transport and is checked with it."""
    if not text:
        raise ValueError("an entry is empty; write tcp://host:port")
    return text


FORWARD = Written(
    kind=str | list[str],
    parse=_parse_forwards,
    show=lambda value: list(value) if isinstance(value, tuple) else value,
)
LISTEN = Written(kind=str, parse=_parse_listen, show=lambda value: "off" if value is None else value)
INTAKE = Written(kind=str, parse=_parse_intake, show=lambda value: "off" if value is None else value)
"""As ``LISTEN``, or a Unix socket."""
PATH = Written(kind=str, parse=_parse_path, show=lambda value: None if value is None else str(value))
NODE_NAME = text_like(_NAME, "is not a node name; use 1 to 63 letters, digits, '.', '_' or '-'")
PLAIN = text_like(r"[^\x00-\x1f\x7f]{1,255}", "is empty, too long, or has control characters")
PREFIX = text_like(
    r"[A-Za-z][A-Za-z0-9._-]{0,62}[._]", "is not an attribute prefix; write letters and a dot, as clock."
)
TOPIC = text_like(r"[A-Za-z0-9._-]{1,249}", "is not a topic name; use letters, digits, '.', '_' or '-'")


def nearest(word: str, known: tuple[str, ...], cutoff: float = 0.6) -> str:
    """``; did you mean 'x'?``, or nothing when nothing is near."""
    import difflib  # only when something is wrong: `skewd check` counts milliseconds

    close = difflib.get_close_matches(word[:80], known, n=1, cutoff=cutoff)
    return f"; did you mean '{close[0]}'?" if close else ""


def either(known: tuple[str, ...]) -> str:
    """``a, b or c``."""
    return known[0] if len(known) == 1 else ", ".join(known[:-1]) + f" or {known[-1]}"


def ntp_address(text: str, default_port: int = 123) -> str:
    """``host:port``, with NTP's own port (or another) when none is written."""
    return parse_peer(format_address(*split_address(text, default_port)))


def zmq_host(text: str) -> str | None:
    """The host of a ZeroMQ endpoint; None for ipc, which never leaves the machine.

    Raises:
        ValueError: it is neither ``tcp://host:port`` nor ``ipc://path``.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        raise ValueError(f"'{text}' has no scheme; write tcp://{text} or ipc:///path")
    if scheme == "ipc" and rest:
        return None
    if scheme != "tcp":
        raise ValueError(f"'{text}' is neither tcp://host:port nor ipc:///path")
    host, _, port = rest.rpartition(":")
    if host == "*":
        return host
    return address_parts(f"{host}:0" if port == "*" else rest)[0]
