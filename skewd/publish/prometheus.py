"""What the daemon knows, as Prometheus metrics.

Metrics are made from the same status that the local API gives, at the moment of the scrape, so that the two can't
disagree and nothing has to be kept up to date between scrapes. Series exist for the peers that are known now, no
others: a departed peer's series goes with it. Names and units follow Prometheus' rules (base units in the name,
``_total`` for counters); intervals are given by both ends, since a bound is no single number.

Limits: as many peers as the status has rows (256), those measured first-hand first. Values are floats of seconds, good
to 1e-16 of their size.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from skewd.bounds.compose import FIRST_HAND
from skewd.bounds.history import Status
from skewd.discipline import State
from skewd.status import DisciplineRow, LoopRow, MeshRow, NodeStatus, PeerRow, SourceRow, decode

Told = NodeStatus | Mapping[str, Any]

SOURCE_STATES = ("truechimer", "falseticker", "unreachable", "pending")


class NodeCollector(Collector):
    """Metrics of one node.

    Args:
        status: gives the status, fresh, as made or as told.
        build: labels of ``skewd_build_info``.
        wall_seconds: this node's wall clock, for timestamps.
    """

    def __init__(self, status: Callable[[], Told], build: dict[str, str], wall_seconds: Callable[[], float]) -> None:
        self._status, self._build, self._wall_seconds = status, build, wall_seconds

    def collect(self) -> Iterable[Metric]:
        told = decode(self._status())
        yield from self._clock(told)
        yield self._problems(told)
        if told.discipline is not None:
            yield from self._discipline(told.discipline)
        yield from self._peers(told.peers)
        if told.mesh is not None:
            yield from self._mesh(told.mesh)
        for name, count, text in (
            ("configured", told.peers_configured, "Addresses of peers that are to be asked, by list, DNS and links."),
            ("heard", told.peers_heard, "Peers that this node has heard itself within 15 minutes."),
            ("bounded", told.peers_bounded, "Those of them on whose clock this node has a bound."),
        ):
            if count is not None:
                yield GaugeMetricFamily(f"skewd_peers_{name}", text, value=float(count))
        yield from self._sources(told.sources)
        yield self._dropped_stamps(told)
        if told.loop is not None:
            yield from self._loop(told.loop)
        eras = CounterMetricFamily(
            "skewd_clock_eras", "Discontinuities of this node's clocks seen, the start included."
        )
        eras.add_metric([], told.era or 0)
        yield eras
        contradictions = CounterMetricFamily(
            "skewd_contradictions", "Times that messages excluded every state the declared limits allow."
        )
        contradictions.add_metric([], told.contradictions)
        yield contradictions
        faults = CounterMetricFamily(
            "skewd_faults", "Faults of skewd's own code that were contained, by the part that failed.", labels=["part"]
        )
        for part, count in told.faults.items():
            faults.add_metric([part], count)
        yield faults
        messages = CounterMetricFamily(
            "skewd_link_messages", "Messages of a link by outcome.", labels=["link", "address", "outcome"]
        )
        for link in told.links:
            for outcome, count in link.counters.items():
                messages.add_metric([link.transport or "", link.address or "", outcome], count)
        yield messages
        if told.config is not None:
            yield GaugeMetricFamily(
                "skewd_config_last_reload_successful",
                "1 if the configuration was in order when it was last read, at the start or on SIGHUP.",
                value=float(told.config.last_reload_successful),
            )
        build = GaugeMetricFamily("skewd_build_info", "What runs here.", labels=list(self._build))
        build.add_metric(list(self._build.values()), 1.0)
        yield build

    @staticmethod
    def _clock(told: NodeStatus) -> Iterable[Metric]:
        # All of one subject have the same labels: in PromQL, a difference of others would be empty.
        for name, value, text in (
            ("offset_seconds", told.offset_ns, "Reference minus this node's wall clock, as applied."),
            ("offset_lower_seconds", told.lower_ns, "Lower end of the bound on the offset."),
            ("offset_upper_seconds", told.upper_ns, "Upper end of the bound on the offset."),
            ("uncertainty_seconds", told.uncertainty_ns, "Largest distance from the offset to either end."),
            ("drift_ratio", told.drift_ppb, "Rate of the offset, seconds per second."),
        ):
            family = GaugeMetricFamily(f"skewd_clock_{name}", text, labels=["reference"])
            if value is not None:
                family.add_metric([told.reference or ""], value / 1e9)
            yield family
        status = GaugeMetricFamily("skewd_clock_status", "1 for the status the clock is in.", labels=["status"])
        for known in Status:
            status.add_metric([known.value], float(told.status == known.value))
        yield status

    @staticmethod
    def _problems(told: NodeStatus) -> Metric:
        """Present problems only; one code is one series, however many subjects it has."""
        family = GaugeMetricFamily(
            "skewd_problem", "1 for each code of a problem that there is now; see skewd status.", labels=["code"]
        )
        for code in sorted({problem.code for problem in told.problems if problem.code}):
            family.add_metric([code], 1.0)
        return family

    @staticmethod
    def _discipline(told: DisciplineRow) -> Iterable[Metric]:
        states = GaugeMetricFamily(
            "skewd_discipline_state", "1 for what becomes of steering this clock.", labels=["state"]
        )
        for known in State:
            states.add_metric([known.value], float(told.state == known.value))
        yield states
        if told.rate_ppb is not None:
            yield GaugeMetricFamily(
                "skewd_discipline_rate_ratio",
                "Rate that the wall clock is steered at against the raw clock, seconds per second.",
                value=told.rate_ppb / 1e9,
            )

    def _peers(self, peers: list[PeerRow]) -> Iterable[Metric]:
        now = self._wall_seconds()
        for name, key, text in (
            ("skewd_peer_offset_seconds", "applied_ns", "Peer's wall clock minus this node's, middle of the bound."),
            ("skewd_peer_offset_lower_seconds", "lower_ns", "Lower end of the bound on the peer's offset."),
            ("skewd_peer_offset_upper_seconds", "upper_ns", "Upper end of the bound on the peer's offset."),
            ("skewd_peer_uncertainty_seconds", "farthest_ns", "Largest distance from the offset to either end."),
            ("skewd_peer_rtt_min_seconds", "rtt_min_ns", "Smallest round trip of the last minute."),
        ):
            family = GaugeMetricFamily(name, text, labels=["peer"])
            for peer in peers:
                value = getattr(peer, key)
                if value is not None:
                    family.add_metric([peer.name or ""], value / 1e9)
            yield family
        exchanged = GaugeMetricFamily(
            "skewd_peer_last_exchange_timestamp_seconds", "When the peer was last heard, Unix time.", labels=["peer"]
        )
        first_hand = GaugeMetricFamily(
            "skewd_peer_first_hand",
            "1 if the bound on the peer rests on own exchanges, 0 if on what others say.",
            labels=["peer"],
        )
        for peer in peers:
            heard_s = peer.age_s if peer.heard_s is None and peer.trust == FIRST_HAND else peer.heard_s
            if heard_s is not None:
                exchanged.add_metric([peer.name or ""], now - heard_s)
            first_hand.add_metric([peer.name or ""], float(peer.trust == FIRST_HAND))
        yield exchanged
        yield first_hand

    def _sources(self, sources: list[SourceRow]) -> Iterable[Metric]:
        now = self._wall_seconds()
        for name, key, scale, text in (
            (
                "offset_seconds",
                "applied_ns",
                1e9,
                "UTC by this source minus this node's clock, middle of the bound.",
            ),
            ("offset_lower_seconds", "lower_ns", 1e9, "Lower end of the bound by this source."),
            ("offset_upper_seconds", "upper_ns", 1e9, "Upper end of the bound by this source."),
            ("uncertainty_seconds", "farthest_ns", 1e9, "Largest distance from the offset to either end."),
            ("rtt_seconds", "rtt_min_ns", 1e9, "Smallest round trip of the last minute."),
            (
                "root_distance_seconds",
                "root_distance_ns",
                1e9,
                "How far from UTC its server is at most, by its word.",
            ),
            ("stratum", "stratum", 1, "Servers between it and a reference clock, by its word."),
        ):
            family = GaugeMetricFamily(f"skewd_source_{name}", text, labels=["source"])
            for source in sources:
                value = getattr(source, key)
                if value is not None:
                    family.add_metric([source.name or ""], value / scale)
            yield family
        heard = GaugeMetricFamily(
            "skewd_source_last_answer_timestamp_seconds",
            "When the source last told something of UTC, Unix time.",
            labels=["source"],
        )
        states = GaugeMetricFamily("skewd_source_state", "1 for the state a source is in.", labels=["source", "state"])
        answers = CounterMetricFamily(
            "skewd_source_answers", "Questions to the source by how they ended.", labels=["source", "outcome"]
        )
        for source in sources:
            if source.age_s is not None:
                heard.add_metric([source.name or ""], now - source.age_s)
            for state in SOURCE_STATES:
                states.add_metric([source.name or "", state], float(source.state == state))
            for outcome, count in source.answers.items():
                answers.add_metric([source.name or "", outcome], count)
        yield from (heard, states, answers)

    @staticmethod
    def _dropped_stamps(told: NodeStatus) -> Metric:
        family = CounterMetricFamily(
            "skewd_stamps_dropped",
            "Stamps of the kernel that could not be believed, so that user space's were used.",
            labels=["by"],
        )
        for link in told.links:
            if (count := link.counters.get("kernel_unusable")) is not None:
                family.add_metric([f"{link.transport} {link.address}"], count)
        for source in told.sources:
            if (count := source.counters.get("kernel_unusable")) is not None:
                family.add_metric([source.name or ""], count)
        return family

    def _loop(self, loop: LoopRow) -> Iterable[Metric]:
        for name, value, text in (
            ("skewd_loop_lag_seconds", loop.lag_s, "Longest wait for the daemon's loop in the last minute or two."),
            ("skewd_publish_age_seconds", loop.publish_age_s, "Time since a bound was last published."),
        ):
            if value is not None:
                yield GaugeMetricFamily(name, text, value=value)
        widths = loop.widths
        if loop.reference_changed_s is not None and widths is not None:
            changed = GaugeMetricFamily(
                "skewd_clock_reference_changed_timestamp_seconds",
                "When the reference, or its epoch, last became another one, Unix time.",
                labels=["reference"],
            )
            changed.add_metric([widths.reference or ""], self._wall_seconds() - loop.reference_changed_s)
            yield changed
        if widths is not None:
            ends = [*(repr(end / 1e9) for end in widths.le_ns), "+Inf"]
            histogram = HistogramMetricFamily(
                "skewd_clock_bound_width_seconds", "Widths of the bounds as published.", labels=["reference"]
            )
            sums = itertools.accumulate(widths.counts)
            buckets = list(zip(ends, map(float, sums), strict=True))
            histogram.add_metric([widths.reference or ""], buckets, sum_value=widths.sum_ns / 1e9)
            yield histogram

    @staticmethod
    def _mesh(mesh: MeshRow) -> Iterable[Metric]:
        for name, value, text in (
            ("skewd_mesh_members", mesh.members, "Members of the mesh whose records are held, this node included."),
            ("skewd_mesh_bounded_members", mesh.bounded, "Other members on whose clock this node has a bound."),
            ("skewd_mesh_agreed", mesh.agreed, "1 if all members name the same reference, 0 if some do not (yet)."),
        ):
            if value is not None:
                yield GaugeMetricFamily(name, text, value=float(value))
        convicted = GaugeMetricFamily(
            "skewd_mesh_convicted", "1 for each member that is convicted of lying about clocks.", labels=["peer"]
        )
        for name in mesh.convicted:
            convicted.add_metric([name], 1.0)
        yield convicted
        yield GaugeMetricFamily(
            "skewd_mesh_disputed",
            "Members that contradict each other while nobody can be named.",
            value=float(len(mesh.disputed)),
        )
        records = CounterMetricFamily(
            "skewd_mesh_records", "Signed records that came, by what became of them.", labels=["outcome"]
        )
        for outcome, count in mesh.records.items():
            records.add_metric([str(outcome)], count)
        yield records
        if mesh.oldest_record_s is not None:
            yield GaugeMetricFamily(
                "skewd_mesh_oldest_record_seconds", "Age of the oldest record held.", value=mesh.oldest_record_s
            )
        epochs = CounterMetricFamily(
            "skewd_mesh_reference_epochs", "Changes of the reference after which published times may have jumped."
        )
        epochs.add_metric([], mesh.epochs or 0)
        yield epochs


def registry(
    status: Callable[[], Told],
    build: dict[str, str],
    wall_seconds: Callable[[], float],
    *,
    process: bool = False,
) -> CollectorRegistry:
    """A registry with the node's metrics and nothing else.

    Args:
        process: with this process's own as well (``process_cpu_seconds_total``, ``process_resident_memory_bytes``).
    """
    made = CollectorRegistry(auto_describe=False)
    made.register(NodeCollector(status, build, wall_seconds))
    if process:
        ProcessCollector(registry=made)
    return made


def exposition(made: CollectorRegistry) -> bytes:
    """The text that a scrape gets."""
    return generate_latest(made)
