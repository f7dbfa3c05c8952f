"""Nobody uninvited: who may move a clock that is well, judged from outside of daemons as they are configured."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from skewd.config import ConfigError, load_config, parse_config
from skewd.config_keys import usual_listen
from skewd.keys import generate_key_file
from tests.daemon.judges import Start, starting, utc_source
from tests.waiting import wait_until

HOUR_OFF = "offset=3600s"
FAST = 'interval = "50ms"\n'


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="skd") as name:
        yield Path(name)


@pytest.fixture
def start(short: Path) -> Iterator[Start]:
    with starting(short) as start:
        yield start


@pytest.fixture
def utc() -> Iterator[str]:
    with utc_source() as source:
        yield source


def test_by_default_nobody_is_listened_to(start: Start, utc: str) -> None:
    daemon = start("here", utc)
    assert daemon.ready["mesh"] is None
    wait_until(lambda: daemon.status["status"] == "synchronized", "its source")
    told = daemon.status
    assert (told["links"], told["mesh"], told["peers"]) == ([], None, [])


def test_a_stranger_to_a_mesh_without_a_key_is_answered_and_not_believed(start: Start, utc: str) -> None:
    here = start("here", f'{utc}[mesh]\nkey = "none"\nlisten = "127.0.0.1:0"\n{FAST}')
    wait_until(lambda: here.status["status"] == "synchronized", "its source")
    stranger = start("other", f'[mesh]\nkey = "none"\nlisten = "127.0.0.1:0"\npeers = ["{here.mesh}"]\n{FAST}',
                     virtual=HOUR_OFF)  # fmt: skip
    wait_until(lambda: stranger.status["peers"] and stranger.status["peers"][0]["lower_ns"], "the stranger's bound")
    wait_until(lambda: here.status["links"][0]["counters"]["stranger"] > 60, "three seconds of the stranger's asking")
    told = here.status
    assert (told["reference"], told["status"], told["peers"], told["mesh"]) == ("utc", "synchronized", [], None)
    assert told["lower_ns"] <= 0 <= told["upper_ns"]
    said = here.judged()
    assert said.readyz == 200
    assert "WITHOUT A KEY" in said.check_line
    assert "keyless-mesh" in here.codes()
    assert "keyless-mesh" in stranger.codes()


def test_without_a_key_only_configured_peers_are_members(start: Start) -> None:
    """Three of one mesh, the third listed by nobody: it learns, and is no row anywhere."""
    keyless = f'[mesh]\nkey = "none"\nlisten = "127.0.0.1:0"\nreference = "a"\n{FAST}'
    a = start("a", keyless)
    b = start("b", f'{keyless}peers = ["{a.mesh}"]\n')
    c = start("c", f'{keyless}peers = ["{a.mesh}", "{b.mesh}"]\n', virtual=HOUR_OFF)
    wait_until(lambda: len([row for row in c.status["peers"] if row["lower_ns"] is not None]) == 2, "c's bounds")
    wait_until(lambda: b.status["status"] == "synchronized", "b")
    wait_until(lambda: b.status["links"][0]["counters"]["stranger"] > 20, "c asks b")
    assert [row["name"] for row in b.status["peers"]] == ["a"]
    assert a.status["peers"] == []


def test_a_newcomer_with_the_key_takes_nobodys_utc_away(short: Path, start: Start, utc: str) -> None:
    generate_key_file(short / "key")
    keyed = f'[mesh]\nkey_file = "{short}/key"\nlisten = "127.0.0.1:0"\n{FAST}'
    here = start("here", utc + keyed)
    wait_until(lambda: here.status["status"] == "synchronized", "its source")
    # Its name is the lesser one, and it has a timescale of its own by now: of equals it would win.
    newcomer = start("a-newcomer", f'{keyed}peers = ["{here.mesh}"]\n', virtual=HOUR_OFF)
    wait_until(lambda: here.status["mesh"] is not None and here.status["mesh"]["members"] == 2, "the newcomer")
    wait_until(lambda: (newcomer.status["mesh"] or {}).get("timescale"), "the newcomer's own timescale")
    began = here.status["uptime_s"]
    # Before, it gave way after 15 s (and after 150 ms where it had been alone until then).
    here.has_run(began + 18)
    told = here.status
    assert (told["reference"], told["status"]) == ("utc", "synchronized")
    assert told["lower_ns"] <= 0 <= told["upper_ns"]
    assert here.judged().readyz == 200


def problems_of(text: str) -> str:
    with pytest.raises(ConfigError) as refused:
        parse_config(text.encode(), Path("x.toml"), {})
    return "\n".join(refused.value.problems)


@pytest.mark.parametrize(
    "mesh",
    [
        '[mesh]\nlisten = "127.0.0.1:9957"',
        '[mesh]\npeers = ["127.0.0.1:9958"]',
        '[mesh]\ndns = "localhost:9957"',
        '[[link]]\ntransport = "zmq"\naddress = "ipc:///run/skewd/link"',
    ],
)
def test_a_mesh_has_a_key_or_says_in_words_that_it_has_none(mesh: str) -> None:
    found = problems_of(mesh)
    assert "makes a mesh, which has no key: write one with 'skewd keygen FILE'" in found
    assert 'write key = "none" (loopback only)' in found
    whole = mesh.replace("[mesh]", '[mesh]\nkey = "none"') if "[mesh]" in mesh else f'{mesh}\n[mesh]\nkey = "none"'
    parse_config(whole.encode(), None, {})
    keyed = whole.replace('key = "none"', 'key_file = "/etc/skewd/mesh.key"')
    parse_config(keyed.encode(), None, {})
    both = whole.replace('key = "none"', 'key = "none"\nkey_file = "/etc/skewd/mesh.key"')
    assert "[mesh] key: " in problems_of(both)
    far = whole.replace("127.0.0.1", "10.0.0.1").replace("localhost", "mesh.example").replace("ipc://", "tcp://10.0.0.1:")
    assert "beyond loopback" in problems_of(far.replace("tcp://10.0.0.1:/run/skewd/link", "tcp://10.0.0.1:5"))


def test_the_clock_is_not_steered_by_a_mesh_without_a_key() -> None:
    mesh = '[mesh]\nkey = "none"\npeers = ["127.0.0.1:9958"]\n'
    found = problems_of(f'{mesh}[discipline]\nmode = "slew"')
    assert "[discipline] mode: slew would steer this clock by what a mesh without a key says" in found
    keyed = mesh.replace('key = "none"', 'key_file = "/k"')
    parse_config(f'{keyed}[discipline]\nmode = "slew"'.encode(), None, {})
    parse_config(b'[discipline]\nmode = "slew"', None, {})


@pytest.mark.parametrize(
    ("peers", "dns", "key", "listens"),
    [
        ((), None, None, None),
        ((), None, "/k", None),
        (("127.0.0.1:1",), None, None, "127.0.0.1:9957"),
        (("127.0.0.1:1", "localhost:2"), None, "/k", "127.0.0.1:9957"),
        (("127.0.0.1:1", "192.0.2.1:9957"), None, "/k", "0.0.0.0:9957"),
        (("[2001:db8::1]:9957",), None, "/k", "[::]:9957"),
        (("[::1]:1",), None, None, "[::1]:9957"),
        ((), "peers.example:9957", "/k", "0.0.0.0:9957"),
    ],
)
def test_where_it_listens_when_nobody_says_so(
    peers: tuple[str, ...], dns: str | None, key: str | None, listens: str | None
) -> None:
    assert usual_listen(peers, dns, None if key is None else Path(key)) == listens
    env = {
        "SKEWD_MESH__PEERS": str(list(peers)).replace("'", '"'),
        "SKEWD_MESH__DNS": dns or "",
        "SKEWD_MESH__KEY_FILE": key or "",
        "SKEWD_MESH__KEY": "none" if key is None and (peers or dns) else "",
    }
    assert load_config(None, env).mesh.listen == listens


def test_peers_without_udp_are_a_mistake() -> None:
    for wrong in ('peers = ["127.0.0.1:1"]', 'dns = "localhost:1"'):
        assert "[mesh] listen turns off" in problems_of(f'[mesh]\nkey = "none"\nlisten = "off"\n{wrong}')
