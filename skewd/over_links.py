"""Over which links a peer is heard, and which of them a bound comes from.

A peer may be asked over UDP, and answer over Kafka, and be heard inband over ZeroMQ: all of it proves something about
one pair of clocks, so all of it goes into one filter (``bounds/pair.py``), and no link has a bound of its own. What can
be said truly is this: each end of the bound is one line, and each line began as one message. So the link that gave an
end is the one over which the message of its line came. A line that only carries an older one on inherits its link.

Most peers are heard over one link alone, and then there is nothing to keep account of.

Limits: ``LINKS_MAX`` links of a peer; of each the last minute. Lines kept from before a restart came over a link that
nobody wrote down: unknown. Pure.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from skewd.bounds.pair import PairBound

LINKS_MAX = 8
RECENT_NS = 60_000_000_000
_LINES_MAX = 32


class RttMinimum:
    """The smallest of the last minute, in a deque that stays increasing (at most 128 entries)."""

    def __init__(self) -> None:
        self._entries: deque[tuple[int, int]] = deque(maxlen=128)

    def add(self, at_ns: int, rtt_ns: int) -> None:
        while self._entries and self._entries[-1][1] >= rtt_ns:
            self._entries.pop()
        self._entries.append((at_ns, rtt_ns))
        self._expire(at_ns)

    def _expire(self, at_ns: int) -> None:
        while len(self._entries) > 1 and at_ns - self._entries[0][0] > RECENT_NS:
            self._entries.popleft()

    def least_ns(self) -> int | None:
        return self._entries[0][1] if self._entries else None


class _Link:
    __slots__ = ("address", "heard_ns", "messages", "rtt")

    def __init__(self) -> None:
        self.address, self.heard_ns, self.messages = "", 0, 0
        self.rtt = RttMinimum()


class OverLinks:
    """The links of one peer.

    Args:
        pair: the peer's filter, as it is before the first message: empty, or resumed.
    """

    __slots__ = ("_ends", "_last", "_lines", "_links", "_pair", "_traced")

    def __init__(self, pair: PairBound) -> None:
        self._pair = pair
        self._links: dict[str, _Link] = {}
        self._traced = pair.latest_local_ns is not None
        self._last = ""
        self._ends: list[str | None] = [None, None]  # the lower end's, the upper end's
        self._lines: tuple[dict[int, str | None], dict[int, str | None]] = ({}, {})
        if self._traced:
            self._all_came_over(None)

    def _all_came_over(self, link: str | None) -> None:
        self._ends = [link, link]
        for side, lines in enumerate(self._lines):
            lines.update(dict.fromkeys(self._pair.instants(upper=side == 1), link))

    def heard(self, link: str, address: str, now_ns: int, rtt_ns: int | None) -> None:
        """A message came over ``link``; its proofs are given to the filter after this."""
        found = self._links.get(link)
        if found is None:
            if len(self._links) >= LINKS_MAX:
                del self._links[min(self._links, key=lambda name: self._links[name].heard_ns)]
            if self._links and not self._traced:
                self._traced = True
                self._all_came_over(self._last)  # so far there was one link
            found = self._links[link] = _Link()
        found.address, found.heard_ns = address, now_ns
        found.messages += 1
        if rtt_ns is not None:
            found.rtt.add(now_ns, max(rtt_ns, 0))
        self._last = link

    def proved(self, upper: bool, local_ns: int) -> None:
        """The filter has just taken a proof of that message, of one side, made at ``local_ns``."""
        if not self._traced:
            return
        for side, lines in enumerate(self._lines):
            instants = self._pair.instants(upper=side == 1)
            if not instants:
                continue
            ruling = instants[-1]
            if ruling not in lines:
                lines[ruling] = self._last if side == upper and ruling == local_ns else self._ends[side]
                if len(lines) > _LINES_MAX:
                    for gone in lines.keys() - set(instants):
                        del lines[gone]
            self._ends[side] = lines[ruling]

    def ends(self) -> tuple[str | None, str | None]:
        """The links that gave the lower and the upper end of the bound; None where nobody knows."""
        if not self._traced:
            return self._last or None, self._last or None
        return self._ends[0], self._ends[1]

    def told(self, now_ns: int) -> list[dict[str, Any]]:
        """The links of the last minute, best round trip first."""
        recent = [(name, one) for name, one in self._links.items() if now_ns - one.heard_ns <= RECENT_NS]
        recent.sort(key=lambda item: (item[1].rtt.least_ns() is None, item[1].rtt.least_ns() or 0, item[0]))
        return [
            {
                "link": name,
                "address": one.address,
                "rtt_min_ns": one.rtt.least_ns(),
                "age_s": round(max(now_ns - one.heard_ns, 0) / 1e9, 3),
                "messages": one.messages,
            }
            for name, one in recent
        ]
