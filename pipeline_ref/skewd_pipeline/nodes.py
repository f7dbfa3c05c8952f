"""Five virtual nodes, each with a clock, a daemon, sidecars and a stage of its own.

Each node is what a host would be: its own wall clock (a page that all its processes read), its own raw clock with an
epoch of its own, its own ``skewd run``, a ``skewd sidecar`` for each mode that has one, its own stage. They share a
kernel and a loopback, and nothing else: no process of a node is told how far its clock is off. Only
:meth:`Nodes.step` knows, as the one hand on the pages.

The mesh has the reference's address as every other node's one peer; the daemons also speak in-band, over the
pipeline's own ZeroMQ and Aeron hops, through an ipc socket that the stage connects to. In-band only (``inband.py``) the
mesh has no UDP and no peer's address: what the stages and the run's broker carry is all there is.

Limits: everything lives in one directory with a short path (a Unix socket's path must have less than 108 bytes);
nodes settle within ``SETTLE_LIMIT_S`` or the run ends with what the daemon says of itself.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp

from skewd.clock import HostClock, VirtualPage
from skewd.kernel_clock import frequency_of
from skewd.keys import generate_key_file
from skewd_pipeline import inband
from skewd_pipeline.children import Child, ChildFailed, Children
from skewd_pipeline.inband import InBand
from skewd_pipeline.plan import truth_ns
from skewd_pipeline.results import STAGES

OBSERVERS_NICENESS = 10
"""Five nodes share this machine's cores. On machines of their own, other nodes' sidecars would not take the core away
from a stage in the middle of a message, so here they stand back; what they cost is measured unpaced, beside."""

MESH_INTERVAL = "200ms"
SETTLE_LIMIT_S = 120.0
SETTLED_UNCERTAINTY_NS = 1_000_000
POLL_S = 0.05
STATUS_LIMIT_S = 20.0
LOOKS_LIKE_A_STEP_NS = 1_000_000
"""A daemon looks at its clock eight times a second. A step of less than this may be a slew to it, and its bound follows
without a new era: it was surely looked at, and all is narrow again, ``SLEW_TOLD_S`` later."""

SLEW_TOLD_S = 2.0
EPOCH_STEP_NS = 3_600_000_000_007
"""The nodes' raw clocks lie this far apart, so that readings of two can never be mistaken for one clock's."""


@dataclass(slots=True)
class NodeParts:
    """What belongs to one node."""

    name: str
    directory: Path
    page: VirtualPage
    config: Path
    link: str
    daemon: Child | None = None
    sidecars: dict[str, Child] = field(default_factory=dict)
    stage: Child | None = None
    exporters: dict[str, str] = field(default_factory=dict)
    socket: str = ""


def node_toml(
    name: str,
    directory: Path,
    *,
    key: Path,
    peers: Sequence[str],
    reference: str,
    link: str,
    only: InBand | None = None,
) -> str:
    """A node's configuration. JSON's strings and lists of strings are TOML's too."""
    # A chain of nodes has one path to each, and in this experiment nobody lies.
    mesh = ['listen = "127.0.0.1:0"'] if only is None else ['listen = "off"', "liars = 0"]
    lines = [
        "[node]",
        f"name = {json.dumps(name)}",
        f"runtime_dir = {json.dumps(str(directory))}",
        f"state_dir = {json.dumps(str(directory))}",
        "[mesh]",
        *mesh,
        f"key_file = {json.dumps(str(key))}",
        f"peers = {json.dumps(list(peers))}",
        f'interval = "{MESH_INTERVAL}"',
        f"reference = {json.dumps(reference)}",
        "[[link]]",
        'transport = "zmq"',
        f"address = {json.dumps(link)}",
        *([] if only is None else only.link_lines()),
        "[sidecar]",
        'grpc = "off"',
        'http = "127.0.0.1:0"',
        'stamps = "wall"',
        "[metrics]",
        'listen = "127.0.0.1:0"',
    ]
    return "\n".join(lines) + "\n"


