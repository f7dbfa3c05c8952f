"""Isolation is not health: who hears nobody that the configuration names is unsynchronized, and says why everywhere."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skewd import recent, requirements
from skewd.check import judge
from skewd.clock import HostClock, VirtualClock, VirtualPage
from skewd.config import Config, MeshConfig, MetricsConfig, NodeConfig
from skewd.daemon import Daemon
from skewd.keys import generate_key_file
from skewd.node import PEER_GONE_NS
from skewd.problems import CODES, Severity
from skewd.requirements import Asked, Has
from skewd.sources import find
from skewd.status import decode
from skewd.status_view import render_status
from tests.daemon.judges import RunningDaemon, Start, dead_address, starting, utc_source
from tests.daemon.test_node import Clocks, Mesh
from tests.waiting import until, wait_until

MS = 1_000_000
S = 1_000_000_000
FAST = 'interval = "50ms"\n'


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="skd") as name:
        generate_key_file(Path(name) / "key")
        yield Path(name)


@pytest.fixture
def start(short: Path) -> Iterator[Start]:
    with starting(short) as start:
        yield start


@pytest.fixture
def utc() -> Iterator[str]:
    with utc_source() as source:
        yield source


KEYED = f'[mesh]\nkey_file = "KEY"\nlisten = "127.0.0.1:0"\n{FAST}'


def refuses_everybody(daemon: RunningDaemon, code: str, *words: str) -> None:
    """Nobody was told that it is well, and everybody why not."""
    said = daemon.judged()
    assert not said.healthy, said
    assert (said.check, said.waitsync, said.readyz) == (3, 1, 503)
    told = daemon.status
    assert (told["status"], told["offset_ns"], told["uncertainty_ns"]) == ("unsynchronized", None, None)
    (problem,) = [problem for problem in told["problems"] if problem["code"] == code]
    assert problem["severity"] == "critical"
    for word in words:
        for text in (said.check_line, said.waitsync_line, said.readyz_text, problem["text"]):
            assert word in text


@pytest.mark.parametrize("kind", ["a dead address", "a name that does not resolve", "a source besides"])
def test_peers_that_were_never_heard(start: Start, utc: str, kind: str) -> None:
    dead = "no-such-name.invalid:9957" if kind == "a name that does not resolve" else dead_address()
    asked = f'dns = "{dead}"\n' if kind == "a name that does not resolve" else f'peers = ["{dead}"]\n'
    daemon = start("here", f'{utc if kind == "a source besides" else ""}{KEYED}{asked}', virtual="offset=5ms")
    daemon.has_run(2.5)  # long enough to found a timescale of its own, several times
    refuses_everybody(daemon, "peers-unheard", dead)


def test_a_source_that_refuses(start: Start) -> None:
    """With a peer that is heard: it has not what it asks for either."""
    peer = start("peer", f'{KEYED}reference = "peer"\n')
    assert peer.judged().all_well, "its own clock is the reference where the configuration says so by name"
    source = f'[[source]]\ntype = "ntp"\naddress = "{dead_address()}"\n'
    daemon = start("here", f'{source}{KEYED}peers = ["{peer.mesh}"]\nreference = "peer"\n')
    wait_until(lambda: [row for row in daemon.status["peers"] if row["lower_ns"] is not None], "its peer")
    refuses_everybody(daemon, "sources-unheard", "no source has answered yet")


def test_a_key_that_is_wrong_after_a_restart(short: Path, start: Start) -> None:
    """What it remembers is no health; and what was wrong is over when it is."""
    peer = start("peer", f'{KEYED}reference = "peer"\n')
    mine = short / "mine"
    mine.write_bytes((short / "key").read_bytes())
    mine.chmod(0o600)
    text = f'[mesh]\nkey_file = "{mine}"\nlisten = "127.0.0.1:0"\n{FAST}peers = ["{peer.mesh}"]\nreference = "peer"\n'
    daemon = start("here", text)
    wait_until(lambda: daemon.judged().all_well, "its peer")
    daemon.close()
    mine.unlink()
    generate_key_file(mine)
    again = start("here", text)
    wait_until(lambda: "wrong-key" in peer.codes(), "the peer refuses it")
    again.has_run(2)
    refuses_everybody(again, "peers-unheard", peer.mesh)


def test_a_dns_name_that_has_this_node_alone(start: Start, utc: str) -> None:
    """Nobody else is there yet: a source of UTC is enough, and without one there is nothing to compare with."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    alone = f'[mesh]\nkey_file = "KEY"\nlisten = "127.0.0.1:{port}"\ndns = "localhost:{port}"\n{FAST}'
    daemon = start("here", alone, virtual="offset=5ms")
    wait_until(lambda: "peers-none-yet" in daemon.codes(), "the name")
    daemon.has_run(2.5)
    refuses_everybody(daemon, "nothing-to-compare", "nothing to compare this clock with")
    assert "peers-unheard" not in daemon.codes()
    daemon.close()
    sourced = start("here", utc + alone)
    wait_until(lambda: sourced.judged().all_well, "its source")
    assert "peers-none-yet" in sourced.codes()
    assert sourced.status["reference"] == "utc"


