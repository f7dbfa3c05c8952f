"""Bounds over a restart of the daemon: taken up where the clocks are beyond doubt the same, and only there."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from skewd import resume
from skewd.bounds.pair import PairBound
from skewd.clock import VirtualClock, VirtualPage
from skewd.config import ClockConfig, Config, MeshConfig, MetricsConfig, NodeConfig, SourceConfig
from skewd.daemon import Daemon
from skewd.interval import Interval
from skewd.kernel_clock import RawFacts
from skewd.node import Node
from skewd.resume import Kept, KeptPeer
from skewd.state_file import StateFile
from tests.daemon.test_node import SECOND, Clocks, Mesh
from tests.waiting import until

MS = 1_000_000
FACTS = RawFacts("tsc", Interval(0, 200), None, 0)
BOOT = b"b" * 16


def kept(**more: Any) -> Kept:
    given: dict[str, Any] = {
        "node": "a",
        "boot": BOOT,
        "raw_era": 3,
        "clock_source": "tsc",
        "suspended_ns": (0, 200),
        "machine": None,
        "shift_ns": 0,
        "max_drift_ppm": 100,
        "max_wander_ppb_per_s": 10,
        "at_raw_ns": 50 * SECOND,
        "at_wall_ns": 1_700_000_000 * SECOND,
        "peers": (
            resume.KeptPeer("b", b"c" * 16, 1, 100, 10, 49 * SECOND, ((True, 48 * SECOND, 500), (False, SECOND, 100))),
        ),
        "sources": (resume.KeptSource("n", "ntp", "192.0.2.1:123", SECOND, ()),),
    }
    return Kept(**(given | more))


def objection(found: Kept, **more: Any) -> str | None:
    asked: dict[str, Any] = {
        "node": "a",
        "boot": BOOT,
        "facts": FACTS,
        "limits": (100.0, 10.0),
        "now_raw_ns": 60 * SECOND,
    }
    return resume.objection(found, **(asked | more))


def test_it_comes_back_as_it_was() -> None:
    content = resume.encode(kept())
    assert len(content) < 400
    assert resume.decode(content) == kept()


@given(st.data())
def test_damage_is_found(data: st.DataObject) -> None:
    content = bytearray(resume.encode(kept()))
    how = data.draw(st.sampled_from(["flip", "cut", "grow"]))
    if how == "flip":
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    elif how == "cut":
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content += b"\0"
    assert resume.decode(bytes(content)) is None


@pytest.mark.parametrize(
    "wrong",
    [b"", b"skewdbd1", b"x" * 100, bytes(resume.BYTES_MAX + 1)],
)
def test_what_is_no_such_file(wrong: bytes) -> None:
    assert resume.decode(wrong) is None


def test_a_valid_digest_over_something_else_is_refused() -> None:
    import hashlib

    for body in (b"", msgspec.msgpack.encode({"node": "a"}), msgspec.msgpack.encode([1, 2])):
        assert resume.decode(b"skewdbd1" + hashlib.blake2s(body, digest_size=16).digest() + body) is None


@pytest.mark.parametrize(
    "more",
    [
        {"at_raw_ns": (1 << 60) + 1},
        {"raw_era": -1},
        {"max_drift_ppm": float("nan")},
        {"suspended_ns": (-(1 << 63), 0)},
        {"peers": (KeptPeer("b", bytes(16), 1, 100, 10, 0, ((True, 0, (1 << 63) - 1),)),)},
        {"peers": (KeptPeer("b", bytes(16), 1, 100, 10, 0, ((True, -(1 << 63), 0),)),)},
        {"peers": (KeptPeer("b", bytes(16), 1 << 32, 100, 10, 0, ()),)},
        {"peers": (KeptPeer("b", bytes(16), 1, 1e300, 10, 0, ()),)},
    ],
    ids=str,
)
def test_what_no_clock_shows_is_not_taken_up_again(more: dict[str, Any]) -> None:
    # As a version before this one kept it, of a member that said so.
    assert resume.decode(resume.encode(kept(**more))) is None


def test_it_cannot_grow_without_limit() -> None:
    many = tuple(resume.KeptSource("n" * 1_000_000, "ntp", None, 0, ()) for _ in range(2))
    with pytest.raises(ValueError, match="more than"):
        resume.encode(kept(sources=many))
    with pytest.raises(ValueError, match="64 bits"):
        resume.encode(kept(at_raw_ns=1 << 70))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"node": "other"}, "node a"),
        ({"boot": b"z" * 16}, "another boot"),
        ({"facts": RawFacts("hpet", Interval(0, 200), None, 0)}, "clock source from tsc to hpet"),
        ({"facts": RawFacts("tsc", Interval(SECOND, SECOND + 9), None, 0)}, "slept for "),
        ({"facts": RawFacts("tsc", Interval(0, 9), 1, 0)}, "restored or moved"),
        ({"facts": RawFacts("tsc", Interval(0, 9), None, 7)}, "time namespace"),
        ({"limits": (100.0, 11.0)}, "declared limits"),
        ({"now_raw_ns": 49 * SECOND}, "snapshot"),
    ],
)
def test_it_is_used_for_the_same_clocks_only(more: dict[str, Any], says: str) -> None:
    assert objection(kept()) is None
    assert says in str(objection(kept(), **more))


def test_where_the_wall_clock_stood_is_known_on_the_same_raw_clock_only() -> None:
    found = resume.decode(resume.encode(kept(wall_minus_raw=(7 * SECOND, 7 * SECOND + 200))))
    assert found is not None
    stood = resume.wall_before(found, boot=BOOT, now_raw_ns=60 * SECOND)
    assert stood is not None
    assert (stood.raw_ns, stood.wall_minus_raw) == (50 * SECOND, Interval(7 * SECOND, 7 * SECOND + 200))
    assert resume.wall_before(found, boot=b"z" * 16, now_raw_ns=60 * SECOND) is None
    assert resume.wall_before(found, boot=BOOT, now_raw_ns=49 * SECOND) is None
    before_this_version = resume.decode(resume.encode(kept()))
    assert resume.wall_before(before_this_version, boot=BOOT, now_raw_ns=60 * SECOND) is None


def test_a_raw_era_is_never_used_for_two_clocks() -> None:
    def era(found: Kept | None, facts: RawFacts = FACTS, now: int = 60 * SECOND) -> int:
        return resume.first_raw_era(found, boot=BOOT, facts=facts, now_raw_ns=now)

    slept = RawFacts("tsc", Interval(2 * SECOND, 2 * SECOND + 9), None, 0)
    assert era(kept()) == 3
    assert era(kept(), slept) == 4
    assert era(kept(), now=0) == 4
    assert era(None) == era(kept(boot=b"old" * 5)) == 1
    assert era(None, slept) not in (1, 2, 3, 4)


def test_leap_seconds_come_at_the_end_of_months() -> None:
    june, july = 1_719_791_990 * SECOND, 1_719_792_010 * SECOND  # around 2024-07-01
    assert resume.may_have_leapt(june, july)
    assert not resume.may_have_leapt(june - 9 * SECOND, june)
    assert resume.may_have_leapt(june, 1 << 80)


@given(st.integers(-80_000, 80_000), st.integers(0, 1_000))
def test_a_filter_resumes_nearly_without_loss(drift_ppb: int, seed: int) -> None:
    import random

    choose = random.Random(seed)

    def filter_() -> PairBound:
        return PairBound(max_drift_ppm=200, max_wander_ppb_per_s=20)

    def offset(local_ns: int) -> int:
        return 7 * MS + local_ns * drift_ppb // SECOND

    first = filter_()
    for second in range(1, 40):
        sent = second * SECOND
        first.outgoing(sent, sent + offset(sent) + choose.randrange(300_000))
        received = sent + 10_000 + choose.randrange(300_000)
        left = received - choose.randrange(10_000)
        first.incoming(left + offset(left), received)
    second_ = filter_()
    assert second_.resume(first.proofs())
    assert len(first.proofs()) <= 24
    for proof in first.proofs():
        true_ns = offset(proof.local_ns)
        assert proof.limit_ns >= true_ns if proof.upper else proof.limit_ns <= true_ns + 1
    for at in (40 * SECOND, 100 * SECOND, 30 * SECOND):
        before, after = first.offset(at), second_.offset(at)
        assert before is not None
        assert after is not None
        assert after.contains(offset(at))
        assert after.width <= before.width * 1.1 + 20
    assert filter_().resume([]) is True


def test_a_restarted_node_knows_its_peer_as_well_as_before() -> None:
    mesh = Mesh(Clocks(epoch_ns=77 * SECOND, drift_ppb=30_000, wall_ahead_ns=5 * MS), Clocks(drift_ppb=-20_000))
    mesh.run(60)
    before = mesh.nodes["here"].peer_estimate("there", mesh.clocks["here"].raw(mesh.true_ns))
    assert before is not None
    kept_then = mesh.nodes["here"].keep(FACTS, mesh.clocks["here"].raw(mesh.true_ns))
    decoded = resume.decode(resume.encode(kept_then))
    assert decoded is not None

    def restarted(found: Kept | None) -> int:
        mesh.nodes["here"] = Node(
            mesh.nodes["here"].config,
            boot=mesh.nodes["here"].boot,
            first=mesh.clocks["here"].sample(mesh.true_ns),
            virtual=False,
        )
        if found is not None:
            mesh.nodes["here"].resume(found)
        assert mesh.nodes["here"].peer_estimate("there", mesh.clocks["here"].raw(mesh.true_ns)) is None
        mesh.exchange()
        mesh.run(1, exchanges=False)
        estimate = mesh.nodes["here"].peer_estimate("there", mesh.clocks["here"].raw(mesh.true_ns))
        assert estimate is not None
        assert estimate.bound.contains(mesh.truth())
        return estimate.drift_ppb.width

    mesh.run(5, exchanges=False)
    fresh = restarted(None)
    resumed = restarted(decoded)
    assert mesh.nodes["here"].contradictions == 0
    assert resumed < before.drift_ppb.width * 3 < fresh
    # The peer itself is another clock by now: nothing of the old bound is used.
    other = msgspec.structs.replace(
        decoded, peers=tuple(msgspec.structs.replace(peer, raw_era=9) for peer in decoded.peers)
    )
    assert restarted(other) > fresh // 2


def test_utc_is_resumed_at_once_from_the_source_that_is_still_configured() -> None:
    clocks = Clocks(epoch_ns=SECOND, drift_ppb=10_000)
    address = "192.0.2.1:123"

    def node(where: str = address, true_ns: int = 0) -> Node:
        config = Config(node=NodeConfig(name="a"), source=(SourceConfig(type="ntp", name="n", address=where),))
        return Node(config, boot=BOOT, first=clocks.sample(true_ns), virtual=False)

    first = node()
    utc = 1_700_000_000 * SECOND
    for second in range(1, 30):
        at = second * SECOND
        first.on_wall(clocks.sample(at))
        first.on_utc(
            "n", [(clocks.raw(at), utc + at + 40_000)], [(utc + at + 50_000, clocks.raw(at + 90_000))], clocks.raw(at)
        )
    later = 40 * SECOND
    found = resume.decode(resume.encode(first.keep(FACTS, clocks.raw(30 * SECOND))))
    assert found is not None
    second_ = node(true_ns=later)
    second_.resume(found)
    estimate = second_.reference_estimate(clocks.raw(later))
    assert estimate is not None
    assert estimate.bound.contains(utc + later - clocks.wall(later))
    assert estimate.bound.width < 1 * MS
    assert second_.status(clocks.raw(later))["status"] == "synchronized"  # heard 11 s ago, asked every 16 s
    elsewhere = node("192.0.2.2:123", later)
    elsewhere.resume(found)
    assert elsewhere.reference_estimate(clocks.raw(later)) is None


BASIS = "tsc A CPU m1 6.18"
NTP = SourceConfig(type="ntp", name="n", address="192.0.2.1:123")


def priors(found: Kept, **more: Any) -> dict[resume.KeptSource, resume.DriftPrior]:
    asked: dict[str, Any] = {"node": "a", "boot": b"2" * 16, "limits": (100.0, 10.0), "basis": BASIS}
    return resume.drift_priors(found, **(asked | more))


@pytest.mark.parametrize("off_s", [10, 600])
@pytest.mark.parametrize("sign", [1, -1])
def test_after_a_reboot_the_drift_is_known_as_far_as_it_may_have_wandered(off_s: int, sign: int) -> None:
    """Off, the crystal wanders at its limit all the while; the new boot's raw clock begins anywhere."""
    utc = 1_700_000_000 * SECOND

    def node() -> Node:
        config = Config(node=NodeConfig(name="a"), source=(NTP,))
        return Node(config, boot=BOOT, first=Clocks().sample(0), virtual=False)

    def answer(asked: Node, clocks: Clocks, at: int, utc_at: int) -> None:
        raw = clocks.raw(at)
        asked.on_wall(clocks.sample(at))
        asked.on_utc("n", [(raw, utc_at + 4 * MS)], [(utc_at + 4 * MS, raw + 9 * MS)], raw + 9 * MS)

    before, first = Clocks(epoch_ns=SECOND, drift_ppb=30_000), node()
    for second in range(0, 4_000, 16):
        answer(first, before, second * SECOND, utc + second * SECOND)
    kept_then = resume.decode(resume.encode(first.keep(FACTS, before.raw(4_000 * SECOND), BASIS)))
    assert kept_then is not None
    # UTC's drift against a raw clock that runs fast is negative.
    after = Clocks(epoch_ns=500 * SECOND, drift_ppb=30_000 + sign * 10 * off_s)
    fresh, told = node(), node()
    told.take_drift(priors(kept_then))
    began = utc + (4_000 + off_s) * SECOND
    widths = []
    for each in (fresh, told):
        answer(each, after, 0, began)
        for second in range(101):
            each.on_wall(after.sample(second * SECOND + MS))
            found = each.reference_estimate(after.raw(second * SECOND))
            assert found is not None
            assert found.bound.contains(began + second * SECOND - after.wall(second * SECOND))
            width = found.bound.width
        widths.append(width)
        assert each.contradictions == 0
    drift = first.reference_estimate(before.raw(4_000 * SECOND))
    assert drift is not None
    known = drift.drift_ppb.width + 2 * 10 * off_s
    assert widths[0] > 20 * MS  # 100 ppm each way, for 100 s
    assert widths[1] < 10 * MS + known * 110 + 2_000_000


