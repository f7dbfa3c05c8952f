"""The cells of the campaign: a configuration x a fault, and what a fail-safe daemon must say there.

The expectation of each cell follows from the contract and not from the program: a node is never `synchronized` with the
truth outside its bound, and neither `skewd check` nor `skewd waitsync` ends with 0, nor `/readyz` with 200, while the
node has not what its configuration asks for. ``EXPECTED`` says for each cell which of four ends it must come to:

- ``ok``: the fault takes nothing away from what was asked for; all judges say so at the end.
- ``refused``: what was asked for is not there; no judge ever says anything else, and the codes tell why.
- ``warned``: there is a bound, and something is lacking; the check does not end with 0, and the codes tell why.
- ``alive``: it goes on, and what it says is true; whether it has a bound is the liar's to decide.

Whatever the end, each look on the way is compared with the truth.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from skewd.config_keys import MeshConfig
from skewd.keys import generate_key_file
from tests.failsafe.lab import HOUR_NS, ROOT, Chronyd, Daemon, Lab, Look, TimeServer, page
from tests.failsafe.machine import Machine

MS = 1_000_000
ME_NS, PEERS_NS = 5 * MS, (-7 * MS, 11 * MS)
"""By how much the clocks of the node and its peers are ahead of UTC."""

NAMES = ("bob", "cyd")
SOURCES = ("127.0.2.1", "127.0.2.2", "127.0.2.3")
PEERS = ("127.0.1.1", "127.0.1.2")
NOWHERE = "192.0.2"
KEYLESS = 'key = "none"\n' if "key" in MeshConfig.__struct_fields__ else ""
"""An older version asks for no word; there a mesh without a key is what it takes by itself."""

CONFIGS = {
    "default": "no configuration; nothing is found",
    "found": "no configuration; a chronyd is found",
    "one source": "one `[[source]]`",
    "three sources": "three `[[source]]`",
    "mesh": "a mesh with a key, peers, no sources",
    "hosts": "a mesh with a key, peers and three sources",
    "daemonset": "`deploy/kubernetes/daemonset.yaml`",
    "keyless": 'a mesh on loopback, `key = "none"`',
    "own clock": "a mesh whose `reference` is this node",
    "link": "a `[[link]]` over ZeroMQ, no UDP",
}
WITH_SOURCES = {"one source": 1, "three sources": 3, "hosts": 3}
MESHES = ("mesh", "hosts", "daemonset", "keyless", "link")


@dataclass
class World:
    """One node with what its configuration names around it.

    Args:
        config: one of ``CONFIGS``.
        machine: whether the node lives on a machine of its own (``machine.py``).
        peers: ``here``, ``refuse`` (nobody listens), ``silent`` (nobody answers), ``nowhere`` (no route), ``named`` (by
            names), ``other key``.
        sources: the same, or how their servers behave (``TimeServer``).
        hostile: whether one peer more is a hostile member; ``hostile_first``: and its clock is the reference.
    """

    lab: Lab
    config: str
    machine: bool = False
    peers: str = "here"
    sources: str = "here"
    hostile: bool = False
    hostile_first: bool = False
    state: str | None = None
    servers: list[TimeServer] = field(default_factory=list)
    others: list[Daemon] = field(default_factory=list)
    chronyd: Chronyd | None = None

    def __post_init__(self) -> None:
        if self.config in ("default", "found"):
            self.machine = True
        self.key = self.lab.root / "mesh.key"
        generate_key_file(self.key)
        self.mounts: dict[str, Path] = {}
        if "named" in (self.peers, self.sources) or self.config == "daemonset":
            self._resolver()
        clock: Any = page(self.lab, "ann", ME_NS)
        if self.machine:
            clock = Machine.create(self.lab.root / "machine", ME_NS)
        if self.config == "found":
            self.chronyd = Chronyd(self.lab, clock)
        count = WITH_SOURCES.get(self.config, 0)
        if count and self.sources not in ("nowhere", "refuse", "named"):
            how = "right" if self.sources == "here" else self.sources
            self.servers = [TimeServer(self.lab, host, how=how) for host in SOURCES[:count]]
        text, environment = self._text("ann", "127.0.0.1", self._addresses(), count)
        allowed = {
            "own clock": {"ann"},
            "hosts": {"utc", "ann", *NAMES},
        }.get(self.config, {"ann", *NAMES} if self.config in MESHES else {"utc"})
        if self.hostile:
            allowed = allowed | {"zed"}
        self.node = Daemon(
            self.lab, "ann", text, clock, frozenset(allowed),
            state=self.state, mounts=self.mounts, environment=environment,
        )  # fmt: skip
        if self.config in MESHES or self.config == "own clock":
            self._others()

    # -- what is written

    def _addresses(self) -> list[str]:
        hosts = {
            "nowhere": [f"{NOWHERE}.{number}" for number in (11, 12)],
            "named": [f"{name}.mesh.example" for name in NAMES],
        }.get(self.peers, list(PEERS))
        addresses = [f"{host}:9957" for host in hosts]
        if self.config == "hosts":
            addresses.append("localhost:9957")  # the same list everywhere: this node itself is in it
        return [*addresses, "127.0.1.9:9957"] if self.hostile else addresses

    def _text(self, name: str, host: str, peers: list[str], sources: int) -> tuple[str, dict[str, str]]:
        metrics = "" if name == "ann" else '[metrics]\nlisten = "off"\n'
        listed = ", ".join(f'"{peer}"' for peer in peers)
        key = f'key_file = "{self.key}"\n'
        environment: dict[str, str] = {}
        if self.config == "link":
            links = ", ".join(f'"tcp://{peer.rpartition(":")[0]}:9958"' for peer in peers)
            text = f'[mesh]\nlisten = "off"\ninterval = "200ms"\n{key}'
            text += f'[[link]]\ntransport = "zmq"\naddress = "tcp://{host}:9958"\npeers = [{links}]\n'
        elif self.config == "daemonset":
            text, environment = _shipped(host, self.key)
        elif self.config == "own clock":
            text = f'[mesh]\nlisten = "{host}:9957"\n{key}interval = "200ms"\nreference = "ann"\n'
            text += f"peers = [{listed}]\n" if name != "ann" else ""
        elif self.config in MESHES:
            key = KEYLESS if self.config == "keyless" else key
            text = f'[mesh]\nlisten = "{host}:9957"\n{key}interval = "200ms"\npeers = [{listed}]\n'
            text += 'reference = "zed"\n' if self.hostile_first else ""
        else:
            text = ""
        where = {
            "nowhere": [f"{NOWHERE}.{number}" for number in (21, 22, 23)],
            "named": ["one.time.example", *SOURCES[:2]] if sources > 1 else ["one.time.example"],
        }.get(self.sources, list(SOURCES))
        if self.sources == "named" and sources > 1 and not self.servers and name == "ann":
            self.servers = [TimeServer(self.lab, server) for server in SOURCES[:2]]
        for number, server in enumerate(where[:sources], 1):
            text += f'[[source]]\ntype = "ntp"\nname = "time-{number}"\naddress = "{server}:123"\ninterval = "1s"\n'
        return text + metrics, environment

    def _others(self) -> None:
        """The peers, where anybody is at home."""
        if self.peers == "silent":
            for host in PEERS:
                self.lab.listen(host, 9957)
        if self.peers in ("refuse", "silent", "nowhere", "named"):
            return
        if self.peers == "other key":
            self.key = self.lab.root / "other.key"
            generate_key_file(self.key)
        hosts = [*PEERS, "127.0.1.9"] if self.hostile else list(PEERS)
        for name, host, offset in zip((*NAMES, "zed"), hosts, (*PEERS_NS, 3 * MS), strict=False):
            asked = ["127.0.0.1:9957", *(f"{other}:9957" for other in hosts if other != host)]
            if self.config == "own clock":
                asked = asked[:1]
            text, environment = self._text(name, host, asked, len(self.servers))
            program = "tests.failsafe.hostile_member" if name == "zed" else "skewd"
            if self.hostile_first:
                environment = {"HOSTILE_RECORDS": "no"}  # records that make no sense would hide what it says itself
            peer = Daemon(
                self.lab, name, text, page(self.lab, name, offset), program=program,
                mounts=self.mounts, environment=environment,
            )  # fmt: skip
            peer.lies = name == "zed"
            self.others.append(peer)

    def _resolver(self) -> None:
        """Name resolution for the node alone: what its hosts file has, and a resolver that never answers."""
        self.lab.listen("127.0.0.53", 53)
        resolver, hosts = self.lab.root / "resolv.conf", self.lab.root / "hosts"
        resolver.write_text("nameserver 127.0.0.53\noptions timeout:30 attempts:5\n")
        dead = self.peers == "named"
        known = "" if dead else "".join(f"{host} skewd-peers.skewd.svc\n" for host in ("127.0.0.1", *PEERS))
        hosts.write_text(f"127.0.0.1 localhost\n{known}")
        self.mounts = {"/etc/resolv.conf": resolver, "/etc/hosts": hosts}

    # -- what is done

    def start(self, *, others: bool = True) -> None:
        """Starts all that there is."""
        if others:
            for other in self.others:
                other.start()
        self.node.start()

    def stranger(self) -> Daemon:
        """Another daemon on this machine, an hour ahead, that nobody asked to join; it asks us."""
        if self.config == "link":
            text = f'[mesh]\nlisten = "off"\n{KEYLESS}interval = "200ms"\n[[link]]\ntransport = "zmq"\n'
            text += 'address = "tcp://127.0.0.9:9958"\npeers = ["tcp://127.0.0.1:9958"]\n'
        else:
            text = f'[mesh]\nlisten = "127.0.0.9:9957"\n{KEYLESS}interval = "200ms"\npeers = ["127.0.0.1:9957"]\n'
        made = Daemon(self.lab, "aaa", text + '[metrics]\nlisten = "off"\n', page(self.lab, "aaa", HOUR_NS))
        made.start()
        return made


def _shipped(host: str, key: Path) -> tuple[str, dict[str, str]]:
    """The DaemonSet's own configuration, as its pods get it; addresses and the key's place are this network's."""
    documents = list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "daemonset.yaml").read_text()))
    (text,) = [one["data"]["skewd.toml"] for one in documents if one["kind"] == "ConfigMap"]
    return str(text), {"SKEWD_MESH__LISTEN": f"{host}:9957", "SKEWD_MESH__KEY_FILE": str(key)}


