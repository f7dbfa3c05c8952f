"""What a configuration file and the environment may say, and how every mistake is answered."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skewd.config import (
    Config,
    ConfigError,
    SourceConfig,
    how_written,
    load_config,
    load_with_origins,
    not_yet,
    parse_config,
)
from skewd.config_keys import SECTIONS, TABLES
from skewd.config_show import show_config
from skewd.written import exact_duration

FILE = Path("/somewhere/skewd.toml")


def read(text: str, **env: str) -> Config:
    return parse_config(text.encode(), FILE, env).config


def problems(text: str, **env: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as refused:
        read(text, **env)
    return refused.value.problems


def test_without_a_file_everything_has_its_default() -> None:
    config = load_config(None, {})
    assert config == Config()
    assert (config.node.runtime_dir, config.node.state_dir) == (Path("/run/skewd"), Path("/var/lib/skewd"))
    assert config.socket_path == Path("/run/skewd/skewd.sock")
    assert config.segment_path == Path("/run/skewd/clock.shm")
    assert (config.clock.max_drift_ppm, config.clock.max_wander_ppb_per_s) == (100, 10)
    assert (config.mesh.listen, config.mesh.interval, config.mesh.fanout) == (None, 10**9, 8)
    assert (config.mesh.reference, config.mesh.peers, config.mesh.key_file) == ("auto", (), None)
    assert (config.sidecar.grpc, config.sidecar.http) == ("127.0.0.1:4317", "127.0.0.1:4318")
    assert (config.sidecar.mode, config.sidecar.attribute_prefix, config.sidecar.stamps) == ("tag", "clock.", "unknown")
    assert config.sidecar.keep_original is True
    assert (config.check.warning, config.check.critical) == (1_000_000, 3_000_000)
    assert config.metrics.listen == "127.0.0.1:9956"
    assert (config.source, config.link) == ((), ())
    assert (config.discipline.mode, config.clockbound.enabled) == ("off", False)


def test_the_node_is_named_after_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    class Uname:
        nodename = "rack 7/" + "x" * 80

    monkeypatch.setattr("os.uname", lambda: Uname)
    assert Config().node.name == ("rack-7-" + "x" * 80)[:63]


def test_a_file_sets_what_it_says_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "skewd.toml"
    file.write_text(
        """
        [node]
        name = "inference"
        [clock]
        max_uncertainty = "250ms"
        [[source]]
        type = "ntp"
        address = "192.0.2.1"
        [[source]]
        type = "ntp"
        name = "near"
        address = "[2001:db8::1]:1123"
        interval = "2s"
        [mesh]
        key = "none"
        peers = ["127.0.0.1:9958", "localhost:9959"]
        interval = "200ms"
        reference = "node:producer"
        [[link]]
        transport = "zmq"
        address = "ipc:///run/skewd/zmq"
        peers = ["tcp://127.0.0.1:9"]
        """
    )
    config = load_config(file, {})
    assert config.node.name == "inference"
    assert config.clock.max_uncertainty == 250_000_000
    first, second = config.source
    assert (first.name, first.address, first.interval) == ("ntp:192.0.2.1:123", "192.0.2.1:123", 16 * 10**9)
    assert (second.name, second.address, second.interval, second.smear) == (
        "near",
        "[2001:db8::1]:1123",
        2 * 10**9,
        False,
    )
    assert config.mesh.peers == ("127.0.0.1:9958", "localhost:9959")
    assert (config.mesh.key, config.mesh.listen) == ("none", "127.0.0.1:9957"), "who has peers listens"
    assert (config.mesh.interval, config.mesh.reference) == (200_000_000, "producer")
    assert config.link[0].address == "ipc:///run/skewd/zmq"
    assert config.sidecar == Config().sidecar


def test_a_source_made_in_code_has_its_defaults_too() -> None:
    assert SourceConfig(type="kernel").interval == 10**9
    assert SourceConfig(type="kernel").name == "kernel"


KAFKA = '[[link]]\ntransport = "kafka"\naddress = "127.0.0.1:9092"\ntopic = "t"\n'
AERON = '[[link]]\ntransport = "aeron"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[mesh]\ninterval = 5", '[mesh] interval: 5 has no unit; write "5ms", "5us" or "5s"'),
        ('[mesh]\ninterval = "5"', "[mesh] interval: '5' has no unit; write 5ms, 5us or 5s"),
        ('[mesh]\ninterval = "5 fortnights"', "is not a duration; write a number and a unit"),
        ("[mesh]\ninterval = true", "true is not a duration"),
        ('[mesh]\ninterval = "1us"', "1us is out of range; choose from 10ms to 1h"),
        ('[mesh]\nintervall = "1s"', "[mesh] intervall: unknown key; did you mean 'interval'?"),
        ('[mesh]\ncolour = "red"', "[mesh] colour: unknown key; the keys are listen, key_file, key, peers"),
        ('[mash]\nlisten = "127.0.0.1:1"', "[mash]: unknown section; did you mean 'mesh'?"),
        ("[zzz]", "[zzz]: unknown section; the sections are node, clock"),
        ('listen = "127.0.0.1:1"', "listen: unknown key; it belongs under [mesh] or [metrics]"),
        ("mesh = 1", "[mesh]: is a section; its keys are listen"),
        ("[[mesh]]", "[mesh]: write [mesh], with one bracket"),
        ('[source]\ntype = "kernel"', "[source]: write [[source]], with two brackets"),
        ("source = [1]", "[[source]] 1: is not a table"),
        ("[[source]]", '[[source]] 1: has no type; add type = "..."'),
        ('[[source]]\ntype = "gps"', "[[source]] 1 type: 'gps' is unknown; choose ntp, chrony, ptp, phc or kernel"),
        ('[[source]]\ntype = "ntp"', "[[source]] 1: is of type ntp and has no address"),
        ('[[source]]\ntype = "kernel"\naddress = "x"', "[[source]] 1 address: has no meaning for the kernel"),
        ('[[source]]\ntype = "chrony"\naddress = "192.0.2.1"', "is another machine's chronyd"),
        ('[[source]]\ntype = "chrony"\naddress = "host:x:y"', "[[source]] 1 address: "),
        ('[[source]]\ntype = "ptp"\naddress = "127.0.0.1"', "is no path; write that of ptp4l's socket"),
        ('[[source]]\ntype = "phc"\naddress = "ptp0"', "is no path; write that of the clock's device"),
        (
            '[[source]]\ntype = "kernel"\n[[source]]\ntype = "chrony"\nsmear = true',
            "'chrony' smears and others don't; around a leap second they differ by up to a second",
        ),
        ('[[source]]\ntype = "kernel"\nport = 1', "[[source]] 1 port: unknown key"),
        ('[[source]]\ntype = "chrony"\npool = true', "'chrony' is of type chrony; only ntp has pools"),
        ('[[source]]\ntype = "ntp"\naddress = "a"\npool = true\npool_size = 1', "1 is out of range; choose from 2"),
        ('[[source]]\ntype = "kernel"\n[utc]\nmin_sources = 2', "2 must agree, and 1 are configured; lower it"),
        ("[utc]\nmin_sources = 1", "1 must agree, and no [[source]] is configured"),
        (
            "".join(f'[[source]]\ntype = "ntp"\naddress = "a{n}"\npool = true\npool_size = 16\n' for n in range(5)),
            "with the servers of their pools they are 80; at most 64",
        ),
        ('[[source]]\ntype = "kernel"\n[[source]]\ntype = "kernel"', "two are named 'kernel'; give each a name"),
        ("[clock]\nmax_drift_ppm = 0", "[clock] max_drift_ppm: 0 is out of range; choose from 1 to 100000"),
        ("[clock]\nmax_drift_ppm = 50.5", "50.5 is not a whole number; write it without"),
        ('[clock]\nmax_drift_ppm = "50"', "'50' is not a whole number"),
        ("[sidecar]\nkeep_original = 1", "[sidecar] keep_original: 1 is not true or false"),
        ('[sidecar]\nmode = "rewrit"', "'rewrit' is unknown; did you mean 'rewrite'?; choose off, tag or rewrite"),
        (
            '[sidecar]\nforward = "collector:4317"',
            "has no scheme; write grpc://collector:4317 or http://collector:4317",
        ),
        ('[sidecar]\nforward = "ftp://x"', "'ftp://' is unknown; choose grpc://"),
        ('[sidecar]\nforward = "grpc://"', "has no host"),
        ('[sidecar]\nforward = ["grpc://a:1", "grpc://a:1"]', "'grpc://a:1' is given twice; remove one"),
        ("[sidecar]\nforward = []", "the list is empty; write an address"),
        ("[sidecar]\nforward = 1", 'is not text or a list of texts; write it as "..." or ["...", "..."]'),
        ('[sidecar]\nbalance = "random"', "choose round_robin or failover"),
        ('[sidecar]\nretry = "2m"', "2m is out of range; choose from 0s to 60s"),
        ('[sidecar]\nattribute_prefix = "clock"', "is not an attribute prefix; write letters and a dot, as clock."),
        ('[sidecar]\ngrpc = "unix:otlp.sock"', "has no absolute path; write unix:///run/skewd/otlp.sock"),
        ('[sidecar]\nhttp = "unix:///' + "x" * 110 + '"', "is longer than 107 bytes, Linux's limit"),
        ('[sidecar]\ngrpc = "unix:///a"\nhttp = "unix:///a"', "[sidecar] http: is the same socket as grpc"),
        ('[sidecar]\ntls_key = "/k"', "[sidecar] tls_key: is useless without tls_certificate; give both or neither"),
        ('[sidecar]\ntls_certificate = "/c"', "[sidecar] tls_certificate: is useless without tls_key"),
        ('[sidecar]\ntls_client_ca = "/a"', "there is no TLS; give tls_certificate and tls_key too"),
        ("[sidecar]\nmax_request_bytes = 1000", "1000 is out of range; choose from 65536 to 67108864"),
        (
            '[sidecar]\nmetadata = ["a b"]',
            "[sidecar] metadata: 'a b' is not a header's name; write it as x-scope-orgid",
        ),
        ('[sidecar]\nmetadata = ["Content-Type"]', "'content-type' belongs to the connection it came by"),
        ('[sidecar]\nmetadata = ["grpc-timeout"]', "belongs to the connection"),
        ('[sidecar]\nmetadata = ["trace-bin"]', "'trace-bin' is binary, which HTTP has no headers for"),
        ('[sidecar]\nmetadata = ["X-A", "x-a"]', "'x-a' is given twice"),
        ("[sidecar]\nmetadata = [" + ",".join(f'"h{n}"' for n in range(17)) + "]", "there are 17 entries; at most 16"),
        ("[node]\nname = 5", "[node] name: 5 is not text; write it in quotes"),
        ('[node]\nname = "a b"', "'a b' is not a node name"),
        ('[node]\nname = "utc"', "[node] name: 'utc' has a meaning in [mesh] reference"),
        ('[node]\nruntime_dir = ""', "[node] runtime_dir: it is not a path"),
        (f'[node]\nruntime_dir = "/{"d" * 97}"', "[node] runtime_dir: is 2 bytes too long for a Unix socket"),
        ('[mesh]\nlisten = "127.0.0.1"', "'127.0.0.1' has no port; write 127.0.0.1:PORT"),
        ('[mesh]\nlisten = ":9957"', "has no host; write 127.0.0.1:9957, or 0.0.0.0:9957"),
        ('[mesh]\nlisten = "9957"', "'9957' has no host; write 127.0.0.1:9957"),
        ('[mesh]\nlisten = ""', "it is empty; write host:port"),
        ('[mesh]\nlisten = "127.0.0.1:65536"', "is not an address; write host:port"),
        ('[mesh]\nlisten = "127.0.0.1:x"', "is not an address"),
        ('[mesh]\nlisten = "::1:9957"', "write host:port, as 127.0.0.1:9957 or [::1]:9957"),
        ('[mesh]\nlisten = "256.0.0.1:1"', "'256.0.0.1' is neither a host name nor an IP address"),
        ('[mesh]\nlisten = "a b:1"', "is not an address"),
        ('[mesh]\npeers = "127.0.0.1:1"', "[mesh] peers: '127.0.0.1:1' is not a list of texts"),
        ("[mesh]\npeers = [1]", "[mesh] peers: [1] is not a list of texts"),
        ('[mesh]\npeers = ["127.0.0.1:0"]', "port 0, where nobody listens"),
        ('[mesh]\npeers = ["127.0.0.1:1", "127.0.0.1:1"]', "'127.0.0.1:1' is given twice"),
        ('[mesh]\nkey = "secret"', "[mesh] key: 'secret' is unknown; choose none"),
        ('[mesh]\nlisten = "off"\npeers = ["127.0.0.1:1"]', "[mesh] peers: is for UDP, which [mesh] listen turns off"),
        ('[mesh]\nreference = "a b"', "is neither auto, utc nor a node's name"),
        (
            '[discipline]\nmode = "slew"\n[[source]]\ntype = "chrony"',
            "[discipline] mode: slew can't follow [[source]] chrony: chrony judges this clock as whoever else",
        ),
        (
            '[discipline]\nmode = "slew"\n[node]\nname = "a"\n[mesh]\nreference = "a"',
            "[discipline] mode: slew steers towards the reference, and [mesh] reference is this node itself",
        ),
        ('[check]\nwarning = "5ms"', "[check] warning: 5ms is above critical (3ms)"),
        ('[[link]]\ntransport = "zmq"\naddress = "127.0.0.1:1"', "has no scheme; write tcp://127.0.0.1:1"),
        ('[[link]]\ntransport = "zmq"\naddress = "udp://127.0.0.1:1"', "neither tcp://host:port nor ipc://"),
        ('[[link]]\ntransport = "zmq"\naddress = "ipc://x"\ntopic = "t"', "topic: has no meaning for zmq"),
        ('[[link]]\ntransport = "zmq"\naddress = "ipc://x"\nstream = 7', "stream: has no meaning for zmq"),
        ('[[link]]\ntransport = "zmq"\naddress = "ipc://x"\ndirection = "send"', "direction: has no meaning for zmq"),
        ('[[link]]\ntransport = "kafka"\naddress = "127.0.0.1:9092"', "has no topic"),
        (KAFKA + 'peers = ["10.0.0.5:9"]', "'10.0.0.5:9' is not a node name"),
        (KAFKA + 'directory = "/dev/shm/aeron"', "directory: has no meaning for kafka"),
        (KAFKA + 'direction = "receive"\npeers = ["b"]', "a link that only receives can't"),
        (KAFKA + 'direction = "in"', "'in' is unknown; choose both, send or receive"),
        (AERON + 'address = "ipc:///x"', "is not an address"),
        (AERON + 'address = "aeron:tcp?endpoint=127.0.0.1:1"', "is no Aeron channel; write aeron:ipc"),
        (AERON + 'address = "aeron:udp?mtu=1408"', "has no endpoint"),
        (AERON + 'address = "127.0.0.1:0"', "port 0, which no peer can know"),
        (AERON + 'address = "127.0.0.1:9959"', "has no peers, so it could not even answer"),
        (AERON + 'address = "127.0.0.1:9959"\npeers = ["aeron:ipc"]', "is not where one node listens"),
        (AERON + 'address = "aeron:ipc"\npeers = ["127.0.0.1:1"]', "'127.0.0.1:1' is not a node name"),
        (AERON + 'address = "aeron:ipc"\ntopic = "t"', "topic: has no meaning for aeron"),
        (AERON + 'address = "aeron:ipc"\nstream = 0', "0 is out of range; choose from 1 to 2147483647"),
        ('[[link]]\ntransport = "zmq"\naddress = "ipc://x"\n' * 2, "is the same as another"),
        ('[mesh]\nlisten = "127.0.0.1:1"\nlisten = "127.0.0.1:2"', "not valid TOML"),
        ("[mesh", "not valid TOML"),
        ("a = " + "[" * 5000, "not valid TOML"),
    ],
)
def test_a_mistake_is_refused_with_file_key_and_fix(text: str, says: str) -> None:
    found = problems(text)
    assert any(says in problem for problem in found), found
    assert all(problem.startswith(f"{FILE}: ") for problem in found)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[mesh]\nlisten = "0.0.0.0:9957"', "[mesh] listen"),
        ('[mesh]\nlisten = "[::]:9957"', "[mesh] listen"),
        ('[mesh]\npeers = ["10.0.0.5:9957"]', "[mesh] peers"),
        ('[mesh]\npeers = ["127.example.org:9957"]', "[mesh] peers"),
        ('[mesh]\ndns = "mesh.default.svc:9957"', "[mesh] dns"),
        ('[[link]]\ntransport = "zmq"\naddress = "tcp://*:9"', "[[link]] 1"),
        ('[[link]]\ntransport = "zmq"\naddress = "ipc://x"\npeers = ["tcp://10.0.0.5:9"]', "[[link]] 1"),
        ('[[link]]\ntransport = "kafka"\naddress = "broker:9092"\ntopic = "t"', "[[link]] 1"),
        (AERON + 'address = "0.0.0.0:9959"\npeers = ["127.0.0.1:9959"]', "[[link]] 1"),
        (AERON + 'address = "127.0.0.1:9959"\npeers = ["10.0.0.5:9959"]', "[[link]] 1"),
        (AERON + 'address = "aeron:udp?endpoint=224.0.1.1:9959|interface=10.0.0.0/24"', "[[link]] 1"),
    ],
)
def test_beyond_loopback_only_with_a_key(text: str, key: str) -> None:
    (problem,) = problems(text)
    assert problem.startswith(f"{FILE}: {key}: ")
    assert "is beyond loopback" in problem
    assert "skewd keygen" in problem
    read(text, SKEWD_MESH__KEY_FILE="/etc/skewd/mesh.key")


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "127.9.9.9:1", "[::1]:9957", "localhost:9957"])
def test_loopback_needs_no_key_where_that_is_said(listen: str) -> None:
    assert read(f'[mesh]\nkey = "none"\nlisten = "{listen}"').mesh.listen == listen
    (problem,) = problems(f'[mesh]\nlisten = "{listen}"')
    assert problem.startswith(f"{FILE}: [mesh] listen: makes a mesh, which has no key")
    (problem,) = refused(None, {"SKEWD_MESH__LISTEN": listen})
    assert problem.startswith("environment SKEWD_MESH__LISTEN: makes a mesh, which has no key")


def test_listeners_can_be_turned_off() -> None:
    config = read('[mesh]\nlisten = "off"\n[metrics]\nlisten = "off"\n[sidecar]\ngrpc = "off"')
    assert (config.mesh.listen, config.metrics.listen, config.sidecar.grpc) == (None, None, None)


def test_all_mistakes_are_told_together() -> None:
    found = problems('[mesh]\ninterval = 5\nlisten = "x"\n[zzz]\n[log]\nlevel = "loud"', SKEWD_CHECK__WARNING="1")
    assert len(found) == 5


def test_relative_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read('[node]\nruntime_dir = "run"').node.runtime_dir == tmp_path / "run"


class TestFiles:
    def test_a_named_file_must_exist(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"nope\.toml: --config names it, and it does not exist"):
            load_config(tmp_path / "nope.toml", {})
        with pytest.raises(ConfigError, match="SKEWD_CONFIG names it"):
            load_config(None, {"SKEWD_CONFIG": str(tmp_path / "nope.toml")})

    def test_the_environment_may_name_it(self, tmp_path: Path) -> None:
        file = tmp_path / "a.toml"
        file.write_text('[node]\nname = "a"')
        assert load_config(None, {"SKEWD_CONFIG": str(file)}).node.name == "a"

    def test_one_that_is_no_text_file(self, tmp_path: Path) -> None:
        file = tmp_path / "a.toml"
        file.write_bytes(b"\xff\xfe")
        with pytest.raises(ConfigError, match=r"a\.toml: not UTF-8 text"):
            load_config(file, {})
        with pytest.raises(ConfigError, match="cannot be read"):
            load_config(tmp_path, {})

    def test_one_that_is_far_too_large(self, tmp_path: Path) -> None:
        file = tmp_path / "a.toml"
        file.write_bytes(b"#" * (1 << 21))
        with pytest.raises(ConfigError, match="larger than"):
            load_config(file, {})


VALUES: dict[str, tuple[str, Any]] = {
    "node.name": ("n1", "n1"),
    "node.runtime_dir": ("/tmp/r", Path("/tmp/r")),
    "node.state_dir": ("/tmp/s", Path("/tmp/s")),
    "clock.max_drift_ppm": ("7", 7),
    "clock.max_wander_ppb_per_s": ("8", 8),
    "clock.max_uncertainty": ("9ms", 9_000_000),
    "clock.drift_over_reboot": ("true", True),
    "source": ('[{"type": "phc", "interval": "2s"}]', (SourceConfig(type="phc", interval=2 * 10**9),)),
    "utc.min_sources": ("1", 1),
    "mesh.listen": ("127.0.0.1:1", "127.0.0.1:1"),
    "mesh.key_file": ("/tmp/key", Path("/tmp/key")),
    "mesh.peers": ('["127.0.0.1:2", "10.0.0.1:3"]', ("127.0.0.1:2", "10.0.0.1:3")),
    "mesh.dns": ("peers.example:9957", "peers.example:9957"),
    "mesh.interval": ("2s", 2 * 10**9),
    "mesh.fanout": ("3", 3),
    "mesh.liars": ("2", 2),
    "mesh.oldest_protocol": ("3", 3),
    "mesh.reference": ("utc", "utc"),
    "link": ('[{"transport": "zmq", "address": "ipc://a"}]', None),
    "sidecar.grpc": ("127.0.0.1:0", "127.0.0.1:0"),
    "sidecar.http": ("off", None),
    "sidecar.tls_certificate": ("/tmp/c", Path("/tmp/c")),
    "sidecar.tls_key": ("/tmp/k", Path("/tmp/k")),
    "sidecar.tls_client_ca": ("/tmp/a", Path("/tmp/a")),
    "sidecar.max_request_bytes": ("70000", 70_000),
    "sidecar.max_request_records": ("1000", 1000),
    "sidecar.max_request_elements": ("2000", 2000),
    "sidecar.metadata": ('["X-Scope-OrgID"]', ("x-scope-orgid",)),
    "sidecar.forward": ("grpc://127.0.0.1:9", "grpc://127.0.0.1:9"),
    "sidecar.balance": ("failover", "failover"),
    "sidecar.retry": ("0s", 0),
    "sidecar.connect_timeout": ("500ms", 500_000_000),
    "sidecar.attempt_timeout": ("1s", 1_000_000_000),
    "sidecar.connection_age": ("1h", 3_600_000_000_000),
    "sidecar.forward_max_bytes": ("5000", 5000),
    "sidecar.max_bytes": ("2000000", 2_000_000),
    "sidecar.dead_letter": ("/tmp/letters", Path("/tmp/letters")),
    "sidecar.dead_letter_max_bytes": ("70000", 70_000),
    "sidecar.kafka_properties": ("/tmp/kafka.properties", Path("/tmp/kafka.properties")),
    "sidecar.mode": ("rewrite", "rewrite"),
    "sidecar.stamps": ("wall", "wall"),
    "sidecar.transport": ("python", "python"),
    "sidecar.keep_original": ("false", False),
    "sidecar.attributes": ("minimal", "minimal"),
    "sidecar.incoming": ("replace", "replace"),
    "sidecar.kernel": ("python", "python"),
    "sidecar.attribute_prefix": ("time.", "time."),
    "spool.path": ("/tmp/spool", Path("/tmp/spool")),
    "spool.max_bytes": ("2000000", 2_000_000),
    "metrics.listen": ("127.0.0.1:0", "127.0.0.1:0"),
    "check.warning": ("2ms", 2_000_000),
    "check.critical": ("4ms", 4_000_000),
    "clockbound.enabled": ("true", True),
    "clockbound.directory": ("/tmp/cb", Path("/tmp/cb")),
    "discipline.mode": ("slew", "slew"),
    "log.level": ("debug", "debug"),
    "log.format": ("json", "json"),
}


class TestEnvironment:
    def test_every_key_can_be_set(self) -> None:
        keys = {f"{section}.{key}" for section in SECTIONS if section not in TABLES for key in fields(section)}
        assert set(VALUES) | {"mesh.key"} == keys | set(TABLES)
        none = parse_config(None, None, {"SKEWD_MESH__KEY": "none"})  # not beside a key_file
        assert (none.config.mesh.key, none.origins["mesh.key"]) == ("none", "environment SKEWD_MESH__KEY")
        env = {f"SKEWD_{key.replace('.', '__').upper()}": text for key, (text, _) in VALUES.items()}
        loaded = parse_config(None, None, env)
        for key, (_, expected) in VALUES.items():
            section, _, name = key.partition(".")
            value = getattr(loaded.config, section)
            value = getattr(value, name) if name else value
            if key == "link":
                assert value[0].address == "ipc://a"
            else:
                assert value == expected, key
            assert loaded.origins[key] == f"environment SKEWD_{key.replace('.', '__').upper()}"

    def test_it_wins_over_the_file(self) -> None:
        loaded = parse_config(
            b'[node]\nname = "file"\nruntime_dir = "/tmp/r"\n[[source]]\ntype = "kernel"',
            FILE,
            {"SKEWD_NODE__NAME": "env", "SKEWD_SOURCE": "[]"},
        )
        assert loaded.config.node.name == "env"
        assert loaded.config.source == ()
        assert loaded.origins["node.name"] == "environment SKEWD_NODE__NAME"
        assert loaded.origins["node.runtime_dir"] == "file"
        assert loaded.origins["node.state_dir"] == "default"

    def test_an_empty_variable_is_not_set(self) -> None:
        assert read('[node]\nname = "a"', SKEWD_NODE__NAME="").node.name == "a"

    @pytest.mark.parametrize(
        ("name", "value", "says"),
        [
            ("SKEWD_MESH__INTERVAL", "5", "environment SKEWD_MESH__INTERVAL: '5' has no unit; write 5ms"),
            ("SKEWD_MESH__FANOUT", "many", "'many' is not a whole number"),
            ("SKEWD_MESH__PEERS", "127.0.0.1:1", 'is not a JSON array; write it as ["10.0.0.5:9957"]'),
            ("SKEWD_MESH__PEERS", '{"a": 1}', "is not a JSON array"),
            ("SKEWD_SOURCE", "ntp", 'is not a JSON array; write it as [{"type"'),
            ("SKEWD_SOURCE", '[{"typ": "ntp"}]', "[[source]] 1 typ: unknown key; did you mean 'type'?"),
            ("SKEWD_MESH__LISTN", "127.0.0.1:1", "unknown key; did you mean 'SKEWD_MESH__LISTEN'?"),
            ("SKEWD_MESH__LISTEN__", "127.0.0.1:1", "unknown key"),
            ("SKEWD_FOO__BAR", "1", "unknown key"),
            ("SKEWD_MESH_LISTEN", "127.0.0.1:1", "needs two underscores; write SKEWD_MESH__LISTEN"),
            ("SKEWD_MESH__LISTEN", "0.0.0.0:1", "environment SKEWD_MESH__LISTEN: 0.0.0.0:1 is beyond loopback"),
            ("SKEWD_CLOCKBOUND__ENABLED", "yes", "'yes' is not true or false"),
        ],
    )
    def test_mistakes_name_the_variable(self, name: str, value: str, says: str) -> None:
        found = problems("", **{name: value})
        assert any(says in problem for problem in found), found
        assert all(problem.startswith(f"environment {name}: ") for problem in found)

    def test_what_is_not_ours_is_left_alone(self) -> None:
        # Kubernetes sets these in every container when a Service is called skewd, or skewd-mesh.
        others = ("SKEWD_SERVICE_HOST", "SKEWD_PORT_9957_UDP_ADDR", "SKEWD_MESH_SERVICE_HOST", "PATH", "skewd_mesh__x")
        assert read("", **dict.fromkeys(others, "10.0.0.1")) == Config()


def fields(section: str) -> tuple[str, ...]:
    return SECTIONS[section].__struct_fields__


class TestShow:
    def test_it_is_the_same_configuration_again(self) -> None:
        env = {f"SKEWD_{key.replace('.', '__').upper()}": text for key, (text, _) in VALUES.items()}
        loaded = parse_config(None, None, env)
        shown = show_config(loaded)
        assert parse_config(shown.encode(), FILE, {}).config == loaded.config
        assert tomllib.loads(show_config(parse_config(None, None, {})))["mesh"]["interval"] == "1s"

    def test_it_says_where_each_value_came_from(self, tmp_path: Path) -> None:
        file = tmp_path / "a.toml"
        file.write_text('[mesh]\ninterval = "1500us"\n'.replace("1500us", "1500ms"))
        shown = show_config(load_with_origins(file, {"SKEWD_LOG__LEVEL": "debug"})).splitlines()
        lines = {line.split(" = ")[0]: line for line in shown}
        assert shown[0] == f"# in force: file {file}, environment, defaults"
        assert lines["interval"].split() == ["interval", "=", '"1500ms"', "#", "file"]
        assert lines["level"].endswith("# environment SKEWD_LOG__LEVEL")
        assert lines["fanout"].endswith("# default")
        assert any(line.startswith("# key_file =") and line.endswith("default: not set") for line in shown)

    @given(st.text(min_size=1, max_size=60))
    def test_any_text_survives(self, text: str) -> None:
        source = json.dumps([{"type": "kernel", "name": text}])
        try:
            loaded = parse_config(None, None, {"SKEWD_SOURCE": source})
        except ConfigError:
            return  # control characters, or longer than allowed
        assert parse_config(show_config(loaded).encode(), FILE, {}).config == loaded.config

    @given(st.integers(1, 10**15))
    def test_durations_are_exact(self, ns: int) -> None:
        from skewd.durations import parse_duration_ns

        assert parse_duration_ns(exact_duration(ns)) == ns

    def test_every_default_can_be_written(self) -> None:
        for section, struct in SECTIONS.items():
            if section not in TABLES:
                for key, value in msgspec.structs.asdict(struct()).items():
                    assert how_written(section, key, value) is None or isinstance(
                        how_written(section, key, value), str | int | bool | list
                    )


def test_what_this_version_cannot_do_is_said() -> None:
    assert not_yet(Config()) == []
    env = {f"SKEWD_{key.replace('.', '__').upper()}": text for key, (text, _) in VALUES.items()}
    said = "\n".join(not_yet(parse_config(None, None, env).config))
    assert "spool" in said


def refused(data: bytes | None, env: dict[str, str]) -> tuple[str, ...]:
    try:
        parse_config(data, FILE, env)
    except ConfigError as error:
        return error.problems
    return ()


@given(st.binary(max_size=300))
def test_no_bytes_do_anything_but_be_refused(data: bytes) -> None:
    assert all(problem.startswith(f"{FILE}: ") for problem in refused(data, {}))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(
    section=st.sampled_from([*SECTIONS, "zzz"]),
    values=st.dictionaries(st.sampled_from(["listen", "interval", "type", "address", "peers", "mode", "x"]), JSON),
    several=st.booleans(),
)
def test_no_value_of_a_wrong_kind_gets_through_or_breaks_it(section: str, values: Any, several: bool) -> None:
    env = {f"SKEWD_{section}".upper(): json.dumps([values] if several else values)}
    env |= {f"SKEWD_{section}__{key}".upper(): str(value).replace("\0", "") for key, value in values.items()}
    assert all(problem.startswith("environment SKEWD_") for problem in refused(None, env))


def test_links_of_every_transport() -> None:
    text = """
        [mesh]
        key_file = "/etc/skewd/mesh.key"
        [[link]]
        transport = "kafka"
        address = "kafka-1:9092,kafka-2:9092"
        topic = "skewd-clock"
        peers = ["node-b"]
        properties = "/etc/skewd/kafka.properties"
        [[link]]
        transport = "kafka"
        address = "kafka-1:9092"
        topic = "one-way"
        direction = "receive"
        [[link]]
        transport = "aeron"
        address = "aeron:ipc"
        directory = "/dev/shm/aeron-app"
        stream = 7
        peers = ["node-b"]
        [[link]]
        transport = "aeron"
        address = "0.0.0.0:9959"
        peers = ["10.0.0.5:9959", "aeron:udp?endpoint=10.0.0.6:9959|mtu=8192"]
        """
    both, receiving, shared, unicast = parse_config(text.encode(), FILE, {}).config.link
    assert (both.topic, both.direction, both.peers) == ("skewd-clock", "both", ("node-b",))
    assert both.properties == Path("/etc/skewd/kafka.properties")
    assert receiving.direction == "receive"
    assert (shared.stream, shared.directory) == (7, Path("/dev/shm/aeron-app"))
    assert (unicast.stream, unicast.directory, len(unicast.peers)) == (None, None, 2)


def test_several_next_hops_are_a_list_in_the_file_and_json_in_the_environment() -> None:
    wanted = ("grpc://a:1", "kafka://b:2/spans")
    assert read('[sidecar]\nforward = ["grpc://a:1", "kafka://b:2/spans"]').sidecar.forward == wanted
    given = {"SKEWD_SIDECAR__FORWARD": '["grpc://a:1", "kafka://b:2/spans"]'}
    assert load_config(None, given).sidecar.forward == wanted