def test_another_boots_drift_is_used_for_the_same_oscillator_only() -> None:
    found = heard(NTP).keep(FACTS, 30 * SECOND, BASIS)
    (source,) = priors(found)
    assert source.name == "n"
    for more in (
        {"node": "b"},
        {"boot": BOOT},  # the same boot: its bounds are resumed instead
        {"limits": (100.0, 11.0)},
        {"basis": ""},
        {"basis": "tsc A CPU m2 6.18"},
    ):
        assert priors(found, **more) == {}
    assert priors(heard(NTP).keep(FACTS, 30 * SECOND)) == {}
    smeared = SourceConfig(type="ntp", name="n", address="192.0.2.1:123", smear=True)
    assert priors(heard(smeared).keep(FACTS, 30 * SECOND, BASIS)) == {}
    other = Node(
        Config(node=NodeConfig(name="a"), source=(SourceConfig(type="ntp", name="n", address="192.0.2.9:123"),)),
        boot=BOOT,
        first=Clocks().sample(0),
        virtual=False,
    )
    other.take_drift(priors(found))
    assert other._utc._drift_priors == {}
    prior = resume.DriftPrior(100 * SECOND, Interval(-5, 7))
    assert prior.at(110 * SECOND, 10.0) == Interval(-106, 108)
    assert prior.at(99 * SECOND, 10.0) is None


