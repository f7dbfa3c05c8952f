"""The daemon: one loop that reads this node's clocks, lets the links and sources talk, and publishes what follows.

All thinking is elsewhere (``node.py``, ``bounds/``, ``links/protocol.py``); here sockets are opened, clocks are read
and timers run. The kernel tells at once when the wall clock is set (``hostclock.SetWatch``), and a virtual node's page
likewise (``VirtualPage.watch``); besides, every
``TICK_S`` it is compared with the raw clock, and more often where nobody tells. A step is published as soon
as it is seen; four times a second a knot is published. Nothing a network sends can end this loop: what no clock shows
is refused where it is decoded (``limits.py``), links count what they aloud, and a fault of skewd's own in mesh code, a
source or a link stays there and is said (``faults.py``).

Limits: one daemon per runtime directory (a lock file says whose). A step is noticed when the kernel told and this
process got to run, or up to ``POLL_S`` after it happened; a span that is exported within that time is judged by the
clock before the step, unless whoever judges it looks at the clocks too (``bounds/unseen.py``; the sidecar does). A
change of clock source is looked for once a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import random
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import skewd
from skewd import discipline, hostclock, requirements, resume, sd_notify, steering, telling
from skewd.background import DISK, Keeper
from skewd.clock import NodeClock, VirtualClock, Watch, read_wall
from skewd.config import Config
from skewd.durations import format_duration
from skewd.failures import StartError
from skewd.faults import Faults
from skewd.keeping import LAST_S, Keeping
from skewd.kernel_clock import Adjuster, KernelClock, RawFacts, continued, disturbance
from skewd.knots import KNOT_PERIOD_NS
from skewd.lean import msgspec, structlog
from skewd.link_set import UDP, LinkSet
from skewd.links.protocol import Proofs
from skewd.links.wire import VERSION
from skewd.logs import aloud, set_level
from skewd.loop_facts import LoopFacts
from skewd.membership import Membership, new_plan
from skewd.node import Node
from skewd.ports import format_address, split_address
from skewd.problem_log import ProblemLog
from skewd.problems import Problem, of_error
from skewd.publish import clockbound, prometheus
from skewd.publish.evidence_door import EvidenceDoor
from skewd.publish.for_clockbound import ClockBoundPublisher
from skewd.publish.fresh import Fresh
from skewd.publish.segment import SegmentError, SegmentWriter
from skewd.publish.web import LocalApi, Metrics
from skewd.reload import plan
from skewd.source_set import SourceSet
from skewd.state_file import StateFile
from skewd.status import ClockRow, ConfigRow, DisciplineRow, KernelRow, NodeStatus, NowAnswer, told_problem
from skewd.status import plain as plain_status

if TYPE_CHECKING:
    from skewd.discovery import Discovery
    from skewd.identity import Identity, KeysFile, PinsFile
    from skewd.links.udp import UdpLink
    from skewd.member_keys import MemberKeys
    from skewd.record_store import Pin
    from skewd.tap import Tap

TICK_S = 0.125
"""How often at least the two clocks are compared where the kernel tells when one is set: what is left to find by
looking is a slew that begins, and that this machine slept."""

POLL_S = 0.007
"""The same where nobody tells when the wall clock is set."""

EARLY = 0.7
"""From this part of the time between two looks on, a message that wakes the process anyway brings the next one on.

Waking a sleeping process costs more than the look itself. The time between two looks is never longer for it.
"""

HOUSEKEEPING_NS = 10_000_000_000
"""How often is kept what survives a restart, the key file looked at, and the state said."""

RELOAD_WAIT_S = 10.0
"""How long the disk may take to give a configuration that is read again."""

Ready = Callable[[dict[str, Any]], None]
Load = Callable[[], Config]
"""Reads the configuration again, or raises ``ConfigError``."""


def boot_id(clock: NodeClock) -> bytes:
    """16 bytes that name this boot of the raw clock.

    A virtual node's clock boots with its daemon; one that lives in a page of its own, with the page.
    """
    host = b""
    with contextlib.suppress(OSError, ValueError):
        host = bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", ""))
    if not clock.virtual and len(host) == 16:
        return host
    page = clock.page.path if isinstance(clock, VirtualClock) else None
    if page is not None:
        made = page.stat()
        named = f"{page.resolve()} {made.st_dev} {made.st_ino} ".encode()
        return hashlib.blake2s(named + host, digest_size=16).digest()
    return secrets.token_bytes(16)


def adjuster(clock: NodeClock) -> Adjuster:
    """What sets the frequency of a node's wall clock.

    Raises:
        OSError: there is none to be had; the message says why and what to do.
    """
    if not isinstance(clock, VirtualClock):
        return hostclock.KernelAdjuster()
    if not clock.page.steerable:
        raise OSError(errno.ENOTSUP, "this virtual clock emulates no kernel to steer; make it with steerable=yes")
    return clock.page


def kernel_clock(clock: NodeClock) -> KernelClock | None:
    """The kernel's steering of a node's wall clock; None where it can't be read."""
    return clock.page.read() if isinstance(clock, VirtualClock) else hostclock.KernelReader().read()


