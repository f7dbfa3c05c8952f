"""What a campaign found so far, kept: one that is ended goes on where it was, one that is done is only told again.

A part is one function with its arguments, all of whose outcome follows from them and from the code. So it is kept under
a digest of both: of every file of ours that is loaded, but those that only tell of it, and those that read the
configuration: of that a simulated node has the defaults, which are in the digest. Limits: pickles, read back by
whoever wrote them; a directory is not shared between machines.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from skewd.config import ClockConfig, MeshConfig

T = TypeVar("T")


_READING = ("skewd.config", "skewd.config_keys", "skewd.written")


def digest(but: str) -> str:
    """Of every loaded module of skewd and of its tests but ``but`` and the configuration's."""
    found = hashlib.sha256(f"{sys.version}{ClockConfig()}{MeshConfig()}".encode())
    for name, module in sorted(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if path is not None and name.split(".")[0] in ("skewd", "tests") and name not in (but, __name__, *_READING):
            found.update(name.encode() + b"\0" + Path(path).read_bytes())
    return found.hexdigest()[:20]


class Parts:
    """Runs functions in processes, and keeps what they return in ``directory``."""

    def __init__(self, directory: Path, processes: ProcessPoolExecutor, but: str) -> None:
        self._directory, self._processes = directory / digest(but), processes
        self._directory.mkdir(parents=True, exist_ok=True)
        self.kept = self.new = 0

    def run(self, what: Callable[..., T], *arguments: Any, **named: Any) -> Future[T]:
        """``what`` of these arguments, or what it was."""
        text = f"{what.__module__}.{what.__qualname__}{arguments}{sorted(named.items())}"
        path = self._directory / hashlib.sha256(text.encode()).hexdigest()[:32]
        if path.exists():
            self.kept += 1
            known: Future[T] = Future()
            known.set_result(pickle.loads(path.read_bytes()))
            return known
        self.new += 1
        future = self._processes.submit(what, *arguments, **named)
        future.add_done_callback(lambda done: _keep(path, done))
        return future


def _keep(path: Path, done: Future[Any]) -> None:
    if done.cancelled() or done.exception() is not None:
        return
    beside = path.with_suffix(".new")
    beside.write_bytes(pickle.dumps(done.result()))
    os.replace(beside, path)