# -- the faults


@dataclass
class Seen:
    """What a cell came to."""

    looks: list[Look]
    waitsync: int
    notes: list[str] = field(default_factory=list)
    """What was wrong beyond what the looks show."""
    during: tuple[Look, int] | None = None
    """Where the fault passes: what was said while it lasted, and by ``waitsync``."""


def _is_ok(look: Look) -> bool:
    return look.exit == 0 and look.ready == 200 and look.published is not None and look.word == "synchronized"


def _whole(world: World) -> list[Look]:
    return world.node.until(_is_ok, "a node that has all it asks for")


def nothing(world: World, ok: bool) -> Seen:
    """Nothing is wrong: the control."""
    world.start()
    if ok:
        looks = _whole(world)
        # A mesh that has just met may still be settling: what is told is how it is then.
        agreed = "all to name one reference"
        looks += world.node.until(lambda look: _is_ok(look) and "reference-disagreed" not in look.problems, agreed)
    else:
        looks = world.node.watch(20)
    return Seen(looks, world.node.waitsync())


def never_there(world: World, ok: bool) -> Seen:
    """What is configured was never there."""
    world.start()
    # A server that sends us away is asked once.
    once = {server: 1 if server.how == "kiss" else 3 for server in world.servers}
    if ok:
        looks = _whole(world) + world.node.watch(10)
    else:
        looks = world.node.watch(30, lambda: all(one.asked >= once[one] for one in once))
    return Seen(looks, world.node.waitsync())


