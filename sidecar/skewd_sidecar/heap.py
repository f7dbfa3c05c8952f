"""Memory that is used again need not be given back in between.

Requests of a few hundred kilobytes are received, patched, sent and dropped, thousands of times a second. glibc gives
back to the kernel what they leave free at the heap's end, and asks for it again at once, so the same pages are cleared
again and again: some fifty page faults a request, a sixth of what large requests over HTTP cost. So blocks of up to
``BLOCK_BYTES`` come from the heap, whose end is given back only when more than ``SPARE_BYTES`` of it are free.

Limits: glibc (elsewhere nothing happens). After a flood up to ``SPARE_BYTES`` stay resident. It holds for the whole
process, so a program that embeds the sidecar decides for itself: only the command calls it.
"""

from __future__ import annotations

import ctypes
import os

BLOCK_BYTES = 16 << 20
SPARE_BYTES = 32 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_pages() -> bool:
    """Sets both; whether the C library took them."""
    if "CS_GNU_LIBC_VERSION" not in os.confstr_names:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    # The first alone would also switch off glibc's own adapting of the second.
    return bool(mallopt(_M_MMAP_THRESHOLD, BLOCK_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, SPARE_BYTES))
