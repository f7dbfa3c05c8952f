"""Who speaks gRPC: the native transport where it is there and can, gRPC's own library otherwise.

Both do the same; the native one costs a tenth, and with it the library (and 20 MB) need not be loaded at all. TLS is
the library's, and so are HTTP proxies, which it takes from the environment.

Limits: decided once, at the start. Pure but for looking whether the extension is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from skewd.ports import is_loopback
from skewd_sidecar.endpoint import Destination

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
        raise ValueError(
            f'[sidecar] transport = "native", but {why}; install skewd[native], or write transport = "auto"'
        )
    return why is None


def missing() -> str | None:
    """Why there is no native transport here; None if there is one."""
    try:
        import skewd_native
    except ImportError as error:
        return f"skewd-native cannot be loaded ({error})"
    if not hasattr(skewd_native, "Transport"):
        return f"skewd-native {skewd_native.__version__} has no transport"
    return None


def fits_native(destination: Destination, environment: Mapping[str, str]) -> bool:
    """Whether the native transport can reach a destination: gRPC, in plaintext, and not through a proxy."""
    if destination.protocol != "grpc" or destination.secure:
        return False
    return is_loopback(destination.host) or not any(environment.get(name) for name in _PROXIES)