def lost(world: World, ok: bool) -> Seen:
    """All peers were heard, and die."""
    world.start()
    looks = _whole(world)
    for other in world.others:
        other.kill()
    looks += world.node.until(lambda look: "peers-lost" in look.problems, "the loss to be said")
    return Seen(looks, world.node.waitsync())


def liar_first(world: World, ok: bool) -> Seen:
    """One of three servers is an hour off and answers first."""
    liar, *honest = world.servers
    liar.lie_ns = HOUR_NS
    for server in honest:
        server.how = "silent"
    world.start()
    looks = world.node.watch(20, lambda: liar.answered >= 4 and all(server.asked >= 2 for server in honest))
    notes = [f"before a majority had answered: {look}" for look in looks if look.ok][:1]
    during = looks[-1], world.node.waitsync()
    for server in honest:
        server.how = "right"
    return Seen([*looks, *_whole(world)], world.node.waitsync(), notes, during)


def alone_again(world: World, ok: bool) -> Seen:
    """All is well; the peers die, and the daemon is restarted: what it knew is no reason to be well."""
    world.start()
    _whole(world)
    for other in world.others:
        other.kill()
    world.node.stop()
    world.node.start()
    return Seen(world.node.watch(30), world.node.waitsync())


def liar_again(world: World, ok: bool) -> Seen:
    """All is well; the daemon is restarted, and only the server that lies by now answers."""
    world.start()
    looks = _whole(world)
    world.node.stop()
    liar, *honest = world.servers
    liar.lie_ns = HOUR_NS
    for server in honest:
        server.how = "silent"
    asked = {server: server.asked for server in world.servers}
    world.node.start()
    looks += world.node.watch(20, lambda: all(server.asked >= asked[server] + 2 for server in asked))
    during = looks[-1], world.node.waitsync()
    for server in honest:
        server.how = "right"
    return Seen([*looks, *_whole(world)], world.node.waitsync(), during=during)


