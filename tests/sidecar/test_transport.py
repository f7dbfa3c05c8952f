"""Who speaks gRPC: which of the two, when, and what is said about it."""

from __future__ import annotations

import logging
import sys
import types
from pathlib import Path

import pytest

from skewd_sidecar.endpoint import Destination
from skewd_sidecar.transport import INTERFACE, Transport, fits_native, use_native
from tests.sidecar.sidecar_lab import needs_native, sidecar


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A skewd-native that fits, whether one is installed or not."""
    module = types.ModuleType("skewd_native")
    module.TRANSPORT_INTERFACE = INTERFACE  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "skewd_native", module)
    return module


def test_auto_takes_the_native_one_where_it_is(there: types.ModuleType) -> None:
    assert use_native(Transport.AUTO)
    assert use_native(Transport.NATIVE)
    assert not use_native(Transport.PYTHON)


@pytest.mark.parametrize("how", ["absent", "older"])
def test_where_it_is_not_auto_goes_without_and_a_demand_is_refused(
    how: str, there: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "absent":
        monkeypatch.setitem(sys.modules, "skewd_native", None)
    else:
        there.TRANSPORT_INTERFACE = INTERFACE - 1  # type: ignore[attr-defined]
    assert not use_native(Transport.AUTO)
    assert not use_native(Transport.PYTHON)
    with pytest.raises(ValueError, match=r'skewd-native .*; install .* or write \[sidecar\] transport = "auto"'):
        use_native(Transport.NATIVE)


@pytest.mark.parametrize(
    ("destination", "environment", "fits"),
    [
        (Destination("grpc", False, "collector", 4317), {}, True),
        (Destination("grpc", True, "collector", 4317), {}, False),
        (Destination("http", False, "collector", 4318), {}, False),
        (Destination("grpc", False, "collector", 4317), {"http_proxy": "http://proxy:1"}, False),
        (Destination("grpc", False, "collector", 4317), {"grpc_proxy": ""}, True),
        (Destination("grpc", False, "localhost", 4317), {"grpc_proxy": "http://proxy:1"}, True),
        (Destination("grpc", False, "127.0.0.1", 4317), {"https_proxy": "http://proxy:1"}, True),
    ],
)
def test_what_the_native_one_reaches(destination: Destination, environment: dict[str, str], fits: bool) -> None:
    assert fits_native(destination, environment) is fits


@needs_native
@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"forward": "grpc://localhost:1"}, "gRPC by native (receive), native (forward)"),
        ({"forward": "grpcs://localhost:1"}, "gRPC by native (receive), grpcio (forward)"),
        ({"forward": ["grpc://localhost:1", "grpcs://localhost:2"]}, "native (forward), grpcio (forward)"),
        ({"forward": "http://localhost:1"}, "gRPC by native (receive)"),
        ({"forward": "http://localhost:1", "grpc": None}, None),
        ({"forward": "grpc://localhost:1", "transport": Transport.PYTHON}, "grpcio (receive), grpcio (forward)"),
        ({"forward": "http://localhost:1", "grpc": "unix"}, "gRPC by grpcio (receive)"),
        ({"forward": "http://localhost:1", "grpc": "unix", "transport": Transport.NATIVE}, "gRPC by native (receive)"),
    ],
)
async def test_the_log_says_who_speaks_grpc(
    more: dict[str, object], said: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if more.get("grpc") == "unix":
        more = more | {"grpc": f"unix://{tmp_path}/s"}
    caplog.set_level(logging.INFO)
    async with sidecar(**more):
        pass
    lines = [record.message for record in caplog.records if "gRPC by" in record.message]
    assert len(lines) == (said is not None)
    if said is not None:
        expected = said if said.startswith("gRPC by") else said.removeprefix("gRPC by ")
        assert set(expected.removeprefix("gRPC by ").split(", ")) <= set(lines[0].removeprefix("gRPC by ").split(", "))
