"""Asking the daemon of this machine, over its Unix socket.

One question, one answer, one limit on the whole of it. The standard library's client limits each read and not their
sum, so a daemon that dribbles would hold a monitoring check for ever; it also costs 40 ms to import, a quarter of
what ``skewd check`` may take. The daemon is our own and answers HTTP/1.0 with a plain body, which needs twenty lines.

Limits: answers of at most 4 MiB; no redirects, no chunks, no keep-alive.
"""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any

TIMEOUT_S = 2.0
ANSWER_BYTES_MAX = 4 << 20


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
        answer = _exchange(socket_path, target, timeout_s)
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


def _exchange(socket_path: str, target: str, timeout_s: float) -> bytes:
    """Everything the daemon says to one request, until it closes.

    Raises:
        OSError: TimeoutError when ``timeout_s`` is over, whatever arrived until then.
    """
    deadline = time.monotonic() + timeout_s
    answer = bytearray()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        connection.connect(socket_path)
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
