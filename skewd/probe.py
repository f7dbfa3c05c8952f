"""Asking one time server or one peer, once, without a daemon: the sockets of ``skewd probe``.

An operator who wonders whether a server is right, reachable or near wants an answer before it is configured, from the
same packets and with the same arithmetic as the daemon's. So one question goes out, is repeated while nothing comes
(``REPEAT_S``), and the first answer that proves something ends it. Where the address names no port, both kinds are
asked at their usual ports; where it names an unusual one, both there.

A peer believes nothing of what this says about itself, under a key that is made up for the moment: it answers a
stranger who holds the mesh's key, and forgets it. So a probe leaves no trace in a mesh but a count of messages.

Limits: UDP; at most ``ADDRESSES_MAX`` of a name's addresses; user-space stamps. The whole takes at most the time
limit and the reading of one datagram, whatever a resolver or a server does.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from skewd.background import within
from skewd.clock import Clock, read_wall
from skewd.keys import MeshKey
from skewd.links.protocol import LinkProtocol, Self
from skewd.member_keys import MemberKeys
from skewd.ports import format_address, is_loopback, split_address
from skewd.probe_view import Finding, NoProof, from_ntp, from_peer
from skewd.records import MeshExtraMissing, private_key
from skewd.sources import ntp_wire
from skewd.wall import WallMap

NTP_PORT = 123
PEER_PORT = 9957
ADDRESSES_MAX = 4
REPEAT_S = 0.7
KINDS = ("ntp", "peer")

_DATAGRAM_MAX = 2048
_NAMES = {"ntp": "an NTP server", "peer": "a skewd node"}


class ProbeFailed(Exception):
    """Nothing could be measured; the message says what was tried, what came of it, and what to do."""


def kinds_of(address: str, kind: str | None) -> list[tuple[str, str, int]]:
    """What to ask where, as (kind, host, port).

    Raises:
        ValueError: an address that cannot be read.
    """
    host, port = split_address(address, 0)
    if port == 0 and address.endswith(":0"):
        raise ValueError(f"'{address[:80]}' names port 0, where nobody listens; leave it out or write the real one")
    usual = {"ntp": NTP_PORT, "peer": PEER_PORT}
    if kind is not None:
        return [(kind, host, port or usual[kind])]
    by_port = [name for name in KINDS if usual[name] == port]
    return [(name, host, port or usual[name]) for name in by_port or KINDS]


def probe(
    address: str,
    clock: Clock,
    *,
    kind: str | None = None,
    key: MeshKey | None = None,
    no_key: str | None = None,
    drift_ppm: int,
    wander_ppb_per_s: int,
    timeout_s: float,
) -> Finding:
    """One measurement of what lives at ``address``.

    Args:
        address: ``host`` or ``host:port``.
        kind: ``ntp`` or ``peer``, if known; else both are asked.
        key: the mesh's key.
        no_key: why there is none, if it was configured and cannot be had.
        drift_ppm: this clock's declared limit, and ``wander_ppb_per_s`` that of its drift's rate of change.

    Raises:
        ProbeFailed: no answer that proves anything.
        ValueError: an address that cannot be read.
    """
    deadline = time.monotonic() + timeout_s
    wall = WallMap(read_wall(clock))
    failures: list[str] = []
    asked: list[_Asked] = []
    try:
        for name, host, port in kinds_of(address, kind):
            for family, sockaddr in _resolved(host, port, deadline, failures):
                if name == "peer" and key is None and not is_loopback(str(sockaddr[0])):
                    failures.append(f"not asked as {_NAMES[name]}: {no_key or _NO_KEY}")
                    break
                asked += _opened(name, family, sockaddr, failures)
        link = _link(wall, key, drift_ppm, wander_ppb_per_s)
        return _first_proof(asked, link, clock, wall, failures, deadline, drift_ppm, wander_ppb_per_s)
    except _NothingCame:
        said = "; ".join(dict.fromkeys(failures)) or "nothing could be asked"
        silent = [each for each in asked if not each.failed]
        hint = ""
        if silent:
            where = " or ".join(dict.fromkeys(f"{_NAMES[each.kind]} on {each.where}" for each in silent))
            said = "; ".join([f"no answer from {where} within {timeout_s:g} s", *dict.fromkeys(failures)])
            hint = "; is it up, and does UDP get there and back?"
            if any(each.kind == "peer" for each in silent):
                hint += " A node keeps silent to another mesh key ([mesh] key_file)"
        raise ProbeFailed(f"{address}: {said}{hint}") from None
    finally:
        for each in asked:
            each.sock.close()


_NO_KEY = "beyond this machine nodes answer only with the mesh's key; name it in [mesh] key_file (--config)"


class _NothingCame(Exception):
    pass


@dataclass(slots=True)
class _Asked:
    """One address that is asked as one kind."""

    kind: str
    where: str
    sock: socket.socket
    questions: dict[bytes, int] = field(default_factory=dict)  # NTP's nonces, and when each was sent
    failed: bool = False


def _resolved(host: str, port: int, deadline: float, failures: list[str]) -> Sequence[tuple[int, Any]]:
    """The addresses of a name. A resolver that takes its time is left behind, as a thread that ends on its own."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    else:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
        return [(family, sockaddr) for family, _, _, _, sockaddr in found[:1]]
    try:
        limit_s = max(0.0, deadline - time.monotonic())
        found = within(limit_s, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM))
    except TimeoutError:
        failures.append(f"{host} did not resolve in time")
        return []
    except (OSError, UnicodeError) as error:
        failures.append(f"{host} does not resolve ({getattr(error, 'strerror', None) or error}); check the name")
        return []
    return [(family, sockaddr) for family, _, _, _, sockaddr in found[:ADDRESSES_MAX]]


