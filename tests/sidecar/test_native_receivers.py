"""What both native receivers do alike: clients that leave, faults, and that nothing of them stays behind."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
import structlog

from tests.sidecar.http2_lab import connected
from tests.sidecar.native_lab import GRPC, HTTP, Handled, Spoken, descriptors, served, transport_threads
from tests.sidecar.sidecar_lab import NATIVE_MISSING
from tests.waiting import until

pytestmark = [
    pytest.mark.skipif(NATIVE_MISSING is not None, reason=str(NATIVE_MISSING)),
    pytest.mark.parametrize("spoken", [pytest.param(GRPC, id="grpc"), pytest.param(HTTP, id="http")]),
]


async def test_a_client_that_leaves_takes_its_request_along(spoken: Spoken) -> None:
    async with served(Handled(hold=asyncio.Event()), spoken=spoken) as serving:
        async with connected(serving.address, spoken.request):
            await serving.handled.arrived.wait()
        await serving.handled.cancelled.wait()
        await serving.settled()


@pytest.mark.parametrize("what", [1, 2, 4], ids=["connection", "request", "command"])
async def test_a_fault_ends_what_it_is_in_and_nothing_else(spoken: Spoken, what: int) -> None:
    with structlog.testing.capture_logs() as said:
        async with served(spoken=spoken) as serving:
            assert await serving.works()
            await serving.settled()  # or it would be that connection's last turn that fails
            serving.hub._transport.panic_once(what)
            async with connected(serving.address, spoken.request):
                await until(lambda: serving.hub.stats["panics"] == 1, "the fault")
            assert await serving.works()
            await serving.settled()
            assert serving.hub.stats["panics"] == 1
            assert not serving.hub.lost
    assert any("a fault in the native transport" in line["event"] for line in said)


async def test_nothing_stays_behind(spoken: Spoken) -> None:
    async with served(spoken=spoken) as serving:
        assert await serving.works()
    before = descriptors()
    threads = threading.active_count()
    for _ in range(10):
        async with served(spoken=spoken) as serving:
            assert await serving.works()
            await until(lambda: transport_threads() == 1, "one thread of the transport")
    await until(lambda: transport_threads() == 0, "the end of the transport's thread")
    await until(lambda: descriptors() <= before + 1, "its descriptors to be closed")
    await until(lambda: threading.active_count() <= threads, "its other threads to end")


async def test_what_cannot_be_served_leaves_nothing_behind(spoken: Spoken, tmp_path: Path) -> None:
    path = tmp_path / "otlp.sock"
    before = descriptors()
    for where in (f"unix://{path}", "127.0.0.1:0"):
        with pytest.raises(ValueError, match="not the name of a header"):
            await spoken.open(where, Handled(), metadata=["a b"])
    await until(lambda: transport_threads() == 0, "the end of the transport's thread")
    await until(lambda: descriptors() <= before, "its descriptors to be closed")
    assert not path.exists()
