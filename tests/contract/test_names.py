"""The names that others rely on: commands, options, exit codes, keys, metrics, attributes, the Python API.

Dashboards, alerts, scripts and instrumented applications are written against these, and nobody who wrote them runs
our tests. So each is pinned here once more, by itself: a name may be added, and a test here may not be changed to
follow a renamed one without a major version.
"""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer

import skewd
from skewd.bounds.pair import PairBound
from skewd.bounds.select import Selection, select
from skewd.cli import main
from skewd.clock import WallSample
from skewd.commands import app
from skewd.config import Config, MeshConfig, NodeConfig, SourceConfig, load_config
from skewd.config_keys import SECTIONS
from skewd.durations import parse_duration_ns
from skewd.interval import Interval
from skewd.links.protocol import Proofs, Self
from skewd.node import Node
from skewd.publish import prometheus

SECOND = 1_000_000_000


@pytest.fixture(autouse=True)
def _no_configuration_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("SKEWD_", "OTEL_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr("skewd.config.DEFAULT_FILE", tmp_path / "none" / "skewd.toml")


def options_of(*words: str) -> set[str]:
    command: Any = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    return {name for option in command.params for name in option.opts}


@pytest.fixture
def told() -> dict[str, Any]:
    """The status of a node with a peer and a source."""
    config = Config(
        node=NodeConfig(name="here"),
        mesh=MeshConfig(reference="there"),
        source=(SourceConfig(type="ntp", name="server", address="192.0.2.1"),),
    )
    first = WallSample(0, Interval(1_790_000_000 * SECOND, 1_790_000_000 * SECOND + 100))
    node = Node(config, boot=b"1" * 16, first=first, virtual=False)
    there = Self(
        name="there", boot=b"2" * 16, raw_era=1, era=1, wall_minus_raw=first.wall_minus_raw, wall_raw_at_ns=0,
        wall_slew_ppb=1_000, max_drift_ppm=100, max_wander_ppb_per_s=10,
    )  # fmt: skip
    for at in range(1, 4):
        now = at * SECOND
        node.on_wall(WallSample(now, first.wall_minus_raw))
        node.on_proofs(Proofs(there, "udp", "192.0.2.2:9957", ((now, now + 50),), ((now, now + 100),), 100), now + 100)
    return node.status(3 * SECOND + 100)


# -- commands ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (("run",), {"--config", "--virtual-clock"}),
        (("status",), {"--config", "--watch", "--json", "-f"}),
        (("waitsync",), {"--config", "--max-uncertainty", "--timeout"}),
        (("probe",), {"--config", "address"}),
        (("keygen",), {"file"}),
        (("config", "check"), {"--config"}),
        (("config", "show"), {"--config"}),
        (("record",), {"file", "--config", "--duration", "--every", "--max-bytes", "--keep"}),
        (("replay",), {"file", "--json", "--calibrate", "--bounds"}),
        (("sidecar",), {"--config", "--forward", "--static-offset", "--static-uncertainty"}),
        (("experiment", "run"), set()),
        (("experiment", "report"), set()),
        (("experiment", "stage"), {"name", "--config"}),
    ],
)
def test_commands_and_their_options(words: tuple[str, ...], options: set[str]) -> None:
    assert options <= options_of(*words)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (
            "check",
            [
                *("--config", "--peer", "--warning", "--critical", "--strict", "--max-age", "--assumptions"),
                *("--record", "--json"),
            ],
        ),
        ("now", ["--config", "--json"]),
    ],
)
def test_the_two_fast_commands(command: str, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(option in text for option in options)
    assert command in typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_version() -> None:
    assert main(["--version"]) == 0
    assert skewd.__version__


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["check", "--nonsense"], 3),
        (["check", "--warning", "5"], 3),
        (["now", "--nonsense"], 64),
        (["status", "--nonsense"], 64),
        (["status", "-f", "yaml"], 64),
        (["waitsync", "--timeout", "5"], 64),
        (["probe"], 64),
        (["probe", "192.0.2.1", "--as", "radio"], 64),
        (["keygen"], 64),
        (["config", "check", "--config", "/nonexistent/skewd.toml"], 64),
        (["nonsense"], 64),
    ],
)
def test_usage_errors(words: list[str], code: int) -> None:
    assert main(words) == code


