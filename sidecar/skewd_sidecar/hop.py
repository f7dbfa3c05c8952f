"""Whether a request has been here before.

A sidecar that forwards to itself is found out when it starts, as far as addresses tell. Through a second sidecar, a
load balancer or a changed name they don't, and then one request goes round for ever, each time with an answer less
to give. So every sidecar writes an id of its own, made afresh each time it starts, into a header of what it sends on,
and refuses what carries that id already. The refusal is final: sent again, it would come round again.

Limits: ``HOPS_MAX`` sidecars in a row, which is more than anybody has a use for; a next hop that drops unknown
headers hides its loop. Pure.
"""

from __future__ import annotations

from skewd_sidecar.gateway import Metadata

HOP_HEADER = "x-skewd-hop"
"""In requests over either protocol: the ids of the sidecars passed, separated by commas."""
HOPS_MAX = 8

_VALUE_MAX_BYTES = HOPS_MAX * 40


class RequestLoops(Exception):
    """A request has been here before; the message says what to change."""


class HopMark:
    """A sidecar's mark on what it sends on.

    Args:
        own_id: letters and digits that no other sidecar has, 32 at most.
    """

    def __init__(self, own_id: str) -> None:
        self._own_id = own_id
        self._first: Metadata = ((HOP_HEADER, own_id),)

    def onward(self, metadata: Metadata) -> Metadata:
        """The metadata to send on instead of what came: sorted, with our mark.

        Raises:
            RequestLoops: refuse the request for good.
        """
        if not metadata:
            return self._first
        passed = ""
        others = []
        for name, value in metadata:
            if name == HOP_HEADER:
                passed = value
            else:
                others.append((name, value))
        if passed:
            ids = [each.strip() for each in passed.split(",")]
            if self._own_id in ids:
                raise RequestLoops("the request came back to the sidecar that sent it on; forward to the collector")
            if len(ids) >= HOPS_MAX or len(passed) > _VALUE_MAX_BYTES:
                raise RequestLoops(
                    f"the request went through more than {HOPS_MAX} sidecars; forward to the collector itself"
                )
        others.append((HOP_HEADER, f"{passed},{self._own_id}" if passed else self._own_id))
        return tuple(sorted(others))
