"""`skewd experiment stage`: what its file may say, and five of them as processes of their own."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from skewd_pipeline.kafka_broker import Broker, free_ports
from skewd_pipeline.media import free_udp_ports
from skewd_pipeline.options import STAGES
from skewd_pipeline.stage_config import StageConfigError, load, parse
from skewd_pipeline.stage_run import edge_counts
from tests.experiment.made_rows import block_of, raw_spans, tagged, truth_of
from tests.shares import first
from tests.waiting import LIMIT_S

CHECKOUT = Path(__file__).parent.parent.parent
HOPS = "\n".join(f'[hops.{name}]\nendpoint = "tcp://10.0.0.{at}:555{at}"' for at, name in enumerate(STAGES[1:], 1))
ZMQ = f'[pipeline]\ntransport = "zmq"\n{HOPS}\n'


def test_one_file_tells_each_stage_its_part() -> None:
    text = ZMQ + '[stages.inference]\nlisten = "tcp://0.0.0.0:5552"\notlp = "off"\nstamp_offset = "-5ms"\n'
    inference = parse(text, "inference", Path("/etc/x"))
    assert inference.inbox is not None
    assert inference.outbox is not None
    assert (inference.inbox.name, inference.inbox.endpoint) == ("preprocess-inference", "tcp://0.0.0.0:5552")
    assert (inference.outbox.name, inference.outbox.endpoint) == ("inference-postprocess", "tcp://10.0.0.3:5553")
    assert (inference.otlp, inference.stamp_offset_ns) == (None, -5_000_000)
    assert inference.results == Path("/etc/x/results/inference.json")
    before = parse(text, "preprocess")
    assert before.outbox is not None
    assert before.outbox.endpoint == "tcp://10.0.0.2:5552", "others reach it where it says, not where it binds"
    assert (before.otlp, before.stamp_offset_ns) == ("http://127.0.0.1:4318", 0)
    assert parse(text, "producer").inbox is None
    assert parse(text, "consumer").outbox is None


def test_the_recipes_files_are_taken_by_every_stage() -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    hosts = (CHECKOUT / "deploy" / "hosts" / "stages.toml").read_text()
    cluster = next(
        document["data"]["stages.toml"]
        for document in yaml.safe_load_all((CHECKOUT / "deploy" / "kubernetes" / "experiment.yaml").read_text())
        if document["kind"] == "ConfigMap"
    )
    for text in (hosts, cluster):
        told = [parse(text, name, Path("/etc/x")) for name in STAGES]
        assert {each.messages for each in told} == {1000}
        for before, after in pairwise(told):
            assert before.outbox is not None
            assert after.inbox is not None
            assert before.outbox.name == after.inbox.name
            assert str(before.outbox.endpoint).rpartition(":")[2] == str(after.inbox.endpoint).rpartition(":")[2]
        assert all(each.otlp == "http://127.0.0.1:4318" for each in told)


def test_kafka_and_aeron_name_both_ends_alike() -> None:
    kafka = '[pipeline]\ntransport = "kafka"\n[kafka]\nbootstrap = "b:9092"\nclients = "default"\n'
    hops = parse(kafka, "producer").outbox, parse(kafka, "preprocess").inbox
    assert hops[0] == hops[1]
    assert hops[0] is not None
    assert (hops[0].topic, hops[0].clients) == ("skewd-experiment-run-producer-preprocess", "default")
    aeron = '[pipeline]\ntransport = "aeron"\n[aeron]\ndirectory = "/dev/shm/a"\n' + "".join(
        f'[hops.{name}]\nchannel = "aeron:udp?endpoint=10.0.0.{at}:20121"\n' for at, name in enumerate(STAGES[1:], 1)
    )
    inbox, outbox = parse(aeron, "consumer").inbox, parse(aeron, "postprocess").outbox
    assert inbox == outbox
    assert inbox is not None
    streams = {hop.stream for name in STAGES[1:] if (hop := parse(aeron, name).inbox) is not None}
    assert len(streams) == 4


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        ("", "producer", "missing required field `pipeline`"),
        ("x = [", "producer", "not TOML"),
        (ZMQ, "thinker", "'thinker' is no stage; choose producer, preprocess"),
        (ZMQ + "[extra]\n", "producer", "unknown field `extra`"),
        (ZMQ.replace('"zmq"', '"smoke"'), "producer", "Invalid enum value 'smoke'"),
        (
            '[pipeline]\ntransport = "zmq"\n',
            "producer",
            r"\[hops.preprocess\]: the hop into preprocess needs an endpoint",
        ),
        ('[pipeline]\ntransport = "kafka"\n', "producer", r"\[kafka\] is missing"),
        ('[pipeline]\ntransport = "aeron"\n', "producer", r"\[aeron\] is missing"),
        (ZMQ.replace("[pipeline]", '[pipeline]\nservice_floor = "5"'), "producer", "service_floor: '5' has no unit"),
        (ZMQ.replace("[pipeline]", "[pipeline]\nrate = 0.0"), "producer", "rate: 0 is not between"),
        (ZMQ.replace("[pipeline]", "[pipeline]\nmessages = 0"), "producer", "messages: 0 is not between"),
        (ZMQ + '[telemetry]\notlp = "grpc://x:1"\n', "producer", "'grpc://x:1' is no OTLP/HTTP address"),
        (ZMQ + '[stages.producer]\nstamp_offset = "2h"\n', "producer", r"\[stages.producer\] stamp_offset"),
        ('run = "a b"\n' + ZMQ, "producer", "run: 'a b' is no name"),
        (ZMQ + '[results]\ncollect = "4320"\n', "consumer", "4320"),
    ],
)
def test_what_cannot_be_is_refused_by_name(text: str, name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse(text, name)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StageConfigError, match=re.escape(f"{tmp_path / 'x.toml'} can't be read")):
        load(tmp_path / "x.toml", "producer")


def test_edges_are_counted_by_sign_and_by_what_the_tags_say() -> None:
    truth = truth_of(5_000_000)
    spans = raw_spans(block_of(5_000_000, messages=1), truth)
    event, start = edge_counts(tagged(spans, truth))
    assert (event.rule, start.rule, start.edges) == ("send-receive", "span-start", 4)
    assert event.negative == start.negative == 1
    assert start.negative_verdicts == {"skewed": 1}
    assert sum(start.verdicts.values()) == 4
    assert edge_counts(spans)[1].verdicts == {}, "nobody tagged them"
    assert edge_counts([])[0].gap_ms == {}


def zmq_config(_: pytest.FixtureRequest | None = None) -> str:
    ports = free_ports(4)
    return 'transport = "zmq"\n' + "".join(
        f'[hops.{name}]\nendpoint = "tcp://127.0.0.1:{port}"\n' for name, port in zip(STAGES[1:], ports, strict=True)
    )


def kafka_config(request: pytest.FixtureRequest) -> str:
    broker: Broker = request.getfixturevalue("mock_broker")
    return f'transport = "kafka"\n[kafka]\nbootstrap = "{broker.bootstrap}"\n'


def aeron_config(request: pytest.FixtureRequest) -> str:
    driver: Path = request.getfixturevalue("media_driver")
    (port,) = free_udp_ports(1)
    return f'transport = "aeron"\n[aeron]\ndirectory = "{driver}"\n' + "".join(
        f'[hops.{name}]\nchannel = "aeron:udp?endpoint=127.0.0.1:{port}"\n' for name in STAGES[1:]
    )


@pytest.mark.parametrize(
    "configured", first(1, [zmq_config, kafka_config, aeron_config]), ids=["zmq", "kafka", "aeron"]
)
def test_five_stages_as_processes_of_their_own(
    configured: Callable[[pytest.FixtureRequest], str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    (collect,) = free_ports(1)
    otlp = f"http://127.0.0.1:{collect}"
    results, said = run_all(
        tmp_path, configured(request), collect, f'[telemetry]\notlp = "{otlp}"\n[stages.inference]\n'
    )
    assert results["producer"]["sent"] == 12
    assert [results[name]["received"] for name in STAGES[1:]] == [12] * 4
    assert results["consumer"]["correct"] == 12
    assert all(told["flushed"] for told in results.values())
    # A minute early: the inference stage's incoming edges run backwards, and without a sidecar nothing has a verdict.
    assert results["consumer"]["spans_collected"] == 60
    for counts in results["consumer"]["edges"]:
        assert (counts["edges"], counts["negative"], counts["verdicts"]) == (48, 12, {})
    assert "so no bound on a clock shows this" in said["inference"]


@pytest.mark.long
def test_stamps_that_an_application_shifted_are_never_called_skewed(tmp_path: Path) -> None:
    """Two hosts whose clocks agree within 50 us, as their sidecars know; one of the applications adds a minute."""
    (collect,) = free_ports(1)
    sidecars = {name: sidecar(name, collect) for name in ("one", "other")}
    try:
        one, other = (ready(process)["http"] for process in sidecars.values())
        telemetry = f'[telemetry]\notlp = "http://{one}"\n[stages.inference]\notlp = "http://{other}"\n'
        results, _ = run_all(tmp_path, zmq_config(), collect, telemetry)
    finally:
        for process in sidecars.values():
            process.kill()
            process.communicate()
    for counts in results["consumer"]["edges"]:
        assert (counts["edges"], counts["negative"]) == (48, 12)
        assert counts["negative_verdicts"] == {"impossible": 12}
        assert "skewed" not in counts["verdicts"]


def run_all(
    directory: Path, pipeline: str, collect: int, stages: str
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """All five to their end: what each left, and what it complained of. ``stages`` ends in inference's table."""
    (directory / "mymodel.py").write_text("def label(body: bytes) -> str:\n    return str(len(body) % 7)\n")
    (directory / "stages.toml").write_text(
        f'run = "trial"\n[pipeline]\nmessages = 12\nrate = 200.0\nservice_floor = "1ms"\nidle_limit = "20s"\n{pipeline}'
        f'[results]\ncollect = "127.0.0.1:{collect}"\n[work]\nmodel = "mymodel:label"\n{stages}stamp_offset = "-60s"\n'
    )
    processes = {name: started(name, directory) for name in reversed(STAGES)}
    try:
        said = {name: process.communicate(timeout=LIMIT_S)[1] for name, process in processes.items()}
    finally:
        for process in processes.values():
            process.kill()
    assert {name: process.returncode for name, process in processes.items()} == dict.fromkeys(processes, 0), said
    return {name: result(directory, name) for name in STAGES}, said