def test_an_elected_clock_is_a_reference_while_others_are_there(start: Start) -> None:
    """Two that name no reference: both are well, on the clock of one; and that one is not well alone."""
    first = start("first", KEYED)
    first.has_run(1)
    assert not first.judged().healthy, "it listens, and nobody is there"
    assert "nothing-to-compare" in first.codes()
    second = start("second", f'{KEYED}peers = ["{first.mesh}"]\n', virtual="offset=5ms")
    wait_until(lambda: {first.status["status"], second.status["status"]} == {"synchronized"}, "both")
    wait_until(lambda: first.status["reference"] == second.status["reference"], "one reference")
    assert first.judged().readyz == 200
    second.close()
    wait_until(lambda: first.status["status"] == "holdover", "holdover")
    told = first.status
    assert told["lower_ns"] < 0 < told["upper_ns"], "what the other goes by now drifts away"
    before = told["uncertainty_ns"]
    wait_until(lambda: first.status["uncertainty_ns"] > before, "more of it")


def test_a_list_with_this_nodes_own_address_is_no_row_of_refusals(start: Start) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    peer = start("peer", f'{KEYED}reference = "peer"\n')
    own = f"127.0.0.1:{port}"
    text = KEYED.replace("127.0.0.1:0", own)
    daemon = start("here", f'{text}peers = ["{own}", "localhost:{port}", "{peer.mesh}"]\nreference = "peer"\n')
    wait_until(lambda: daemon.judged().all_well, "its peer")
    wait_until(lambda: len(_subjects(daemon, "own-address")) == 2, "both are recognized, by number and by name")
    assert _subjects(daemon, "own-address") == {own, f"localhost:{port}"}
    assert CODES["own-address"].severity is Severity.INFO
    before = daemon.status["links"][0]["counters"]
    wait_until(
        lambda: daemon.status["links"][0]["counters"]["requests"] > before["requests"] + 30, "a second of requests"
    )
    assert daemon.status["links"][0]["counters"]["own_message"] == before["own_message"] <= 8
    assert "peer-unheard" not in daemon.codes()
    screen = render_status(decode(daemon.status))
    assert "own_message" not in screen
    assert f"{own} of [mesh] peers is this node itself, and is not asked" in screen


def test_a_node_of_which_nothing_is_asked_and_that_finds_nothing(start: Start) -> None:
    daemon = start("here", "", virtual="offset=5ms")  # on a virtual clock nothing is looked for
    said = daemon.judged()
    assert not said.healthy
    assert (said.check, said.waitsync, said.readyz) == (3, 2, 503)
    for text in (said.check_line, said.readyz_text):
        assert "there is nothing to compare this clock with" in text


def test_the_daemonset_as_it_is_shipped_where_its_name_does_not_resolve(short: Path, start: Start) -> None:
    shipped = (Path(__file__).parents[2] / "deploy" / "kubernetes" / "daemonset.yaml").read_text()
    config = textwrap.dedent(shipped.partition("skewd.toml: |\n")[2].partition("---")[0])
    config = config.replace("/etc/skewd-mesh/mesh.key", f"{short}/key").replace("0.0.0.0:9957", "127.0.0.1:0")
    assert "dns = " in config
    daemon = start("here", config.replace(".skewd.svc:", ".invalid:"), virtual="offset=5ms")
    daemon.has_run(5)  # it would have founded a timescale after three
    refuses_everybody(daemon, "peers-unheard", "skewd-peers.invalid:9957")


