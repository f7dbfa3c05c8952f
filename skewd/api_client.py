"""Asking the daemon of this machine, over its Unix socket.

One question, one answer, one limit on the whole of it. The standard library's client limits each read and not their
sum, so a daemon that dribbles would hold a monitoring check for ever; it also costs 40 ms to import, a quarter of
what ``skewd check`` may take. The daemon is our own and answers HTTP/1.0 with a plain body, which needs twenty lines.

Limits: answers of at most 4 MiB; no redirects, no chunks, no keep-alive.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import struct
import time
from typing import Any

TIMEOUT_S = 2.0
ANSWER_BYTES_MAX = 4 << 20
_AGAIN_S = 0.02
_TURNED_AWAY = re.compile(rb"HTTP/1\.[01] 503 ")


class NoDaemonError(Exception):
    """No daemon answered; the message is one line that says why and what to do."""


class SlowDaemonError(NoDaemonError):
    """One is there, but did not answer in time."""


def get_status(socket_path: str | os.PathLike[str], *, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """What ``skewd status --json`` shows.

    Raises:
        NoDaemonError: nobody answered within ``timeout_s``, or not with a status.
    """
    return _get(os.fspath(socket_path), "/v1/status", timeout_s)


def get_now(socket_path: str | os.PathLike[str], *, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """What ``skewd now --json`` shows: the reference's time at an instant while this was asked.

    Raises:
        NoDaemonError: nobody answered within ``timeout_s``, or not with an object.
    """
    return _get(os.fspath(socket_path), "/v1/now", timeout_s)


def _get(socket_path: str, target: str, timeout_s: float) -> dict[str, Any]:
    try:
        answer = _answer(socket_path, target, timeout_s)
    except FileNotFoundError:
        raise NoDaemonError(
            f"no daemon: {socket_path} does not exist; start one with 'skewd run', "
            "or name its configuration with --config"
        ) from None
    except ConnectionRefusedError:
        raise NoDaemonError(
            f"no daemon: nobody listens on {socket_path} any more; start it again with 'skewd run'"
        ) from None
    except PermissionError:
        raise NoDaemonError(f"no access to {socket_path}; run as the daemon's user, or join its group") from None
    except TimeoutError:
        raise SlowDaemonError(
            f"the daemon on {socket_path} did not answer within {timeout_s:g} s; is it stopped or overloaded?"
        ) from None
    except OSError as error:
        raise NoDaemonError(f"the daemon on {socket_path} cannot be asked: {error.strerror or error}") from None
    return _parse(answer, socket_path)


def _answer(socket_path: str, target: str, timeout_s: float) -> bytes:
    """The answer; asked for again where the daemon turns this user away, who asks it too much at once.

    Raises:
        OSError: TimeoutError when ``timeout_s`` is over.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        turned_away: OSError | None = None
        try:
            answer = _exchange(socket_path, target, max(deadline - time.monotonic(), 0.001))
        except (ConnectionResetError, BrokenPipeError) as error:
            answer, turned_away = b"", error
        if turned_away is None and not _TURNED_AWAY.match(answer):
            return answer
        if time.monotonic() + _AGAIN_S >= deadline:
            raise turned_away or OSError(errno.EAGAIN, "it turns this user away, who asks it too much at once")
        time.sleep(_AGAIN_S)


def _exchange(socket_path: str, target: str, timeout_s: float) -> bytes:
    """Everything the daemon says to one request, until it closes.

    Raises:
        OSError: TimeoutError when ``timeout_s`` is over, whatever arrived until then.
    """
    deadline = time.monotonic() + timeout_s
    answer = bytearray()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        # Blocking, with the kernel's own limit: where many ask at once, those that wait get in in turn, and who comes
        # back now and then does not.
        seconds, rest = divmod(max(timeout_s, 0.001), 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(seconds), int(rest * 1e6)))
        try:
            connection.connect(socket_path)
        except BlockingIOError:
            raise TimeoutError from None
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        connection.sendall(f"GET {target} HTTP/1.0\r\nHost: skewd\r\nAccept: application/json\r\n\r\n".encode())
        while len(answer) <= ANSWER_BYTES_MAX:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            connection.settimeout(left)
            part = connection.recv(1 << 16)
            if not part:
                break
            answer += part
    return bytes(answer)


def _parse(answer: bytes, socket_path: str) -> dict[str, Any]:
    head, end, body = answer.partition(b"\r\n\r\n")
    words = head.split(b"\r\n", 1)[0].split(b" ", 2)
    if not end or len(words) < 2 or not words[0].startswith(b"HTTP/") or len(answer) > ANSWER_BYTES_MAX:
        raise NoDaemonError(f"what listens on {socket_path} does not answer as a skewd daemon; is it one?")
    if words[1] != b"200":
        raise NoDaemonError(
            f"the daemon on {socket_path} answered {words[1][:20].decode('ascii', 'replace')}; "
            "do its version and this command's agree?"
        )
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise NoDaemonError(f"the daemon on {socket_path} gave no status that can be read; do the versions agree?")
    return value