class Daemon:
    """One node, running."""

    def __init__(self, config: Config, clock: NodeClock) -> None:
        self.config = config
        self.clock = clock
        self._faults = Faults()
        self._log = structlog.get_logger().bind(node=config.node.name)
        self._plan = new_plan(config, random.random)
        self._member: Membership | None = None
        self._identity: Identity | None = None
        self._member_keys: MemberKeys | None = None
        self._pins: PinsFile | None = None
        self._keys: KeysFile | None = None
        self._kept_keys: dict[str, bytes] = {}
        self._discovery: Discovery | None = None
        self._pinned: dict[str, Pin] = {}
        self._reload_problem: str | None = None
        self._needs_restart: tuple[str, ...] = ()
        self._metrics_address: str | None = None
        self._fresh = Fresh(lambda: self.told())
        self._kernel = hostclock.KernelReader()
        self._machine = hostclock.MachineWatch()
        self._facts = hostclock.raw_facts(self._machine)
        self._state_file = StateFile(config.node.state_dir, config.node.name)
        self._keeping = Keeping(self._state_file)
        self._rate_basis = hostclock.raw_rate_basis() if config.clock.drift_over_reboot else ""
        if config.clock.drift_over_reboot and not self._rate_basis:
            self._log.info(
                "[clock] drift_over_reboot has no effect here: this clock's nominal rate is measured anew at each boot,"
                " or a hypervisor's, or not told"
            )
        self.node = self._resumed_node()
        self._sources = SourceSet(self.node, clock, self._log, self._faults, wall_before=self._wall_before)
        self._links = LinkSet(
            config,
            self.node,
            clock,
            self._on_proofs,
            self._attach,
            self._plan,
            lambda: self._member_keys,
            self._log,
            self._faults,
        )
        self._source = self._facts.clock_source
        self._set_watch: Watch | None = None
        self._pause: asyncio.Future[None] | None = None
        self._early_ns = 0
        self._said: tuple[str, str | None] | None = None
        self._changes = ProblemLog(self._log)
        self._loop = LoopFacts()
        self._writer: SegmentWriter | None = None
        self._segment_problem: Problem | None = None
        self._next_knot_ns = 0
        self._clockbound: ClockBoundPublisher | None = None
        self._steering: steering.Steering | None = None
        self._frequency_left: Problem | None = None
        self._tap: Tap | None = None

    def _resumed_node(self) -> Node:
        """The node, with the bounds of the daemon before where they still hold."""
        boot, now = boot_id(self.clock), self.clock.raw_ns()
        content = self._state_file.read(resume.BYTES_MAX)
        kept = None if content is None else resume.decode(content)
        if content is not None and kept is None:
            self._log.warning(f"{self._state_file.path} is damaged or of another version; every bound starts anew")
        era = resume.first_raw_era(kept, boot=boot, facts=self._facts, now_raw_ns=now)
        self._wall_before = None if self.clock.virtual else resume.wall_before(kept, boot=boot, now_raw_ns=now)
        node = Node(self.config, boot=boot, first=read_wall(self.clock), virtual=self.clock.virtual, raw_era=era)
        if kept is not None:
            clock = self.config.clock
            limits = (float(clock.max_drift_ppm), float(clock.max_wander_ppb_per_s))
            objection = resume.objection(
                kept, node=node.name, boot=boot, facts=self._facts, limits=limits, now_raw_ns=now
            )
            if objection is None:
                with self._faults.guard("state", "resume"):
                    self._read_keys()
                    node.resume(kept, self._kept_keys)
                    self._log.info("bounds of before are resumed", peers=len(kept.peers), sources=len(kept.sources))
                node.forget_unusable(now)
            else:
                self._log.info(f"bounds of before are not used: {objection}")
            if clock.drift_over_reboot and not self.clock.virtual:
                with self._faults.guard("state", "drift of before"):
                    node.take_drift(
                        resume.drift_priors(kept, node=node.name, boot=boot, limits=limits, basis=self._rate_basis)
                    )
        return node

    def _keep(self) -> None:
        """Has the bounds kept for the daemon after this one, and this node's identity if it is not yet."""
        self._keeping.keep_bounds(resume.encode(self.node.keep(self._facts, self.clock.raw_ns(), self._rate_basis)))
        if self._identity is not None:
            self._keeping.keep_identity(self.node.name, self._identity)

    def _keep_pins(self, *, last: bool = False) -> None:
        """Has the keys of others kept. Those of messages follow the bounds, so that no bound is taken for another's."""
        now = time.monotonic_ns()
        if self._member is not None and self._pins is not None:
            self._keeping.keep_pins(self._pins, self._member.store.pins(), now, last=last)
        if self._member_keys is not None and self._keys is not None:
            self._keeping.keep_keys(self._keys, self._member_keys.pins(), last=last)

    async def _keep_at_end(self) -> None:
        with self._faults.guard("state", "bounds"):
            self._keep()
        with self._faults.guard("state", "pins"):
            self._keep_pins(last=True)
        await self._keeping.finish()
        for problem in self._keeping.problems():
            self._changes.came(told_problem(problem))

    # -- told to others ------------------------------------------------------------------------------------------

    def told(self) -> NodeStatus:
        """Everything that this node tells of itself, now."""
        self._sources.tell_states()
        self.node.silent_peers = self._plan.never_answered() | self._links.never_answered()
        now = self.clock.raw_ns()
        known = telling.status(self.node, now)
        told = msgspec.structs.replace(
            known,
            sources=self._sources.told(known.sources),
            links=self._links.rows(),
            mesh=None if self._member is None else self._member.told(now),
            clock=self._clock_row(),
            loop=self._loop.told(now),
            metrics=self._metrics_address,
            version=skewd.__version__,
            found=self._sources.found,
            faults=dict(self._faults.counts),
            config=ConfigRow(self._reload_problem is None, list(self._needs_restart)),
            discipline=DisciplineRow() if self._steering is None else self._steering.told(),
        )
        return told.with_problems(self._problems(told, now))

    def status(self) -> dict[str, Any]:
        """The same as ``skewd status --json`` has it."""
        return plain_status(self.told())

    def _ask_for(self) -> None:
        """Tells the node what the configuration asks for, as far as it is known now."""
        discovery = self._discovery
        if discovery is None:
            self.node.ask_for(requirements.asked_by(self.config))
            return
        self.node.ask_for(
            requirements.asked_by(
                self.config,
                over_udp=discovery.expected,
                own=discovery.listed_own,
                resolved=discovery.resolved,
            )
        )

    def _problems(self, told: NodeStatus, now_raw_ns: int) -> list[Problem]:
        """What each part says is wrong now.

        Args:
            told: the status at that instant.
        """
        found = telling.problems(self.node, told, now_raw_ns)
        found += self._links.problems()
        found += self._mesh_problems(now_raw_ns)
        found += self._sources.problems(told.sources)
        found += self._config_problems()
        found += self._faults.problems()
        if self._clockbound is not None:
            found += self._clockbound.problems()
        if self._steering is not None:
            found += self._steering.problems()
        found += self._keeping.problems()
        found += [problem for problem in (self._segment_problem, self._frequency_left) if problem is not None]
        return found

    def _mesh_problems(self, now_raw_ns: int) -> list[Problem]:
        found = [] if self._member_keys is None else self._member_keys.problems(now_raw_ns)
        if self._discovery is not None:
            found += self._discovery.problems()
        return found if self._member is None else found + self._member.problems()

    def _config_problems(self) -> list[Problem]:
        found = []
        if self._reload_problem is not None:
            wrong = (
                f"the configuration was read again and is refused, the one before is in force: {self._reload_problem}"
            )
            found.append(Problem("config-refused", "", wrong, "mend it, and reload; 'skewd config check' tells more"))
        if self._needs_restart:
            keys = ", ".join(self._needs_restart)
            wrong = f"changed in the configuration, and waiting for a restart: {keys}"
            found.append(Problem("restart-needed", "", wrong, "restart skewd"))
        return found

    def _clock_row(self) -> ClockRow:
        """What this host's kernel says of its clocks (a virtual node's are made from these)."""
        kernel = self._kernel.read()
        return ClockRow(
            clock_source=self._facts.clock_source,
            raw_era=self.node.raw_era,
            slew_ppb=self.node.wall.slew_ppb(),
            steps_seen_by=("polling" if self._set_watch is None else "page" if self.clock.virtual else "timerfd"),
            machine_watched_by=self._machine.kind,
            time_namespace_shift_ns=self._facts.shift_ns,
            kernel=None if kernel is None else KernelRow(**kernel.told()),
        )

    def now(self) -> NowAnswer:
        """``skewd now --json``: the reference timescale's time, within its bound."""
        raw = self.clock.raw_ns()
        estimate = self.node.reference_estimate(raw)
        if estimate is None:
            return NowAnswer()
        time_ns = (self.node.wall.wall_minus_raw(raw) + estimate.bound).shift(raw)
        uncertainty = estimate.bound.farthest(self.node.offset_applied(estimate, raw))
        return NowAnswer(
            earliest_ns=time_ns.lo,
            latest_ns=time_ns.hi,
            reference=estimate.name,
            status=self.node.status_with(estimate, uncertainty).value,
        )

    # -- running -------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[dict[str, Any]]:
        """Everything open and the loop turning; yields the addresses that were bound.

        Raises:
            StartError: something configured is not to be had; names what and the fix.
            PortTaken: a port is in use; names the holder.
        """
        config = self.config
        runtime = config.node.runtime_dir
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self._faults.on_loop_error(context))
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(locked(runtime))
            self._writer = self._new_segment()
            stack.callback(self._close_segment)
            self._clockbound = ClockBoundPublisher(config, self._facts.shift_ns)
            stack.callback(self._clockbound.close)
            self._open_steering(stack)
            self._open_identity()
            self._ask_for()
            if config.mesh.peers or config.mesh.dns is not None or any(link.peers for link in config.link):
                self._join_mesh()
            ready: dict[str, Any] = {"socket": str(config.socket_path), "mesh": None, "metrics": None}
            ready["mesh"] = await self._links.open(stack)
            if self._links.udp is not None:
                self._discover(stack, self._links.udp)
            stack.push_async_callback(self._sources.close)
            await self._use_sources(config)
            if config.metrics.listen is not None:
                build = {"version": skewd.__version__, "virtual": str(self.clock.virtual).lower()}
                registry = prometheus.registry(self._fresh.get, build, lambda: self.clock.wall_ns() / 1e9, process=True)
                metrics = Metrics(self._fresh, registry)
                stack.push_async_callback(metrics.close)
                address = await metrics.open(*split_address(config.metrics.listen))
                ready["metrics"] = self._metrics_address = format_address(*address)
            api = LocalApi(self._fresh, self.now)
            stack.push_async_callback(api.close)
            await api.open(config.socket_path)
            door = EvidenceDoor(self._tap_for_evidence)
            stack.push_async_callback(door.close)
            await door.open(config.evidence_path)
            stack.callback(self._close_tap)
            self._watch_clock(stack)
            stack.push_async_callback(self._keep_at_end)
            self._say()  # before the service manager is told that all is ready: it shows this text
            self.ticker = asyncio.create_task(self._tick_forever(), name="skewd-tick")
            stack.push_async_callback(_cancelled, self.ticker)
            yield ready

    def _new_segment(self) -> SegmentWriter:
        config = self.config
        return SegmentWriter(
            config.segment_path, node=config.node.name, boot=self.node.boot, virtual=self.clock.virtual
        )

    def _mend_segment(self) -> None:
        """Makes another segment where somebody cut this one off or removed it."""
        assert self._writer is not None
        if self._writer.intact() and self._writer.trouble is None:
            return
        former = self._writer
        try:
            self._writer = self._new_segment()
        except SegmentError as error:
            self._segment_problem = Problem(
                "segment-lost",
                str(former.path),
                f"the file that readers take the clock from was cut off or removed, and {error}",
                "undo what removed it; another is made within a second once that is possible",
            )
            return
        former.close()
        self._segment_problem = None
        self._next_knot_ns = 0
        self._log.warning(f"{former.path} was cut off or removed, and is made anew")

    def _close_segment(self) -> None:
        assert self._writer is not None
        self._writer.close()

    def _open_steering(self, stack: contextlib.AsyncExitStack) -> None:
        """Undoes what a daemon that died left in the kernel; and steers this clock, if that is configured."""
        config, clock = self.config, self.clock
        file = StateFile(config.node.state_dir, config.node.name, steering.KIND)
        try:
            said = steering.restore(file, self.node.boot, lambda: kernel_clock(clock), lambda: adjuster(clock))
            if said is not None:
                self._log.info(said)
        except steering.NotRestoredError as error:
            self._frequency_left = of_error("frequency-left", "", error)
        if config.discipline.mode != "slew":
            return
        made, unable = None, None
        try:
            if config.keyless:
                reason = "the mesh has no key, and anyone on this machine could speak in it; see [mesh] key_file"
                raise OSError(errno.EPERM, reason)
            made = adjuster(clock)
        except OSError as error:
            unable = error.strerror
        told_to_peers = config.mesh.listen is not None or config.link
        kept = Keeper(lambda content: steering.keep_or_remove(file, content))
        self._steering = steering.Steering(
            self.node,
            None if self._frequency_left else made,
            file,
            self._log,
            announce_ns=(
                max(discipline.ANNOUNCE_NS, 3 * config.mesh.interval) if told_to_peers else discipline.ALONE_NS
            ),
            owners=None if clock.virtual else steering.owners_here,
            unable=unable or "what an earlier skewd left must be undone first",
            kept=kept,
        )
        stack.push_async_callback(kept.finish, LAST_S)
        watcher = asyncio.create_task(self._steering.watch_owners(), name="skewd-owners")
        stack.push_async_callback(_cancelled, watcher)
        stack.callback(self._steering.close, lambda: self._publish(self.clock.raw_ns()))

    def _rate_ppb(self) -> int | None:
        """The rate that the kernel's settings give this node's wall clock, against its raw clock."""
        rate = self._kernel.rate_ppb()
        if isinstance(self.clock, VirtualClock) and self.clock.page.steerable:
            emulated = self.clock.page.read()
            rate = (rate or 0) + (0 if emulated is None else emulated.rate_ppb)
        return rate

    def _watch_clock(self, stack: contextlib.AsyncExitStack) -> None:
        """Has the kernel tell of what is otherwise only found by looking."""
        loop = asyncio.get_running_loop()
        stack.callback(self._machine.close)
        events = self._machine.events()
        if events is not None:
            loop.add_reader(events, self._on_machine_event)
            stack.callback(loop.remove_reader, events)
        with contextlib.suppress(OSError):
            watch = self.clock.page.watch() if isinstance(self.clock, VirtualClock) else hostclock.SetWatch()
            stack.callback(watch.close)
            loop.add_reader(watch.fileno(), self._on_clock_set)
            stack.callback(loop.remove_reader, watch.fileno())
            self._set_watch = watch

    def _on_machine_event(self) -> None:
        if self._machine.take():
            self.tick()

    def _on_clock_set(self) -> None:
        assert self._set_watch is not None
        self._set_watch.again()
        self.tick()

    # -- the mesh ------------------------------------------------------------------------------------------------

    def _discover(self, stack: contextlib.AsyncExitStack, udp: UdpLink) -> None:
        """Keeps the plan's and the link's candidates current."""
        from skewd.discovery import Discovery

        loop = asyncio.get_running_loop()

        def found(candidates: frozenset[str]) -> None:
            udp.set_peers(sorted(candidates))
            self._plan.candidates(candidates, round(loop.time() * 1e9))
            self._ask_for()

        mesh = self.config.mesh
        self._discovery = Discovery(
            static=mesh.peers, dns=mesh.dns, found=found, listen_port=udp.address[1], keyed=udp.protocol.keyed
        )
        udp.on_own(self._discovery.is_own)
        finding = asyncio.create_task(self._discovery.run(), name="skewd-discovery")
        stack.push_async_callback(_cancelled, finding)

    def reload_keys(self, *, anyway: bool = True) -> None:
        """Has the links use the mesh key file as it is now; it is looked at every ten seconds besides."""
        self._links.reload_keys(anyway=anyway)

    def _attach(self, peer: str | None, max_bytes: int) -> bytes:
        attached = b""  # if this fails, the exchange itself, which bounds rest on, goes on
        with self._faults.guard("mesh", "attach"):
            if self._member is not None:
                attached = self._member.attach(peer, max_bytes)
        return attached

    def _mesh_failed(self) -> None:
        """Mesh code has failed: go on with first-hand bounds, and without what they can't be had of."""
        for name in self.node.forget_unusable(self.clock.raw_ns()):
            self._log.warning(f"what was known of {name} could not be used, and begins anew")
        if self._member is not None:
            self._member.first_hand_only()

    def _read_keys(self) -> None:
        """The keys that peers proved to have while the daemon before ran."""
        from skewd.identity import KeysFile

        self._keys = KeysFile(self.config.node.state_dir, self.config.node.name)
        self._kept_keys = self._keys.read()

    def _open_identity(self) -> None:
        """Reads, before anything turns, what this node is known by and knows others by; each link needs it.

        Raises:
            StartError: it can't be had.
        """
        config = self.config
        if config.mesh.listen is None and not config.link:
            return
        from skewd.identity import IdentityError, PinsFile, load_identity
        from skewd.member_keys import SILENT_NS, MemberKeys
        from skewd.records import MeshExtraMissing

        try:
            self._identity = load_identity(config.node.state_dir, config.node.name)
        except (MeshExtraMissing, IdentityError) as error:
            raise StartError(str(error)) from None
        if self._identity.reason is not None:
            self._log.info(self._identity.reason)
        if self._keys is None:
            self._read_keys()
        self._member_keys = MemberKeys(
            config.node.name,
            self._identity.key,
            pinned=self._kept_keys,
            accept_old=config.mesh.oldest_protocol < VERSION,
            silent_ns=max(SILENT_NS, 5 * config.mesh.interval),
        )
        self._pins = PinsFile(config.node.state_dir, config.node.name)
        self._pinned = self._pins.read()

    def _join_mesh(self) -> None:
        """Makes this node a member, once there is anybody else. Without signatures it knows its own peers only."""
        if self._member is not None or self._identity is None:
            return
        from skewd.record_store import RecordStore

        config = self.config
        store = RecordStore(config.node.name, liars_max=config.mesh.liars, pins=self._pinned)
        self._member = Membership(
            self.node,
            store,
            self._identity.key,
            plan=self._plan,
            first_sequence=self._identity.first_sequence,
            say=lambda text, warning: self._log.warning(text) if warning else self._log.info(text),
            on_fault=lambda where, error: self._faults.failed("mesh", where, error),
            now_raw_ns=self.clock.raw_ns(),
        )
        with self._faults.guard("mesh", "begin"):
            self._member.begin(self.clock.raw_ns())

    async def _use_sources(self, config: Config) -> None:
        # While we steer, nothing is looked for: what would be found judges this clock by who else steers it.
        await self._sources.use(config, search=not self.clock.virtual and self._steering is None)

    def _on_proofs(self, proofs: Proofs) -> None:
        now = self.clock.raw_ns()
        with self._faults.guard("mesh", "proofs", lambda: self.node.forget_peer(proofs.peer.name)):
            self.node.on_proofs(proofs, now)
        if self._discovery is not None:
            self._discovery.answered(proofs.address)
        # The plan's requests go over UDP: who asks over another link, slower perhaps, spares none of them.
        if proofs.asked and proofs.link == UDP:
            self._plan.asked_by(proofs.peer.name, round(asyncio.get_running_loop().time() * 1e9))
        if self._member is None:
            self._join_mesh()
        if self._member is not None:
            with self._faults.guard("mesh", "records"):
                self._member.heard(proofs, now)
        else:
            self._plan.answered(proofs.address, proofs.peer.name)
        if self._pause is not None and not self._pause.done() and time.monotonic_ns() >= self._early_ns:
            self._pause.set_result(None)

    async def reload(self, load: Load) -> None:
        """Takes up what changed in the configuration, as far as a running daemon can (``reload.py``)."""
        self.reload_keys()
        before = self.config
        try:
            async with asyncio.timeout(RELOAD_WAIT_S):
                loaded = await DISK.call(load)
            wanted = plan(before, loaded)
            await self._take_up(wanted.config)
        except (StartError, OSError, ValueError) as error:
            late = isinstance(error, TimeoutError) and not str(error)
            said = f"reading it took longer than {RELOAD_WAIT_S:g} s" if late else str(error)
            self._reload_problem = "; ".join(said.splitlines())
            self._log.error("the configuration is refused, the one before is in force", problem=self._reload_problem)
            if self.config is not before:
                await self._take_up(before)
        else:
            self._reload_problem, self._needs_restart = None, wanted.restart
            self._log.info("the configuration was read again", changed=wanted.changed, needs_restart=wanted.restart)
        self._say()

    async def _take_up(self, config: Config) -> None:
        """Puts a configuration in force that differs in what may change while running.

        Raises:
            ValueError, OSError, StartError: something in it is not to be had.
        """
        if self._discovery is not None:
            self._discovery.set_static(config.mesh.peers)
        before, self.config = self.config, config
        if config.source != before.source:
            await self._use_sources(config)
        else:
            self.node.reconfigure(config)
        self._ask_for()
        set_level(config.log.level)

    # -- evidence ------------------------------------------------------------------------------------------------

    def _tap_for_evidence(self) -> Tap:
        """``skewd record`` asks; what it needs is loaded by then only."""
        from skewd.tap import Tap

        if self._tap is None:
            self._tap = Tap(self.node, lambda: self._facts.clock_source, self.clock.raw_ns, self._tap_failed)
        return self._tap

    def _tap_failed(self, error: Exception) -> None:
        self._faults.failed("evidence", "learn", error)
        self._close_tap()

    def _close_tap(self) -> None:
        """Whoever listens is told that it is over, and may ask again."""
        if self._tap is not None:
            tap, self._tap = self._tap, None
            tap.close()

    # -- the loop ------------------------------------------------------------------------------------------------

    async def _tick_forever(self) -> None:
        watchdog_ns = sd_notify.watchdog_interval_ns()
        next_watchdog_ns = next_minute_ns = next_source_ns = 0
        while True:
            begun = time.monotonic_ns()
            self.tick()
            now = time.monotonic_ns()
            self._loop.late(now - begun, now)
            if watchdog_ns is not None and now >= next_watchdog_ns:
                next_watchdog_ns = now + watchdog_ns
                sd_notify.notify("WATCHDOG=1")
            if now >= next_source_ns:
                next_source_ns = now + 1_000_000_000
                self._source = hostclock.clock_source()
                with self._faults.guard("publish", "segment"):
                    self._mend_segment()
            if now >= next_minute_ns:
                next_minute_ns = now + HOUSEKEEPING_NS
                self._tidy()
            longest_s = TICK_S if self._set_watch is not None else POLL_S
            knot_s = (self._next_knot_ns - self.clock.raw_ns()) / 1e9
            await self._pausing(min(longest_s, knot_s) if knot_s > 0 else longest_s)

    def _tidy(self) -> None:
        """What is done now and then; none of it keeps the rest, or the clocks, from being looked at."""
        guard = self._faults.guard
        with guard("link", "keys"):
            self.reload_keys(anyway=False)
        with guard("mesh", "departed", self._mesh_failed):
            self.node.forget_departed(self.clock.raw_ns())
        with guard("state", "bounds", self._mesh_failed):
            self._keep()
        with guard("state", "pins"):
            self._keep_pins()
        with guard("mesh", "discovery"):
            if self._discovery is not None and self._plan.anyone_silent():
                self._discovery.look_again()
        with guard("status", "log", self._mesh_failed):
            self._say()

    async def _pausing(self, longest_s: float) -> None:
        """Until the next look at the clocks is due, or a message has woken this process late enough to take it now."""
        loop = asyncio.get_running_loop()
        begun_ns = time.monotonic_ns()
        self._early_ns = begun_ns + round(longest_s * EARLY * 1e9)
        self._pause = loop.create_future()
        timer = loop.call_later(longest_s, _over, self._pause)
        try:
            await self._pause
        finally:
            timer.cancel()
        now_ns = time.monotonic_ns()
        self._loop.late(now_ns - begun_ns - round(longest_s * 1e9), now_ns)

    def tick(self) -> None:
        """Reads the clocks; publishes at once after a step, and otherwise when a knot is due.

        Whatever fails in it by a fault of skewd's own, the next tick comes; and what is published then says that
        nothing is known, if what is known can't be made out.
        """
        with self._faults.guard("publish", "tick", self._publish_nothing):
            self._tick()

    def _tick(self) -> None:
        assert self._writer is not None
        stepped = set_by_hand = False
        facts = RawFacts(self._source, hostclock.suspended_ns(), self._machine.marker(), self._facts.shift_ns)
        reason = disturbance(self._facts, facts)
        before_ns = self.node.wall.latest.raw_ns
        if reason is not None:
            self._log.warning(f"{reason}; every bound starts anew")
            self.node.on_raw_disturbed(read_wall(self.clock))
            self._sources.wall_was_set(before_ns, disturbed=True)
            self._facts = facts
            stepped = True
            if self._tap is not None:
                with self._faults.guard("evidence", "restart", self._close_tap):
                    self._tap.restarted(self.node.wall.latest.raw_ns)
        else:
            self._facts = continued(self._facts, facts)
            if self.node.on_wall(read_wall(self.clock), self._rate_ppb()):
                self._log.warning("the wall clock was stepped", by=format_duration(self.node.wall.last_step_ns or 0))
                stepped = set_by_hand = True
                if self._tap is not None:
                    with self._faults.guard("evidence", "step", self._close_tap):
                        self._tap.stepped(self.node.wall.latest.raw_ns, self.node.wall.last_step_ns or 0)
                if not self.clock.virtual:  # of that one no daemon of this machine speaks
                    self._sources.wall_was_set(before_ns)
        steers = False
        with self._faults.guard("discipline", "look", self._steering_failed):
            steers = self._steering is not None and self._steering.look(self.clock.raw_ns(), set_by_hand)
        stepped |= self.node.slew_began or steers
        now = self.clock.raw_ns()
        if self._member is not None:
            with self._faults.guard("mesh", "turn", self._mesh_failed):
                self._member.turn(now)
        if stepped or now >= self._next_knot_ns:
            self._publish(now)
        # As of the look, not of now: a sleep in between must not be taken for one that was seen.
        self._writer.heartbeat(self._facts.suspended_ns.hi)
        if self._steering is not None and steers:
            with self._faults.guard("discipline", "act", self._steering_failed):
                self._steering.act()  # only now: the bounds that allow for it are out

    def _publish(self, now: int) -> None:
        assert self._writer is not None
        self._next_knot_ns = now + KNOT_PERIOD_NS
        try:
            self._publish_knots(now)
        except Exception as error:
            # Perhaps by what others said: once more without it.
            self._faults.failed("publish", "knot", error)
            with self._faults.guard("publish", "first-hand", self._publish_nothing):
                self._mesh_failed()
                self._publish_knots(now)
        if self._clockbound is not None:
            with self._faults.guard("clockbound", "publish", self._clockbound.unknown):
                as_of = clockbound.as_of_ns()
                self._clockbound.publish(self.node, self.clock.raw_ns(), virtual=self.clock.virtual, as_of_ns=as_of)

    def _publish_knots(self, now: int) -> None:
        assert self._writer is not None
        knot = self.node.knot(now)
        if knot is not None:
            self._writer.publish(knot)
        self._loop.published(knot, now)
        if self._tap is not None:
            with self._faults.guard("evidence", "look", self._close_tap):
                self._tap.look(now, knot)
        for better in self.node.tightened():
            self._writer.tighten(better)

    def _publish_nothing(self) -> None:
        """Says that nothing is known; if even that fails the heartbeat stays away, and readers see that."""
        if self._writer is None:
            return
        knot = self.node.no_knot(self.clock.raw_ns())
        if knot is not None:
            self._writer.publish(knot)
            self._loop.published(knot, knot.raw_ns)
        self._writer.heartbeat(self._facts.suspended_ns.hi)
        if self._clockbound is not None:
            self._clockbound.unknown()

    def _steering_failed(self) -> None:
        """The steering has failed by its own fault: what it found is restored, and it is over."""
        if self._steering is not None:
            self._steering.abandon(lambda: self._publish(self.clock.raw_ns()))

    def _say(self) -> None:
        """Log lines for what has changed, and the service manager's status text."""
        told = self.told()
        bound = "no bound" if told.uncertainty_ns is None else f"+-{format_duration(told.uncertainty_ns)}"
        heard = sum(row.heard_s is not None for row in told.peers)
        sd_notify.notify(f"STATUS={told.status}, {heard} peers, {bound}")
        state = (told.status, told.reference)
        if state != self._said:
            self._said = state
            self._log.info(told.status, reference=told.reference, bound=bound)
        self._changes.say(told.problems)