def heard(source: SourceConfig, *, found: bool = False, leap: int = 0) -> Node:
    """A node that heard this source for half a minute."""
    clocks, utc = Clocks(epoch_ns=SECOND), 1_700_000_000 * SECOND
    config = Config(node=NodeConfig(name="a"), source=() if found else (source,))
    node = Node(config, boot=BOOT, first=clocks.sample(0), virtual=False)
    if found:
        node.found_source(source)
    for second in range(1, 30):
        at = second * SECOND
        raw = clocks.raw(at)
        node.on_utc(source.name, [(raw, utc + at + 9_000)], [(utc + at + 9_000, raw + 20_000)], raw, leap)
    return node


def test_a_source_that_was_found_and_one_that_announces_a_leap_are_no_trouble() -> None:
    found = heard(SourceConfig(type="chrony"), found=True).keep(FACTS, 30 * SECOND)
    assert [source.address for source in found.sources] == [None]
    assert resume.decode(resume.encode(found)) == found
    ntp = SourceConfig(type="ntp", name="n", address="192.0.2.1:123")
    assert len(heard(ntp).keep(FACTS, 30 * SECOND).sources) == 1
    assert heard(ntp, leap=1).keep(FACTS, 30 * SECOND).sources == ()


def test_a_source_is_another_when_it_is_smeared() -> None:
    def source(smear: bool) -> SourceConfig:
        return SourceConfig(type="ntp", name="n", address="192.0.2.1:123", smear=smear)

    kept_then = resume.decode(resume.encode(heard(source(True)).keep(FACTS, 30 * SECOND)))
    assert kept_then is not None
    for smear in (True, False):
        clocks = Clocks(epoch_ns=SECOND)
        config = Config(node=NodeConfig(name="a"), source=(source(smear),))
        node = Node(config, boot=BOOT, first=clocks.sample(40 * SECOND), virtual=False)
        node.resume(kept_then)
        assert (node.reference_estimate(clocks.raw(40 * SECOND)) is not None) is smear


