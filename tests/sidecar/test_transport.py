"""Who speaks gRPC: which of the two, when, and what is said about it."""

from __future__ import annotations

import asyncio
import sys
import types
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from skewd_sidecar.endpoint import Destination
from skewd_sidecar.service import serve
from skewd_sidecar.transport import INTERFACE, Transport, fits_native, use_native
from tests.sidecar.sidecar_lab import LIMIT_S, needs_native, settings


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
        ({"forward": "grpc://localhost:1"}, {"receive": "native", "forward": "native"}),
        ({"forward": "grpcs://localhost:1"}, {"receive": "native", "forward": "grpcio"}),
        ({"forward": ["grpc://localhost:1", "grpcs://localhost:2"]}, {"receive": "native", "forward": "grpcio+native"}),
        ({"forward": "http://localhost:1"}, {"receive": "native"}),
        ({"forward": "http://localhost:1", "grpc": None}, {}),
        ({"forward": "grpc://localhost:1", "transport": Transport.PYTHON}, {"receive": "grpcio", "forward": "grpcio"}),
        ({"forward": "http://localhost:1", "grpc": "unix"}, {"receive": "grpcio"}),
        ({"forward": "http://localhost:1", "grpc": "unix", "transport": Transport.NATIVE}, {"receive": "native"}),
    ],
)
async def test_each_side_has_the_one_that_fits(more: dict[str, object], said: dict[str, str], tmp_path: Path) -> None:
    if more.get("grpc") == "unix":
        more = more | {"grpc": f"unix://{tmp_path}/s"}
    stop = asyncio.Event()
    stop.set()
    spoken: list[dict[str, str]] = []
    await serve(settings(**more), lambda addresses: None, stop, spoken=spoken.append)
    assert spoken == [said]


@needs_native
async def test_the_command_says_so_in_its_one_line() -> None:
    words = [str(Path(sys.executable).with_name("skewd")), "sidecar", "--grpc", "127.0.0.1:0", "--http", "off"]
    words += ["--metrics", "off", "--forward", "grpc://localhost:1", "--static-offset", "1ms"]
    child = await asyncio.create_subprocess_exec(*words, "--static-uncertainty", "1us", stdout=PIPE, stderr=PIPE)
    try:
        async with asyncio.timeout(LIMIT_S):
            assert child.stdout is not None
            assert (await child.stdout.readline()).startswith(b"READY")
            child.terminate()
            _, errors = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    (line,) = [line for line in errors.decode().splitlines() if "the sidecar is ready" in line]
    assert "grpc_receive=native" in line
    assert "grpc_forward=native" in line
