"""``skewd status --watch`` on a terminal: the same screen again and again, in place, with what matters coloured.

The words are those of the plain screen, so nothing can be seen here that a pipe or a log would not show; colour only
says where to look. It is drawn on the terminal's second screen and leaves nothing behind.

Limits: a terminal that is too low shows the beginning, which says how this node is and what is wrong.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.text import Text

_BAD = "unsynchronized|unreachable|falseticker|violated|convicted|disputed|contested|NOT named by all|no daemon"
_LABELS = (
    "how far|how sure|drift|last heard|steered by|era|metrics|limits|members|reference|carried on by|oldest record"
)
_STYLES = (
    (r"\b(?:synchronized|truechimer|nothing is wrong|within the limits)\b", "green"),
    (r"\b(?:holdover|pending|cannot tell yet)\b", "yellow"),
    (rf"\b(?:{_BAD})\b", "bold red"),
    (r"^\*\*\* .*", "reverse"),
    (r"^ *! .*", "red"),
    (r"^ *-> .*", "cyan"),
    (r"^(?:(?:source|peer|link) +.*|mesh$)", "bold"),
    (rf"^  (?:{_LABELS})\b", "dim"),
)


def styled(screen: str) -> Text:
    """The screen with colours; not a character is changed."""
    text = Text(screen, no_wrap=True, overflow="ellipsis")
    for pattern, style in _STYLES:
        text.highlight_regex(f"(?m){pattern}", style)
    return text


def watch(
    screen: Callable[[], str], interval_s: float, ended: threading.Event, console: Console | None = None
) -> None:
    """Shows the screen anew each interval, until ``ended``."""
    with Live(styled(screen()), console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        while not ended.wait(interval_s):
            live.update(styled(screen()), refresh=True)
