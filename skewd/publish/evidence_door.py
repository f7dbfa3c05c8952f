"""The door through which evidence leaves a daemon, for ``skewd record``: a Unix socket of its own.

When each message left and came tells more about a host and its peers than a bound does: when it is busy, who talks to
whom. So this socket is for root and the daemon's own user (mode 0600), while status and bounds are for everybody here.

Whoever connects says in one line what it wants (:func:`question`), and gets one line (``ok``, or why not) and then
frames, a length of four bytes and facts (``evidence.pack``), until one side ends it.

Limits: as many listeners as ``tap.LISTENERS_MAX``; frames at most every ``BATCH_S``; whoever left is noticed within
``LOOK_AT_THEM_S``. A listener that does not read costs its queue's memory and no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skewd.evidence import Fact
    from skewd.tap import Tap

BATCH_S = 0.2
HEAD_S = 5.0
LOOK_AT_THEM_S = 5.0
END_S = 0.5
LOOK_NS_MIN, LOOK_NS_MAX = 100_000_000, 3_600_000_000_000
LINE_MAX = 256
WELCOME = "ok"
_WANTED = "skewd evidence 1 look_ns="
_BACKLOG = 4


def question(look_ns: int) -> bytes:
    """What ``skewd record`` says first: how often it wants the daemon's own conclusions."""
    return f"{_WANTED}{look_ns}\n".encode()


def answered(line: bytes) -> int | None:
    """The ``look_ns`` of a question; None where it is none."""
    text = line.decode("ascii", "replace").strip()
    number = text.removeprefix(_WANTED)
    if number == text or not number.isdecimal() or len(number) > 15:
        return None
    return int(number) if LOOK_NS_MIN <= int(number) <= LOOK_NS_MAX else None


class EvidenceDoor:
    """Listens for those who want evidence.

    Args:
        tap: where it comes from; called when somebody comes.
    """

    def __init__(self, tap: Callable[[], Tap]) -> None:
        self._tap = tap
        self._path: Path | None = None
        self._server: asyncio.Server | None = None
        self._visits: set[asyncio.Task[None]] = set()

    async def open(self, path: Path) -> None:
        """Listens. A socket left by a daemon that is gone is replaced (the caller holds the directory's lock).

        Raises:
            OSError: it can't be made.
        """
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(path))
            os.chmod(path, 0o600)  # before anybody can connect
            self._server = await asyncio.start_unix_server(
                self._come, sock=listener, backlog=_BACKLOG, limit=LINE_MAX
            )
        except BaseException:
            listener.close()
            raise
        self._path = path

    async def close(self) -> None:
        """Ends all answers. Whoever does not read is cut off."""
        if self._server is not None:
            self._server.close()
        if self._visits:
            await asyncio.wait(self._visits, timeout=END_S)
        for visit in self._visits:
            visit.cancel()
        if self._visits:
            await asyncio.wait(self._visits, timeout=END_S)
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _come(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visit = asyncio.create_task(self._visit(reader, writer), name="skewd-evidence")
        self._visits.add(visit)
        visit.add_done_callback(self._visits.discard)

    async def _visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._give(reader, writer)
        except (ConnectionError, TimeoutError, ValueError, asyncio.CancelledError):
            pass  # they left or said nonsense, or this daemon ends
        finally:
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _give(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from skewd.tap import LISTENERS_MAX, Listener

        if len(self._visits) > 2 * LISTENERS_MAX:
            return  # so many have not even said what they want
        async with asyncio.timeout(HEAD_S):
            look_ns = answered(await reader.readline())
        if look_ns is None:
            writer.write(b"the question is not understood; do the versions agree?\n")
            return
        tap = self._tap()
        if tap.full:
            writer.write(f"{tap.listeners} listen already, as many as may; end another 'skewd record'\n".encode())
            return
        some = asyncio.Event()
        listener = Listener(some.set, look_ns)
        writer.write(f"{WELCOME}\n".encode())
        tap.listen(listener)
        try:
            while not (writer.is_closing() or reader.at_eof()):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(some.wait(), LOOK_AT_THEM_S)
                if not listener.closed:
                    await asyncio.sleep(BATCH_S)
                some.clear()
                facts = listener.take(tap.anew)
                if facts:
                    frame = packed(facts)
                    writer.write(len(frame).to_bytes(4, "big") + frame)
                    await writer.drain()
                if listener.closed:
                    break
        finally:
            tap.leave(listener)


def packed(facts: list[Fact]) -> bytes:
    """Facts as bytes. A pair whose numbers do not fit is left out from there on, and said to be gone."""
    from skewd.evidence import Begin, Gone, Learnt, pack

    try:
        return pack(facts)
    except OverflowError:
        kept: list[Fact] = []
        gone: set[int] = set()
        for fact in facts:
            try:
                pack([fact])
            except OverflowError:
                if isinstance(fact, Learnt | Begin):
                    gone.add(fact.pair)
                    kept.append(Gone(fact.pair))
                continue
            if not (isinstance(fact, Learnt) and fact.pair in gone):
                kept.append(fact)
        return pack(kept)