def test_without_a_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "skewd.toml"
    file.write_text(f'[node]\nruntime_dir = "{tmp_path}"\n')
    config = ["--config", str(file)]
    assert main(["check", *config]) == 3
    assert main(["check", "--json", *config]) == 3
    assert main(["status", *config]) == 1
    assert main(["waitsync", "--timeout", "200ms", *config]) == 2
    capsys.readouterr()
    assert main(["now", "--json", *config]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {"earliest_ns", "latest_ns", "reference", "status"}
    assert answer["earliest_ns"] is None
    assert answer["latest_ns"] is None


def test_durations() -> None:
    units = {"1ns": 1, "250us": 250_000, "5ms": 5_000_000, "1s": SECOND, "2m": 120 * SECOND, "1h": 3_600 * SECOND}
    assert {text: parse_duration_ns(text) for text in units} == units
    assert parse_duration_ns("-5ms") == -5_000_000
    with pytest.raises(ValueError, match="unit"):
        parse_duration_ns("5")


# -- configuration -----------------------------------------------------------------------------------------------------

KEYS = {
    "node": "name runtime_dir state_dir",
    "clock": "max_drift_ppm max_wander_ppb_per_s max_uncertainty",
    "source": "name type address interval smear",
    "mesh": "listen key_file key peers dns interval fanout reference",
    "link": "transport address topic peers",
    "sidecar": "grpc http forward mode keep_original attributes attribute_prefix transport",
    "spool": "path max_bytes",
    "metrics": "listen",
    "check": "warning critical",
    "clockbound": "enabled directory",
    "discipline": "mode",
    "log": "level format",
}


@pytest.mark.parametrize("section", KEYS)
def test_configuration_keys(section: str) -> None:
    assert set(KEYS[section].split()) <= {field.name for field in msgspec.structs.fields(SECTIONS[section])}


def test_defaults() -> None:
    config = Config()
    assert (config.sidecar.mode, config.sidecar.attribute_prefix, config.sidecar.keep_original) == (
        "tag",
        "clock.",
        True,
    )
    assert (str(config.node.runtime_dir), str(config.node.state_dir)) == ("/run/skewd", "/var/lib/skewd")
    assert (config.metrics.listen, config.mesh.listen) == ("127.0.0.1:9956", None)
    assert (config.sidecar.grpc, config.sidecar.http) == ("127.0.0.1:4317", "127.0.0.1:4318")
    assert (config.clock.max_drift_ppm, config.clock.max_wander_ppb_per_s) == (100, 10)
    assert (config.check.warning, config.check.critical) == (1_000_000, 3_000_000)
    assert (config.discipline.mode, config.source, config.mesh.fanout) == ("off", (), 8)


def test_every_key_by_environment() -> None:
    env = {"SKEWD_MESH__LISTEN": "127.0.0.1:1234", "SKEWD_MESH__PEERS": '["127.0.0.1:1"]', "SKEWD_MESH__KEY": "none"}
    found = load_config(None, env)
    assert (found.mesh.listen, found.mesh.peers) == ("127.0.0.1:1234", ("127.0.0.1:1",))


# -- what the daemon tells ---------------------------------------------------------------------------------------------


def test_status_keys(told: dict[str, Any]) -> None:
    assert set(told) >= {
        *("node", "era", "status", "reference", "offset_ns", "lower_ns", "upper_ns", "uncertainty_ns"),
        *("peers", "sources", "links"),
    }
    (peer,), (source,) = told["peers"], told["sources"]
    assert set(peer) >= {
        *("name", "address", "offset_ns", "lower_ns", "upper_ns", "drift_ppb", "rtt_min_ns", "age_s", "trust", "state"),
    }
    assert set(source) >= {"name", "type", "offset_ns", "lower_ns", "upper_ns", "state"}
    assert (told["reference"], told["status"]) == ("node:there", "synchronized")
    assert isinstance(peer["drift_ppb"], int)
    assert peer["trust"] == "first-hand"
    assert (source["state"], source["offset_ns"]) == ("pending", None)
    assert told["lower_ns"] <= told["offset_ns"] <= told["upper_ns"]


def test_prometheus_names(told: dict[str, Any]) -> None:
    build = {"version": "1", "virtual": "false"}
    text = prometheus.exposition(prometheus.registry(lambda: told, build, lambda: 0.0)).decode()
    for series in (
        'skewd_clock_offset_seconds{reference="node:there"}',
        'skewd_clock_offset_lower_seconds{reference="node:there"} ',
        'skewd_clock_offset_upper_seconds{reference="node:there"} ',
        'skewd_clock_uncertainty_seconds{reference="node:there"} ',
        'skewd_clock_drift_ratio{reference="node:there"} ',
        'skewd_clock_status{status="synchronized"} 1.0',
        'skewd_clock_status{status="holdover"} 0.0',
        'skewd_clock_status{status="unsynchronized"} 0.0',
        'skewd_peer_offset_seconds{peer="there"}',
        'skewd_peer_offset_lower_seconds{peer="there"}',
        'skewd_peer_offset_upper_seconds{peer="there"}',
        'skewd_peer_rtt_min_seconds{peer="there"}',
        'skewd_peer_last_exchange_timestamp_seconds{peer="there"}',
        'skewd_source_state{source="server",state="pending"} 1.0',
        "skewd_clock_eras_total ",
        "skewd_contradictions_total ",
        "skewd_build_info{",
    ):
        assert f"\n{series}" in text, series


# -- Python ------------------------------------------------------------------------------------------------------------


def test_interval() -> None:
    interval = Interval(1, 2)
    assert (interval.lo, interval.hi) == (1, 2)


def test_pair_bound() -> None:
    signature = inspect.signature(PairBound).parameters
    assert list(signature) == ["max_drift_ppm", "max_wander_ppb_per_s"]
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in signature.values())
    bound = PairBound(max_drift_ppm=200, max_wander_ppb_per_s=20)
    assert bound.offset(at_local_ns=0) is None
    assert bound.drift(at_local_ns=0) is None
    bound.outgoing(sent_local_ns=1_000, received_remote_ns=6_000)
    bound.incoming(sent_remote_ns=6_000, received_local_ns=2_000)
    offset, drift = bound.offset(at_local_ns=2_000), bound.drift(at_local_ns=2_000)
    # remote - local, between 6000 - 2000 and 6000 - 1000; the drift in ppb.
    assert offset is not None
    assert offset.contains(4_500)
    assert offset.width < 1_010
    assert drift == Interval(-200_000, 200_000)
    assert bound.contradictions == 0


