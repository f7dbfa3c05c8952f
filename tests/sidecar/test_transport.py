"""Who speaks gRPC and HTTP: which of the two, when, and what is said about it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import types
from asyncio.subprocess import PIPE
from pathlib import Path

import aiohttp
import grpc
import grpc.aio
import pytest

from skewd.commands import dispatch
from skewd_sidecar.endpoint import Destination
from skewd_sidecar.gateway import Signal
from skewd_sidecar.service import SidecarBroken, serve
from skewd_sidecar.transport import INTERFACE, Transport, fits_native, use_native
from tests.sidecar.sidecar_lab import http_collector, needs_native, settings
from tests.waiting import LIMIT_S

NATIVE = {"grpc_receive": "native", "http_receive": "native"}
HTTP = {"http_receive": "native", "http_forward": "native"}
PYTHON = {"grpc_receive": "grpcio", "http_receive": "aiohttp"}


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
        (Destination("http", False, "collector", 4318), {"http_proxy": "http://proxy:1"}, True),
        (Destination("grpc", False, "collector", 4317), {"http_proxy": "http://proxy:1"}, False),
        (Destination("grpc", False, "collector", 4317), {"grpc_proxy": ""}, True),
        (Destination("grpc", False, "/run/otlp.sock", 0), {"grpc_proxy": "http://proxy:1"}, True),
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
        ({"forward": "grpc://localhost:1"}, NATIVE | {"grpc_forward": "native"}),
        ({"forward": "grpcs://localhost:1"}, NATIVE | {"grpc_forward": "grpcio"}),
        ({"forward": ["grpc://localhost:1", "grpcs://localhost:2"]}, NATIVE | {"grpc_forward": "grpcio+native"}),
        ({"forward": "https://localhost:1"}, NATIVE | {"http_forward": "aiohttp"}),
        ({"forward": ["http://localhost:1", "https://localhost:2"]}, NATIVE | {"http_forward": "aiohttp+native"}),
        ({"forward": "http://localhost:1", "grpc": None}, HTTP),
        ({"forward": "http://localhost:1", "grpc": None, "http": "unix"}, HTTP),
        ({"forward": "grpc://localhost:1", "transport": Transport.PYTHON}, PYTHON | {"grpc_forward": "grpcio"}),
        ({"forward": "http://localhost:1", "transport": Transport.PYTHON}, PYTHON | {"http_forward": "aiohttp"}),
        ({"forward": "http://localhost:1", "grpc": "unix"}, HTTP | {"grpc_receive": "grpcio"}),
        ({"forward": "http://localhost:1", "grpc": "unix", "transport": Transport.NATIVE}, NATIVE | HTTP),
    ],
)
async def test_each_side_has_the_one_that_fits(more: dict[str, object], said: dict[str, str], tmp_path: Path) -> None:
    more = {name: f"unix://{tmp_path}/s" if given == "unix" else given for name, given in more.items()}
    stop = asyncio.Event()
    stop.set()
    spoken: list[dict[str, str]] = []
    await serve(settings(**more), lambda addresses: None, stop, spoken=spoken.append)
    assert spoken == [said]


@needs_native
@pytest.mark.parametrize("what", [5, 6], ids=["its thread", "a listener"])
async def test_a_sidecar_whose_transport_breaks_says_why_and_ends(
    what: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # gRPC's own library has the Unix socket and aiohttp the next hop, the native transport the rest.
    monkeypatch.setattr("skewd_sidecar.forward.forwarders.fits_native", lambda *about: False)
    from skewd_sidecar.native_hub import Hub

    async with http_collector() as behind, aiohttp.ClientSession() as session, asyncio.timeout(2 * LIMIT_S):
        ready: asyncio.Future[dict[str, str | None]] = asyncio.get_running_loop().create_future()
        more = settings(
            grpc=f"unix://{tmp_path}/s",
            forward=behind.url.replace("localhost", "127.0.0.1"),
            metrics_listen="127.0.0.1:0",
        )
        serving = asyncio.create_task(serve(more, ready.set_result, asyncio.Event()))
        addresses = await ready
        behind.hold = asyncio.Event()
        async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s") as channel:
            export = channel.unary_unary(f"/{Signal.METRICS.grpc_service}/Export", None, None)
            answering = asyncio.ensure_future(export(b"", timeout=LIMIT_S))
            await behind.arrived.wait()
            hub = Hub.running()
            assert hub is not None
            hub._transport.panic_once(what)
            hub._transport.flush()
            host, _, port = str(addresses["http"]).rpartition(":")
            with contextlib.suppress(OSError):
                (await asyncio.open_connection(host, int(port)))[1].close()
            why = await hub.until_lost()
            for path in ("healthz", "readyz"):
                while (await said(session, addresses, path)) != (503, f"{why}\n"):
                    await asyncio.sleep(0)
            assert not serving.done(), "what came by other ways is finished"
            behind.hold.set()
            assert await answering == b""
        with pytest.raises(SidecarBroken, match=f"{why}; the sidecar ends"):
            await serving


async def said(session: aiohttp.ClientSession, addresses: dict[str, str | None], path: str) -> tuple[int, str]:
    async with session.get(f"http://{addresses['metrics']}/{path}") as response:
        return response.status, await response.text()


def test_the_command_fails_if_its_sidecar_breaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def breaks(*arguments: object, **more: object) -> None:
        raise SidecarBroken("the native transport has ended")

    monkeypatch.setattr("skewd_sidecar.service.serve", breaks)
    monkeypatch.setattr("skewd.start_sidecar.configure_logs", lambda *how, **more: None)
    words = ["sidecar", "--static-offset", "1ms", "--static-uncertainty", "1us", "--forward", "grpc://localhost:1"]
    assert dispatch(words) == 1
    assert "skewd: the native transport has ended" in capsys.readouterr().err


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
    assert "http_receive" not in line
