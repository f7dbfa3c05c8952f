"""Blocks that are used again and again stay with the process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
if sys.argv[1] == "keep":
    from skewd_sidecar.heap import keep_pages
    assert keep_pages()
def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        bodies = [bytes(300_000) for _ in range(8)]  # what requests under way hold, and then do not
        del bodies
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(10)
print(faults(100))
"""


def faults(how: str) -> int:
    # A user's own tuning would decide instead.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run([sys.executable, "-c", FAULTS, how], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="mallopt is glibc's")
def test_pages_of_dropped_bodies_are_not_asked_for_again() -> None:
    assert faults("keep") < 100
    assert faults("default") > 1000
