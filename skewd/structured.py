"""structlog, loaded without what only a developer's terminal would need.

Importing structlog loads its console renderer, and with that, where they are installed, rich and pygments: 5 MiB in
every daemon, for tracebacks in colour that ``logs.py`` never renders. Both are optional to structlog, so rich is
hidden from it for the length of that import; whoever wants rich afterwards gets it.

Limits: a program that has loaded rich or structlog before keeps what it has.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if not TYPE_CHECKING and "rich" not in sys.modules:
    sys.modules["rich"] = None  # an import of it fails, which structlog expects
    try:
        import structlog
    finally:
        del sys.modules["rich"]
else:
    import structlog

__all__ = ["structlog"]
