"""Links between stages: ``open_inbox`` and ``open_outbox`` give the two ends of a hop, over ZeroMQ, Kafka or Aeron."""

from __future__ import annotations

import importlib.util
import platform
import sys

from skewd_pipeline.transports.base import (
    HopConfig,
    Inbox,
    Message,
    MessageRefused,
    Outbox,
    TransportError,
    TransportName,
)

__all__ = [
    "HopConfig",
    "Inbox",
    "Message",
    "MessageRefused",
    "Outbox",
    "TransportError",
    "TransportName",
    "aeron_missing",
    "open_inbox",
    "open_outbox",
]


def open_inbox(config: HopConfig) -> Inbox:
    """The downstream end of a hop, ready: what is sent after this returned is received.

    Raises:
        TransportError: the endpoint is taken, the broker does not answer, the topic does not exist, or the
            transport's package is not installed.
    """
    try:
        if config.transport == "kafka":
            from skewd_pipeline.transports.kafka import KafkaInbox

            return KafkaInbox(config)
        if config.transport == "aeron":
            from skewd_pipeline.transports.aeron import AeronInbox

            return AeronInbox(config)
        from skewd_pipeline.transports.zmq import ZmqInbox

        return ZmqInbox(config)
    except ModuleNotFoundError as error:
        raise _not_installed(config, error) from error


def open_outbox(config: HopConfig) -> Outbox:
    """The upstream end of a hop. On ZeroMQ and Aeron it may open before its inbox; messages wait for it, within limits.

    Raises:
        TransportError: the broker does not answer, the topic does not exist, or the transport's package is not
            installed.
    """
    try:
        if config.transport == "kafka":
            from skewd_pipeline.transports.kafka import KafkaOutbox

            return KafkaOutbox(config)
        if config.transport == "aeron":
            from skewd_pipeline.transports.aeron import AeronOutbox

            return AeronOutbox(config)
        from skewd_pipeline.transports.zmq import ZmqOutbox

        return ZmqOutbox(config)
    except ModuleNotFoundError as error:
        raise _not_installed(config, error) from error


def _not_installed(config: HopConfig, error: ModuleNotFoundError) -> TransportError:
    if error.name == "pyaeron":
        return TransportError(f"hop {config.name}: {aeron_missing()}")
    return TransportError(
        f"hop {config.name}: {config.transport} needs the package '{error.name}'; install skewd[{config.transport}]"
    )


def aeron_missing() -> str | None:
    """What Aeron lacks on this interpreter and machine, and what to do; ``None`` where it can be used."""
    if importlib.util.find_spec("pyaeron") is not None:
        return None
    return why_no_aeron(sys.version_info[:2], platform.machine())


def why_no_aeron(version: tuple[int, int], machine: str) -> str:
    """Why there is no pyaeron for a Python's version on a machine, or that it is only not installed."""
    if version < (3, 12):
        return f"Aeron needs Python 3.12 or newer (pyaeron has nothing for {version[0]}.{version[1]})"
    if machine != "x86_64":
        return f"Aeron needs pyaeron, which has no wheels for {machine}"
    return "Aeron needs pyaeron; install it with pip install 'skewd[aeron]'"
