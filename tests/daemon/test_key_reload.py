"""A running mesh changes its key: nothing is refused and nothing stops, step by step, by file or by SIGHUP."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from skewd.clock import VirtualClock, VirtualPage
from skewd.config import Config, MeshConfig, MetricsConfig, NodeConfig
from skewd.daemon import Daemon
from skewd.keys import KeyRing, generate_key_file, load_keys, rotate_key_file
from skewd.links.protocol import LinkProtocol
from tests.links.link_bench import described, host_raw_ns
from tests.waiting import LIMIT_S, until

MS = 1_000_000


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="skd") as name:
        yield Path(name)


async def test_two_daemons_rotate_at_their_own_pace_and_refuse_nothing(short: Path) -> None:
    source = short / "mesh.key"
    generate_key_file(source)
    async with contextlib.AsyncExitStack() as stack:
        daemons: list[Daemon] = []
        address = ""
        for name in "ab":
            shutil.copy(source, short / f"{name}.key")
            config = Config(
                node=NodeConfig(name=name, runtime_dir=short / name, state_dir=short),
                mesh=MeshConfig(
                    listen="127.0.0.1:0",
                    peers=(address,) if address else (),
                    interval=100 * MS,
                    reference="a",
                    key_file=short / f"{name}.key",
                ),
                metrics=MetricsConfig(listen=None),
            )
            daemon = Daemon(config, VirtualClock(VirtualPage.create(None, epoch_ns=len(daemons) * 10**15)))
            address = (await stack.enter_async_context(daemon.running()))["mesh"]
            daemons.append(daemon)

        def counters(daemon: Daemon) -> dict[str, int]:
            return dict(daemon.status()["links"][0]["counters"])

        def counter(daemon: Daemon, name: str) -> int:
            return counters(daemon)[name]

        async def both_hear() -> None:
            before = [counter(daemon, "accepted") for daemon in daemons]
            await until(
                lambda: all(counter(daemon, "accepted") > was + 3 for daemon, was in zip(daemons, before, strict=True)),
                "messages to be accepted",
            )

        await both_hear()
        for order in (daemons, daemons[::-1], daemons):
            rotate_key_file(source)
            for daemon in order:
                # As it is copied by hand: a new file takes the old one's place.
                copied = short / "copied"
                shutil.copy(source, copied)
                copied.replace(short / f"{daemon.config.node.name}.key")
                daemon.reload_keys(anyway=False)
                await both_hear()
        for daemon in daemons:
            for reason in ("wrong_key", "bad_mac", "internal_errors"):
                assert counter(daemon, reason) == 0
            # What the socket counts is told as well: whether the kernel stamps, among the rest.
            assert {"kernel_sent", "kernel_stamped", "kernel_gave_none"} <= counters(daemon).keys()
        (short / "a.key").chmod(0o644)
        daemons[0].reload_keys(anyway=False)
        await until(
            lambda: any("can be read by others" in message for message in daemons[0].status()["messages"]), "a word"
        )
        await both_hear()


def test_sighup_has_the_key_file_read_again(short: Path) -> None:
    key_file = short / "mesh.key"
    generate_key_file(key_file)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
        ours.bind(("127.0.0.1", 0))
        ours.settimeout(0.2)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        (short / "skewd.toml").write_text(
            f'[node]\nname = "n"\nruntime_dir = "{short}/run"\nstate_dir = "{short}"\n[metrics]\nlisten = "off"\n'
            f'[mesh]\nlisten = "127.0.0.1:{port}"\nkey_file = "{key_file}"\n'
        )

        def answers(keys: KeyRing) -> bool:
            protocol = LinkProtocol(link="udp", key=keys, describe=lambda: described("asking"), random=os.urandom)
            ours.sendto(protocol.request("n", host_raw_ns()), ("127.0.0.1", port))
            try:
                data = ours.recv(2048)
            except (TimeoutError, ConnectionRefusedError):
                return False
            return protocol.receive(data, "n", host_raw_ns()).proofs is not None

        def in_time(keys: KeyRing) -> bool:
            end = time.monotonic() + LIMIT_S
            while time.monotonic() < end:
                if answers(keys):
                    return True
            return False

        command = [sys.executable, "-m", "skewd", "run", "--config", str(short / "skewd.toml")]
        if os.geteuid() == 0 and shutil.which("setpriv"):
            command = ["setpriv", "--bounding-set", "-sys_time", "--inh-caps", "-sys_time", *command]
        with (short / "log").open("w") as log:
            daemon = subprocess.Popen(
                [*command, "--virtual-clock", "offset=0ms"], stdout=subprocess.PIPE, stderr=log, text=True
            )
        try:
            assert daemon.stdout is not None
            assert daemon.stdout.readline(), (short / "log").read_text()
            first = load_keys(key_file)
            assert in_time(first), (short / "log").read_text()
            key_file.unlink()
            generate_key_file(key_file)
            other = load_keys(key_file)
            daemon.send_signal(signal.SIGHUP)
            assert in_time(other), (short / "log").read_text()
            assert not answers(first)
            assert daemon.poll() is None
        finally:
            daemon.terminate()
            daemon.wait(LIMIT_S)
            if daemon.stdout is not None:
                daemon.stdout.close()
        assert daemon.returncode == 0
        assert f"{other.sending.key_id:08x}" in (short / "log").read_text()