def _subjects(daemon: RunningDaemon, code: str) -> set[str]:
    return {problem["subject"] for problem in daemon.status["problems"] if problem["code"] == code}


def test_one_of_two_peers_is_dead(start: Start) -> None:
    peer, dead = start("peer", f'{KEYED}reference = "peer"\n'), dead_address()
    daemon = start("here", f'{KEYED}peers = ["{peer.mesh}", "{dead}"]\nreference = "peer"\n')
    wait_until(lambda: daemon.judged().all_well, "its peer")
    wait_until(lambda: _subjects(daemon, "peer-unheard") == {dead}, "who is dead")
    assert "peers-unheard" not in daemon.codes()


# -- in this process, where a minute may be short ------------------------------------------------------------------


async def daemon_in(
    stack: contextlib.AsyncExitStack, root: Path, name: str, *peers: str, key: str = "key", virtual: bool = True
) -> tuple[Daemon, str]:
    config = Config(
        node=NodeConfig(name=name, runtime_dir=root / name, state_dir=root),
        mesh=MeshConfig(
            listen="127.0.0.1:0",
            peers=peers,
            interval=50 * MS,
            reference="a" if virtual else "auto",
            key_file=root / key,
        ),
        metrics=MetricsConfig(listen=None),
    )
    daemon = Daemon(config, VirtualClock(VirtualPage.create(None)) if virtual else HostClock())
    ready = await stack.enter_async_context(daemon.running())
    return daemon, str(ready["mesh"])


def codes(daemon: Daemon) -> set[str]:
    return {problem["code"] for problem in daemon.status()["problems"]}


async def test_what_is_over_is_told_no_more(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "RECENT_NS", S)
    generate_key_file(short / "other")
    async with contextlib.AsyncExitStack() as stack:
        a, address = await daemon_in(stack, short, "a")
        async with contextlib.AsyncExitStack() as while_it_runs:
            await daemon_in(while_it_runs, short, "b", address, key="other")
            await daemon_in(while_it_runs, short, "a-twin", address)
            twin, _ = await daemon_in(while_it_runs, short, "c", address)
            twin.node.name = "a"
            await until(lambda: {"wrong-key", "duplicate-name"} <= codes(a), "both problems")
        await until(lambda: not {"wrong-key", "duplicate-name"} & codes(a), "them to be over")
        assert a.status()["links"][0]["counters"]["wrong_key"] > 0, "counters count on"


