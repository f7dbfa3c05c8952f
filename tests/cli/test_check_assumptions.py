"""`skewd check --assumptions`: the limits that all bounds rest on, judged by what messages prove."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from skewd.assumptions import judge, problems
from skewd.cli import main
from skewd.problems import Problem
from skewd.status import decode
from tests.cli.fake_daemon import FakeDaemon, status_of
from tests.cli.test_services import Service
from tests.waiting import wait_until


def seen(verdict: str, limit: int, least: int | None, most: int | None, window_s: int | None = 64) -> dict[str, Any]:
    age_s = None if window_s is None else 3
    return {
        "verdict": verdict,
        "limit": limit,
        "at_least": least,
        "at_most": most,
        "window_s": window_s,
        "age_s": age_s,
    }


DRIFT = seen("within", 200_020, 1_100, 3_214)
WANDER = seen("within", 20, 0, 4, 1024)
BROKEN = seen("violated", 200_020, 312_400, 318_000, 8)
JITTERY = seen("unknown", 20, 0, 211, 16)
UNSEEN = seen("unknown", 20, None, None, None)


def status(*pairs: tuple[str, dict[str, Any], dict[str, Any]], source: dict[str, Any] | None = None) -> dict[str, Any]:
    rows = [
        {
            **status_of(0, 0)["peers"][0],
            "name": name,
            "assumptions": {"contradicted_age_s": None, "drift": drift, "wander": wander},
        }
        for name, drift, wander in pairs
    ]
    return status_of(0, 0, peers=rows, sources=[source] if source else [])


@pytest.mark.parametrize(
    ("told", "code", "line"),
    [
        (
            status(("producer", DRIFT, WANDER)),
            0,
            "OK: inference: within the limits against producer: drift at most 3.22 ppm over 64 s (limit 200.02) "
            "and wander at most 4 ppb/s over 1024 s (limit 20)",
        ),
        (
            status(("producer", DRIFT, JITTERY), ("consumer", DRIFT, WANDER)),
            1,
            "WARNING: inference: cannot tell yet against producer: wander at most 211 ppb/s over 16 s (limit 20)",
        ),
        (
            status(("producer", DRIFT, UNSEEN)),
            1,
            "WARNING: inference: cannot tell yet against producer: wander not observed yet",
        ),
        (
            status(("producer", BROKEN, JITTERY), ("consumer", DRIFT, WANDER)),
            2,
            "CRITICAL: inference: violated against producer: drift at least 312 ppm over 8 s (limit 200.02)",
        ),
        (
            status(("producer", BROKEN, WANDER), ("consumer", BROKEN, WANDER)),
            2,
            "CRITICAL: inference: violated against producer: drift at least 312 ppm over 8 s (limit 200.02); "
            "against consumer: drift at least 312 ppm over 8 s (limit 200.02); "
            "it is so against all, so this node's clock is the likely one",
        ),
        (
            status(),
            3,
            "UNKNOWN: inference: cannot tell: no peer and no source was heard yet; 'skewd status' says why",
        ),
        (
            {"peers": 7},
            3,
            "UNKNOWN: this node: the daemon's answer cannot be read; do its version and this command's agree?",
        ),
    ],
)
def test_the_line(told: dict[str, Any], code: int, line: str) -> None:
    result = judge(told)
    assert (result.code, result.line) == (code, line)
    assert result.data["code"] == code


def test_strict_makes_what_cannot_be_told_critical() -> None:
    assert judge(status(("producer", DRIFT, JITTERY)), strict=True).code == 2
    assert judge(status(("producer", DRIFT, WANDER)), strict=True).code == 0


def test_one_peer_of_several() -> None:
    told = status(("producer", DRIFT, WANDER), ("consumer", BROKEN, WANDER))
    assert judge(told, peer="producer").code == 0
    assert judge(told, peer="consumer").code == 2
    assert judge(told, peer="nobody").code == 3


def test_a_contradiction_is_a_violation() -> None:
    told = status(("producer", DRIFT, WANDER))
    told["peers"][0]["assumptions"]["contradicted_age_s"] = 12
    assert judge(told).line.endswith(
        "violated against producer: messages excluded every state that the limits allow, 12 s ago"
    )


def test_what_was_not_heard_lately_cannot_be_told() -> None:
    told = status(("producer", DRIFT, WANDER), ("consumer", DRIFT, WANDER))
    told["peers"][0]["age_s"] = 400.0
    assert (judge(told).code, judge(told, max_age_s=500).code) == (1, 0)
    assert "against producer: last heard 400 s ago" in judge(told).line
    told["peers"][1]["age_s"] = 400.0
    assert judge(told).code == 3


def test_a_source_counts_too() -> None:
    source = {"name": "near", "age_s": 1.0, "assumptions": {"contradicted_age_s": None, "drift": BROKEN}}
    source["assumptions"]["wander"] = WANDER  # type: ignore[index]
    result = judge(status(("producer", DRIFT, WANDER), source=source))
    assert "violated against near" in result.line
    assert result.perfdata == "within=1 unclear=0 violated=1"


def test_what_status_says_of_it() -> None:
    told = decode(status(("producer", BROKEN, WANDER))).peers[0].assumptions
    assert told is not None
    assert problems("producer", told) == [
        Problem(
            "drift-violated",
            "producer",
            "against producer: drift at least 312 ppm over 8 s (limit 200.02)",
            "raise [clock] max_drift_ppm on the node whose clock it is, or replace that clock",
        )
    ]


@pytest.fixture
def config(fake_daemon: FakeDaemon) -> list[str]:
    return ["--config", str(fake_daemon.config_path)]


def test_as_typed(fake_daemon: FakeDaemon, config: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    fake_daemon.answers["/v1/status"] = status(("producer", BROKEN, WANDER))
    assert main(["check", "--assumptions", *config]) == 2
    out = capsys.readouterr().out
    assert out.endswith(" | within=0 unclear=0 violated=1\n")
    assert main(["check", "--assumptions", "--json", *config]) == 2
    told = json.loads(capsys.readouterr().out)
    assert told["assumptions"][0]["drift"] == BROKEN
    assert main(["check", "--assumptions", "--warning", "1ms", *config]) == 3
    assert "--assumptions has no --warning" in capsys.readouterr().out
    fake_daemon.close()
    assert main(["check", "--assumptions", *config]) == 3
    assert "no daemon" in capsys.readouterr().out


def test_a_daemon_whose_clock_is_too_fast_is_found_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    services: list[Service] = []

    def start(name: str, peers: str, *more: str) -> str:
        file = tmp_path / f"{name}.toml"
        file.write_text(
            f'[node]\nname = "{name}"\nruntime_dir = "{tmp_path}/{name}"\nstate_dir = "{tmp_path}"\n'
            '[metrics]\nlisten = "off"\n'
            f'[mesh]\nkey = "none"\nlisten = "127.0.0.1:0"\ninterval = "50ms"\npeers = [{peers}]\n'
        )
        services.append(Service("run", "--config", str(file), *more, directory=tmp_path))
        return str(services[-1].ready()["mesh"])

    try:
        address = start("right", "")
        start("fast", f'"{address}"', "--virtual-clock", "drift=2000ppm")
        words = ["check", "--assumptions", "--config", str(tmp_path / "fast.toml")]
        wait_until(lambda: main(words) == 2, "the check exits 2")
        out = capsys.readouterr().out.splitlines()[-1]
        assert "fast: violated against right: " in out
        assert "VIRTUAL CLOCK" in out
        assert main(["status", "--config", str(tmp_path / "fast.toml")]) == 0
        assert "moved by more than its declared limits" in capsys.readouterr().out
    finally:
        for service in services:
            service.close()