def test_select() -> None:
    found = select([Interval(0, 10), Interval(5, 15), Interval(100, 110)])
    assert found == Selection(interval=Interval(5, 10), truechimers=(0, 1), falsetickers=(2,))


def test_now_is_there_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SKEWD_NODE__RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(skewd, "_now", None)
    monkeypatch.setattr("skewd.reader._default", None)
    with pytest.raises(RuntimeError, match="skewd run"):
        skewd.now()


# -- spans and results -------------------------------------------------------------------------------------------------


def test_span_attributes() -> None:
    patch = pytest.importorskip("skewd_sidecar.patch")
    assert set(patch.NAMES) >= {
        *("offset_ns", "uncertainty_ns", "reference", "status", "node.name", "corrected"),
        *("original.start_time_unix_nano", "original.end_time_unix_nano"),
    }


def test_verdicts() -> None:
    causality = pytest.importorskip("skewd_sidecar.causality")
    assert {verdict.value for verdict in causality.Verdict} == {"ordered", "skewed", "indeterminate", "impossible"}


def test_results_keys() -> None:
    results = pytest.importorskip("skewd_pipeline.results")
    assert {field.name for field in msgspec.structs.fields(results.Run)} >= {
        *("transport", "broker", "stage", "direction", "skew_ms", "mode", "rule", "messages", "edges", "violations"),
        *("violation_rate", "predicted_rate", "verdicts", "residual_max_ns", "bound_misses", "throughput_per_s"),
        *("outputs_correct", "separation_ms"),
    }
    assert [field.name for field in msgspec.structs.fields(results.Separation)] == ["min", "p1", "p50", "p99"]
