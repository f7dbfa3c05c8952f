"""To Kafka: requests as ``otlp_proto`` messages, as the OpenTelemetry Collector's Kafka exporter writes them.

What reads them is the Collector's Kafka receiver, or stream processing that fleets have hung behind such topics. So
the form is the Collector's: a message's value is a serialized export request of its signal. Traces are keyed by trace
id, in lower-case hex, one message per trace and request (with its ``partition_traces_by_id`` it is one per scope, too),
so that all spans of a trace are in one partition; which one, FNV-1a says, as there. Other signals have no key. Request
metadata become headers.

A request is acknowledged when the brokers have acknowledged all its messages, in every in-sync replica; the producer
is idempotent, so its own retries write nothing twice.

The client runs threads of its own and reports deliveries to whoever polls it. One thread of ours polls while messages
are under way, and sleeps while none are.

Limits: ``QUEUE_MAX_KIB`` wait in the client, ``QUEUE_MAX_MESSAGES`` messages; beyond that exporters are told to try
again. A message may still be written after its exporter was told that its time is over, and a request of several
traces of which one fails is repeated whole: at least once. Topics are not made here, except by brokers that make them.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from skewd_sidecar.endpoint import Destination, EndpointError
from skewd_sidecar.forward.retry import try_again
from skewd_sidecar.forward.split import NotARequest, by_trace
from skewd_sidecar.gateway import Metadata, Signal
from skewd_sidecar.outcome import INTERNAL, INVALID_ARGUMENT, RESOURCE_EXHAUSTED, Outcome

if TYPE_CHECKING:
    import confluent_kafka as ck

QUEUE_MAX_KIB = 32 * 1024
QUEUE_MAX_MESSAGES = 100_000
_POLL_S = 0.05
_FRAME_MAX_BYTES = 40_000  # for a message's key, headers and record frame
_FLUSH_S = 1.0
_BUSY_S = 1.0


class KafkaForwarder:
    """One cluster and topic. Made within the running event loop.

    Args:
        signal: what goes there.
        destination: brokers and topic.
        properties: settings of the client for TLS and SASL, with librdkafka's names.

    Raises:
        EndpointError: the client's library is not installed, or does not take the settings.
    """

    def __init__(self, signal: Signal, destination: Destination, properties: Mapping[str, str]) -> None:
        try:
            import confluent_kafka
        except ImportError:
            raise EndpointError(
                f"{destination} needs the Kafka client; install it with: pip install 'skewd[kafka]'"
            ) from None
        self._ck = confluent_kafka
        self._signal = signal
        self._destination = destination
        self._loop = asyncio.get_running_loop()
        settings: dict[str, Any] = {
            **properties,
            "bootstrap.servers": destination.brokers,
            "client.id": "skewd-sidecar",
            "enable.idempotence": True,
            "compression.type": "gzip" if destination.gzip else "none",
            "partitioner": "fnv1a_random",
            "linger.ms": 1,
            "message.max.bytes": max(destination.max_bytes, 1000) + _FRAME_MAX_BYTES,
            "message.timeout.ms": max(1, int(destination.timeout_s * 1000)),
            "queue.buffering.max.kbytes": QUEUE_MAX_KIB,
            "queue.buffering.max.messages": QUEUE_MAX_MESSAGES,
            "socket.keepalive.enable": True,
            "enable.metrics.push": False,
            "reconnect.backoff.ms": 100,
            "reconnect.backoff.max.ms": 1000,
            "log_level": 0,  # what matters is in the outcomes
        }
        try:
            self._producer: ck.Producer = confluent_kafka.Producer(settings)
        except confluent_kafka.KafkaException as error:
            raise EndpointError(f"{destination}: the Kafka client refuses its settings: {error}") from None
        self._under_way = 0
        self._closed = False
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._poll, name=f"kafka-{signal}", daemon=True)
        self._thread.start()

    async def send(self, body: bytes, timeout_s: float | None, metadata: Metadata = ()) -> Outcome:
        limit_s = self._destination.timeout_s if timeout_s is None else min(timeout_s, self._destination.timeout_s)
        try:
            messages = by_trace(body) if self._signal is Signal.TRACES else [("", body)]
        except NotARequest as error:
            return Outcome.failed(INVALID_ARGUMENT, str(error))
        written = _Written(self, len(messages))
        headers: list[tuple[str, str | bytes | None]] = [*metadata]
        for key, value in messages:
            try:
                self._producer.produce(
                    self._destination.topic,
                    value=value,
                    key=key or None,
                    headers=headers or None,
                    on_delivery=written.on_delivery,
                )
            except BufferError:
                return _for_all(f"{self._destination}: too many messages wait for the brokers", _BUSY_S)
            except self._ck.KafkaException as error:
                return self._failed(error.args[0])
            with self._condition:
                self._under_way += 1
                self._condition.notify()
        try:
            async with asyncio.timeout(limit_s):
                failure = await written.future
        except TimeoutError:
            return _for_all(f"{self._destination}: not written within {limit_s:g} s", _BUSY_S)
        return Outcome.delivered(b"") if failure is None else self._failed(failure)

    def _failed(self, error: ck.KafkaError) -> Outcome:
        codes = self._ck.KafkaError
        text = f"{self._destination}: {error.str()}"
        if error.code() in (codes._MSG_TIMED_OUT, codes._ALL_BROKERS_DOWN, codes._TRANSPORT, codes._RESOLVE):
            return _for_all(
                f"{self._destination}: no broker takes it; see whether they run and are reachable", _BUSY_S
            )
        if error.code() in (codes.MSG_SIZE_TOO_LARGE, codes.RECORD_LIST_TOO_LARGE):
            return Outcome(RESOURCE_EXHAUSTED, 413, text)
        if error.code() in (codes.TOPIC_AUTHORIZATION_FAILED, codes.CLUSTER_AUTHORIZATION_FAILED):
            return Outcome.failed(7, f"{text}; allow this user Describe and Write on it, and IdempotentWrite")
        if error.code() in (codes.INVALID_RECORD, codes.INVALID_MSG, codes.TOPIC_EXCEPTION):
            return Outcome.failed(INVALID_ARGUMENT, text)
        if error.fatal():
            return Outcome.failed(INTERNAL, text)
        # Credentials, a topic that is not there (yet), too few replicas: somebody will mend it.
        return _for_all(text, _BUSY_S)

    def _poll(self) -> None:
        """The thread: deliveries are reported to those who wait."""
        while True:
            with self._condition:
                while not self._under_way and not self._closed:
                    self._condition.wait()
                if self._closed:
                    return
            self._producer.poll(_POLL_S)

    def one_less(self) -> None:
        """A message is written, or will not be."""
        with self._condition:
            self._under_way -= 1

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Where the results of deliveries are wanted."""
        return self._loop

    async def close(self) -> None:
        """Lets go of what waits; who waits for it is told."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        self._thread.join()
        self._producer.purge()
        self._producer.flush(_FLUSH_S)


def _for_all(message: str, delay_s: float) -> Outcome:
    """A failure that passes, of the brokers or the topic: whoever sends, it is the same."""
    return replace(try_again(message, delay_s), heard=False)


class _Written:
    """The messages of one request: done when all are written, or one will not be."""

    def __init__(self, forwarder: KafkaForwarder, messages: int) -> None:
        self._forwarder = forwarder
        self._missing = messages
        self.future: asyncio.Future[ck.KafkaError | None] = forwarder.loop.create_future()

    def on_delivery(self, error: ck.KafkaError | None, _message: ck.Message) -> None:
        """Called in the thread that polls."""
        self._forwarder.one_less()
        self._missing -= 1
        if error is not None or self._missing == 0:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
                self._forwarder.loop.call_soon_threadsafe(self._done, error)

    def _done(self, error: ck.KafkaError | None) -> None:
        if not self.future.done():
            self.future.set_result(error)
