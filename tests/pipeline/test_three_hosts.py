"""The recipe of deploy/hosts/ as it is written, on three hosts that are network namespaces, with this clock."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from skewd_pipeline.options import STAGES
from tests.mesh.five_nodes import Network, address, network
from tests.waiting import LIMIT_S

RECIPE = Path(__file__).parents[2] / "deploy" / "hosts"
HOST_OF = {"producer": 0, "preprocess": 0, "inference": 1, "postprocess": 2, "consumer": 0}
HOSTS = range(3)


def here(text: str) -> str:
    """The recipe's addresses are these namespaces'."""
    return re.sub(r"\b10\.0\.0\.([123])\b", lambda found: address(int(found[1]) - 1), text)


class Hosts:
    """Three of them; every process they started ends with them."""

    def __init__(self, net: Network, directory: Path, stack: contextlib.ExitStack) -> None:
        self._net, self._directory, self._stack = net, directory, stack

    def of(self, host: int) -> Path:
        """A host's directory."""
        return self._directory / str(host)

    def start(self, host: int, *words: str, **environment: str) -> subprocess.Popen[str]:
        """``skewd ...`` on one."""
        process = subprocess.Popen(
            [
                *("ip", "netns", "exec", self._net.of(host), "setpriv", "--pdeathsig", "KILL"),
                *("--bounding-set", "-sys_time", "--inh-caps", "-sys_time", sys.executable, "-m", "skewd", *words),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=(self.of(host) / "log").open("a"),
            text=True,
            cwd=self.of(host),
            env={
                **os.environ,
                "PYTHONPATH": str(RECIPE.parents[1]),
                "SKEWD_NODE__NAME": f"host-{host}",
                "SKEWD_NODE__RUNTIME_DIR": str(self.of(host)),
                "SKEWD_NODE__STATE_DIR": str(self.of(host)),
                **environment,
            },
        )
        self._stack.callback(_ended, process)
        return process

    def said(self, host: int) -> str:
        """What its processes complained of."""
        return (self.of(host) / "log").read_text()


def _ended(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate(timeout=LIMIT_S)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    with network() as net, contextlib.ExitStack() as stack:
        for host in HOSTS:
            (tmp_path / str(host)).mkdir()
        yield Hosts(net, tmp_path, stack)


@pytest.mark.long
def test_the_recipe_for_three_hosts(hosts: Hosts, tmp_path: Path) -> None:
    recipe = (RECIPE / "README.md").read_text()
    subprocess.run([sys.executable, "-m", "skewd", "keygen", str(tmp_path / "mesh.key")], check=True)
    told = dict(re.findall(r"(SKEWD_MESH__\w+)=('[^']*'|\S+)", recipe))
    every: list[str] = json.loads(here(told["SKEWD_MESH__PEERS"].strip("'")))
    (forward,) = re.findall(r"skewd (sidecar --mode tag --forward \S+)", recipe)
    for host in HOSTS:
        others = [peer for peer in every if not peer.startswith(f"{address(host)}:")]
        assert len(others) == len(every) - 1
        daemon = hosts.start(
            host,
            "run",
            SKEWD_MESH__KEY_FILE=str(tmp_path / told["SKEWD_MESH__KEY_FILE"]),
            SKEWD_MESH__LISTEN=told["SKEWD_MESH__LISTEN"],
            SKEWD_MESH__PEERS=json.dumps(others),
        )
        sidecar = hosts.start(host, *here(forward).split())
        for process in (daemon, sidecar):
            assert process.stdout is not None
            assert process.stdout.readline().startswith("READY"), hosts.said(host)
    (wait,) = re.findall(r"skewd (waitsync .*)", recipe)
    waiting = [hosts.start(host, *wait.split()) for host in HOSTS]
    assert [process.wait(90) for process in waiting] == [0, 0, 0], [hosts.said(host) for host in HOSTS]

    text = here((RECIPE / "stages.toml").read_text()).replace("messages = 1000", "messages = 20")
    (tmp_path / "mymodel.py").write_text("def label(body: bytes) -> str:\n    return str(len(body) % 7)\n")
    for host in HOSTS:
        (hosts.of(host) / "stages.toml").write_text(f'{text}[work]\nmodel = "mymodel:label"\n')
    order = re.findall(r"skewd (experiment stage (\w+) --config \S+) +# 10\.0\.0\.(\d)", recipe)
    assert {name: int(host) - 1 for _, name, host in order} == HOST_OF
    assert [name for _, name, _ in order] == [*reversed(STAGES)]
    paths = os.pathsep.join([str(RECIPE.parents[1]), str(tmp_path)])
    stages = {name: hosts.start(HOST_OF[name], *words.split(), PYTHONPATH=paths) for words, name, _ in order}
    codes = {name: process.wait(120) for name, process in stages.items()}
    assert codes == dict.fromkeys(stages, 0), [hosts.said(host) for host in HOSTS]

    consumer = json.loads((hosts.of(0) / "results" / "consumer.json").read_text())
    assert (consumer["received"], consumer["correct"], consumer["spans_collected"]) == (20, 20, 100)
    by_rule = {counts["rule"]: counts for counts in consumer["edges"]}
    # These hosts have one clock, and every stage works for 3.5 ms.
    started = by_rule["span-start"]
    assert (started["edges"], started["negative"], started["verdicts"]) == (80, 0, {"ordered": 80})
    assert sum(by_rule["send-receive"]["verdicts"].values()) == 80
    assert not {"skewed", "impossible", "unsynchronized"} & set(by_rule["send-receive"]["verdicts"])