def _opened(kind: str, family: int, sockaddr: Any, failures: list[str]) -> list[_Asked]:
    where = format_address(str(sockaddr[0]), sockaddr[1])
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.connect(sockaddr)
    except OSError as error:
        sock.close()
        failures.append(f"{where} can't be reached ({error.strerror})")
        return []
    return [_Asked(kind, where, sock)]


def _link(wall: WallMap, key: MeshKey | None, drift_ppm: int, wander_ppb_per_s: int) -> LinkProtocol:
    boot = secrets.token_bytes(16)
    me = Self(
        name=f"probe-{boot.hex()[:12]}",
        boot=boot,
        raw_era=1,
        era=1,
        wall_minus_raw=wall.latest.wall_minus_raw,
        wall_raw_at_ns=wall.latest.raw_ns,
        wall_slew_ppb=wall.slew_ppb(),
        max_drift_ppm=drift_ppm,
        max_wander_ppb_per_s=wander_ppb_per_s,
    )
    keys = None
    with contextlib.suppress(MeshExtraMissing):  # without the package it asks as the version before does
        keys = MemberKeys(me.name, private_key(secrets.token_bytes(32)))
    return LinkProtocol(link="probe", key=key, describe=lambda: me, random=os.urandom, member_keys=keys)


def _first_proof(
    asked: list[_Asked],
    link: LinkProtocol,
    clock: Clock,
    wall: WallMap,
    failures: list[str],
    deadline: float,
    drift_ppm: int,
    wander_ppb_per_s: int,
) -> Finding:
    with selectors.DefaultSelector() as selector:
        for each in asked:
            selector.register(each.sock, selectors.EVENT_READ, each)
        next_s = time.monotonic()
        while selector.get_map() and (now_s := time.monotonic()) < deadline:
            if now_s >= next_s:
                next_s = now_s + REPEAT_S
                for each in asked:
                    if not each.failed:
                        _ask(each, link, clock, failures)
            for ready, _ in selector.select(max(0.0, min(next_s, deadline) - time.monotonic())):
                each = ready.data
                try:
                    data = each.sock.recv(_DATAGRAM_MAX)
                except (BlockingIOError, InterruptedError):
                    continue
                except OSError as error:
                    _fail(each, _unreachable(each, error), failures)
                else:
                    received = clock.raw_ns()
                    if wall.sample(read_wall(clock)):
                        raise ProbeFailed("this machine's clock was stepped during the measurement; ask again")
                    finding = _judge(each, data, received, link, clock, wall, failures, drift_ppm, wander_ppb_per_s)
                    if finding is not None:
                        return finding
                if each.failed:
                    selector.unregister(each.sock)
    raise _NothingCame


def _ask(each: _Asked, link: LinkProtocol, clock: Clock, failures: list[str]) -> None:
    try:
        if each.kind == "ntp":
            question, nonce = ntp_wire.request(os.urandom)
            each.questions[nonce] = clock.raw_ns()
            each.sock.send(question)
        else:
            prepared = link.prepare(each.where)
            each.sock.send(prepared(clock.raw_ns()))
    except OSError as error:  # an earlier question's refusal, perhaps: the read says so too
        failures.append(_unreachable(each, error))


def _judge(
    each: _Asked,
    data: bytes,
    received: int,
    link: LinkProtocol,
    clock: Clock,
    wall: WallMap,
    failures: list[str],
    drift_ppm: int,
    wander_ppb_per_s: int,
) -> Finding | None:
    """What a datagram proves; None when it proves nothing, which is noted."""
    limits = {"drift_ppm": drift_ppm, "wander_ppb_per_s": wander_ppb_per_s}
    try:
        if each.kind == "peer":
            taken = link.receive(data, each.where, received)
            if taken.proofs is None:
                failures.append(f"{each.where} answered as no skewd node would ({taken.error})")
                return None
            return from_peer(taken.proofs, wall, address=each.where, **limits)
        nonce = data[24:32]
        if nonce not in each.questions:
            failures.append(f"{each.where} answered as no NTP server would")
            return None
        sample = ntp_wire.parse(
            data,
            nonce=nonce,
            sent_raw_ns=each.questions[nonce],
            received_raw_ns=received,
            near_wall_ns=clock.wall_ns(),
        )
        return from_ntp(sample, wall, address=each.where, **limits)
    except ntp_wire.KissOfDeath as kiss:
        meant = {"RATE": "ask it less often", "DENY": "it serves others only", "RSTR": "it serves others only"}
        _fail(each, f"{each.where}: {kiss}: {meant.get(kiss.code, 'choose another server')}", failures)
    except ntp_wire.NtpRefused as refused:
        _fail(each, f"{each.where} answered, but gives no time: {refused}", failures)
    except NoProof as reason:
        failures.append(f"{each.where}: {reason}")
    return None


def _fail(each: _Asked, reason: str, failures: list[str]) -> None:
    each.failed = True
    failures.append(reason)


def _unreachable(each: _Asked, error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return f"nobody listens on {each.where}/udp (asked as {_NAMES[each.kind]})"
    return f"{each.where} can't be reached ({error.strerror})"
