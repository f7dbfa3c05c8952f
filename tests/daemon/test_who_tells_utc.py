"""Who may call itself UTC, and what is said of whoever may not; judged by check, waitsync and /readyz."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skewd.api_client import get_status
from skewd.sources.local import OUTCOMES
from tests.daemon.source_lab import Running, S, codes, ntp, skewd_run, time_servers
from tests.sources.test_local_sources import serving, tracking

UNREADY = ["--timeout", "1s"]


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a path short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="skd") as name:
        yield Path(name)


async def nothing_is_believed(node: Running, says: str) -> dict[str, Any]:
    """No output calls this node synchronized, and each that gives a reason says this."""
    told = await node.until(lambda told: any(says in message for message in told["messages"]))
    assert (told["status"], told["offset_ns"]) == ("unsynchronized", None)
    code, said = await node.command("check")
    assert code == 3, said
    assert (await node.command("waitsync", *UNREADY))[0] == 1
    assert await node.ready(told) == 503
    assert (await node.command("now", "--json"))[0] == 1
    return told


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"reference_id": b"LOCL"}, "follows its own clock"),
        ({"reference_id": b"\x7f\x7f\1\0", "stratum": 6}, "follows its own clock"),
        ({"reference_id": b"\x0a\0\0\1", "stratum": 10}, "follows its own clock"),
        ({"reference_id": bytes(4), "stratum": 0, "leap": 3}, "has no time"),
        ({"reference_id": b"RATE", "stratum": 0}, "refuses with 'RATE'"),
    ],
)
async def test_a_server_that_follows_nothing_is_no_source(fields: dict[str, Any], says: str) -> None:
    async with time_servers(1) as (server,):
        server.fields, server.root_dispersion_s = fields, 0.0
        async with skewd_run(ntp(server)) as node:
            told = await nothing_is_believed(node, says)
            (row,) = told["sources"]
            assert row["answers"]["refused"] > 0
            assert row["answers"]["used"] == 0


async def test_in_a_closed_network_its_clock_may_be_utc() -> None:
    async with time_servers(1) as (server,):
        server.fields = {"reference_id": b"LOCL"}
        async with skewd_run(ntp(server, more="allow_local = true\n")) as node:
            await node.until(lambda told: told["status"] == "synchronized")
            assert (await node.command("check", "--warning", "1s", "--critical", "1s"))[0] == 0


async def test_a_servers_own_error_is_told_as_that_and_never_as_a_round_trip() -> None:
    async with time_servers(1) as (server,):
        server.root_dispersion_s = 8.0
        async with skewd_run(ntp(server)) as node:
            told = await node.until(lambda told: told["sources"][0]["rtt_min_ns"] is not None)
            (row,) = told["sources"]
            assert row["rtt_min_ns"] < S
            assert 8 * S <= row["root_distance_ns"] < 9 * S
            assert row["upper_ns"] - row["lower_ns"] > 16 * S
            assert row["stratum"] == 1
            assert row["answers"].keys() <= set(OUTCOMES)


async def test_what_chronyd_claims_has_no_round_trip() -> None:
    async with (
        serving(lambda question: [tracking(question)]) as (_, address),
        skewd_run(f'[[source]]\ntype = "chrony"\naddress = "{address}"\ninterval = "100ms"\n') as node,
    ):
        told = await node.until(lambda told: told["status"] == "synchronized")
        (row,) = told["sources"]
        assert row["rtt_min_ns"] is None
        assert 350_000 <= row["root_distance_ns"] < 360_000  # half of 500 us and 100 us
        assert row["stratum"] == 2
        assert row["answers"]["used"] > 0


async def test_a_chronyd_whose_answers_can_not_come_back_is_named_as_the_cause(short: Path) -> None:
    """It takes the questions, and its answers never arrive: as where skewd's directory is closed to its user."""
    closed = short / "run"
    closed.mkdir(mode=0o700)
    answers = False
    async with serving(
        lambda question: [tracking(question)] if answers else [], short / "chronyd.sock"
    ) as (_, address), skewd_run(
        f'[[source]]\ntype = "chrony"\naddress = "{address}"\ninterval = "100ms"\n', closed
    ) as node:
        told = await nothing_is_believed(node, "its answers can't come back")
        (problem,) = [problem for problem in told["problems"] if problem["code"] == "source-answer-lost"]
        assert f"{closed} is closed to other users" in problem["text"]
        assert f"chmod o+x {closed}" in problem["remedy"]
        closed.chmod(0o755)
        short.chmod(0o755)
        told = await node.until(
            lambda told: any("it sees other directories" in problem["text"] for problem in told["problems"])
        )
        answers = True
        told = await node.until(lambda told: told["status"] == "synchronized")
        assert "source-answer-lost" not in codes(get_status(node.socket))


async def test_a_daemon_that_hangs_is_another_cause(short: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(short / "chronyd.sock"))
        config = f'[[source]]\ntype = "chrony"\naddress = "{short}/chronyd.sock"\ninterval = "100ms"\n'
        async with skewd_run(config) as node:
            told = await nothing_is_believed(node, "has not taken the question")
            assert "source-answer-lost" not in codes(told)
            assert told["sources"][0]["answers"]["used"] == 0
