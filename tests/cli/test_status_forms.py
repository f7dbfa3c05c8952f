"""`skewd status` in its other forms: for Prometheus, on a terminal, and with who steers the clock."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from skewd import time_daemons
from skewd.cli import main
from skewd.time_daemons import TimeDaemon, steered_by, too_many_hands
from tests.cli.fake_daemon import FakeDaemon, status_of
from tests.cli.test_status_screen import everything
from tests.waiting import LIMIT_S

COMPLETE = {"drift_ppb": None, "contradictions": 0, "age_s": 0.3}


@pytest.fixture
def config(fake_daemon: FakeDaemon) -> list[str]:
    return ["--config", str(fake_daemon.config_path)]


def test_the_metrics_of_a_status(
    fake_daemon: FakeDaemon, config: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    fake_daemon.answers["/v1/status"] = status_of(-5_092_000, -4_912_000, version="1.2") | COMPLETE
    assert main(["status", "-f", "prometheus", *config]) == 0
    families = text_string_to_metric_families(capsys.readouterr().out)
    values = {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}
    assert values["skewd_clock_offset_seconds", "node:producer"] == -0.005002
    assert values["skewd_clock_offset_upper_seconds", "node:producer"] == -0.004912
    assert values["skewd_peer_rtt_min_seconds", "producer"] == 0.0002
    assert values["skewd_clock_eras_total",] == 1
    assert values["skewd_build_info", "1.2", "false"] == 1
    assert not any(name.startswith("process_") for name, *_ in values)  # this command's would mean nothing


def test_an_answer_without_what_metrics_need(
    fake_daemon: FakeDaemon, config: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    fake_daemon.answers["/v1/status"] = {"peers": 7}
    assert main(["status", "-f", "prometheus", *config]) == 1
    assert "do its version and this command's agree?" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["-f", "xml"], ["--json", "-f", "prometheus"]])
def test_a_form_that_does_not_exist(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", *words]) == 64
    assert "write one of plain, json, prometheus" in capsys.readouterr().err


def test_on_a_terminal_it_is_kept_fresh_in_place(fake_daemon: FakeDaemon, config: list[str]) -> None:
    fake_daemon.answers["/v1/status"] = everything()
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    words = [sys.executable, "-m", "skewd", "status", "--watch", *config]
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, env=env)
    os.close(theirs)
    seen = b""
    try:
        deadline = time.monotonic() + LIMIT_S
        while b"behind utc" not in seen or b"wrong_key 2" not in seen:
            assert select.select([ours], [], [], max(0.0, deadline - time.monotonic()))[0], seen
            seen += os.read(ours, 65536)
        fake_daemon.answers["/v1/status"] = status_of(0, 0)
        while b"agrees with" not in seen:
            assert select.select([ours], [], [], max(0.0, deadline - time.monotonic()))[0], seen
            seen += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        while b"\x1b[?1049l" not in seen:  # the terminal's first screen is back
            assert time.monotonic() < deadline, seen
            if select.select([ours], [], [], 2.0)[0]:
                seen += os.read(ours, 65536)
        assert process.wait(timeout=LIMIT_S) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
    finally:
        process.kill()
        process.communicate()
        os.close(ours)
    assert b"\x1b[?1049h" in seen


def test_who_steers_this_clock_is_said(
    fake_daemon: FakeDaemon,
    config: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    two = [TimeDaemon("chronyd", 812, True), TimeDaemon("ntpd", 9, None)]
    monkeypatch.setattr(time_daemons, "running", lambda: two)
    fake_daemon.answers["/v1/status"] = status_of(0, 0)
    assert main(["status", *config]) == 0
    out = capsys.readouterr().out
    assert "  steered by    chronyd (pid 812), ntpd (pid 9)\n" in out
    assert "  ! chronyd (pid 812) and ntpd (pid 9) may all set this clock\n    -> stop all but one\n" in out
    fake_daemon.answers["/v1/status"] = status_of(0, 0, virtual=True)
    assert main(["status", *config]) == 0
    assert "steered" not in capsys.readouterr().out


def test_a_process_counts_by_name_and_capability(tmp_path: Path) -> None:
    program = tmp_path / "phc2sys"
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([str(program), "60"])
    try:
        found = [daemon for daemon in time_daemons.running() if daemon.pid == process.pid]
        assert [daemon.name for daemon in found] == ["phc2sys"]
        for held, may_set in (("0000000002000000", True), ("0000000000000000", False), ("odd", None)):
            status = tmp_path / str(process.pid) / "status"
            status.parent.mkdir(exist_ok=True)
            status.write_text(f"Name:\tphc2sys\nCapEff:\t{held}\n")
            seen = [daemon for daemon in time_daemons.running(tmp_path) if daemon.pid == process.pid]
            assert [daemon.may_set for daemon in seen] == [may_set]
    finally:
        process.kill()
        process.wait()


def test_hands_on_a_clock() -> None:
    chronyd, powerless = TimeDaemon("chronyd", 1, True), TimeDaemon("ntpd", 2, False)
    ptp4l, phc2sys = TimeDaemon("ptp4l", 3, True), TimeDaemon("phc2sys", 4, None)
    assert steered_by([]).startswith("nobody seen here")
    assert steered_by([powerless]) == "nobody seen here; ntpd (pid 2, may not set the clock)"
    assert steered_by([chronyd, powerless]) == "chronyd (pid 1)"
    assert too_many_hands([chronyd, powerless, ptp4l]) is None
    wrong = too_many_hands([chronyd, ptp4l, phc2sys])
    assert wrong is not None
    assert (wrong.code, wrong.text, wrong.remedy) == (
        "time-daemons-compete",
        "chronyd (pid 1) and phc2sys (pid 4) may all set this clock",
        "stop all but one",
    )
