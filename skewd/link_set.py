"""The links of one node: its UDP socket and every ``[[link]]``, one mesh key for all of them.

Each link is a transport under the same protocol (``links/protocol.py``), with the same identity and one set of
timebases, so that a peer met over two transports is one peer. The library of a transport is loaded when a link asks
for it, and not before. The key file is one as well: when it changes, every link takes the new ring at once.

Limits: links are opened once; a change of ``[[link]]`` waits for a restart (``reload.py`` says so).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from skewd.background import DISK
from skewd.clock import NodeClock
from skewd.config import KEY_FIX, Config, LinkConfig
from skewd.failures import StartError
from skewd.fanout import Plan
from skewd.faults import Faults
from skewd.keys import KeyFile, KeyLook, KeyRing
from skewd.links.protocol import Believes, LinkProtocol, Proofs, Timebases
from skewd.node import Node
from skewd.ports import format_address
from skewd.problems import Problem, of_error
from skewd.status import LinkRow

if TYPE_CHECKING:
    from skewd.links.aeron import AeronLink
    from skewd.links.kafka import KafkaLink
    from skewd.links.udp import UdpLink
    from skewd.links.zmq import ZmqLink
    from skewd.member_keys import MemberKeys

UDP = "udp"

TRIES = 4
"""Requests in a row without an answer, after which a peer that never answered counts as unheard."""

_REFUSED = {
    "wrong_key": ("messages came with another mesh key", "all nodes of a mesh share one ([mesh] key_file)"),
    "bad_mac": ("messages failed authentication", "they were altered, or made with another key"),
    "malformed": (
        "messages of a member were refused: they say what no clock shows, or what no message can",
        "see link_malformed in the log for its address; then what is wrong with that node's clocks, or with the node",
    ),
}
"""What is refused and what a person can do about it: code, text, remedy."""


@dataclass(frozen=True, slots=True)
class _OpenLink:
    """A link as ``status`` tells of it."""

    transport: str
    address: str
    counters: Callable[[], dict[str, int]]
    protocol: LinkProtocol
    use_keys: Callable[[KeyRing], None]
    trouble: Callable[[], str | None] = lambda: None
    direction: str = "both"


class LinkSet:
    """The links that are open. Used within the running event loop.

    Args:
        config: ``[mesh]`` and ``[[link]]``.
        node, clock: whose they are.
        on_proofs: gets what the peers' messages prove.
        attach: what goes along with a message to a peer, in at most so many bytes.
        plan: who is asked when.
        member_keys: who this node and the others are.
        log: told when the keys change.
        faults: told of a fault of skewd's own in a message's handling.
    """

    def __init__(
        self,
        config: Config,
        node: Node,
        clock: NodeClock,
        on_proofs: Callable[[Proofs], None],
        attach: Callable[[str | None, int], bytes],
        plan: Plan,
        member_keys: Callable[[], MemberKeys | None],
        log: Any,
        faults: Faults | None = None,
    ) -> None:
        self._faults = faults or Faults()
        self._config = config
        self._node = node
        self._clock = clock
        self._on_proofs = on_proofs
        self._attach = attach
        self._plan = plan
        self._member_keys = member_keys
        self._log = log
        self._open: list[_OpenLink] = []
        self._timebases = Timebases()
        self._key_file: KeyFile | None = None
        self._key_complaint: str | None = None
        self._looking: asyncio.Future[KeyLook | None] | None = None
        self._look_again = False
        self.udp: UdpLink | None = None

    async def open(self, stack: contextlib.AsyncExitStack) -> str | None:
        """Opens all of them; ``stack`` closes them. The UDP link's address, None without one.

        Raises:
            StartError, OSError, ValueError: one can't be had; names it and the fix.
        """
        mesh = self._config.mesh
        if self._config.keyless and mesh.key is None:
            raise StartError(f"there is a mesh or a [[link]], and it has no key: {KEY_FIX}")
        if mesh.key_file is not None:
            self._key_file = KeyFile(mesh.key_file)
        address = None
        if mesh.listen is not None:
            address = await self._open_udp(stack, mesh.listen)
        for link in self._config.link:
            await self._open_link(stack, link)
        return address

    async def _open_udp(self, stack: contextlib.AsyncExitStack, listen: str) -> str:
        from skewd.kernel_stamps import SocketStamps
        from skewd.links.udp import UdpLink

        mesh = self._config.mesh
        protocol = self._protocol(UDP, lambda address, name: self.udp is not None and self.udp.is_configured(address))
        self.udp = udp = await UdpLink.open(
            listen,
            protocol,
            self._clock,
            self._on_proofs,
            list(mesh.peers),
            mesh.interval,
            stamps=SocketStamps(self._clock, lambda: self._node.wall.slew_ppb()),
            plan=self._plan,
        )
        stack.push_async_callback(udp.close)
        address = format_address(*udp.address[:2])
        self._open.append(_OpenLink(UDP, address, lambda: udp.counters, protocol, protocol.use_keys))
        return address

    async def _open_link(self, stack: contextlib.AsyncExitStack, link: LinkConfig) -> None:
        from skewd.links.unavailable import LinkUnavailable

        # Where a medium is shared by all, peers are named, and so are the senders.
        protocol = self._protocol(link.transport, lambda address, name: address in link.peers or name in link.peers)
        try:
            opened = await self._make_link(link, protocol)
        except LinkUnavailable as error:
            raise StartError(f"[[link]] {link.transport} {link.address}: {error}") from None
        stack.push_async_callback(opened.close)
        self._open.append(
            _OpenLink(
                link.transport,
                link.address,
                lambda: opened.counters,
                protocol,
                getattr(opened, "use_keys", protocol.use_keys),
                lambda: getattr(opened, "trouble", None),
                link.direction,
            )
        )

    async def _make_link(self, link: LinkConfig, protocol: LinkProtocol) -> ZmqLink | KafkaLink | AeronLink:
        """One ``[[link]]``; the library of its transport is loaded here."""
        peers, interval_ns = list(link.peers), self._config.mesh.interval
        direction = cast(Any, link.direction)
        if link.transport == "zmq":
            from skewd.links.zmq import ZmqLink

            return await ZmqLink.open(
                link.address, protocol, self._clock, self._on_proofs, peers, interval_ns, keys=self._keys
            )
        if link.transport == "kafka":
            from skewd.links.kafka import KafkaLink, read_properties

            return await KafkaLink.open(
                link.address,
                link.topic or "skewd-clock",
                protocol,
                self._clock,
                self._on_proofs,
                peers,
                interval_ns,
                direction=direction,
                properties=None if link.properties is None else read_properties(link.properties),
            )
        from skewd.links.aeron import STREAM, AeronLink

        return await AeronLink.open(
            link.address,
            protocol,
            self._clock,
            self._on_proofs,
            peers,
            interval_ns,
            own_directory=self._config.node.runtime_dir / f"aeron-{len(self._open)}",
            directory=link.directory,
            stream=link.stream or STREAM,
            direction=direction,
        )

    @property
    def _keys(self) -> KeyRing | None:
        return None if self._key_file is None else self._key_file.keys

    def _protocol(self, link: str, configured: Believes) -> LinkProtocol:
        return LinkProtocol(
            on_fault=lambda error: self._faults.failed("link", link, error),
            link=link,
            key=self._keys,
            describe=self._node.describe,
            random=secrets.token_bytes,
            timebases=self._timebases,
            attach=self._attach,
            member_keys=self._member_keys(),
            # With a key whoever has it is invited.
            believes=configured if self._keys is None else None,
        )

    def never_answered(self) -> frozenset[str]:
        """The peers of the links beside UDP that were asked often enough to have answered, and never did."""
        addresses = {
            target.address
            for link in self._open
            if link.transport != UDP
            for target in link.protocol.targets()
            if target.name is None and target.unanswered >= TRIES
        }
        # On a medium that all share an address is the medium's with the name, which is what the configuration has.
        return frozenset(addresses | {text.rpartition("/")[2].removeprefix("aeron:") for text in addresses})

    def reload_keys(self, *, anyway: bool = True) -> None:
        """Has the key file looked at, in a thread; if it changed (or ``anyway``), the links use it as it is then."""
        if self._key_file is None:
            return
        if self._looking is not None:
            self._look_again |= anyway  # the one under way may have begun before the file changed
            return
        file = self._key_file
        self._look_again = False
        self._looking = DISK.call(lambda: file.look(anyway=anyway))
        self._looking.add_done_callback(self._looked)

    def _looked(self, done: asyncio.Future[KeyLook | None]) -> None:
        self._looking = None
        assert self._key_file is not None
        # A look that could not be begun is made the next time.
        found = None if done.cancelled() or done.exception() is not None else done.result()
        if self._key_file.take(found):
            for link in self._open:
                link.use_keys(self._key_file.keys)
            ids = [f"{key.key_id:08x}" for key in self._key_file.keys.keys]
            self._log.info("the mesh keys have changed", sends=ids[0], accepts=ids)
        if self._key_file.complaint is not None and self._key_file.complaint != self._key_complaint:
            self._log.warning(self._key_file.complaint)
        self._key_complaint = self._key_file.complaint
        if self._look_again:
            self.reload_keys()

    def rows(self) -> list[LinkRow]:
        """The links, as a status tells of them."""
        return [
            LinkRow(link.transport, link.address, link.direction, link.trouble(), dict(link.counters()))
            for link in self._open
        ]

    def problems(self) -> list[Problem]:
        """What is wrong with them."""
        rows, now = self.rows(), self._clock.raw_ns()
        found = []
        for row in rows:
            if row.trouble:
                subject = f"{row.transport} {row.address}"
                found.append(of_error("link-down", subject, f"link {subject}: {row.trouble}"))
        for reason, (wrong, remedy) in _REFUSED.items():
            count = sum(link.protocol.refused_lately(reason, now) for link in self._open)
            if count:
                text = f"{count} {wrong} within the last minute"
                found.append(Problem(reason.replace("_", "-"), "", text, remedy))
        if self._key_complaint is not None:
            found.append(of_error("key-file-refused", str(self._config.mesh.key_file), self._key_complaint))
        return found