def stranger(world: World, ok: bool) -> Seen:
    """A second daemon on the same loopback, an hour ahead, begins to ask."""
    world.start()
    looks = _whole(world) if ok else world.node.watch(3)
    intruder = world.stranger()
    counted: list[int] = []

    def asked_often() -> bool:
        told = intruder.status()
        counted.append(told["links"][0]["counters"]["requests"] if told else 0)
        return counted[-1] >= 40 or world.config in ("default", "found", "one source", "three sources")

    looks += world.node.watch(40, asked_often)
    looks += _whole(world) if ok else []
    return Seen(looks, world.node.waitsync())


def hostile(world: World, ok: bool) -> Seen:
    """A member with a valid key says what can't be."""
    world.start()
    member = world.lab.nodes["zed"]

    def heard() -> bool:
        told = member.status()
        if told is None:
            return not member.alive
        counters = told["links"][0]["counters"]
        return int(counters["requests"] + counters["replies"]) >= 60

    looks = world.node.watch(20, heard)
    looks += world.node.watch(40) if world.hostile_first else _whole(world)
    return Seen(looks, world.node.waitsync())


def step(world: World, ok: bool, *, by_ns: int = 50 * MS) -> Seen:
    """Somebody else sets the wall clock; a chronyd goes on from memory."""
    world.start()
    looks = _whole(world)
    era = world.node.status()["era"]  # type: ignore[index]
    chronyd = world.chronyd
    if chronyd is not None:
        chronyd.rest()
        rested = chronyd.asked
        world.node.watch(1, lambda: chronyd.asked > rested)
    world.node.clock.step_to(world.node.clock.offset_ns + by_ns)
    notes: list[str] = []
    during = None
    # The kernel tells at once; what was told while it did is no lie.
    seen = world.node.watch(6, lambda: True)
    if all(look.status is not None and look.status["era"] == era for look in seen):
        notes.append("the step was never noticed")
    after = [look for look in seen if look.status is None or look.status["era"] != era]
    if chronyd is not None:
        asked = chronyd.asked
        after += world.node.watch(15, lambda: chronyd.asked >= asked + 4)
        if not any("foreign-step" in look.problems for look in after):
            notes.append("no problem foreign-step, and chronyd speaks from before the step")
        during = after[-1], world.node.waitsync()
        chronyd.measure()
        after += world.node.until(
            lambda look: _is_ok(look) and "foreign-step" not in look.problems, "evidence from after the step"
        )
    return Seen([*looks, *after, *_whole(world)], world.node.waitsync(), notes, during)


