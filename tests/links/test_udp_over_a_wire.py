"""The UDP link between two network namespaces: the kernel's stamps at both ends, against a virtual clock's truth."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from skewd.bounds.pair import PairBound
from skewd.clock import VirtualPage
from tests.sources.two_namespaces import FAR, FAR_6, NEAR, NEAR_6, Namespaces, two_namespaces
from tests.waiting import LIMIT_S

PROGRAM = str(Path(__file__).parent / "stamped_node.py")
PORT = 9957
EXCHANGES = 150
SETTLED = 20
NEAR_EPOCH_NS = 10**15


@pytest.fixture
def wire() -> Iterator[Namespaces]:
    with two_namespaces() as made:
        yield made


@dataclass
class Run:
    """What the near node learnt: per message its proofs, and the bound's width after each."""

    messages: int
    widths_ns: list[int]
    rtts_ns: list[int]
    counters: dict[str, int]


def measure(wire: Namespaces, scratch: Path, hosts: tuple[str, str], stamps: str) -> Run:
    """One run; asserts that every proof, and the bound after every message, is true."""
    near = VirtualPage.create(scratch / f"near-{stamps}", epoch_ns=NEAR_EPOCH_NS)
    far = VirtualPage.create(scratch / f"far-{stamps}", drift_ppb=30_000, epoch_ns=4 * 10**15)
    listen = [f"[{host}]:{PORT}" if ":" in host else f"{host}:{PORT}" for host in hosts]
    far_node = wire.python(
        wire.far, PROGRAM, "far", str(far.path), listen[1], "-", "0", stamps, log=scratch / f"far-{stamps}.log"
    )
    log = scratch / f"near-{stamps}.log"
    node = wire.python(
        wire.near, PROGRAM, "near", str(near.path), listen[0], listen[1], str(EXCHANGES), stamps, log=log
    )
    said, _ = node.communicate(timeout=LIMIT_S)
    assert node.returncode == 0, log.read_text()
    far_node.terminate()
    far_node.wait(LIMIT_S)
    *rows, counters = [json.loads(line) for line in said.splitlines()]

    def far_at(near_raw_ns: int) -> int:
        return far.at_host_raw(near_raw_ns - NEAR_EPOCH_NS)

    bound = PairBound(max_drift_ppm=200, max_wander_ppb_per_s=20)
    widths, rtts = [], []
    for outgoing, incoming, rtt_ns in rows:
        for sent, received in outgoing:
            assert far_at(sent) <= received + 1, "a message that came before it left"
            assert bound.outgoing(sent, received)
        for sent, received in incoming:
            assert sent <= far_at(received) + 1, "a message that came before it left"
            assert bound.incoming(sent, received)
        now = max([received for _, received in incoming], default=0)
        offset = bound.offset(now)
        if offset is None:
            continue
        assert offset.lo - 1 <= far_at(now) - now <= offset.hi + 1
        widths.append(offset.width)
        if rtt_ns is not None:
            rtts.append(rtt_ns)
    return Run(len(rows), widths[SETTLED:], rtts, counters)


@pytest.mark.long
@pytest.mark.parametrize("hosts", [(NEAR, FAR[0]), (NEAR_6, FAR_6)], ids=["ipv4", "ipv6"])
def test_kernel_stamps_at_both_ends_are_true_and_narrower_than_user_space_s(
    wire: Namespaces, tmp_path: Path, hosts: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = measure(wire, tmp_path, hosts, "kernel")
    user = measure(wire, tmp_path, hosts, "user")
    for name in ("kernel_stamped", "kernel_sent", "sharpened"):
        # Almost each message; a busy machine may have had many read too late to be used.
        assert kernel.counters[name] >= SETTLED, (name, kernel.counters)
        assert user.counters[name] == 0
    assert kernel.counters["kernel_gave_none"] == 0
    widths = [statistics.median(run.widths_ns) for run in (kernel, user)]
    rtts = [statistics.median(run.rtts_ns) for run in (kernel, user)]
    with capsys.disabled():
        print(
            f"\n{hosts[1]}: median width {widths[0]:.0f} ns with kernel stamps, {widths[1]:.0f} ns with user space's"
            f" ({widths[0] / widths[1]:.2f}); round trip {rtts[0]:.0f} and {rtts[1]:.0f} ns ({rtts[0] / rtts[1]:.2f})"
        )
    assert widths[0] < widths[1]
