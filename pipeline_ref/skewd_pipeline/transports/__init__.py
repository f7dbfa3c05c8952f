"""Links between stages: ``open_inbox`` and ``open_outbox`` give the two ends of a hop, over ZeroMQ or Kafka."""

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
        from skewd_pipeline.transports.zmq import ZmqInbox

        return ZmqInbox(config)
    except ModuleNotFoundError as error:
        raise _not_installed(config, error) from error


def open_outbox(config: HopConfig) -> Outbox:
    """The upstream end of a hop. On ZeroMQ it may open before its inbox; messages wait for it, within limits.

    Raises:
        TransportError: the broker does not answer, the topic does not exist, or the transport's package is not
            installed.
    """
    try:
        if config.transport == "kafka":
            from skewd_pipeline.transports.kafka import KafkaOutbox

            return KafkaOutbox(config)
        from skewd_pipeline.transports.zmq import ZmqOutbox

        return ZmqOutbox(config)
    except ModuleNotFoundError as error:
        raise _not_installed(config, error) from error


def _not_installed(config: HopConfig, error: ModuleNotFoundError) -> TransportError:
    return TransportError(
        f"hop {config.name}: {config.transport} needs the package '{error.name}'; install skewd[{config.transport}]"
    )
