"""Libraries, loaded without an optional part of theirs that nothing here uses.

The problem: some libraries import others merely because they are installed. structlog loads rich and pygments for
tracebacks in colour that ``logs.py`` never renders: 5 MiB in every daemon. msgspec loads typing_extensions, and that
``inspect``, for annotations that nothing here has: a fifth of what ``skewd check`` costs.

The insight: both expect that these may be missing. So while one of the two is imported, what it would load without
need is hidden from it; whoever imports that afterwards gets it.

Limits: what was loaded before stays as it is, and in a process with several threads nothing is hidden, since another
thread might want it at that moment.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as in typing, without importing it
if TYPE_CHECKING:
    import msgspec as msgspec
    import structlog as structlog

WITHOUT = {"msgspec": "typing_extensions", "structlog": "rich"}
"""What is hidden from which library."""


def __getattr__(name: str) -> object:
    """``from skewd.lean import msgspec``: the library, imported at its first use."""
    hidden = WITHOUT.get(name)
    if hidden is None:
        raise AttributeError(f"module 'skewd.lean' has no attribute {name!r}")
    threading = sys.modules.get("threading")
    if hidden in sys.modules or (threading is not None and threading.active_count() > 1):
        __import__(name)
    else:
        sys.modules[hidden] = None  # type: ignore[assignment]  # an import of it fails
        try:
            __import__(name)
        finally:
            del sys.modules[hidden]
    library = globals()[name] = sys.modules[name]
    return library
