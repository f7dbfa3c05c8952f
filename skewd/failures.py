"""Why a daemon does not start: one kind of error, raised by whoever could not get what the configuration asks for."""

from __future__ import annotations


class StartError(Exception):
    """Something configured is not to be had; the message says what, why, and what to do."""
