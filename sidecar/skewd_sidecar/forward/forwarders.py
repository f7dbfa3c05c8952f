"""The ways out of all signals, together: made from settings, asked by the relay, read by metrics.

It also keeps a sidecar from being its own next hop: each destination is resolved and compared with the listeners.

Limits: a signal for which nowhere was named is not implemented, and its exporters are told so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from skewd.names import NAMES
from skewd_sidecar.counts import Reading
from skewd_sidecar.endpoint import Destination, EndpointError, reached_listener
from skewd_sidecar.forward.coalesce import Limits
from skewd_sidecar.forward.counters import Counters, EndpointState
from skewd_sidecar.forward.dead_letters import MAX_BYTES, DeadLetters
from skewd_sidecar.forward.grpc import GrpcForwarder
from skewd_sidecar.forward.hops import ATTEMPT_S, RETRY_S, Hops
from skewd_sidecar.forward.http import HttpForwarder
from skewd_sidecar.forward.lanes import Lanes
from skewd_sidecar.forward.retry import Balance
from skewd_sidecar.forward.transport import Forwarder
from skewd_sidecar.gateway import Metadata, Signal
from skewd_sidecar.outcome import UNIMPLEMENTED, Outcome
from skewd_sidecar.transport import fits_native

_LEADS_BACK = (
    "forwarding to {} would lead back to this sidecar, which listens there; "
    "give --forward the address of the collector or backend"
)


class Forwarders:
    """The next hops of all signals. Made within the running event loop.

    Args:
        destinations: for each signal one next hop, or several.
        balance: how several share the work.
        retry_s: how long a body may be tried again, within its exporter's time.
        dead_letter: where requests are kept that were refused for good; None for nowhere.
        dead_letter_max_bytes: how long that file may get.
        kafka_properties: the Kafka client's settings for TLS and SASL.
        joins: whether small requests share a body.
        connect: makes what sends to one destination; by its protocol if none is given.
        chance: evenly distributed in [0, 1).
        native: whether the native transport is used where it fits.
        attempt_s: how long an attempt may hear nothing while another next hop could take the body.

    Attributes:
        counters: what was done.
        spoken_by: who speaks ``grpc`` and ``http`` to them: ``native``, ``grpcio`` or ``aiohttp``, or both.

    Raises:
        EndpointError: a certificate file cannot be read, or a library is missing.
    """

    def __init__(
        self,
        destinations: Mapping[Signal, Destination | Sequence[Destination]],
        *,
        balance: Balance = Balance.ROUND_ROBIN,
        retry_s: float = RETRY_S,
        dead_letter: Path | None = None,
        dead_letter_max_bytes: int = MAX_BYTES,
        kafka_properties: Mapping[str, str] | None = None,
        joins: bool = True,
        connect: Callable[[Signal, Destination], Forwarder] | None = None,
        chance: Callable[[], float] = random.random,
        native: bool = False,
        attempt_s: float = ATTEMPT_S,
    ) -> None:
        self._native = native
        self.spoken_by: dict[str, set[str]] = {"grpc": set(), "http": set()}
        self.counters = Counters()
        self._destinations = {
            signal: (each,) if isinstance(each, Destination) else tuple(each) for signal, each in destinations.items()
        }
        letters = None
        if dead_letter is not None:
            letters = DeadLetters(dead_letter, dead_letter_max_bytes, self.counters, time.time_ns)
        self._kafka_properties = dict(kafka_properties or {})
        self._ways: dict[Signal, Lanes] = {}
        for signal, several in self._destinations.items():
            endpoints = [(each, (connect or self._connect)(signal, each)) for each in several]
            hops = Hops(signal, endpoints, balance, retry_s, chance, self.counters, attempt_s)
            self._ways[signal] = Lanes(signal, hops, self.counters, letters, Limits(), joins)

    def _connect(self, signal: Signal, destination: Destination) -> Forwarder:
        if destination.protocol == "kafka":
            from skewd_sidecar.forward.kafka import KafkaForwarder

            return KafkaForwarder(signal, destination, self._kafka_properties)
        native = self._native and fits_native(destination, os.environ)
        if destination.protocol == "grpc":
            self.spoken_by["grpc"].add("native" if native else "grpcio")
            if native:
                from skewd_sidecar.forward.grpc_native import NativeGrpcForwarder

                return NativeGrpcForwarder(signal, destination)
            return GrpcForwarder(signal, destination)
        self.spoken_by["http"].add("native" if native else "aiohttp")
        if native:
            from skewd_sidecar.forward.http_native import NativeHttpForwarder

            return NativeHttpForwarder(destination)
        return HttpForwarder(destination)

    async def send(self, signal: Signal, body: bytes, timeout_s: float | None, metadata: Metadata = ()) -> Outcome:
        """What became of one request: the next hop's answer to it, or to the body that it was part of.

        Args:
            signal: what it carries.
            body: the serialized export request.
            timeout_s: what the exporter still waits; None if that is unknown, then the destination's own limit.
            metadata: sent on beside the destination's own headers, which win. Requests share a body only if this is
                the same.
        """
        way = self._ways.get(signal)
        if way is None:
            return Outcome.failed(UNIMPLEMENTED, f"no next hop for {signal}; give --forward for all signals")
        return await way.send(body, timeout_s, metadata)

    @property
    def held_bytes(self) -> int:
        """Bodies that wait or are under way, those included whose exporters have given up."""
        return sum(way.held_bytes for way in self._ways.values())

    def readings(self) -> list[Reading]:
        """What a scrape reads."""

        def by_signal(counter: Mapping[str, float]) -> Callable[[], Mapping[tuple[str, ...], float]]:
            return lambda: {(name,): count for name, count in counter.items()}

        counted = self.counters
        told: list[tuple[str, str, Mapping[str, float]]] = [
            ("skewd_forwarded_requests", "Exporters' requests that next hops took.", counted.requests),
            ("skewd_forwarded_batches", "Bodies that next hops took; requests may share one.", counted.batches),
            ("skewd_forwarded_bytes", "Of those bodies, before compression.", counted.bytes),
            ("skewd_forward_retries", "Attempts beyond a body's first.", counted.retries),
            ("skewd_forward_splits", "Bodies divided since they were refused or too large.", counted.splits),
            ("skewd_forward_refused", "Requests, or parts of one, that next hops refused for good.", counted.refused),
            ("skewd_forward_gather_seconds", "Time that requests waited for company, summed.", counted.gathered_s),
            ("skewd_forward_expired", "Requests not taken within their exporter's time.", counted.expired),
        ]
        return [
            *(Reading(name, about, "counter", ("signal",), by_signal(counter)) for name, about, counter in told),
            Reading(
                "skewd_dead_letters",
                "Refused requests, by whether they were kept.",
                "counter",
                ("result",),
                by_signal(counted.letters),
            ),
            Reading(
                "skewd_forward_held_bytes",
                "Bodies that wait or are under way.",
                "gauge",
                (),
                lambda: {(): self.held_bytes},
            ),
            Reading(
                "skewd_next_hop_up",
                "1 from an answer to the next failure that passes.",
                "gauge",
                ("signal", "endpoint"),
                lambda: {(each.signal, each.endpoint): float(each.up) for each in self.endpoints()},
            ),
        ]

    def endpoints(self) -> list[EndpointState]:
        """Each next hop of each signal, and whether it answered last."""
        return [state for way in self._ways.values() for state in way.hops.states()]

    async def refuse_itself(self, listeners: Iterable[tuple[str, int] | str]) -> None:
        """Compares each destination, resolved, with the addresses listened on.

        Args:
            listeners: numeric addresses and ports; paths of Unix sockets.

        Raises:
            EndpointError: a destination is one of them.
        """
        listening, sockets = list[tuple[str, int]](), list[str]()
        for each in listeners:
            sockets.append(each) if isinstance(each, str) else listening.append(each)
        ports = {port for _, port in listening}
        for destination in {each for several in self._destinations.values() for each in several}:
            if destination.unix:
                if any(_same_file(destination.host, path) for path in sockets):
                    raise EndpointError(_LEADS_BACK.format(destination))
                continue
            if destination.port not in ports or destination.protocol == "kafka":
                continue
            try:
                found = await NAMES.find(destination.host, destination.port, kind=socket.SOCK_STREAM)
            except (OSError, UnicodeError):
                continue  # a name that does not resolve now; it cannot be told, nor reached
            addresses = {str(entry[4][0]) for entry in found}
            reached = reached_listener(addresses, destination.port, listening, _own_addresses(listening))
            if reached is not None:
                raise EndpointError(_LEADS_BACK.format(destination))

    async def close(self) -> None:
        """Ends what is under way and closes all connections."""
        await asyncio.gather(*(way.close() for way in self._ways.values()))


def _same_file(one: str, other: str) -> bool:
    with contextlib.suppress(OSError):  # not there now: it cannot be told, nor reached
        return os.path.samefile(one, other)
    return False


def _own_addresses(listening: list[tuple[str, int]]) -> set[str]:
    """This host's addresses, looked up only if a listener answers to all of them."""
    if not any(host in ("0.0.0.0", "::") for host, _ in listening):
        return set()
    import psutil

    families = (socket.AF_INET, socket.AF_INET6)
    return {a.address for each in psutil.net_if_addrs().values() for a in each if a.family in families}