def away(world: World, ok: bool) -> Seen:
    """The daemon is stopped, somebody else sets the wall clock, and it is started again; chronyd is as before."""
    world.start()
    looks = _whole(world)
    chronyd = world.chronyd
    assert chronyd is not None
    chronyd.rest()
    world.node.stop()
    world.node.clock.step_to(world.node.clock.offset_ns + 50 * MS)
    world.node.start()
    asked = chronyd.asked
    looks += world.node.watch(15, lambda: chronyd.asked >= asked + 4)
    during = looks[-1], world.node.waitsync()
    chronyd.measure()
    asked = chronyd.asked
    looks += world.node.watch(1, lambda: chronyd.asked >= asked + 2)
    return Seen([*looks, *_whole(world)], world.node.waitsync(), during=during)


def suspend(world: World, ok: bool) -> Seen:
    """The machine sleeps for an hour; its battery's clock is 300 ms off; servers that lie are the first to be back."""
    world.start()
    looks = _whole(world)
    era = world.node.status()["clock"]["raw_era"]  # type: ignore[index]
    if world.chronyd is not None:
        world.chronyd.rest()
    if len(world.servers) == 3:
        world.servers[0].lie_ns = HOUR_NS
        for server in world.servers[1:]:
            server.how = "silent"
    assert isinstance(world.node.clock, Machine)
    world.node.clock.sleep(HOUR_NS, ME_NS + 300 * MS)

    def resumed(look: Look) -> bool:
        return look.status is not None and look.status["clock"]["raw_era"] != era

    world.node.until(resumed, "the suspend to be seen")
    notes: list[str] = []
    during = None
    if world.chronyd is not None or len(world.servers) == 3:
        after = world.node.watch(20)
        during = after[-1], world.node.waitsync()
        if world.config != "hosts":
            notes = [f"after the resume, before any evidence: {look}" for look in after if look.ok][:1]
        looks += after
    if world.chronyd is not None:
        world.chronyd.measure()
    for server in world.servers:
        server.how = "right"
    return Seen([*looks, *_whole(world)], world.node.waitsync(), notes, during)


def hung_disk(world: World, ok: bool) -> Seen:
    """The disk takes nothing any more."""
    world.start()
    looks = _whole(world)
    disk = world.node.clock
    assert isinstance(disk, Machine)
    disk.hang_disk(True)
    looks += world.node.watch(15, lambda: disk.disk_waits > 0)
    looks += world.node.watch(25)
    notes = ["the daemon answers nobody while the disk hangs"] if any(look.status is None for look in looks) else []
    waitsync = world.node.waitsync()
    disk.hang_disk(False)
    return Seen(looks, waitsync, notes)


def no_state(world: World, ok: bool) -> Seen:
    """The state directory can't be made."""
    world.start()
    looks = _whole(world) if ok else world.node.watch(20)
    told = looks[-1].status
    assert told is not None
    if not any(world.node.name and "state" in f"{one['text']} {one['remedy']}" for one in told["problems"]):
        return Seen(looks, world.node.waitsync(), ["no problem names the state directory"])
    return Seen(looks, world.node.waitsync())