async def test_peers_that_were_heard_and_are_lost(short: Path, utc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """UTC by own sources stays, and no check says OK."""
    monkeypatch.setattr(requirements, "LOST_AT_LEAST_NS", 0)
    from skewd.config import parse_config

    async with contextlib.AsyncExitStack() as stack:
        gone = contextlib.AsyncExitStack()
        _, address = await daemon_in(gone, short, "a")
        text = f'{utc}{KEYED.replace("KEY", str(short / "key"))}peers = ["{address}"]\nreference = "utc"\n'
        text += f'[node]\nname = "b"\nruntime_dir = "{short}/b"\nstate_dir = "{short}"\n[metrics]\nlisten = "off"'
        b = Daemon(parse_config(text.encode(), None, {}).config, HostClock())
        await stack.enter_async_context(b.running())
        loose: dict[str, Any] = {"warning_ns": 10 * S, "critical_ns": 10 * S}
        await until(lambda: judge(b.status(), **loose).code == 0, "all to be well")
        await gone.aclose()
        await until(lambda: "peers-lost" in codes(b), "the loss")
        assert b.status()["status"] == "synchronized"
        said = judge(b.status(), **loose)
        assert said.code == 1
        assert "no peer is heard any more" in said.line


async def test_a_time_daemon_that_was_found_and_goes_unused(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def found(*_: object) -> find.Found:
        return find.Found("chrony", ())

    monkeypatch.setattr(find, "find", found)
    async with contextlib.AsyncExitStack() as stack:
        _, address = await daemon_in(stack, short, "a")
        b, _ = await daemon_in(stack, short, "b", address, virtual=False)
        await until(lambda: "source-found-unused" in codes(b), "it to be said")
        (told,) = [one for one in b.status()["problems"] if one["code"] == "source-found-unused"]
        assert '[[source]] type = "chrony"' in told["remedy"]


# -- pure ----------------------------------------------------------------------------------------------------------


def test_an_elected_clock_is_worth_the_less_the_longer_nobody_is_heard() -> None:
    """Both drift as fast as is declared: what one of them carries on of the other's clock stays within the bound."""
    two = Mesh(Clocks(drift_ppb=-100_000), Clocks(epoch_ns=7 * S, drift_ppb=100_000), reference="auto")
    node = two.nodes["here"]
    two.run(3)
    assert (two.told()["reference"], two.told()["status"]) == ("node:here", "synchronized")
    assert (two.told()["lower_ns"], two.told()["upper_ns"]) == (0, 0)
    lost_at, before = two.true_ns, two.truth()
    two.run(30, exchanges=False)
    told = two.told()
    assert told["status"] == "holdover"
    assert told["lower_ns"] <= two.truth() - before <= told["upper_ns"]
    assert told["upper_ns"] < 10 * MS
    two.true_ns = lost_at + PEER_GONE_NS + 2 * S
    two.run(1, exchanges=False)
    assert (two.told()["status"], two.told()["offset_ns"]) == ("unsynchronized", None)
    assert node.reference_estimate(two.clocks["here"].raw(two.true_ns)) is None


ASKED = Asked("here", "auto", frozenset({"p:1", "q:1"}), meshed=True)


def found_codes(asked: Asked, has: Has) -> list[tuple[str, str]]:
    return [one.identity for one in requirements.problems(asked, has)]


def test_what_is_asked_for_and_lacking() -> None:
    assert found_codes(ASKED, Has()) == [("peers-unheard", "")]
    heard = Has(heard=frozenset({"p:1"}), members=1, silence_ns=0)
    assert found_codes(ASKED, heard) == []
    assert found_codes(ASKED, heard._replace(silent=frozenset({"q:1", "z:1"}))) == [("peer-unheard", "q:1")]
    assert found_codes(ASKED, heard._replace(silence_ns=16 * S)) == [("peers-lost", "")]
    assert found_codes(ASKED._replace(lost_after_ns=20 * S), heard._replace(silence_ns=16 * S)) == []
    assert found_codes(Asked("here", "auto"), Has()) == [("nothing-to-compare", "")]
    assert found_codes(Asked("here", "here"), Has()) == []
    assert found_codes(Asked("here", "auto"), Has(sources=1, found="kernel")) == []
    sources = Asked("here", "auto", sources=3)
    assert found_codes(sources, Has(sources=3)) == [("sources-unheard", "")]
    assert found_codes(sources, Has(sources=3, sources_heard=True)) == []
    assert requirements.blocked(sources, heard=False, sources_enough=False) == "sources-below-minimum"
    assert requirements.blocked(ASKED, heard=False, sources_enough=False) == "peers-unheard"
    assert requirements.blocked(ASKED, heard=True, sources_enough=False) is None
    dns = Asked("here", "auto", dns="all:1", resolved=False, meshed=True)
    assert found_codes(dns, Has()) == [("peers-unheard", "")]
    assert found_codes(dns._replace(resolved=True), Has()) == [("peers-none-yet", ""), ("nothing-to-compare", "")]
    own = Asked("here", "auto", own=frozenset({"h:1"}), meshed=True)
    assert found_codes(own, Has(sources=1)) == [("own-address", "h:1"), ("peers-none-yet", "")]
    unused = heard._replace(sources=1, found="chrony", reference="p")
    assert found_codes(ASKED, unused) == [("source-found-unused", "chrony")]
    for used in (unused._replace(reference="utc"), unused._replace(reference=None), unused._replace(found="kernel")):
        assert found_codes(ASKED, used) == []
    assert found_codes(ASKED._replace(reference="p"), unused) == [], "the configuration names a node"
    assert found_codes(ASKED._replace(keyless=True), heard) == [("keyless-mesh", "")]


def test_at_most_so_many_peers_are_named() -> None:
    many = frozenset(f"10.0.0.{n}:1" for n in range(100))
    asked = ASKED._replace(peers=many | {"p:1"})
    (one,) = requirements.problems(asked, Has())
    assert "and 93 more" in one.text
    rows = requirements.problems(asked, Has(heard=frozenset({"p:1"}), silent=many, members=1, silence_ns=0))
    assert len(rows) == requirements.SHOWN_MAX
    assert "(nor have 92 others)" in rows[-1].text