def sidecar(node: str, collect: int) -> subprocess.Popen[str]:
    words = ("--mode", "tag", "--forward", f"http://127.0.0.1:{collect}", "--static-offset", "0ms")
    return subprocess.Popen(
        [sys.executable, "-m", "skewd", "sidecar", *words, "--static-uncertainty", "50us"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={
            "PATH": "/usr/bin:/bin",
            "SKEWD_NODE__NAME": node,
            "SKEWD_SIDECAR__GRPC": "off",
            "SKEWD_SIDECAR__HTTP": "127.0.0.1:0",
        },
    )


def ready(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    found: dict[str, Any] = json.loads(process.stdout.readline().removeprefix("READY "))
    return found


def started(name: str, directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "skewd", "experiment", "stage", name, "--config", "stages.toml"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=directory,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(directory), "HOME": str(directory)},
    )


def result(directory: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "results" / f"{name}.json").read_text())
    return found


def test_a_stage_that_is_stopped_says_what_it_had(tmp_path: Path) -> None:
    (tmp_path / "stages.toml").write_text(f'[telemetry]\notlp = "off"\n[pipeline]\n{zmq_config()}')
    process = started("preprocess", tmp_path)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "READY {}\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    finally:
        process.kill()
    assert (result(tmp_path, "preprocess")["received"], result(tmp_path, "preprocess")["sent"]) == (0, None)


def test_bad_words_are_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "stages.toml").write_text("[pipeline]\n")
    process = started("producer", tmp_path)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 64
    assert "stages.toml: Object missing required field `transport`" in errors
    assert "Traceback" not in errors
