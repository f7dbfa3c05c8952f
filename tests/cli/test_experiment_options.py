"""The words of `skewd experiment run`, before anything is started."""

from __future__ import annotations

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
    parse_floors,
    parse_names,
    parse_skews,
)


def test_defaults() -> None:
    options = ExperimentOptions()
    assert list(options.skews_ms) == [0, 1, 2, 3, 4, 5, 7, 10]
    assert (options.stage, options.direction, options.reference) == ("inference", "behind", "preprocess")
    assert options.transports == ("zmq", "kafka")
    assert options.modes == ("off", "tag", "rewrite")
    assert options.service_floor_ns == 3_500_000


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


def test_floors_and_drifts_have_units() -> None:
    assert parse_floors("0ms, 2ms,3500us") == (0, 2_000_000, 3_500_000)
    assert [parse_drift_ppb(text) for text in ("50ppm", "0.5ppm", "700ppb")] == [50_000, 500, 700]
    for parse, text in (
        (parse_floors, "2"),
        (parse_floors, "2ms,,"),
        (parse_drift_ppb, "50"),
        (parse_drift_ppb, "xppm"),
    ):
        with pytest.raises(ValueError, match=r"--(floors|drift): "):
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
        ({"floors_ns": (3_500_000,)}, "--floors: a floor is given twice, or is --service-floor's"),
        ({"floors_ns": (-1,)}, "--floors: choose from 0ms"),
        ({"floors_ns": tuple(range(9))}, "--floors: give at most 8"),
        ({"duration_ns": 1}, "--duration: choose from 10s"),
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