async def test_a_daemon_takes_up_what_the_one_before_left() -> None:
    with tempfile.TemporaryDirectory(prefix="skr") as name:
        root = Path(name)
        page = root / "b.clock"
        VirtualPage.create(page, offset_ns=5 * MS, epoch_ns=10**15).close()

        def daemon(node: str, *peers: str, wander: int = 10, interval: int = 50 * MS) -> Daemon:
            config = Config(
                node=NodeConfig(name=node, runtime_dir=root / node, state_dir=root),
                mesh=MeshConfig(listen="127.0.0.1:0", peers=peers, interval=interval, reference="a", key="none"),
                metrics=MetricsConfig(listen=None),
                clock=ClockConfig(max_wander_ppb_per_s=wander),
            )
            clock = VirtualPage.open(page) if node == "b" else VirtualPage.create(None)
            return Daemon(config, VirtualClock(clock))

        async def drift_width(of: Daemon) -> int:
            await until(lambda: of.status()["offset_ns"] is not None, "a bound")
            await until(lambda: of.status()["clock"]["slew_ppb"] < 20_000, "its own clocks to be known")
            estimate = of.node.peer_estimate("a", of.clock.raw_ns())
            assert estimate is not None
            assert estimate.bound.contains(-5 * MS)
            return estimate.drift_ppb.width

        async with contextlib.AsyncExitStack() as stack:
            address = (await stack.enter_async_context(daemon("a").running()))["mesh"]
            first = daemon("b", address)
            async with first.running():
                await drift_width(first)

                def known() -> bool:
                    estimate = first.node.peer_estimate("a", first.clock.raw_ns())
                    return estimate is not None and estimate.drift_ppb.width < 250_000

                await until(known, "a narrower drift")
            file = StateFile(root, "b")
            assert file.path.stat().st_mode & 0o777 == 0o600
            again = daemon("b", address, interval=60 * SECOND)  # one exchange
            assert (again.node.boot, again.node.raw_era) == (first.node.boot, first.node.raw_era)
            async with again.running():
                assert await drift_width(again) < 300_000
                assert again.status()["contradictions"] == 0
            # Other declared limits: nothing is used. Damage: neither, and the daemon starts.
            assert not daemon("b", address, wander=11).node._kept
            content = file.read(resume.BYTES_MAX)
            assert content is not None
            file.write(content[:-1] + b"?")
            assert not daemon("b", address).node._kept


@pytest.mark.parametrize("possible", [True, False])
async def test_a_directory_that_is_not_there_is_made_or_its_lack_said(possible: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="skr") as name:
        root = Path(name)
        (root / "file").touch()
        directory = root / ("missing" if possible else "file") / "state"
        config = Config(
            node=NodeConfig(name="a", runtime_dir=root / "a", state_dir=directory),
            mesh=MeshConfig(listen=None),
            metrics=MetricsConfig(listen=None),
        )
        with structlog.testing.capture_logs() as said:
            async with Daemon(config, VirtualClock(VirtualPage.create(None))).running():
                pass
        lines = [line for line in said if line.get("code") == "state-not-kept"]
        if possible:
            assert directory.stat().st_mode & 0o777 == 0o700
            assert StateFile(directory, "a").read(resume.BYTES_MAX) is not None
            assert not lines
        else:
            assert len(lines) == 1
            assert f"make {directory} writable, with room, or choose another [node] state_dir" in lines[0]["remedy"]
