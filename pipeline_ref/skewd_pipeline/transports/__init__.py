"""Links between stages: ``open_inbox`` and ``open_outbox`` give the two ends of a hop, over ZeroMQ or Kafka."""

from skewd_pipeline.transports.base import (
    HopConfig,
    Inbox,
    Message,
    MessageRefused,
    Outbox,
    TransportError,
    TransportName,
    open_inbox,
    open_outbox,
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
