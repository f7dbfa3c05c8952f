"""The shipped unit under a real systemd: it says READY, serves readers of every user, stops cleanly, and a daemon that
hangs is killed and started again. One systemd serves all tests of this file; each leaves the service stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from tests.service.private_systemd import (
    LAUNCHER,
    PYTHON,
    PrivateSystemd,
    missing,
    python_environment,
)
from tests.waiting import wait_until

UNITS = Path(__file__).parent.parent.parent / "systemd"
_LACKS = missing()

pytestmark = [
    pytest.mark.long,
    pytest.mark.systemd,
    pytest.mark.skipif(bool(_LACKS), reason=f"a systemd of its own needs {', '.join(_LACKS)}"),
    # One systemd for the file: xdist must not spread it over workers.
    pytest.mark.xdist_group("private_systemd"),
]

# What the tests must change about the shipped unit, and no more: where the program is, where its output goes (there is
# no journal), and a record of how each run ended.
DROP_IN = f"""
[Service]
ExecStart=
ExecStart={LAUNCHER} {{command}}
StandardOutput=append:/run/lab/out/{{name}}.stdout
StandardError=append:/run/lab/out/{{name}}.stderr
ExecStopPost=+/bin/sh -c 'echo "$$SERVICE_RESULT $$EXIT_CODE $$EXIT_STATUS" >> /run/lab/out/{{name}}.ends'
RestartSec=100ms
""" + "".join(f"Environment={setting}\n" for setting in python_environment())


# What the sidecar forwards to: keeps the last body it was sent.
COLLECTOR = """
from http.server import BaseHTTPRequestHandler, HTTPServer
class Collector(BaseHTTPRequestHandler):
    def do_POST(self):
        with open("/run/lab/out/collected.bin", "wb") as file:
            file.write(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()
HTTPServer(("127.0.0.1", 14318), Collector).serve_forever()
"""


@pytest.fixture(scope="module")
def systemd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateSystemd]:
    environment = "".join(f"Environment={setting}\n" for setting in python_environment())
    forward = (
        "Environment=SKEWD_SIDECAR__FORWARD=http://127.0.0.1:14318\n"
        "Environment=SKEWD_SIDECAR__GRPC=unix:///run/skewd-sidecar/otlp.sock\n"
    )
    name = "Environment=SKEWD_NODE__NAME=lab-1\n"
    units = {
        "skewd.service": (UNITS / "skewd.service").read_text(),
        "skewd.service.d/lab.conf": DROP_IN.format(command="run", name="skewd") + name,
        "skewd-sidecar.service": (UNITS / "skewd-sidecar.service").read_text(),
        "skewd-sidecar.service.d/lab.conf": DROP_IN.format(command="sidecar", name="sidecar") + forward,
        "collector.service": f"[Service]\nExecStart={PYTHON} /etc/collector.py\n{environment}",
    }
    scratch = tmp_path_factory.mktemp("systemd")
    with PrivateSystemd(scratch, units, etc={"collector.py": COLLECTOR}) as running:
        yield running


@pytest.fixture
def service(systemd: PrivateSystemd) -> Iterator[PrivateSystemd]:
    systemd.systemctl("start", "skewd")
    yield systemd
    systemd.systemctl("stop", "skewd")
    systemd.run("systemctl", "reset-failed", "skewd", check=False)


def main_pid(systemd: PrivateSystemd) -> int:
    return int(systemd.show("skewd", "MainPID")["MainPID"])


def test_it_is_active_once_it_said_ready(service: PrivateSystemd) -> None:
    said = service.show("skewd", "Type", "ActiveState", "SubState", "StatusText", "NRestarts")
    assert said["Type"] == "notify"
    assert (said["ActiveState"], said["SubState"], said["NRestarts"]) == ("active", "running", "0")
    assert said["StatusText"]


def test_it_holds_no_privilege(service: PrivateSystemd) -> None:
    status = service.run("cat", f"/proc/{main_pid(service)}/status").stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert "0" not in fields["Uid"].split()
    for held in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(fields[held], 16) == 0, held
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")


def test_any_user_may_ask(service: PrivateSystemd) -> None:
    done = service.run(LAUNCHER, "status", "--json", user="nobody")
    status = json.loads(done.stdout)
    assert status["node"]
    assert status["virtual"] is False
    assert status["clock"]["kernel"]["tick_us"] > 0, "the unit lets the daemon read adjtimex()"
    assert service.run("head", "-c", "8", "/run/skewd/clock.shm", user="nobody").stdout == "skewdseg"
    assert service.run("touch", "/run/skewd/x", user="nobody", check=False).returncode != 0


def test_a_restart_keeps_the_directory_that_containers_mounted(service: PrivateSystemd) -> None:
    before = service.run("stat", "--format=%i", "/run/skewd").stdout
    first = main_pid(service)
    service.systemctl("restart", "skewd")
    assert main_pid(service) != first
    assert service.run("stat", "--format=%i", "/run/skewd").stdout == before
    assert service.run(LAUNCHER, "status", "--json", user="nobody").returncode == 0


def test_it_stops_when_told_and_leaves_nothing_to_be_misread(systemd: PrivateSystemd) -> None:
    systemd.systemctl("start", "skewd")
    systemd.systemctl("stop", "skewd")
    assert systemd.show("skewd", "ActiveState")["ActiveState"] == "inactive"
    assert (systemd.out / "skewd.ends").read_text().splitlines()[-1] == "success exited 0"
    # A lock file may stay, for it says nothing once it is not held.
    assert systemd.run("ls", "-A", "/run/skewd").stdout in ("", "skewd.lock\n")


def test_one_that_hangs_is_killed_and_started_again(systemd: PrivateSystemd) -> None:
    override = "/run/lab/units/skewd.service.d/watchdog.conf"
    systemd.run("sh", "-c", f"printf '[Service]\\nWatchdogSec=4s\\n' > {override}")
    systemd.systemctl("daemon-reload")
    try:
        systemd.systemctl("start", "skewd")
        first = main_pid(systemd)
        # Healthy, it outlives its watchdog: otherwise what follows would prove nothing.
        started = Path("/proc/uptime").read_text().split()[0]
        wait_until(lambda: float(Path("/proc/uptime").read_text().split()[0]) > float(started) + 5, "5 s passed")
        assert main_pid(systemd) == first
        systemd.run("kill", "-STOP", str(first))
        wait_until(lambda: main_pid(systemd) not in (0, first), "systemd started another")
        wait_until(lambda: systemd.show("skewd", "ActiveState")["ActiveState"] == "active", "which said READY")
        assert systemd.show("skewd", "NRestarts")["NRestarts"] == "1"
        assert (systemd.out / "skewd.ends").read_text().splitlines()[-1].startswith("watchdog ")
        assert systemd.run(LAUNCHER, "status", "--json", user="nobody").returncode == 0
    finally:
        systemd.systemctl("stop", "skewd")
        systemd.run("rm", override)
        systemd.systemctl("daemon-reload")


def test_wrong_configuration_is_said_once_and_not_retried(systemd: PrivateSystemd) -> None:
    systemd.run("sh", "-c", "mkdir -p /etc/skewd && echo '[mesh]\ninterval = 5' > /etc/skewd/skewd.toml")
    try:
        assert systemd.run("systemctl", "start", "skewd", check=False).returncode != 0
        wait_until(lambda: systemd.show("skewd", "ActiveState")["ActiveState"] == "failed", "the service failed")
        assert systemd.show("skewd", "NRestarts")["NRestarts"] == "0"
        assert (systemd.out / "skewd.ends").read_text().splitlines()[-1] == "exit-code exited 64"
        assert "/etc/skewd/skewd.toml: [mesh] interval: 5 has no unit" in (systemd.out / "skewd.stderr").read_text()
    finally:
        systemd.run("rm", "/etc/skewd/skewd.toml")
        systemd.run("systemctl", "reset-failed", "skewd", check=False)


# All that opens a socket of another kind than the defaults do; libzmq in particular ends the process where it may not.
EVERY_LINK = """
[mesh]
listen = "0.0.0.0:9957"
key_file = "/run/credentials/skewd.service/mesh.key"
[[link]]
transport = "zmq"
address = "tcp://127.0.0.1:9958"
[[link]]
transport = "zmq"
address = "ipc:///run/skewd/link"
peers = ["tcp://127.0.0.1:9958"]
"""


def test_the_mesh_key_comes_as_a_credential_and_every_link_opens(systemd: PrivateSystemd) -> None:
    drop_in = "/run/lab/units/skewd.service.d/mesh-key.conf"
    systemd.run("mkdir", "-p", "/etc/skewd")
    systemd.run(LAUNCHER, "keygen", "/etc/skewd/mesh.key")
    systemd.run("sh", "-c", f"cat > {drop_in} <<'END'\n{(UNITS / 'mesh-key.conf').read_text()}END\n")
    systemd.run("sh", "-c", f"cat > /etc/skewd/skewd.toml <<'END'\n{EVERY_LINK}END\n")
    systemd.systemctl("daemon-reload")
    try:
        systemd.systemctl("start", "skewd")
        told = json.loads(systemd.run(LAUNCHER, "status", "--json", user="nobody").stdout)
        assert [(link["transport"], link["address"]) for link in told["links"]] == [
            ("udp", "0.0.0.0:9957"),
            ("zmq", "tcp://127.0.0.1:9958"),
            ("zmq", "ipc:///run/skewd/link"),
        ]
        assert systemd.run("cat", "/etc/skewd/mesh.key", user="skewd", check=False).returncode != 0
    finally:
        systemd.systemctl("stop", "skewd")
        systemd.run("rm", "-f", drop_in, "/etc/skewd/skewd.toml", "/etc/skewd/mesh.key")
        systemd.systemctl("daemon-reload")
        systemd.run("systemctl", "reset-failed", "skewd", check=False)


def test_clockbound_segments_are_everybodys_and_stay_the_same_files_over_a_restart(systemd: PrivateSystemd) -> None:
    drop_in = "/run/lab/units/skewd.service.d/clockbound.conf"
    systemd.run("mkdir", "-p", "/etc/skewd")
    systemd.run("sh", "-c", f"cat > {drop_in} <<'END'\n{(UNITS / 'clockbound.conf').read_text()}END\n")
    systemd.run("sh", "-c", "printf '[clockbound]\nenabled = true\n' > /etc/skewd/skewd.toml")
    systemd.systemctl("daemon-reload")
    try:
        systemd.systemctl("start", "skewd")
        files = ("/var/run/clockbound/shm", "/var/run/clockbound/shm0")
        before = systemd.run("stat", "--format=%i %a %U", *files).stdout
        assert [line.split()[1:] for line in before.splitlines()] == [["644", "skewd"]] * 2
        for file in files:
            assert systemd.run("head", "-c", "4", file, user="nobody").stdout == "NZMA"
        systemd.systemctl("restart", "skewd")
        assert systemd.run("stat", "--format=%i %a %U", *files).stdout == before
        systemd.systemctl("stop", "skewd")
        assert systemd.run("stat", "--format=%i %a %U", *files).stdout == before
    finally:
        systemd.systemctl("stop", "skewd")
        systemd.run("rm", "-f", drop_in, "/etc/skewd/skewd.toml")
        systemd.systemctl("daemon-reload")
        systemd.run("systemctl", "reset-failed", "skewd", check=False)


def test_steering_is_undone_however_it_ended_and_goes_without_where_it_may_not(systemd: PrivateSystemd) -> None:
    """No CAP_SYS_TIME here, on purpose: the drop-in without it. So it can't steer, says so, and measures on."""
    drop_in = "/run/lab/units/skewd.service.d/discipline.conf"
    text = (UNITS / "discipline.conf").read_text().replace("/usr/bin/skewd", LAUNCHER)
    text = "".join(line for line in text.splitlines(keepends=True) if "CAP_SYS_TIME" not in line)
    systemd.run("mkdir", "-p", "/etc/skewd")
    systemd.run("sh", "-c", f"cat > {drop_in} <<'END'\n{text}END\n")
    systemd.run("sh", "-c", "printf '[discipline]\nmode = \"slew\"\n' > /etc/skewd/skewd.toml")
    systemd.systemctl("daemon-reload")
    left = "/var/lib/skewd/steering-lab-1"
    try:
        systemd.systemctl("start", "skewd")
        told = json.loads(systemd.run(LAUNCHER, "status", "--json", user="nobody").stdout)
        assert told["discipline"]["state"] == "unable"
        assert any("lacks CAP_SYS_TIME" in message for message in told["messages"])
        pid = main_pid(systemd)
        # As if it had steered, another hand had taken over since, and it died.
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
        kept = json.dumps({"boot": boot, "found": 1, "ours": [32_767_999], "tick_us": 10_000, "version": 1})
        systemd.run("sh", "-c", f"echo '{kept}' > {left} && chown skewd {left}")
        systemd.run("kill", "-KILL", str(pid))
        wait_until(lambda: systemd.run("test", "-e", left, check=False).returncode != 0, "the command after its end")
        wait_until(lambda: main_pid(systemd) not in (0, pid), "the next start")
        systemd.run("sh", "-c", f"echo '{kept}' > {left} && chown skewd {left}")
        systemd.systemctl("stop", "skewd")
        assert systemd.run("test", "-e", left, check=False).returncode != 0
        assert "another hand has set the kernel's frequency since" in (systemd.out / "skewd.stdout").read_text()
    finally:
        systemd.systemctl("stop", "skewd")
        systemd.run("rm", "-f", drop_in, "/etc/skewd/skewd.toml", left)
        systemd.systemctl("daemon-reload")
        systemd.run("systemctl", "reset-failed", "skewd", check=False)


def test_the_kernels_estimate_may_be_read(systemd: PrivateSystemd) -> None:
    systemd.run("mkdir", "-p", "/etc/skewd")
    (systemd.out / "skewd.toml").write_text('[[source]]\ntype = "kernel"\ninterval = "100ms"\n')
    systemd.run("cp", "/run/lab/out/skewd.toml", "/etc/skewd/skewd.toml")

    def told() -> str:
        done = systemd.run(LAUNCHER, "status", "--json", user="nobody", check=False)
        if done.returncode:
            return ""
        status = json.loads(done.stdout)
        (source,) = status["sources"]
        # Whether this machine's kernel calls itself synchronized is not the question here.
        reasons = [message for message in status["messages"] if message.startswith("source kernel: ")]
        return reasons[0] if reasons else "read" if source["state"] == "truechimer" else ""

    try:
        systemd.systemctl("start", "skewd")
        wait_until(lambda: told() != "", "the kernel was asked")
        assert "may not read the kernel's estimate" not in told()
    finally:
        systemd.systemctl("stop", "skewd")
        systemd.run("rm", "-f", "/etc/skewd/skewd.toml")
        systemd.systemctl("daemon-reload")
        systemd.run("systemctl", "reset-failed", "skewd", check=False)


def test_a_reload_takes_up_what_it_can_and_says_what_waits(systemd: PrivateSystemd) -> None:
    systemd.run("mkdir", "-p", "/etc/skewd")

    def write(text: str) -> None:
        (systemd.out / "skewd.toml").write_text(text)
        systemd.run("cp", "/run/lab/out/skewd.toml", "/etc/skewd/skewd.toml")

    def told() -> dict[str, Any]:
        # Not the file under test: while it is wrong, every command refuses it.
        ask = ("env", "SKEWD_CONFIG=/dev/null", LAUNCHER, "status", "--json")
        done = systemd.run(*ask, user="nobody", check=False)
        return dict(json.loads(done.stdout)) if done.returncode == 0 else {}

    try:
        write('[[source]]\ntype = "kernel"\nname = "one"\n')
        systemd.systemctl("start", "skewd")
        first = main_pid(systemd)
        write('[clock]\nmax_drift_ppm = 50\n[[source]]\ntype = "kernel"\nname = "two"\n')
        systemd.systemctl("reload", "skewd")
        wait_until(lambda: [row["name"] for row in told().get("sources", [])] == ["two"], "the new source")
        assert told()["config"] == {"last_reload_successful": True, "needs_restart": ["clock.max_drift_ppm"]}
        write("[clock]\nmax_drift = 50\n")
        systemd.systemctl("reload", "skewd")
        wait_until(lambda: not told()["config"]["last_reload_successful"], "the mistake")
        assert main_pid(systemd) == first
    finally:
        systemd.systemctl("stop", "skewd")
        systemd.run("rm", "-f", "/etc/skewd/skewd.toml")
        systemd.systemctl("daemon-reload")
        systemd.run("systemctl", "reset-failed", "skewd", check=False)


def test_the_sidecar_reads_the_daemons_bound_and_passes_spans_on(service: PrivateSystemd) -> None:
    request = ExportTraceServiceRequest()
    span = (
        request.resource_spans.add()
        .scope_spans.add()
        .spans.add(
            name="work",
            trace_id=b"t" * 16,
            span_id=b"s" * 8,
            start_time_unix_nano=10**18,
            end_time_unix_nano=10**18 + 5,
        )
    )
    (service.out / "request.bin").write_bytes(request.SerializeToString())
    post = (
        "import urllib.request as u; body = open('/run/lab/out/request.bin', 'rb').read(); "
        "u.urlopen(u.Request('http://127.0.0.1:4318/v1/traces', body, {'Content-Type': 'application/x-protobuf'}))"
    )
    name = KeyValue(key="clock.node.name", value=AnyValue(string_value="lab-1"))

    def passed_on() -> bool:
        if service.run(PYTHON, "-c", post, check=False).returncode:
            return False  # the unit counts as started before it listens
        collected = ExportTraceServiceRequest.FromString((service.out / "collected.bin").read_bytes())
        (forwarded,) = collected.resource_spans[0].scope_spans[0].spans
        assert forwarded.start_time_unix_nano == span.start_time_unix_nano
        assert KeyValue(key="clock.status", value=AnyValue(string_value="unsynchronized")) in forwarded.attributes
        # The name is known to the daemon alone, so it was read from shared memory, by a user that is not the daemon's.
        return name in forwarded.attributes

    service.systemctl("start", "collector", "skewd-sidecar")
    try:
        wait_until(passed_on, "the sidecar took a span and named the daemon's node")
        user = service.run("stat", "--format=%U", f"/proc/{service.show('skewd-sidecar', 'MainPID')['MainPID']}")
        assert user.stdout.strip() not in ("root", "skewd")
        connect = "import socket as s; s.socket(s.AF_UNIX).connect('/run/skewd-sidecar/otlp.sock')"
        service.run(PYTHON, "-c", connect, user="nobody")
    finally:
        service.systemctl("stop", "skewd-sidecar", "collector")
    assert (service.out / "sidecar.ends").read_text().splitlines()[-1] == "success exited 0"
