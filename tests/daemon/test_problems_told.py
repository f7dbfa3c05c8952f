"""A problem of a real daemon: the same code in the status, the screen, the metrics, the page, the check and the log."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from skewd.api_client import get_status
from skewd.cli import main
from skewd.problems import CODES
from tests.cli.test_services import Service
from tests.waiting import wait_until

HEAD = """
[node]
name = "n"
runtime_dir = "{run}"
state_dir = "{run}/state"
[mesh]
listen = "off"
[metrics]
listen = "127.0.0.1:0"
[log]
format = "json"
level = "{level}"
[[source]]
type = "ntp"
address = "127.0.0.1:1"
name = "dead"
interval = "200ms"
"""


class Running:
    """A daemon whose only source is a port that nobody listens on."""

    def __init__(self, directory: Path) -> None:
        self.file, self.socket = directory / "skewd.toml", directory / "skewd.sock"
        self._directory = directory
        self.write("info")
        self.service = Service("run", "--config", str(self.file), directory=directory)
        self.metrics = self.service.ready()["metrics"]

    def write(self, level: str) -> None:
        self.file.write_text(HEAD.format(run=self._directory, level=level))

    def reload(self, level: str) -> None:
        self.write(level)
        self.service.process.send_signal(signal.SIGHUP)

    def codes(self) -> list[str]:
        return [problem["code"] for problem in get_status(self.socket)["problems"]]

    def get(self, path: str) -> str:
        with urlopen(f"http://{self.metrics}{path}") as answer:
            return str(answer.read().decode())

    def series(self) -> dict[str, float]:
        families = text_string_to_metric_families(self.get("/metrics"))
        return {s.labels["code"]: s.value for f in families if f.name == "skewd_problem" for s in f.samples}

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.service.errors.read_text().splitlines()]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    daemon = Running(tmp_path)
    yield daemon
    daemon.service.close()


def test_a_problem_has_one_code_everywhere_and_goes_when_it_is_over(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    wait_until(lambda: "source-unreachable" in running.codes(), "the source is unreachable")
    running.reload("loud")
    wait_until(lambda: "config-refused" in running.codes(), "the refusal")
    status = get_status(running.socket)
    assert {problem["code"] for problem in status["problems"]} <= CODES.keys()
    assert status["problems"][0] == {
        "code": "sources-unheard",
        "severity": "critical",
        "subject": "",
        "text": "no source has answered yet",
        "remedy": "see what each source says",
    }
    (refused,) = [problem for problem in status["problems"] if problem["code"] == "config-refused"]
    assert f"{running.file}: [log] level" in refused["text"]
    assert [f"{one['text']}; {one['remedy']}".removesuffix("; ") for one in status["problems"]] == status["messages"]
    assert running.series() == dict.fromkeys(running.codes(), 1.0)
    assert "config-refused" in running.get("/")

    words = ["--config", str(running.file)]
    running.write("info")  # what is written is right again; what is in force, the daemon does not know yet
    assert main(["status", *words]) == 0
    screen = capsys.readouterr().out
    assert "  ! no source has answered yet\n    -> see what each source says\n" in screen
    assert refused["text"] in screen
    assert main(["check", "--json", *words]) == 3
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["problems"] == ["sources-unheard"]
    assert "no source has answered yet" in verdict["message"]

    running.reload("info")
    wait_until(lambda: "config-refused" not in running.codes(), "that it is over")
    assert "config-refused" not in running.series()

    def changed() -> list[tuple[str, str]]:
        return [(line["event"], line["code"]) for line in running.log() if line["event"] in ("problem", "problem over")]

    wait_until(lambda: ("problem over", "config-refused") in changed(), "the log, which a thread writes")
    changes = changed()
    assert changes.count(("problem", "sources-unheard")) == 1
    assert [change for change in changes if change[1] == "config-refused"] == [
        ("problem", "config-refused"),
        ("problem over", "config-refused"),
    ]