@contextlib.contextmanager
def locked(runtime: Path) -> Any:
    """Holds the runtime directory, made if need be.

    Raises:
        StartError: it can't be made, or another daemon has it.
    """
    try:
        runtime.mkdir(mode=0o755, parents=True, exist_ok=True)
        lock: TextIO = (runtime / "skewd.lock").open("a+")
    except OSError as error:
        raise StartError(
            f"the runtime directory {runtime} can't be used: {error.strerror}; choose another with [node] runtime_dir"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read(32).strip() or "unknown"
            raise StartError(
                f"another skewd (pid {holder}) runs in {runtime}; stop it, or choose another [node] runtime_dir"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _over(pause: asyncio.Future[None]) -> None:
    if not pause.done():
        pause.set_result(None)


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task})


async def serve(config: Config, clock: NodeClock, ready: Ready, stop: asyncio.Event, load: Load | None = None) -> None:
    """Runs a daemon until ``stop`` is set.

    Args:
        ready: gets the addresses once everything listens.
        load: reads the configuration again, on SIGHUP.
    """
    daemon = Daemon(config, clock)
    async with daemon.running() as addresses, _reloading(daemon, load):
        sd_notify.notify(f"READY=1\nMAINPID={os.getpid()}")
        ready(addresses)
        stopping = asyncio.create_task(stop.wait(), name="skewd-stop")
        done, _ = await asyncio.wait({stopping, daemon.ticker}, return_when=asyncio.FIRST_COMPLETED)
        sd_notify.notify("STOPPING=1")
        await _cancelled(stopping)
        if daemon.ticker in done:
            daemon.ticker.result()  # a fault of ours: end loudly, and be restarted


@contextlib.asynccontextmanager
async def _reloading(daemon: Daemon, load: Load | None) -> AsyncIterator[None]:
    """Reads the configuration again whenever SIGHUP comes; several that come together count once."""
    if load is None:
        yield
        return
    hung_up, loop = asyncio.Event(), asyncio.get_running_loop()

    async def reload_forever() -> None:
        while True:
            await hung_up.wait()
            hung_up.clear()
            await daemon.reload(load)

    task = asyncio.create_task(reload_forever(), name="skewd-reload")
    loop.add_signal_handler(signal.SIGHUP, hung_up.set)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        await _cancelled(task)


def run(config: Config, clock: NodeClock, ready: Ready, load: Load | None = None) -> int:
    """Runs until SIGINT or SIGTERM; the exit code: 0, or 1 when it could not start (said on standard error)."""

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        await serve(config, clock, ready, stop, load)

    try:
        asyncio.run(main())
    except (StartError, OSError, ValueError) as error:
        aloud(str(error))
        return 1
    return 0