class Nodes:
    """All five. ``directory`` must exist, be empty and be removed by whoever made it.

    Args:
        drift_ppb: of the skewed node's oscillator. Until :meth:`steer` says otherwise its (emulated) kernel makes up
            for it, so that the wall clock stands still relative to the others'.
    """

    def __init__(self, directory: Path, children: Children, *, skewed: str, reference: str, drift_ppb: int = 0) -> None:
        self.directory = directory
        self.skewed = skewed
        self.reference = reference
        self._children = children
        self._key = directory / "mesh.key"
        generate_key_file(self._key)
        self.only: InBand | None = None
        """How the nodes hear each other where that is in-band only; to be set before the clocks are started."""
        self.parts: dict[str, NodeParts] = {}
        for number, name in enumerate(STAGES):
            home = directory / name
            home.mkdir()
            drifts = drift_ppb if name == skewed else 0
            page = VirtualPage.create(
                home / "page", epoch_ns=(number + 1) * EPOCH_STEP_NS, drift_ppb=drifts, steerable=drifts != 0
            )
            if drifts:
                page.adjust(frequency=frequency_of(-drifts))
            self.parts[name] = NodeParts(name, home, page, home / "node.toml", f"ipc://{home}/link.sock")

    # -- starting ------------------------------------------------------------------------------------------------

    async def start_clocks(self, collectors: Mapping[str, str], *, progress: Callable[[str], None]) -> None:
        """Starts daemons and sidecars and waits until all are ready.

        Args:
            collectors: by mode, where that mode's sidecars forward to; for ``off``, which has none, where the stages
                export to themselves (OTLP/HTTP).

        Raises:
            ChildFailed: something did not start.
        """
        reference = self.parts[self.reference]
        self._configure(reference, [])
        await self._start_daemon(reference)
        ready = await self._children.ready(_running(reference.daemon))
        reference.socket = str(ready["socket"])
        for parts in self.parts.values():
            if parts is not reference:
                self._configure(parts, [str(ready["mesh"])] if self.only is None else [])
                await self._start_daemon(parts)
        beside = {mode: address for mode, address in collectors.items() if mode != "off"}
        progress(f"starting {len(STAGES)} daemons and {len(STAGES) * len(beside)} sidecars")
        for parts in self.parts.values():
            for mode, address in beside.items():
                parts.sidecars[mode] = await self._start_sidecar(parts, mode, address)
        for parts in self.parts.values():
            ready = await self._children.ready(_running(parts.daemon))
            parts.socket = str(ready["socket"])
        for parts in self.parts.values():
            if "off" in collectors:
                parts.exporters["off"] = collectors["off"]
            for mode, sidecar in parts.sidecars.items():
                ready = await self._children.ready(sidecar)
                parts.exporters[mode] = f"http://{ready['http']}"

    async def start_stages(
        self, *, items: Path, model: str | None, stamp_offset_ns: int = 0, max_age_ns: int | None = None
    ) -> None:
        """Starts the stages, each with its node's exporters, and waits until all are ready.

        Args:
            items: the file with the items and their expected labels.
            stamp_offset_ns, max_age_ns: of the skewed node's stage (see ``stage_orders.py``).

        Raises:
            ChildFailed: one did not start.
        """
        for parts in self.parts.values():
            config = parts.directory / "stage.json"
            config.write_text(
                json.dumps(
                    {
                        "stage": parts.name,
                        "page": str(parts.page.path),
                        "exporters": parts.exporters,
                        "model": model,
                        "items": str(items),
                        **(
                            {"stamp_offset_ns": stamp_offset_ns, "max_age_ns": max_age_ns}
                            if parts.name == self.skewed
                            else {}
                        ),
                    }
                )
            )
            parts.stage = await self._children.start(
                f"{parts.name}-stage", ("-m", "skewd_pipeline.stages", "--config", str(config))
            )
        for parts in self.parts.values():
            await self._children.ready(_running(parts.stage))

    def _configure(self, parts: NodeParts, peers: Sequence[str]) -> None:
        parts.config.write_text(
            node_toml(
                parts.name,
                parts.directory,
                key=self._key,
                peers=peers,
                reference=self.reference,
                link=parts.link,
                only=self.only,
            )
        )

    async def _start_daemon(self, parts: NodeParts) -> None:
        parts.daemon = await self._children.start(
            f"{parts.name}-daemon",
            ("-m", "skewd", "run", "--config", str(parts.config), "--virtual-clock", f"page={parts.page.path}"),
        )

    async def _start_sidecar(self, parts: NodeParts, mode: str, forward: str) -> Child:
        arguments = (
            *("-m", "skewd", "sidecar", "--config", str(parts.config), "--mode", mode, "--forward", forward),
            *("--virtual-clock", f"page={parts.page.path}"),
        )
        return await self._children.start(f"{parts.name}-sidecar-{mode}", arguments, niceness=OBSERVERS_NICENESS)

    async def connect(self, hops_of: Callable[[str, str, str | None], list[dict[str, Any]]]) -> None:
        """Opens the hops between the stages: every inbox first, then the outboxes towards them.

        Args:
            hops_of: (upstream, downstream, endpoint) gives the hops' configurations without ``daemon_link``;
                endpoint None asks the downstream end to choose one.
        """
        pairs = list(pairwise(STAGES))
        endpoints: dict[str, str | None] = {}
        for upstream, downstream in pairs:
            stage = self.stage(downstream)
            stage.tell({"do": "listen", "hops": self._linked(hops_of(upstream, downstream, None), downstream)})
            answer = await self._children.unless_failed(stage.answer(30, event="listening"))
            endpoints[downstream] = answer["addresses"].get("zmq")
        for upstream, downstream in pairs:
            hops = self._linked(hops_of(upstream, downstream, endpoints[downstream]), upstream)
            self.stage(upstream).tell({"do": "connect", "hops": hops})
        for upstream, _ in pairs:
            await self._children.unless_failed(self.stage(upstream).answer(30, event="connected"))

    def _linked(self, hops: list[dict[str, Any]], node: str) -> list[dict[str, Any]]:
        carries_clocks = {"zmq", "aeron"} if self.only is None else {self.only.transport}
        return [
            {
                **hop,
                "daemon_link": self.parts[node].link if hop["transport"] in carries_clocks else None,
                "stamps": self.only is not None,
            }
            for hop in hops
        ]

    def stage(self, name: str) -> Child:
        """A stage's process."""
        return _running(self.parts[name].stage)

    # -- clocks --------------------------------------------------------------------------------------------------

    def truth_ns(self) -> dict[str, int]:
        """By node, what must be added to its wall clock to reach the reference's. Nobody else knows."""
        now = HostClock().raw_ns()
        return truth_ns({name: parts.page.deviation_ns(now) for name, parts in self.parts.items()}, self.reference)

    def deviates(self) -> tuple[int, int, int]:
        """The skewed node's clock now: the host's raw instant, wall minus host wall there, and its rate in ppb."""
        page, now = self.parts[self.skewed].page, HostClock().raw_ns()
        return now, page.deviation_ns(now), page.rate_ppb()

    def change(self, *, step_ns: int, steer_ppb: int) -> int:
        """Steps and steers the skewed node's clock at once; nobody is told, and nothing is waited for.

        Returns:
            a host raw instant before which nothing had changed. This process may have been kept waiting at any point
            since: from when on the change was complete, only :meth:`deviates`, called after it, can say.
        """
        before_ns = HostClock().raw_ns()
        page = self.parts[self.skewed].page
        if step_ns:
            page.step_to(page.offset_ns + step_ns)
        page.adjust(frequency=frequency_of(steer_ppb))
        return before_ns

    async def step(self, offset_ns: int) -> None:
        """Steps the skewed node's wall clock and waits until its daemon has noticed and has a bound again.

        After a step back, readings that occurred twice are ambiguous by design: the wait is then longer by the
        step's size, as it would be for anyone who wants unambiguous stamps.
        """
        page = self.parts[self.skewed].page
        by_ns = offset_ns - page.offset_ns
        if by_ns == 0:
            return
        await self.settled((self.skewed,))
        before = await self._children.unless_failed(self.status(self.skewed))
        page.step_to(offset_ns)
        again_at = time.monotonic() + abs(by_ns) / 1e9 + POLL_S
        if abs(by_ns) < LOOKS_LIKE_A_STEP_NS:
            await self._children.unless_failed(asyncio.sleep(SLEW_TOLD_S))
            await self.settled((self.skewed,))
        else:
            await self.settled((self.skewed,), after_era=before.get("era", 0))
        await self._children.unless_failed(asyncio.sleep(max(0.0, again_at - time.monotonic())))

    async def settled(self, names: Sequence[str] = STAGES, *, after_era: int | None = None) -> None:
        """Waits until these daemons have a narrow bound (of a later era than ``after_era``).

        Raises:
            ChildFailed: they do not within ``SETTLE_LIMIT_S``; the message has what they say.
        """
        deadline = time.monotonic() + SETTLE_LIMIT_S
        limit_ns = SETTLED_UNCERTAINTY_NS if self.only is None else inband.SETTLED_UNCERTAINTY_NS
        for name in names:
            while True:
                status = await self._children.unless_failed(self.status(name))
                uncertainty = status.get("uncertainty_ns")
                if (
                    status.get("status") == "synchronized"
                    and (name == self.reference or (uncertainty is not None and uncertainty < limit_ns))
                    and (after_era is None or status.get("era", 0) > after_era)
                ):
                    break
                if time.monotonic() > deadline:
                    said = json.dumps({key: status.get(key) for key in ("status", "era", "uncertainty_ns", "messages")})
                    raise ChildFailed(
                        f"the daemon of {name} has no bound below "
                        f"{limit_ns / 1e6:g} ms after {SETTLE_LIMIT_S:.0f} s; it says {said}"
                        f"{_running(self.parts[name].daemon).tail()}"
                    )
                await asyncio.sleep(POLL_S)

    async def status(self, name: str) -> dict[str, Any]:
        """A daemon's own account, from its local API; empty when it does not answer in time."""
        connector = aiohttp.UnixConnector(self.parts[name].socket)
        limit = aiohttp.ClientTimeout(total=STATUS_LIMIT_S)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=limit) as session,
                session.get("http://skewd/v1/status") as response,
            ):
                found: dict[str, Any] = await response.json(content_type=None)
                return found
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return {}


def _running(child: Child | None) -> Child:
    assert child is not None, "started before it is asked"
    return child
