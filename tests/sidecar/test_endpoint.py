"""Addresses: what is understood, what is refused and with which hint, and what leads back to the sidecar."""

from __future__ import annotations

import pytest

from skewd_sidecar.endpoint import Destination, EndpointError, destinations, next_hops, reached_listener
from skewd_sidecar.gateway import Signal


def shown(forward: str | None, **environment: str) -> dict[str, str]:
    """Each signal's destination as text; the variables without their common beginning."""
    env = {f"OTEL_EXPORTER_OTLP_{name}": value for name, value in environment.items()}
    return {str(signal): str(each) for signal, each in destinations(forward, env).items()}


def test_kafka_by_name() -> None:
    assert shown("kafka://b") == {
        "traces": "kafka://b:9092/otlp_spans",
        "metrics": "kafka://b:9092/otlp_metrics",
        "logs": "kafka://b:9092/otlp_logs",
        "profiles": "kafka://b:9092/otlp_profiles",
    }
    several = shown("kafka://b:1,[::1]:2,c/spans?logs=l")
    assert several["traces"] == "kafka://b:1,[::1]:2,c:9092/spans"
    assert several["logs"] == "kafka://b:1,[::1]:2,c:9092/l"


def test_several_next_hops() -> None:
    found = next_hops(["grpc://a:1", "http://b:2"], {})[Signal.LOGS]
    assert [str(each) for each in found] == ["grpc://a:1", "http://b:2/v1/logs"]
    assert [each.max_bytes for each in found] == [4 * 1024 * 1024, 0]
    assert next_hops("grpc://a", {}, 1000)[Signal.LOGS][0].max_bytes == 1000
    assert str(next_hops([], {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"})[Signal.LOGS][0]) == "grpc://c:4317"
    with pytest.raises(EndpointError, match=r"'grpc://a:4317' is given twice"):
        next_hops(["grpc://a", "grpc://a:4317"], {})
    with pytest.raises(EndpointError, match="at most 64"):
        next_hops([f"grpc://a:{port}" for port in range(1, 66)], {})


def every(text: str) -> dict[str, str]:
    return {str(signal): text.replace("/v1/*", signal.http_path) for signal in Signal}


@pytest.mark.parametrize(
    ("forward", "wanted"),
    [
        ("grpc://collector", "grpc://collector:4317"),
        ("grpc://collector:9", "grpc://collector:9"),
        ("grpcs://[::1]:4317/", "grpcs://[::1]:4317"),
        ("grpc+unix:///run/otlp.sock", "grpc+unix:///run/otlp.sock"),
        ("http://collector:4318", "http://collector:4318/v1/*"),
        ("http://collector", "http://collector:80/v1/*"),
        ("https://collector/otlp/", "https://collector:443/otlp/v1/*"),
    ],
)
def test_a_next_hop_by_name(forward: str, wanted: str) -> None:
    assert shown(forward) == every(wanted)
    assert shown(forward, ENDPOINT="http://elsewhere:1", PROTOCOL="grpc") == every(wanted)


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"ENDPOINT": "http://c:4318"}, "http://c:4318/v1/*"),
        ({"ENDPOINT": "https://c/base"}, "https://c:443/base/v1/*"),
        ({"ENDPOINT": "http://c:4317"}, "grpc://c:4317"),
        ({"ENDPOINT": "http://c:4317", "PROTOCOL": "http/protobuf"}, "http://c:4317/v1/*"),
        ({"ENDPOINT": "https://c:9", "PROTOCOL": "grpc"}, "grpcs://c:9"),
        ({"ENDPOINT": "c:9", "PROTOCOL": "grpc", "INSECURE": "true"}, "grpc://c:9"),
        ({"ENDPOINT": "c:9", "PROTOCOL": "grpc"}, "grpcs://c:9"),
    ],
)
def test_a_next_hop_by_environment(environment: dict[str, str], wanted: str) -> None:
    assert shown(None, **environment) == every(wanted)


def test_signals_may_go_to_different_places() -> None:
    found = shown(None, ENDPOINT="http://c:4318", TRACES_ENDPOINT="https://t/as/it/is", LOGS_PROTOCOL="grpc")
    assert found == {
        "traces": "https://t:443/as/it/is",
        "metrics": "http://c:4318/v1/metrics",
        "logs": "grpc://c:4318",
        "profiles": "http://c:4318/v1development/profiles",
    }
    assert shown(None, TRACES_ENDPOINT="http://t:4318/v1/traces", ENDPOINT=" ") == {"traces": "http://t:4318/v1/traces"}


