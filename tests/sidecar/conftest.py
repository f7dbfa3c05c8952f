"""Kafka brokers for the sidecar's tests: the same as the links'."""

from tests.links.conftest import apache_broker, apache_possible, mock_broker

__all__ = ["apache_broker", "apache_possible", "mock_broker"]
