"""The Rust extension's surface; what each does stands in its source."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any, final

__version__: str

def census(body: bytes, logs: bool, records_max: int, elements_max: int) -> tuple[int, int]: ...

@final
class Transport:
    def __new__(cls, paths: list[str]) -> Transport: ...
    @property
    def fd(self) -> int: ...
    @property
    def dead(self) -> bool: ...
    def take(self) -> list[tuple[Any, ...]]: ...
    def flush(self) -> None: ...
    def listen(
        self,
        fd: int,
        *,
        unix: bool,
        body_bytes: int,
        held_bytes: int,
        requests: int,
        connections: int,
        streams: int,
        read_s: float,
        metadata: list[str],
    ) -> int: ...
    def listen_http(
        self,
        fd: int,
        *,
        unix: bool,
        paths: list[str],
        body_bytes: int,
        held_bytes: int,
        connections: int,
        idle_s: float,
        read_s: float,
        metadata: list[str],
    ) -> int: ...
    def close(self, server: int, grace_s: float) -> None: ...
    def reply(self, id: int, code: int, message: str, body: bytes, details: bytes | None) -> None: ...
    def reply_http(
        self, id: int, status: int, content_type: str, fields: list[tuple[str, str]], body: bytes, close: bool
    ) -> None: ...
    def connect(
        self,
        authority: str,
        *,
        host: str | None = None,
        port: int = 0,
        unix: str | PathLike[str] | None = None,
        gzip: bool = False,
        answer_bytes: int,
        connect_s: float,
        age_s: float,
    ) -> int: ...
    def connect_http(
        self,
        authority: str,
        path: str,
        fields: Sequence[tuple[str, str]],
        *,
        host: str | None = None,
        port: int = 0,
        unix: str | PathLike[str] | None = None,
        gzip: bool = False,
        answer_bytes: int,
        connect_s: float,
        age_s: float,
    ) -> int: ...
    def call_http(
        self, channel: int, body: bytes, timeout_s: float | None, fields: Sequence[tuple[str, str]]
    ) -> int: ...
    def disconnect(self, channel: int) -> None: ...
    def call(
        self, channel: int, path: int, body: bytes, timeout_s: float | None, metadata: Sequence[tuple[str, str]]
    ) -> int: ...
    def cancel(self, call: int) -> None: ...
    def stats(self) -> dict[str, int]: ...
    def panic_once(self, what: int) -> None: ...
    def shutdown(self, timeout_s: float) -> bool: ...