def test_the_environments_other_settings_apply_to_any_next_hop() -> None:
    environment = {
        "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Basic%20eA==, x=1,",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "2500",
        "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT": "100",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": "ca.pem",
        "OTEL_EXPORTER_OTLP_CLIENT_KEY": "key.pem",
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "cert.pem",
    }
    found = destinations("grpcs://c", environment)
    assert found[Signal.TRACES] == Destination(
        protocol="grpc",
        secure=True,
        host="c",
        port=4317,
        headers=(("authorization", "Basic eA=="), ("x", "1")),
        timeout_s=2.5,
        gzip=True,
        certificate="ca.pem",
        client_key="key.pem",
        client_certificate="cert.pem",
    )
    assert found[Signal.METRICS].timeout_s == 0.1


@pytest.mark.parametrize(
    ("forward", "environment", "text"),
    [
        (None, {}, "nowhere to forward to; give --forward grpc://HOST:4317"),
        ("collector:4317", {}, "write for example grpc://collector:4317"),
        ("ftp://collector", {}, "write for example grpc://collector:4317"),
        ("grpc://", {}, "write for example"),
        ("grpc+unix://run/otlp.sock", {}, "absolute path .* as grpc\\+unix:///run/otlp.sock"),
        ("grpc+unix:///" + "x" * 107, {}, "at most 107 bytes"),
        ("http://c:port", {}, "is not an address"),
        ("http://c:99999", {}, "is not an address"),
        ("kafka://", {}, "write for example kafka://broker:9092"),
        ("kafka://c:x/t", {}, "write for example kafka://broker:9092"),
        ("kafka://c,/t", {}, "write for example kafka://broker:9092"),
        ("kafka://user@c/t", {}, "kafka_properties"),
        ("kafka://c/a/b", {}, "'a/b' is no topic's name"),
        ("kafka://c/t?spans=x", {}, "'spans' is no signal; choose from traces, metrics, logs"),
        ("grpc://c:4317/path", {}, "leave '/path' out"),
        ("http://c:4318/v1/traces", {}, "write http://c:4318$"),
        ("http://user@c:4318", {}, "HEADERS"),
        ("http://c:4318?x=1", {}, "query"),
        (None, {"ENDPOINT": "grpc://c:4317"}, "OTEL_EXPORTER_OTLP_ENDPOINT: .*write for example http://collector:4318"),
        (None, {"ENDPOINT": "http://c", "PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_PROTOCOL: 'http/json'"),
        ("grpc://c", {"TIMEOUT": "10s"}, "OTEL_EXPORTER_OTLP_TIMEOUT: '10s' is not a number of milliseconds"),
        ("grpc://c", {"TIMEOUT": "0"}, "milliseconds"),
        ("grpc://c", {"HEADERS": "novalue"}, "OTEL_EXPORTER_OTLP_HEADERS: 'novalue' has no value"),
        ("grpc://c", {"HEADERS": "tenant=%C3%A9"}, "OTEL_EXPORTER_OTLP_HEADERS: 'tenant' is not a header of printable"),
        ("grpc://c", {"HEADERS": "a%20b=x"}, "'a b' is not a header"),
        ("grpc://c", {"COMPRESSION": "zstd"}, "write gzip or none"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_fix(
    forward: str | None, environment: dict[str, str], text: str
) -> None:
    with pytest.raises(EndpointError, match=text):
        shown(forward, **environment)


@pytest.mark.parametrize(
    ("addresses", "port", "wanted"),
    [
        (["127.0.0.1"], 4317, ("127.0.0.1", 4317)),
        (["::1", "127.0.0.1"], 4317, ("127.0.0.1", 4317)),
        (["::ffff:127.0.0.1"], 4317, ("127.0.0.1", 4317)),
        (["0.0.0.0"], 4317, ("127.0.0.1", 4317)),
        (["127.0.0.1"], 4316, None),
        (["127.0.0.2"], 4317, None),
        (["10.0.0.5"], 4317, None),
        (["10.0.0.5"], 4318, ("0.0.0.0", 4318)),
        (["127.0.0.9"], 4318, ("0.0.0.0", 4318)),
        (["fe80::1%eth0"], 4318, ("0.0.0.0", 4318)),
        (["10.0.0.6"], 4318, None),
    ],
)
def test_what_leads_back(addresses: list[str], port: int, wanted: tuple[str, int] | None) -> None:
    listeners = [("127.0.0.1", 4317), ("0.0.0.0", 4318)]
    assert reached_listener(addresses, port, listeners, ["10.0.0.5", "fe80::1%eth0"]) == wanted