FAULTS: dict[str, tuple[Callable[[World, bool], Seen], dict[str, Any], str]] = {
    "nothing": (nothing, {}, "nothing is wrong"),
    "no network": (never_there, {"peers": "nowhere", "sources": "nowhere"}, "no route to anybody"),
    "dead peers": (never_there, {"peers": "refuse"}, "nobody listens at the peers' addresses"),
    "silent peers": (never_there, {"peers": "silent"}, "what is sent to the peers is lost"),
    "other key": (never_there, {"peers": "other key"}, "the peers have another mesh key"),
    "lost peers": (lost, {}, "all peers die"),
    "alone again": (alone_again, {}, "all peers die, and the daemon is restarted"),
    "dead sources": (never_there, {"sources": "refuse"}, "no server at the sources' addresses"),
    "silent sources": (never_there, {"sources": "silent"}, "the servers never answer"),
    "refusing sources": (never_there, {"sources": "kiss"}, "the servers answer DENY"),
    "lost servers": (never_there, {"sources": "unsynchronized"}, "the servers say stratum 16"),
    "local servers": (never_there, {"sources": "local"}, "the servers follow their own clocks"),
    "liar first": (liar_first, {}, "of three servers one is an hour off and answers first"),
    "liar again": (liar_again, {}, "the daemon is restarted, and of three servers one lies and answers first"),
    "stranger": (stranger, {}, "a second daemon on loopback, an hour ahead"),
    "hostile member": (hostile, {"hostile": True}, "a member with the key says what can't be"),
    "hostile reference": (
        hostile, {"hostile": True, "hostile_first": True}, "such a member's clock is the reference"
    ),
    "foreign step": (step, {}, "somebody else steps the clock by 50 ms"),
    "small step": (partial(step, by_ns=300_000), {}, "somebody else steps the clock by 0.3 ms"),
    "step while away": (away, {}, "somebody else steps the clock by 50 ms while the daemon is restarted"),
    "suspend": (suspend, {"machine": True}, "the machine sleeps for an hour"),
    "hung disk": (hung_disk, {"machine": True}, "the disk takes nothing any more"),
    "no state": (no_state, {"state": "/dev/null/skewd"}, "the state directory can't be made"),
    "dead resolver": (never_there, {"peers": "named", "sources": "named"}, "no name is resolved"),
}

_UNHEARD, _BELOW = frozenset({"peers-unheard"}), frozenset({"sources-below-minimum|sources-unheard"})
_BAD_SOURCES = ("no network", "dead sources", "silent sources", "refusing sources", "lost servers", "local servers")
_SOURCES = ("one source", "three sources", "hosts")
_SYNCHRONIZED = ("found", "one source", "three sources", "mesh", "hosts", "daemonset", "keyless", "own clock", "link")


@dataclass(frozen=True)
class Expected:
    """How a cell must end: ``ok``, ``refused``, ``warned`` or ``alive``, and the codes that must be told then.

    A code with a ``|`` is either of two.
    """

    end: str
    codes: frozenset[str] = frozenset()


