"""What a link raises when its library is not there: one clear line that says what to install."""

from __future__ import annotations


class LinkUnavailable(RuntimeError):
    """A link's library is not installed, or can't be on this machine; the message says what to do."""
