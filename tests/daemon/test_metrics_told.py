"""What operators look for in the metrics of a real daemon: its sources, its peers, its loop, its bounds."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from pathlib import Path
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from skewd.keys import generate_key_file
from skewd.sources.local import OUTCOMES
from tests.cli.test_services import Service
from tests.sources.test_ntp_source import Server, packet
from tests.waiting import LIMIT_S

HEAD = """
[node]
name = "{name}"
runtime_dir = "{run}"
state_dir = "{run}"
[mesh]
listen = "127.0.0.1:0"
key_file = "{key}"
interval = "100ms"
peers = [{peers}]
[metrics]
listen = "127.0.0.1:0"
"""

SOURCE = """
[[source]]
type = "ntp"
name = "{name}"
address = "{address}"
interval = "200ms"
"""

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


def scrape(address: str) -> Samples:
    """Samples by name, then by labels."""
    with urlopen(f"http://{address}/metrics") as answer:
        text = answer.read().decode()
    found: Samples = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name][tuple(sorted(sample.labels.items()))] = sample.value
    return found


async def test_sources_peers_and_the_daemon_itself(tmp_path: Path) -> None:
    key = tmp_path / "mesh.key"
    generate_key_file(key)
    transport, server = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: Server(lambda question, received: [packet(question, received)]), local_addr=("127.0.0.1", 0)
    )
    services: list[Service] = []

    async def start(name: str, peers: str, sources: str) -> dict[str, str]:
        run = tmp_path / name
        run.mkdir()
        file = run / "skewd.toml"
        file.write_text(HEAD.format(name=name, run=run, key=key, peers=peers) + sources)
        services.append(Service("run", "--config", str(file), directory=run))
        return await asyncio.to_thread(services[-1].ready)

    try:
        dead = SOURCE.format(name="dead", address="127.0.0.1:1")
        alive = SOURCE.format(name="alive", address=server.address)
        a = await start("a", "", alive)
        also = SOURCE.format(name="also", address=server.address)
        b = await start("b", f'"{a["mesh"]}", "127.0.0.1:1"', alive + also + dead)
        found: Samples = {}

        def ripe() -> bool:
            nonlocal found
            found = scrape(b["metrics"])
            first = found["skewd_source_offset_seconds"].keys() >= {(("source", "alive"),), (("source", "also"),)}
            failed = found["skewd_source_answers_total"].get((("outcome", "failed"), ("source", "dead")), 0)
            bounded = found["skewd_peers_bounded"].get((), 0) and found["skewd_clock_offset_seconds"]
            offset, widths = found["skewd_clock_offset_seconds"], found["skewd_clock_bound_width_seconds_count"]
            return first and failed > 0 and bool(bounded) and offset.keys() == widths.keys()

        async def look() -> bool:
            return await asyncio.to_thread(ripe)

        async with asyncio.timeout(LIMIT_S):
            while not await look():
                await asyncio.sleep(0.05)
    finally:
        for service in services:
            service.close()
        transport.close()

    here = (("source", "alive"),)
    of = {
        name: found[f"skewd_source_{name}"]
        for name in ("offset_seconds", "offset_lower_seconds", "offset_upper_seconds", "uncertainty_seconds")
    }
    assert len({frozenset(series) for series in of.values()}) == 1, "series of other labels can't be subtracted"
    assert of["offset_lower_seconds"][here] <= of["offset_seconds"][here] <= of["offset_upper_seconds"][here]
    width = of["offset_upper_seconds"][here] - of["offset_lower_seconds"][here]
    assert width / 2 <= of["uncertainty_seconds"][here] + 1e-9 <= width + 2e-9
    assert 0 < found["skewd_source_rtt_seconds"][here] < 60
    assert found["skewd_source_root_distance_seconds"][here] > 0
    assert found["skewd_source_stratum"][here] == 1
    assert abs(found["skewd_source_last_answer_timestamp_seconds"][here] - time.time()) < 120
    dead_too = (("source", "dead"),)
    assert dead_too not in found["skewd_source_last_answer_timestamp_seconds"]
    outcomes = {dict(labels)["outcome"] for labels in found["skewd_source_answers_total"]}
    assert outcomes <= set(OUTCOMES)
    assert found["skewd_source_answers_total"][("outcome", "used"), ("source", "alive")] >= 1
    assert found["skewd_stamps_dropped_total"].keys() >= {(("by", "alive"),), (("by", f"udp {b['mesh']}"),)}

    counts = [found[f"skewd_peers_{what}"][()] for what in ("configured", "heard", "bounded")]
    assert counts == [2, 1, 1]
    there = (("peer", "a"),)
    assert found["skewd_peer_uncertainty_seconds"][there] > 0

    reference = next(iter(found["skewd_clock_offset_seconds"]))
    for name in ("offset_lower_seconds", "offset_upper_seconds", "uncertainty_seconds", "drift_ratio"):
        assert found[f"skewd_clock_{name}"].keys() == {reference}
    assert found["skewd_clock_reference_changed_timestamp_seconds"][reference] <= time.time()
    assert found["skewd_loop_lag_seconds"][()] >= 0
    assert 0 <= found["skewd_publish_age_seconds"][()] < 120
    buckets = found["skewd_clock_bound_width_seconds_bucket"]
    by_end = sorted((float(dict(labels)["le"]), value) for labels, value in buckets.items())
    assert [value for _, value in by_end] == sorted(value for _, value in by_end)
    assert by_end[-1][1] == found["skewd_clock_bound_width_seconds_count"][reference] >= 1
    assert found["skewd_clock_bound_width_seconds_sum"][reference] > 0
