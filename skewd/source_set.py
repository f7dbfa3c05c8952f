"""Which sources of UTC are asked, and by whom: opened, closed and, where none is configured, looked for.

A daemon without configuration should still be useful, so it asks what it finds on its own machine: chronyd, ptp4l,
the kernel, in this order, and again every ``FIND_S`` until one makes a claim. What is configured replaces what was
found, also while the daemon runs. Every source hands its proofs to the node; nothing is judged here.

Limits: one source is found, not all: two views of one time daemon would be no majority. Nothing is looked for on a
virtual node, whose machine's time daemons steer another clock, nor while skewd itself steers this one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from skewd import hostclock
from skewd.clock import NodeClock, WallSample
from skewd.config import Config, SourceConfig
from skewd.failures import StartError
from skewd.faults import Faults
from skewd.lean import msgspec
from skewd.node import Node
from skewd.ports import split_address
from skewd.problems import Problem, of_error
from skewd.status import SourceRow
from skewd.utc import Answer

if TYPE_CHECKING:
    from skewd.sources.claim import Claim
    from skewd.sources.local import AnswerLost, LocalSource
    from skewd.sources.memory import Steps
    from skewd.sources.ntp import NtpSource, Resolve
    from skewd.sources.pool import Pool

_NAMED_MAX = 4

FIND_S = 10.0
"""How often a machine without a configured source is searched for one."""


class SourceSet:
    """The sources that are asked. Used within the running event loop.

    Args:
        node: gets what they say.
        clock: this node's clocks.
        log: told when one is found.
        faults: told of a fault of skewd's own in what a source said; that source then begins anew.
        wall_before: where the wall clock stood when the daemon before this one ended.
    """

    def __init__(
        self,
        node: Node,
        clock: NodeClock,
        log: Any,
        faults: Faults | None = None,
        wall_before: WallSample | None = None,
    ) -> None:
        self._node = node
        self._faults = faults or Faults()
        self._clock = clock
        self._log = log
        self._config: Config | None = None
        self._opened: dict[str, NtpSource | LocalSource] = {}
        self._opened_as: dict[str, SourceConfig] = {}
        self._describe: dict[str, Callable[[], dict[str, Any]]] = {}
        self._finder: asyncio.Task[None] | None = None
        self._refusals: tuple[str, ...] = ()
        self._pools: dict[str, Pool] = {}
        self._steps: Steps | None = None
        self._wall_before = wall_before
        self._watch: hostclock.SetWatch | None = None
        self.found: str | None = None

    async def use(self, config: Config, *, search: bool) -> None:
        """Asks the configured sources, and no others; without any, looks for one if ``search`` says so.

        Raises:
            StartError: one can't be had; names it and the fix.
        """
        await self.close(but=config.sources)
        self._config = config
        self._node.reconfigure(config)
        for source in config.sources:
            if source.name not in self._opened:
                await self._open(source)
        if config.source:
            self.found = None
        elif search and self.found is None:
            self._finder = asyncio.create_task(self._find(), name="skewd-find")

    async def close(self, but: tuple[SourceConfig, ...] = ()) -> None:
        """Asks no source any more but these (and the one that was found, where none is configured)."""
        if self._finder is not None:
            self._finder.cancel()
            await asyncio.wait({self._finder})
            self._finder, self._refusals = None, ()
        for name, opened in list(self._opened.items()):
            if self._opened_as[name] not in but:
                del self._opened[name], self._opened_as[name]
                self._describe.pop(name, None)
                self.found = None
                await opened.close()
                for pool in self._pools.values():
                    pool.give_back(name)
        if not self._opened:
            self._pools.clear()
            self._forget_steps()

    def tell_states(self) -> None:
        """Tells the node which of them answer."""
        for source in self._opened.values():
            self._node.on_source_state(source.name, source.state.value)

    def told(self, rows: list[SourceRow]) -> list[SourceRow]:
        """The rows of a status with what only the sources themselves know."""
        return [
            msgspec.structs.replace(
                row,
                **(self._describe[row.name]() if row.name in self._describe else {}),
                answers=dict(self._opened[row.name].answers) if row.name in self._opened else {},
            )
            for row in rows
        ]

    def problems(self, rows: list[SourceRow]) -> list[Problem]:
        """What is wrong with them.

        Args:
            rows: what the node says of each.
        """
        found = []
        for row in rows:
            if row.leap in ("insert", "delete"):
                wrong = f"source {row.name} announces a leap second ({row.leap}) at the end of the UTC day"
                found.append(Problem("source-leap-announced", row.name or "", wrong, ""))
        if {row.type for row in rows if row.state == "truechimer"} == {"kernel"}:
            wrong = "UTC is known from the kernel's maxerror alone: what whoever steers this clock believes"
            remedy = "add [[source]] type = 'ntp', or let chronyd be asked"
            found.append(Problem("kernel-alone", "", wrong, remedy))
        found += self._evidence_problems()
        told = {problem.subject for problem in found if problem.code in ("foreign-step", "source-answer-lost")}
        for one in self._opened.values():
            if one.reason and one.name not in told:
                found.append(of_error("source-failing", one.name, f"source {one.name}: {one.reason}"))
        for refused in self._refusals:
            kind = refused.partition(":")[0]
            found.append(of_error("source-unusable", kind, f"no source of UTC is configured, and {refused}"))
        return found

    def _take(self, name: str, proofs: tuple[tuple[int, int], tuple[int, int]], leap: int, about: Answer) -> None:
        outgoing, incoming = proofs
        with self._faults.guard("source", name, lambda: self._node.forget_source(name)):
            self._node.on_utc(name, [outgoing], [incoming], self._clock.raw_ns(), leap, about)

    def _evidence_problems(self) -> list[Problem]:
        """What keeps the sources from telling UTC, beyond what each says of itself."""
        found: list[Problem] = []
        short = self._node.sources_short
        if short is not None and short[1] > 1:
            heard, needed = short
            silent = [source.name for source in self._node.sources.values() if not source.pair.known]
            shown = ", ".join(silent[:_NAMED_MAX]) + (" and others" if len(silent) > _NAMED_MAX else "")
            text = f"UTC is told by {heard} of the {needed} sources that must agree; not heard: {shown}"
            remedy = "see what each of them says, add sources, or lower [utc] min_sources"
            found.append(Problem("sources-below-minimum", "", text, remedy))
        for opened in self._opened.values():
            if getattr(opened, "waiting", False) and opened.reason:
                text, _, remedy = opened.reason.partition("; ")
                found.append(Problem("foreign-step", opened.name, f"source {opened.name}: {text}", remedy))
            lost: AnswerLost | None = getattr(opened, "lost", None)
            if lost is not None:
                found.append(Problem("source-answer-lost", opened.name, lost.cause, lost.remedy))
        for source in self._node.sources.values():
            if source.doubt is not None:
                text = f"source {source.name}: since the wall clock was stepped it contradicts what was known before"
                found.append(Problem("foreign-step", source.name, text, "its next measurement is waited for"))
        return found

    async def _open(self, source: SourceConfig) -> None:
        if source.type != "ntp":
            try:
                self._open_local(source)
            except (OSError, ValueError) as error:
                raise StartError(f"[[source]] {source.name}: {error}") from None
            return
        if source.address is None:
            raise StartError(f"[[source]] {source.name} has no address; write address = 'host' or 'host:port'")
        from skewd.sources.ntp import NtpSample, NtpSource

        def on_sample(sample: NtpSample) -> None:
            about = Answer(sample.delay_ns, sample.root_distance_ns, sample.stratum)
            self._take(source.name, sample.proofs(), sample.leap, about)

        opened = await NtpSource.open(
            source.name,
            source.address,
            self._clock,
            on_sample,
            source.interval,
            slew_ppb=lambda: self._node.wall.slew_ppb(),
            allow_local=source.allow_local,
            resolve=self._slot(source, source.address) if source.pool else None,
        )
        self._describe[source.name] = opened.describe
        self._opened[source.name], self._opened_as[source.name] = opened, source

    def _slot(self, source: SourceConfig, address: str) -> Resolve:
        """How one of a pool's sources finds the server that it asks."""
        from skewd.sources.ntp import NTP_PORT
        from skewd.sources.pool import Pool

        if address not in self._pools:
            self._pools[address] = Pool(*split_address(address, NTP_PORT), self._node.on_source_replaced)
        pool = self._pools[address]
        return lambda give_up: pool.take(source.name, give_up)

    def wall_was_set(self, since_raw_ns: int, *, disturbed: bool = False) -> None:
        """The wall clock was stepped since a raw instant, as the daemon has seen; or raw was disturbed (suspend)."""
        if self._steps is not None:
            self._look_at_wall(since_raw_ns, disturbed=disturbed)

    def _look_at_wall(self, since_raw_ns: int | None = None, *, disturbed: bool = False) -> None:
        assert self._steps is not None
        stepped = True
        with contextlib.suppress(OSError):  # who tells no more can't say that it was not set
            stepped = self._steps.look(set_since_ns=since_raw_ns, disturbed=disturbed)
        if stepped:
            self._node.on_memory_void()

    def _steps_of_host(self) -> Steps:
        """The steps of the wall clock that this machine's time daemons speak of."""
        from skewd.sources.local import HostWall
        from skewd.sources.memory import Steps

        if self._steps is None:
            watch: hostclock.SetWatch | None = None
            with contextlib.suppress(OSError):
                watch = hostclock.SetWatch()
                asyncio.get_running_loop().add_reader(watch.fileno(), self._look_at_wall)
            self._steps, self._watch = Steps(HostWall(self._clock), watch, self._wall_before), watch
            self._wall_before = None  # what is opened later has this process's own readings to go by
            if self._steps.inherited:
                self._log.warning("the wall clock was stepped while no skewd ran")
                self._node.on_memory_void()
        return self._steps

    def _forget_steps(self) -> None:
        if self._steps is not None:
            if self._watch is not None:
                asyncio.get_running_loop().remove_reader(self._watch.fileno())
            self._steps.close()
            self._steps = self._watch = None

    def _open_local(self, source: SourceConfig) -> None:
        """A source on this machine: see ``sources/local.py``."""
        from skewd.sources.local import LocalSource, Reader

        def on_claim(claim: Claim) -> None:
            about = Answer(None, claim.root_distance_ns, claim.stratum, claim.reference_ns, claim.settled)
            self._take(source.name, claim.proofs(), claim.leap, about)

        assert self._config is not None, "use() comes first"
        limits, directory = self._config.clock, self._config.node.runtime_dir
        read: Reader
        steps = None if source.type == "phc" else self._steps_of_host()
        own = source.allow_local
        if source.type == "chrony":
            from skewd.sources.chrony import ChronyReader

            drift, wander = limits.max_drift_ppm, limits.max_wander_ppb_per_s
            read = ChronyReader(
                source.address, self._clock, directory, drift, wander, steps=steps, allow_local=own
            )
        elif source.type == "kernel":
            from skewd.sources.kernel import KernelReader

            read = KernelReader(self._clock, limits.max_drift_ppm, steps=steps)
        elif source.type == "ptp":
            from skewd.sources.ptp import PtpReader

            read = PtpReader(
                source.address, self._clock, directory, limits.max_drift_ppm, steps=steps, allow_local=own
            )
        else:
            from skewd.sources.phc import PhcReader

            read = PhcReader(source.address or "/dev/ptp0", self._clock)
        opened = LocalSource(source.name, read, on_claim, source.interval)
        self._opened[source.name], self._opened_as[source.name] = opened, source

    async def _find(self) -> None:
        """Without a configured source: the first of chronyd, ptp4l and the kernel that makes a claim, once one does."""
        from skewd.sources.find import find

        assert self._config is not None, "use() comes first"
        limits, directory = self._config.clock, self._config.node.runtime_dir
        said = False
        while True:
            kind, self._refusals = await find(self._clock, directory, limits.max_drift_ppm, limits.max_wander_ppb_per_s)
            if kind is not None:
                break
            if not said:
                found = "; ".join(self._refusals) or None
                self._log.info("no source of UTC is configured, and none was found; looking on", refused=found)
            said = True
            await asyncio.sleep(FIND_S)
        self._refusals = ()
        source = SourceConfig(type=kind)
        self._node.found_source(source)
        self._open_local(source)
        self.found = kind
        self._log.info("no source of UTC is configured; using the one found on this machine", source=kind)