def _expected() -> dict[tuple[str, str], Expected]:
    ok = Expected("ok")
    keyless = Expected("ok", frozenset({"keyless-mesh"}))
    alone = Expected("refused", frozenset({"nothing-to-compare"}))
    cells = {("default", fault): alone for fault in ("nothing", "stranger", "no state")}
    for config in _SYNCHRONIZED:
        right = keyless if config == "keyless" else ok
        for fault in ("nothing", "stranger", "foreign step", "suspend", "hung disk", "no state"):
            cells[config, fault] = right
    cells["found", "small step"] = cells["found", "step while away"] = ok
    cells["mesh", "hostile reference"] = cells["hosts", "hostile reference"] = Expected("alive")
    for config in _SOURCES:
        for fault in _BAD_SOURCES:
            cells[config, fault] = Expected("refused", _BELOW)
    for config in ("three sources", "hosts"):
        cells[config, "liar first"] = cells[config, "liar again"] = ok
    for config in MESHES:
        cells[config, "dead peers"] = cells[config, "no network"] = Expected("refused", _UNHEARD)
        cells[config, "lost peers"] = Expected("warned", frozenset({"peers-lost"}))
        if config != "keyless":
            cells[config, "alone again"] = Expected("refused", _UNHEARD)
            cells[config, "other key"] = Expected("refused", _UNHEARD)
        if config != "link":
            cells[config, "silent peers"] = Expected("refused", _UNHEARD)
            cells[config, "dead resolver"] = Expected("refused", _UNHEARD)
        cells[config, "hostile member"] = keyless if config == "keyless" else ok
    del cells["daemonset", "no network"], cells["daemonset", "dead peers"], cells["daemonset", "hostile member"]
    cells["daemonset", "dead peers"] = Expected("refused", _UNHEARD)
    cells["hosts", "no network"] = Expected("refused", _UNHEARD | _BELOW)
    cells["own clock", "hostile member"] = ok
    cells["keyless", "no network"] = Expected("refused", _UNHEARD)
    del cells["keyless", "no network"], cells["keyless", "dead resolver"]  # on loopback there is neither
    cells["one source", "dead resolver"] = Expected("refused", _BELOW)
    cells["three sources", "dead resolver"] = ok
    return cells


EXPECTED = _expected()


@dataclass(frozen=True)
class Result:
    """A cell's outcome: what its last look said, and why it is not fail-safe, if it is not."""

    config: str
    fault: str
    expected: Expected
    last: Look | None
    waitsync: int | None
    faults: tuple[str, ...]
    during: tuple[Look, int] | None = None


def run(config: str, fault: str) -> Result:
    """Plays one cell."""
    expected = EXPECTED[config, fault]
    play, options, _ = FAULTS[fault]
    with Lab() as lab:
        world = World(lab, config, **options)
        try:
            seen = play(world, expected.end != "refused")
            code = world.node.stop()
        except AssertionError as error:
            last = world.node.look() if world.node.alive else None
            return Result(config, fault, expected, last, None, (str(error),))
        except subprocess.TimeoutExpired:
            return Result(config, fault, expected, None, None, ("it does not end when it is told to",))
        wrong = judged(expected, seen)
        if code:
            wrong.append(f"it ended with {code} when it was told to end: {world.node.log.read_text()[-500:]}")
        return Result(config, fault, expected, seen.looks[-1], seen.waitsync, tuple(dict.fromkeys(wrong)), seen.during)


def judged(expected: Expected, seen: Seen) -> list[str]:
    """What of it is not as it must be."""
    wrong = [lie for look in seen.looks for lie in look.wrong][:3] + seen.notes
    last = seen.looks[-1]
    if expected.end == "refused":
        wrong += [f"it has not what it asks for, and says: {look}" for look in seen.looks if look.ok][:1]
        if seen.waitsync == 0:
            wrong.append("it has not what it asks for, and waitsync ends with 0")
        if last.word != "unsynchronized" or last.exit != 3 or last.ready != 503:
            wrong.append(f"not unsynchronized, UNKNOWN and 503 but: {last}")
    elif expected.end == "warned":
        if last.exit == 0:
            wrong.append(f"it has not what it asks for, and the check is OK: {last}")
    elif expected.end == "ok" and (not _is_ok(last) or seen.waitsync != 0):
        wrong.append(f"it has what it asks for, and says (waitsync {seen.waitsync}): {last}")
    missing = [codes for codes in expected.codes if last.problems.isdisjoint(codes.split("|"))]
    if missing:
        wrong.append(f"not told: {', '.join(sorted(missing))}; told: {sorted(last.problems)}")
    return wrong
