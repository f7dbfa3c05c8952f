"""Dead letters survive what happens to files: whatever is damaged costs itself alone, and nothing is sent again."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import random
import sys
import threading
from pathlib import Path

import grpc
import pytest

from skewd_sidecar.forward import frames
from skewd_sidecar.forward.dead_letters import DeadLetter, append, read, scan
from skewd_sidecar.gateway import Signal
from skewd_sidecar.replay import replay
from tests.sidecar.sidecar_lab import Collector, grpc_collector
from tests.waiting import LIMIT_S, until


def letter(number: int, body: bytes | None = None) -> DeadLetter:
    content = b"\n\x00" * number if body is None else body
    return DeadLetter(number, Signal.TRACES, 3, 400, "bad", (("tenant", str(number)),), content)


def old(number: int) -> bytes:
    """As a sidecar before wrote it."""
    of = letter(number)
    header = {
        "time_unix_nano": number,
        "signal": "traces",
        "bytes": len(of.body),
        "code": 3,
        "http_status": 400,
        "message": "bad",
        "metadata": [["tenant", str(number)]],
    }
    return json.dumps(header).encode() + b"\n" + of.body + b"\n"


def numbers(path: Path) -> list[int]:
    found = list(read(path))
    assert found == [letter(each.time_unix_nano) for each in found], "what is read is what was written"
    return [each.time_unix_nano for each in found]


def covered(path: Path) -> bool:
    """Whether letters and damaged stretches are all of the file, without gap and overlap."""
    with path.open("rb") as file:
        at = 0
        for found in scan(file.fileno()):
            if found.begin != at:
                return False
            at = found.end
        return at == path.stat().st_size


@pytest.mark.parametrize("form", ["new", "old"])
def test_an_entry_cut_anywhere_costs_itself_alone(form: str, tmp_path: Path) -> None:
    path = tmp_path / "letters"
    entry = old(2) if form == "old" else letter(2).encode()
    first = old(1) if form == "old" else letter(1).encode()
    for cut in range(1, len(entry)):
        path.write_bytes(first + entry[:cut])
        append(path, letter(3).encode())
        append(path, letter(4).encode())
        assert numbers(path) == [1, 3, 4], cut
        assert covered(path)


def test_a_byte_that_changed_costs_one_entry(tmp_path: Path) -> None:
    path = tmp_path / "letters"
    entries = [letter(number).encode() for number in (1, 2, 3)]
    whole = b"".join(entries)
    for at in range(len(entries[0]), len(entries[0]) + len(entries[1])):
        for bit in (1, 0x80):
            path.write_bytes(whole[:at] + bytes((whole[at] ^ bit,)) + whole[at + 1 :])
            assert numbers(path) == [1, 3], at
            assert covered(path)


def test_no_body_looks_like_a_record(tmp_path: Path) -> None:
    path = tmp_path / "letters"
    forged = letter(666).encode()
    bodies = [forged, frames.MARKER * 3, frames.MARKER[:-1], frames.MARKER[:-1] + b"\x00", b"\xff" * 9]
    for body in bodies:
        entry = letter(2, body).encode()
        path.write_bytes(entry)
        assert [each.body for each in read(path)] == [body]
        path.write_bytes(letter(1).encode() + entry[:-2] + letter(3).encode())
        assert [each.time_unix_nano for each in read(path)] == [1, 3]


def test_old_and_new_entries_stand_in_one_file_and_noise_between_them(tmp_path: Path) -> None:
    path = tmp_path / "letters"
    chance = random.Random(12)
    for _ in range(200):
        wanted, content = [], b""
        for number in range(1, 8):
            match chance.randrange(4):
                case 0:
                    content += letter(number).encode()
                case 1:
                    content += old(number)
                case 2:
                    content += chance.randbytes(chance.randrange(1, 40)).replace(b"{", b"}") + b"\n"
                    continue
                case 3:
                    content += letter(number).encode()[: chance.randrange(1, 60)]
                    continue
            wanted.append(number)
        path.write_bytes(content)
        if wanted:
            assert numbers(path) == wanted
        assert covered(path)


def test_long_damage_is_stepped_over(tmp_path: Path) -> None:
    path = tmp_path / "letters"
    path.write_bytes(letter(1).encode() + bytes(3 * (1 << 20) + 5) + letter(2).encode())
    assert numbers(path) == [1, 2]
    assert covered(path)


# ------------------------------------------------------------------------------------------------------ replay


def tenants(behind: Collector) -> list[str]:
    return [each.metadata["tenant"] for each in behind.requests]


async def test_a_torn_entry_stops_no_replay_and_is_kept(tmp_path: Path) -> None:
    path, torn = tmp_path / "letters", letter(2).encode()[:-3]
    path.write_bytes(old(1) + torn + letter(3).encode())
    async with grpc_collector() as behind:
        told = await replay(path, behind.url, {})
        assert (told.taken, told.damaged, told.damaged_bytes) == (2, 1, len(torn))
        assert tenants(behind) == ["1", "3"]
        assert {each.name for each in tmp_path.iterdir()} == {"letters.damaged"}
        assert (tmp_path / "letters.damaged").read_bytes() == torn
        assert (tmp_path / "letters.damaged").stat().st_mode & 0o777 == 0o600


async def test_a_replay_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "letters"
    path.write_bytes(b"".join(letter(number).encode() for number in range(1, 6)))
    async with grpc_collector() as behind:
        behind.hold = asyncio.Event()
        behind.hold.set()

        def third(body: bytes) -> None:
            if behind.hold is not None and len(behind.requests) == 2:
                behind.hold.clear()  # the next one is not answered

        behind.refuse = third
        words = ["sidecar", "--forward", behind.url, "--replay", str(path)]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
        child = await asyncio.create_subprocess_exec(sys.executable, "-m", "skewd", *words, env=environment)
        try:
            await until(lambda: len(behind.requests) == 3, "the third is under way")
        finally:
            child.kill()
            await child.wait()
        assert path.with_name("letters.replay").exists()
        behind.refuse = None
        behind.hold.set()
        async with asyncio.timeout(LIMIT_S):
            again = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "skewd", *words, env=environment, stdout=asyncio.subprocess.PIPE
            )
            out, _ = await again.communicate()
        assert (again.returncode, out) == (0, b"3 taken, 0 refused, 0 not delivered\n")
        # Only the one that it was at comes twice.
        assert tenants(behind) == ["1", "2", "3", "3", "4", "5"]
    assert list(tmp_path.iterdir()) == []


async def test_a_position_is_of_its_own_file_and_a_damaged_one_of_none(tmp_path: Path) -> None:
    path = tmp_path / "letters"
    async with grpc_collector() as behind:
        for left_over in (b"", b"\xff" * 40, b"\x00" * 28):
            behind.requests.clear()
            path.write_bytes(letter(1).encode() + letter(2).encode())
            (tmp_path / "letters.replay.position").write_bytes(left_over)
            assert (await replay(path, behind.url, {})).taken == 2
            assert tenants(behind) == ["1", "2"]
            assert list(tmp_path.iterdir()) == []


async def test_one_replay_of_a_file_at_a_time_and_what_is_refused_again_stays(tmp_path: Path) -> None:
    path = tmp_path / "letters"
    path.write_bytes(letter(1).encode() + letter(2).encode())
    async with grpc_collector() as behind:
        behind.hold = asyncio.Event()
        behind.refuse = lambda body: (grpc.StatusCode.INVALID_ARGUMENT, "still", ()) if len(body) == 2 else None
        first = asyncio.create_task(replay(path, behind.url, {}))
        await until(lambda: behind.requests, "it has begun")
        append(path, letter(3).encode())  # as a sidecar does, meanwhile
        with pytest.raises(OSError, match="another replay"):
            await replay(path, behind.url, {})
        behind.hold.set()
        told = await first
        assert (told.taken, told.refused) == (1, 1)
        assert numbers(path) == [3, 1]


def test_an_entry_that_waits_while_the_file_is_taken_away_goes_into_the_next(tmp_path: Path) -> None:
    path = tmp_path / "letters"
    append(path, letter(1).encode())
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = threading.Thread(target=append, args=(path, letter(2).encode()))
        waiting.start()
        path.rename(tmp_path / "taken")
    waiting.join(LIMIT_S)
    assert not waiting.is_alive()
    assert (numbers(tmp_path / "taken"), numbers(path)) == ([1], [2])
