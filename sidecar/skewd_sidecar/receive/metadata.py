"""Which of a request's headers go on with it.

A header may say whose data this is, and the next hop may need to know; another is a credential of the application's
and nobody else's business. So none goes on unless the settings name it. The mark of sidecars passed always does.

Limits: ``METADATA_MAX_BYTES`` a request, names and values together, printable ASCII as gRPC demands; a request with
more is refused, because sent on without a tenant's name it would end up with another tenant. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from skewd_sidecar.gateway import Metadata
from skewd_sidecar.hop import HOP_HEADER

METADATA_MAX_BYTES = 4 * 1024
"""Half of what gRPC itself takes of all headers."""


class MetadataRefused(ValueError):
    """Headers that cannot go on; the message names the one."""


class _Headers(Protocol):
    def __contains__(self, name: object, /) -> bool: ...

    def getall(self, name: str, /) -> list[str]: ...


class MetadataPicker:
    """Picks the headers that go on.

    Args:
        names: of those that do, in lower case.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(sorted({HOP_HEADER, *names}))

    @property
    def names(self) -> tuple[str, ...]:
        """Of all headers that are looked at."""
        return self._names

    def of_http(self, headers: _Headers) -> Metadata:
        """From HTTP's headers, which are found by names of any case; a repeated one becomes one with commas.

        Raises:
            MetadataRefused: too many bytes, or not ASCII.
        """
        found = [(name, ", ".join(headers.getall(name))) for name in self._names if name in headers]
        return _checked(found) if found else ()

    def of_grpc(self, metadata: Iterable[tuple[str, str | bytes]]) -> Metadata:
        """From gRPC's metadata, whose names are in lower case.

        Raises:
            MetadataRefused: as for HTTP.
        """
        names = self._names
        found: dict[str, str] = {}
        for name, value in metadata:
            if name in names and isinstance(value, str):
                found[name] = f"{found[name]}, {value}" if name in found else value
        return _checked(sorted(found.items())) if found else ()


def _checked(found: list[tuple[str, str]]) -> Metadata:
    size = 0
    for name, value in found:
        size += len(name) + len(value)
        if not value.isascii() or not value.isprintable():
            raise MetadataRefused(f"the header {name} has characters other than printable ASCII; send it encoded")
    if size > METADATA_MAX_BYTES:
        raise MetadataRefused(
            f"the headers that go on have more than {METADATA_MAX_BYTES} bytes together; shorten {_longest(found)}"
        )
    return tuple(found)


def _longest(found: list[tuple[str, str]]) -> str:
    return max(found, key=lambda each: len(each[1]))[0]
