"""Who speaks gRPC and HTTP: the native transport where it is there and can, gRPC's own library and aiohttp otherwise.

Both do the same; the native one costs a tenth, and with it the libraries (20 MB and 15) need not be loaded at all. TLS
is the libraries', and so are HTTP proxies, which gRPC takes from the environment.

Limits: decided once, at the start. Pure but for looking whether the extension is installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from enum import StrEnum

from skewd.ports import is_loopback
from skewd_sidecar.endpoint import Destination

INTERFACE = 4
"""What is expected of ``skewd_native.TRANSPORT_INTERFACE``."""

_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")


class Transport(StrEnum):
    """What ``[sidecar] transport`` may be."""

    AUTO = "auto"
    NATIVE = "native"
    PYTHON = "python"


def use_native(wanted: Transport) -> bool:
    """Whether the native transport is to be used where it fits.

    Raises:
        ValueError: it is demanded, and not there.
    """
    if wanted == Transport.PYTHON:
        return False
    why = missing()
    if why is not None and wanted == Transport.NATIVE:
        fix = 'install the skewd-native of the same release, or write [sidecar] transport = "auto"'
        raise ValueError(f"{why}; {fix}")
    return why is None


def missing() -> str | None:
    """Why there is no native transport here; None if there is one."""
    try:
        native = importlib.import_module("skewd_native")
    except ImportError as error:
        return f"skewd-native cannot be loaded ({error})"
    if getattr(native, "TRANSPORT_INTERFACE", None) != INTERFACE:
        return f"skewd-native {getattr(native, '__version__', 'of an unknown version')} is not for this skewd"
    return None


def fits_native(destination: Destination, environment: Mapping[str, str]) -> bool:
    """Whether the native transport can reach a destination: in plaintext, and gRPC not through a proxy."""
    if destination.protocol not in ("grpc", "http") or destination.secure:
        return False
    if destination.protocol == "http":
        return True  # aiohttp is not told of proxies either
    return destination.unix or is_loopback(destination.host) or not any(environment.get(name) for name in _PROXIES)
