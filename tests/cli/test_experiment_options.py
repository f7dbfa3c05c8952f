"""The words of `skewd experiment run`, before anything is started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skewd_pipeline.options import (
    TRANSPORTS,
    ExperimentOptions,
    default_reference,
    parse_drift_ppb,
    parse_loads,
    parse_names,
    parse_service_floor_ns,
    parse_skews,
)


def test_defaults() -> None:
    options = ExperimentOptions()
    # What depends on the machine is measured first.
    assert (options.skews_ms, options.rate, options.service_floor_ns) == (None, None, None)
    assert (options.loads, options.max_age_ns, options.stamp_offset_ns) == ((), None, 0)
    assert (options.stage, options.direction, options.reference) == ("inference", "behind", "preprocess")
    assert options.transports == ("zmq", "kafka")
    assert options.modes == ("off", "tag", "rewrite")


@pytest.mark.parametrize(
    ("text", "skews"),
    [
        ("0,1,2.5", (0, 1, 2.5)),
        (" 5 , 0 ", (5, 0)),
        ("250us,2s,5ms", (0.25, 2000, 5)),
        ("1e1", (10,)),
        ("50", (50,)),
    ],
)
def test_skews_are_milliseconds_or_have_a_unit(text: str, skews: tuple[float, ...]) -> None:
    assert parse_skews(text) == skews


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty entry"),
        ("1,,2", "empty entry"),
        ("x", "'x' is not a skew; write milliseconds, as 0,1,2.5, or a unit"),
        ("5 parsecs", "is not a skew"),
        ("-5", "'-5' is negative; write 5 with --direction behind or ahead"),
        ("-5ms", "write 5ms with --direction"),
        ("nan", "not between 0 and one hour"),
        ("inf", "not between 0 and one hour"),
        ("2h", "not between 0 and one hour"),
        ("1,1.0", "given twice"),
    ],
)
def test_bad_skews_are_refused_with_the_fix(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=r"--skews: ") as refused:
        parse_skews(text)
    assert says in str(refused.value)


@given(st.text(max_size=30))
def test_any_text_is_skews_or_a_clear_error(text: str) -> None:
    skews: tuple[float, ...] = ()
    refused = "--skews: "
    try:
        skews = parse_skews(text)
    except ValueError as error:
        refused = str(error)
    assert refused.startswith("--skews: ")
    assert all(0 <= skew <= 3_600_000 for skew in skews)


def test_floors_loads_and_drifts() -> None:
    assert [parse_service_floor_ns(text) for text in ("auto", "0ms", "3500us")] == [None, 0, 3_500_000]
    assert parse_loads("0.2, 0.95,1e-1") == (0.2, 0.95, 0.1)
    assert [parse_drift_ppb(text) for text in ("50ppm", "0.5ppm", "700ppb")] == [50_000, 500, 700]
    refused: list[tuple[Callable[[str], object], str, str]] = [
        (parse_service_floor_ns, "2", "--service-floor: .*or write auto"),
        (parse_service_floor_ns, "automatic", "--service-floor: .*or write auto"),
        (parse_loads, "half", "--loads: 'half' is no share of the capacity; write 0.2,0.5,0.9"),
        (parse_loads, "0.2,,0.3", "--loads: .*empty entry"),
        (parse_drift_ppb, "50", "--drift: '50' is not a rate"),
        (parse_drift_ppb, "xppm", "--drift: "),
    ]
    for parse, text, says in refused:
        with pytest.raises(ValueError, match=says):
            parse(text)


def test_names() -> None:
    assert parse_names("--transports", "kafka, zmq", TRANSPORTS) == ("kafka", "zmq")
    for text, says in (
        ("tcp", "'tcp' is unknown; choose zmq, kafka or aeron"),
        ("zmq,zmq", "twice"),
        ("zmq,", "empty entry"),
    ):
        with pytest.raises(ValueError, match="--transports") as refused:
            parse_names("--transports", text, TRANSPORTS)
        assert says in str(refused.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"skews_ms": ()}, "--skews: give 1 to 64"),
        ({"skews_ms": tuple(map(float, range(65)))}, "not 65"),
        ({"skews_ms": (-1.0,)}, "is negative"),
        ({"stage": "model"}, "--stage: 'model' is unknown; choose producer, preprocess"),
        ({"direction": "left"}, "--direction: 'left' is unknown; choose behind or ahead"),
        ({"reference": "inference"}, "'inference' is the skewed stage"),
        ({"stage": "producer", "reference": "consumer"}, "write --direction ahead"),
        ({"stage": "consumer", "direction": "ahead"}, "write --direction behind"),
        ({"transports": ()}, "--transports: nothing is chosen"),
        ({"modes": ("on",)}, "--modes: 'on' is unknown"),
        ({"kafka_clients": "fast"}, "--kafka-clients: 'fast' is unknown; choose latency or default"),
        ({"aeron_channel": "tcp"}, "--aeron-channel: 'tcp' is unknown; choose ipc or udp"),
        ({"messages": 0}, "--messages: 0"),
        ({"rounds": 0}, "--rounds: 0"),
        ({"messages": 10, "rounds": 11}, "--rounds: 11 is not between 1 and the 10 messages"),
        ({"rate": 0.0}, "--rate: 0"),
        ({"rate": float("nan")}, "--rate: nan"),
        ({"seed": -1}, "--seed: -1"),
        ({"service_floor_ns": -1}, "--service-floor"),
        ({"service_floor_ns": 11 * 10**9}, "--service-floor: choose auto, or from 0ms to 10s"),
        ({"max_age_ns": 0}, "--max-age: choose from 1ns to 1h"),
        ({"max_age_ns": 2 * 3600 * 10**9}, "--max-age"),
        ({"stamp_offset_ns": -2 * 3600 * 10**9}, "--stamp-offset: choose from -1h to 1h"),
        ({"loads": (1.0,)}, "--loads: give at most 16 shares of the capacity, each between 0 and 1"),
        ({"loads": (float("nan"),)}, "--loads"),
        ({"loads": (0.5,) * 17}, "--loads"),
        ({"duration_ns": 1}, "--duration: choose from 10s"),
        ({"duration_ns": 7_200_000_000_000}, "to 24h with --simulated"),
        ({"drift_ppb": 200_000}, "--drift: choose from 1ppb to 90ppm"),
        ({"simulated": True}, "--simulated: say for how long"),
        ({"separations": Path("x")}, "write --simulated too"),
        (
            {"duration_ns": 60_000_000_000, "stage": "consumer"},
            "choose --stage preprocess, inference or postprocess",
        ),
        (
            {"duration_ns": 60_000_000_000, "simulated": True, "reference": "producer"},
            "choose preprocess or postprocess",
        ),
        ({"kafka_bootstrap": "broker"}, "--kafka-bootstrap: 'broker' is not host:port"),
        ({"model": "my model"}, "--model: 'my model' is not module:callable"),
    ],
)
def test_what_cannot_work_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match="--") as refused:
        ExperimentOptions(**values)
    assert says in str(refused.value)


def test_the_reference_is_never_the_skewed_stage_by_default() -> None:
    for stage in ("producer", "preprocess", "inference", "postprocess", "consumer"):
        for direction in ("behind", "ahead"):
            assert default_reference(stage, direction) != stage
    assert default_reference("inference", "behind") == "preprocess"
    assert default_reference("inference", "ahead") == "postprocess"


def test_a_model_and_brokers_of_ones_own() -> None:
    options = ExperimentOptions(model="my.models:Net.classify", kafka_bootstrap="a:9092,10.0.0.1:9093")
    assert options.model == "my.models:Net.classify"


def test_every_option_that_is_said_reaches_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from skewd import commands
    from skewd_pipeline import experiment

    seen: list[ExperimentOptions] = []

    def run(options: ExperimentOptions) -> int:
        seen.append(options)
        return 0

    monkeypatch.setattr(experiment, "main", run)

    def said(*words: str) -> ExperimentOptions:
        result = CliRunner().invoke(commands.app, ["experiment", "run", *words])
        assert result.exit_code == 0, result.output
        return seen.pop()

    assert said() == ExperimentOptions()
    options = said(
        "--skews", "0,3", "--rate", "12", "--service-floor", "2ms", "--loads", "0.2,0.9", "--max-age", "300ms",
        "--stamp-offset", "-5ms", "--messages", "40", "--rounds", "2", "--direction", "ahead",
    )  # fmt: skip
    assert (options.skews_ms, options.rate, options.service_floor_ns) == ((0, 3), 12, 2_000_000)
    assert (options.loads, options.max_age_ns, options.stamp_offset_ns) == ((0.2, 0.9), 300_000_000, -5_000_000)
    assert (options.messages, options.rounds, options.reference) == (40, 2, "postprocess")
    assert said("--duration", "10m").skews_ms == (0.0,), "a long run has its sweep only if one is asked for"
    assert said("--duration", "10m", "--skews", "3").skews_ms == (3.0,)
    refused = CliRunner().invoke(commands.app, ["experiment", "run", "--floors", "0ms"])
    assert refused.exit_code != 0
    assert "--floors" in refused.output
