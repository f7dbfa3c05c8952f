"""Small files in the state directory, each replaced whole.

Written under another name and renamed, so a reader finds the old content or the new one, never half of it: also where
the disk is full, which takes the first part of a file without a word. It is not flushed to the disk unless asked for:
most of it is worth next to nothing after a crash of the machine, another boot.

The directory is made if it is not there (systemd's ``StateDirectory=`` makes it before), for this user alone: what is
kept there is believed.

Limits: one daemon per node name and directory.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def replace_file(path: Path, content: bytes, *, synced: bool = False) -> None:
    """Replaces a file whole, readable by this user only; ``synced``: it is on the disk before this returns.

    Raises:
        OSError: it can't be written, or not all of it; the file of before is still there.
    """
    temporary = path.with_name(f".{path.name}.new")
    write_file(temporary, content, synced=synced)
    os.replace(temporary, path)


def write_file(path: Path, content: bytes, *, synced: bool) -> None:
    """Writes a file that nobody reads yet.

    Raises:
        OSError: it can't be written, or not all of it; then it is removed.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        if synced:
            os.fsync(descriptor)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


class StateFile:
    """The file of one node.

    Args:
        directory: ``[node] state_dir``.
        node: the node's name; several nodes of a host may share the directory.
        kind: what is in it.
    """

    def __init__(self, directory: Path, node: str, kind: str = "bounds") -> None:
        self.path = directory / f"{kind}-{node}"

    def read(self, most: int) -> bytes | None:
        """Its content, at most ``most`` bytes and one; None where there is none that can be read."""
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            return file.read(most + 1)
        return None

    def write(self, content: bytes) -> None:
        """Replaces its content, in a directory that is made if need be.

        Raises:
            OSError: the directory cannot be made or written.
        """
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(self.path, content)

    def remove(self) -> None:
        """Removes it, if it is there.

        Raises:
            OSError: it can't be removed.
        """
        self.path.unlink(missing_ok=True)
