"""Unmodified SDKs of four languages export through a sidecar, by each protocol that they offer.

The programs are those that made ``captures/``, so what must arrive is known: the recorded request, corrected, but for
the ids, which are new each time. Python's runs in this environment; the others where ``make test-neighbours`` has
fetched and built them.
"""

from __future__ import annotations

from typing import Any

import pytest

from skewd_sidecar.gateway import Signal
from skewd_sidecar.patch import Mode
from tests.sidecar.captures.record import PROGRAMS, export, is_made, make
from tests.sidecar.exact import REQUEST, items
from tests.sidecar.sidecar_lab import grpc_collector, sidecar
from tests.sidecar.test_captures import RECORDED, assert_corrected, from_json

WAYS = [(language, protocol) for language, program in PROGRAMS.items() for protocol in program.protocols]


def without_ids(request: Any) -> Any:
    """The same, with all that is new in each run left out, in an order of its own."""
    for resource in getattr(request, "resource_spans", ()) or getattr(request, "resource_logs", ()):
        for attribute in list(resource.resource.attributes):
            if attribute.key.startswith("telemetry."):
                resource.resource.attributes.remove(attribute)  # the version of an SDK
        for scope in getattr(resource, "scope_spans", ()):
            scope.spans.sort(key=lambda span: str(span.name))
    for item in items(request):
        item.ClearField("span_id")
        if hasattr(item, "parent_span_id") and item.name != "parent ünïcode":
            item.ClearField("parent_span_id")
        for event in getattr(item, "events", ()):
            if event.name == "exception":
                event.ClearField("attributes")
    return request


def recorded(language: str, protocol: str, signal: Signal) -> Any:
    (file,) = RECORDED.glob(f"{language}-{protocol}-{signal}.*")
    body = file.read_bytes()
    return from_json(body, signal) if file.suffix == ".json" else REQUEST[signal].FromString(body)


@pytest.mark.parametrize(("language", "protocol"), WAYS)
async def test_what_an_sdk_exports_arrives_corrected(language: str, protocol: str) -> None:
    if language == "python":
        make(language)
    elif not is_made(language):
        pytest.skip(f"the program in {language} is not built: make test-neighbours fetches and builds it")
    async with grpc_collector() as behind, sidecar(forward=behind.url, mode=Mode.REWRITE) as running:
        await export(language, protocol, running.grpc, running.http)
        arrived = list(behind.requests)
    assert sorted(each.signal for each in arrived) == ["logs", "metrics", "traces"]
    for each in arrived:
        got = REQUEST[each.signal].FromString(each.body)
        if each.signal is Signal.METRICS:
            (scope,) = got.resource_metrics[0].scope_metrics
            assert {metric.name for metric in scope.metrics} == {"things", "level", "took", "heat"}
            continue
        assert_corrected(
            without_ids(recorded(language, protocol, each.signal)), without_ids(got), each.signal, Mode.REWRITE
        )
