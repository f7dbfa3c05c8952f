"""Who may be a peer: the addresses of the configuration, and all that a DNS name has.

The problem: pods come and go, and their addresses are found in one place that is always current, the DNS name of a
headless Service. It names this node too, it may be empty for a moment, and it may fail when it is needed most.

So the name is resolved again and again (every ``AGAIN_S``, with jitter, so that a fleet does not ask at once; after
``SOON_S`` when it failed). A failure keeps the last answer and is said, with the name; an answer replaces it, so a
departed address is dropped. Own addresses are left out: those that this host has, at the port listened on, and
those at which this node heard itself (behind address translation it does not know its own). So one list serves all
nodes: each leaves itself out.

What is found are addresses only. Who answers there is learnt by asking (``fanout.py``); a false answer of the DNS
costs a few requests to strangers, since without the mesh key nobody is believed.

Limits: an address of the static list that was this node's own is asked again after ``OWN_AGAIN_S``, since it may have
become another's. ``ADDRESSES_MAX`` addresses; of more the least are taken, and it is said. One resolution at a time, at
most ``WAIT_S`` waited for (the system's resolver can't be interrupted: while it hangs no second one is started, and
nobody waits for it in the end, see ``names.py``). Names in the static list are left as they are, for the link to
resolve.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import random
import socket
from collections.abc import Awaitable, Callable, Iterable

import psutil

from skewd.names import NAMES
from skewd.ports import format_address, is_loopback, split_address
from skewd.problems import Problem
from skewd.quiet import QuietLog

ADDRESSES_MAX = 1000
AGAIN_S = 30.0
SOON_S = 3.0
WAIT_S = 10.0
OWN_AGAIN_S = 600.0
_OWN_MAX = 256

Resolve = Callable[[str, int], Awaitable[Iterable[str]]]
"""From a name and a port to IP addresses, as text. OSError and UnicodeError mean that it failed."""


async def system_resolver(host: str, port: int) -> list[str]:
    """All addresses of a name, IPv4 and IPv6, by the system's resolver.

    Raises:
        OSError: it has none, or nobody answers.
        UnicodeError: it is no possible name.
    """
    found = await NAMES.find(host, port, limit_s=None)
    return [str(sockaddr[0]) for *_, sockaddr in found]


def host_addresses() -> frozenset[str]:
    """The IP addresses of this host's interfaces; empty if they can't be read."""
    try:
        interfaces = psutil.net_if_addrs()
    except OSError:
        return frozenset()
    return frozenset(
        _plain(entry.address)
        for entries in interfaces.values()
        for entry in entries
        if entry.family in (socket.AF_INET, socket.AF_INET6)
    )


class Discovery:
    """Keeps the set of candidate addresses current.

    Args:
        static: ``[mesh] peers``.
        dns: ``[mesh] dns``, ``name:port``; None for none.
        found: called in the event loop with all candidates (``host:port``), at the start and whenever they changed.
        listen_port: the port this node listens on, or None if it does not over UDP.
        keyed: whether there is a mesh key; without one addresses beyond loopback are left out, and it is said.
        resolve: how names are resolved.
        own_addresses: the IP addresses of this host.
        jitter: a number from 0 to 1.
        again_s, soon_s: the waits after an answer and after a failure.
    """

    def __init__(
        self,
        *,
        static: Iterable[str],
        dns: str | None,
        found: Callable[[frozenset[str]], None],
        listen_port: int | None,
        keyed: bool,
        resolve: Resolve = system_resolver,
        own_addresses: Callable[[], frozenset[str]] = host_addresses,
        jitter: Callable[[], float] = random.random,
        again_s: float = AGAIN_S,
        soon_s: float = SOON_S,
        wait_s: float = WAIT_S,
    ) -> None:
        self.counters = dict.fromkeys(("resolved", "failed", "too_many", "without_key"), 0)
        self.resolved = dns is None
        """Whether the DNS name has ever been resolved (or there is none)."""
        self.problem: Problem | None = None
        """What is wrong with the DNS name now; None if nothing is."""
        self._static, self._dns = tuple(static), dns
        self._found, self._keyed, self._listen_port = found, keyed, listen_port
        self._resolve, self._own_addresses, self._jitter = resolve, own_addresses, jitter
        self._again_s, self._soon_s, self._wait_s = again_s, soon_s, wait_s
        self._answer: frozenset[str] = frozenset()
        self._own: dict[str, None] = {}  # not asked
        self._listed_own: dict[str, asyncio.TimerHandle] = {}  # of the static list; not expected to answer
        self._told: frozenset[str] | None = None
        self._look = asyncio.Event()
        self._pending: asyncio.Future[Iterable[str]] | None = None
        self._log = QuietLog("skewd.discovery")

    def problems(self) -> list[Problem]:
        """What is wrong with the DNS name now."""
        return [] if self.problem is None else [self.problem]

    @property
    def candidates(self) -> frozenset[str]:
        """Every address that may be a peer's, as it was last told."""
        return self._answer.union(self._static).difference(self._own)

    @property
    def expected(self) -> frozenset[str]:
        """Those at which somebody else should answer."""
        return self.candidates.difference(self._listed_own)

    @property
    def listed_own(self) -> frozenset[str]:
        """Addresses of the static list that are this node's own."""
        return frozenset(self._listed_own)

    def is_own(self, address: str) -> None:
        """This node heard itself at ``address`` (``own_message``): it is no peer, and is not asked."""
        known = address in self._answer or address in self._static
        if not known or address in self._own or len(self._own) >= _OWN_MAX:
            return
        self._own[address] = None
        if address in self._static:
            again = asyncio.get_running_loop().call_later(OWN_AGAIN_S, self._ask_own_again, address)
            self._listed_own[address] = again
        self._tell()

    def _ask_own_again(self, address: str) -> None:
        self._own.pop(address, None)
        self._tell()

    def answered(self, address: str) -> None:
        """Somebody else answers at ``address``: it is this node's own no more."""
        timer = self._listed_own.pop(address, None)
        if timer is not None:
            timer.cancel()
            self._own.pop(address, None)
            self._tell(anyway=True)

    def set_static(self, static: Iterable[str]) -> None:
        """Another static list, at once. What ``found`` raises for it is raised here, and the former list stays."""
        before, self._static = self._static, tuple(static)
        try:
            self._tell()
        except Exception:
            self._static = before
            raise
        for address in self._listed_own.keys() - set(self._static):
            self._listed_own.pop(address).cancel()
            self._own.pop(address, None)

    def look_again(self) -> None:
        """Resolve soon, as peers don't answer any more; at most once per ``soon_s``."""
        self._look.set()

    async def run(self) -> None:
        """For ever: tell the candidates, and keep them current."""
        self._tell()
        if self._dns is None:
            return
        while True:
            ok = await self._round(self._dns)
            wait = self._again_s * (0.75 + self._jitter() / 2) if ok else self._soon_s
            self._look.clear()
            await asyncio.sleep(min(wait, self._soon_s))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, wait - self._soon_s)):
                    await self._look.wait()

    async def _round(self, dns: str) -> bool:
        host, port = split_address(dns)
        if self._pending is None:
            self._pending = asyncio.ensure_future(self._resolve(host, port))
        done, _ = await asyncio.wait([self._pending], timeout=self._wait_s)
        if not done:
            return self._failed(dns, f"no answer within {self._wait_s:g} s")
        answer, self._pending = self._pending, None
        try:
            texts = list(answer.result())
        except (OSError, UnicodeError) as error:
            return self._failed(dns, str(getattr(error, "strerror", None) or error))
        self.counters["resolved"] += 1
        self.problem, self.resolved = None, True
        self._answer = self._usable(dns, texts, port)
        # What is no longer there need not be remembered as one's own.
        self._own = {a: None for a in self._own if a in self._answer or a in self._listed_own}
        self._tell(anyway=self.counters["resolved"] == 1)
        return True

    def _failed(self, dns: str, why: str) -> bool:
        self.counters["failed"] += 1
        kept = f"the last {len(self._answer)} addresses stay" if self._answer else "no address is known yet"
        self.problem = Problem("dns-unresolved", dns, f"[mesh] dns {dns} can't be resolved ({why})", kept)
        self._log.warning("discovery_dns_failed", name=dns, error=why, advice=kept)
        return False

    def _usable(self, dns: str, texts: list[str], port: int) -> frozenset[str]:
        own = self._own_addresses() if port == self._listen_port else frozenset()
        addresses = set()
        far = set()
        for text in texts:
            plain = _plain(text)
            if plain in own:
                continue
            if not self._keyed and not is_loopback(plain):
                far.add(plain)
                continue
            addresses.add(format_address(plain, port))
        if far:
            self.counters["without_key"] += 1
            wrong = f"[mesh] dns {dns} has {min(far)}, beyond loopback, and there is no [mesh] key_file: not asked"
            self.problem = Problem("dns-without-key", dns, wrong, "make a key with 'skewd keygen', and name it there")
            self._log.warning("discovery_needs_key", name=dns, advice=self.problem.line)
        if len(addresses) > ADDRESSES_MAX:
            self.counters["too_many"] += 1
            wrong = f"[mesh] dns {dns} has {len(addresses)} addresses: the first {ADDRESSES_MAX} are used"
            self.problem = Problem("dns-too-many", dns, wrong, "name fewer in DNS")
            self._log.warning("discovery_too_many", name=dns, advice=self.problem.line)
            # Those that are in use stay, so that nothing changes from round to round.
            addresses = set(sorted(addresses, key=lambda text: (text not in self._answer, text))[:ADDRESSES_MAX])
        return frozenset(addresses)

    def _tell(self, *, anyway: bool = False) -> None:
        candidates = self.candidates
        if candidates != self._told or anyway:
            self._found(candidates)
            self._told = candidates


def _plain(address: str) -> str:
    """An address as messages from it show it: IPv4 in IPv6 unwrapped, link-local ones with their interface."""
    host, percent, zone = address.partition("%")
    with contextlib.suppress(ValueError):
        parsed = ipaddress.ip_address(host)
        mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
        host = str(mapped or parsed)
    return f"{host}{percent}{zone}"
