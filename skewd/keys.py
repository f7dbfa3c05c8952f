"""The mesh key: one secret that says "this message is from one of us".

Whoever holds it can claim any offset, so it is worth a file of its own, readable by one user. The usual accident is
a key copied with its mode lost, so a file that others can read is refused with the command that repairs it. Two
places deliver secrets with wider modes on purpose and guard them otherwise: a Kubernetes Secret volume (readable by
the pod only) and systemd's credentials directory (readable by the unit only). Both are recognised and accepted, as
long as nobody else can write there.

The file is text, ``skewd-key-1 <64 hex digits>`` a line. The key's public id is derived from the secret, so that two
nodes with different keys tell so from a message's header, and nobody has to number keys.

**Rotation.** A node sends with the key on its first line and accepts all of them; it answers with the key it was asked
with. A new key so comes in on the second line (``next``: known everywhere before anyone uses it), is then moved to the
first (the old one stays, ``former``: nodes that don't have the change yet are understood), and at last stands alone.
Each of the three steps is one change of the file, brought to all nodes in any order and at any pace before the next
one; nobody stops understanding anybody in between. ``rotate_key_file`` makes the step that is due, and a running daemon
reads the file again when it changes (``KeyFile``) or on SIGHUP.

Limits: at most four keys a file. One secret for the whole mesh, so it tells members from strangers and not one member
from another. Whether all nodes have a change before the next step is for whoever brings it to know.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2s
from pathlib import Path
from typing import NamedTuple

SECRET_BYTES = 32
MAX_KEYS = 4
_LINE = re.compile(r"skewd-key-1 ([0-9a-f]{64})(?: (next|former))?")
_MAX_FILE_BYTES = 1024


class MeshKeyError(ValueError):
    """A key file that can't be used; the message names the file and what to do."""


class KeyNeeded(MeshKeyError):
    """Something beyond this machine was asked for without a key."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} is beyond loopback, which needs a mesh key; write one with 'skewd keygen FILE', "
            "give it to every node and set [mesh] key_file"
        )


@dataclass(frozen=True, slots=True)
class MeshKey:
    """A secret and its public id (a u32, never 0: that one stands for "no key")."""

    key_id: int
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != SECRET_BYTES:
            raise MeshKeyError(f"a mesh key has {SECRET_BYTES} bytes, this one {len(self.secret)}")
        if not any(self.secret):
            raise MeshKeyError("a mesh key of zeros is no key; make one with 'skewd keygen FILE'")
        if not 0 < self.key_id < 1 << 32:
            raise MeshKeyError(f"a mesh key's id is between 1 and {(1 << 32) - 1}, not {self.key_id}")

    @classmethod
    def from_secret(cls, secret: bytes) -> MeshKey:
        """The key of ``secret`` (32 bytes) under its derived id."""
        derived = int.from_bytes(blake2s(secret, digest_size=4, person=b"skewd-id").digest(), "big")
        return cls(derived or 1, secret)


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The keys of a mesh: the first sends, all are accepted.

    Raises:
        MeshKeyError: none, more than ``MAX_KEYS``, or one twice.
    """

    keys: tuple[MeshKey, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.keys) <= MAX_KEYS:
            raise MeshKeyError(f"{len(self.keys)} keys; a mesh has 1 to {MAX_KEYS} at a time")
        if len({key.key_id for key in self.keys}) < len(self.keys):
            raise MeshKeyError("one key is there twice; remove one of the two lines")

    @property
    def sending(self) -> MeshKey:
        """The key that this node's own messages are authenticated with."""
        return self.keys[0]


class Rotation(StrEnum):
    """Which step a rotation took."""

    ADDED = "added"
    PROMOTED = "promoted"
    RETIRED = "retired"


def generate_key_file(path: str | os.PathLike[str]) -> MeshKey:
    """Write a fresh key to a new file with mode 0600.

    Raises:
        MeshKeyError: the file exists (never overwritten: other nodes may rely on it) or can't be written.
    """
    key = MeshKey.from_secret(secrets.token_bytes(SECRET_BYTES))
    try:
        _write_new(path, f"skewd-key-1 {key.secret.hex()}\n")
    except FileExistsError:
        raise MeshKeyError(
            f"{path} exists and is not overwritten; choose another name, or change its key with --rotate"
        ) from None
    except OSError as error:
        raise MeshKeyError(f"{path} can't be written: {error.strerror}; choose another directory") from None
    return key


def rotate_key_file(path: str | os.PathLike[str]) -> tuple[Rotation, KeyRing]:
    """Take the next step of a rotation: add a new key, promote it, or retire the former one.

    The file is replaced whole; a daemon that reads it meanwhile sees the one or the other. Its mode and owner stay.

    Raises:
        MeshKeyError: as :func:`load_keys`; two keys without a word which is due; or the file can't be written.
    """
    lines = _read(path)
    words = [word for _, word in lines]
    keys = [key for key, _ in lines]
    if words == [""]:
        step, words = Rotation.ADDED, ["", "next"]
        keys.append(MeshKey.from_secret(secrets.token_bytes(SECRET_BYTES)))
    elif words == ["", "next"]:
        step, keys, words = Rotation.PROMOTED, keys[::-1], ["", "former"]
    elif words == ["", "former"]:
        step, keys, words = Rotation.RETIRED, keys[:1], [""]
    else:
        raise MeshKeyError(
            f"{path} was changed by hand and says not which step is due; "
            "write 'next' or 'former' behind the second key and remove the others"
        )
    ring = KeyRing(tuple(keys))
    # A link (Kubernetes, a shared directory) keeps pointing to where the file is.
    target = Path(path).resolve()
    beside = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        status = target.stat()
        lines_now = [f"skewd-key-1 {key.secret.hex()} {word}".rstrip() for key, word in zip(keys, words, strict=True)]
        text = "\n".join(lines_now) + "\n"
        try:
            _write_new(beside, text, mode=stat.S_IMODE(status.st_mode), owner=(status.st_uid, status.st_gid))
            beside.replace(target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                beside.unlink()
    except OSError as error:
        raise MeshKeyError(f"{path} can't be replaced: {error.strerror}; run it where the key was made") from None
    return step, ring


def load_keys(path: str | os.PathLike[str]) -> KeyRing:
    """The keys in ``path``.

    Raises:
        MeshKeyError: missing, unreadable, open to others, or not a key file; the message says what to do.
    """
    keys = tuple(key for key, _ in _read(path))
    try:
        return KeyRing(keys)
    except MeshKeyError as error:
        raise MeshKeyError(f"{path}: {error}") from None


def load_key(path: str | os.PathLike[str]) -> MeshKey:
    """The key in ``path`` that sends; raises as :func:`load_keys`."""
    return load_keys(path).sending


CREDENTIALS = Path("/run/credentials")
"""Where systemd puts each unit's credentials while it runs (``LoadCredential=``)."""


def is_to_come(path: str | os.PathLike[str], credentials: Path = CREDENTIALS) -> bool:
    """Whether a file is one that systemd will bring: its unit's directory of credentials is not there, or not ours.

    Nobody can say of such a file whether it is right before the unit runs.
    """
    try:
        unit = credentials / Path(os.path.abspath(path)).relative_to(credentials).parts[0]
        os.listdir(unit)
    except (FileNotFoundError, PermissionError):
        return True
    except (ValueError, IndexError, OSError):
        return False
    return False


class KeyLook(NamedTuple):
    """What a look at a key file found: what marks its content, and the keys or why there are none."""

    mark: tuple[int, ...] | None
    keys: KeyRing | None
    complaint: str | None


class KeyFile:
    """A key file that is read again when it has changed.

    Raises:
        MeshKeyError: as :func:`load_keys`, at the start only.

    Attributes:
        keys: the newest that could be read.
        complaint: what is wrong with the file now, while the keys of before stay in force; ``None`` if nothing is.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self._seen = self._mark()
        self.keys = load_keys(path)
        self.complaint: str | None = None

    def changed(self, *, anyway: bool = False) -> bool:
        """Look at the file; whether ``keys`` are others than before.

        Args:
            anyway: read it even if nothing about it seems to have changed.
        """
        return self.take(self.look(anyway=anyway))

    def look(self, *, anyway: bool = False) -> KeyLook | None:
        """The look alone, which may take as long as a disk does, in any thread; None where nothing changed."""
        mark = self._mark()
        if mark == self._seen and not anyway:
            return None
        try:
            return KeyLook(mark, load_keys(self._path), None)
        except MeshKeyError as error:
            return KeyLook(mark, None, f"{error}; the keys of before stay in force")

    def take(self, found: KeyLook | None) -> bool:
        """Take what a look found; whether ``keys`` are others than before."""
        if found is None:
            return False
        self._seen, self.complaint = found.mark, found.complaint
        before, self.keys = self.keys, found.keys or self.keys
        return self.keys != before

    def _mark(self) -> tuple[int, ...] | None:
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _write_new(
    path: str | os.PathLike[str], text: str, *, mode: int = 0o600, owner: tuple[int, int] | None = None
) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        if owner is not None and owner != (os.geteuid(), os.getegid()):
            os.fchown(file.fileno(), *owner)
        os.fchmod(file.fileno(), mode)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _read(path: str | os.PathLike[str]) -> list[tuple[MeshKey, str]]:
    """Each line's key, and the word behind it."""
    try:
        # Non-blocking, so that a FIFO in the key's place can't stop the daemon from starting.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise MeshKeyError(f"{path} is missing; write a key with 'skewd keygen {path}'") from None
    except OSError as error:
        raise MeshKeyError(f"{path} can't be read: {error.strerror}; let the user that runs skewd own it") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise MeshKeyError(f"{path} is not a regular file; write a key with 'skewd keygen FILE'")
        _check_mode(Path(path), stat.S_IMODE(status.st_mode))
        content = os.read(descriptor, _MAX_FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    lines = [_LINE.fullmatch(line) for line in content.decode("ascii", "replace").removesuffix("\n").split("\n")]
    matches = [match for match in lines if match is not None]
    if len(matches) < len(lines):
        raise MeshKeyError(
            f"{path} is not a mesh key (lines of 'skewd-key-1' and 64 hex digits, 'next' or 'former' behind a second);"
            " use 'skewd keygen'"
        )
    try:
        return [(MeshKey.from_secret(bytes.fromhex(match[1])), match[2] or "") for match in matches]
    except MeshKeyError as error:
        raise MeshKeyError(f"{path}: {error}") from None


def _check_mode(path: Path, mode: int) -> None:
    managed = _managed_directory(path)
    forbidden = 0o022 if managed else 0o077
    if mode & forbidden:
        verb = "changed" if mode & 0o022 else "read"
        raise MeshKeyError(f"{path} can be {verb} by others (mode {mode:04o}); run 'chmod 600 {path}'")


def _managed_directory(path: Path) -> bool:
    """Whether ``path`` lies in a Kubernetes Secret volume or in systemd's credentials directory of this unit."""
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    if credentials and path.resolve().is_relative_to(Path(credentials).resolve()):
        return True
    # The kubelet swaps a Secret's content atomically: name -> ..data/name, ..data -> ..<timestamp>/, and a file
    # elsewhere does not look like that by accident.
    target = path.resolve().parent
    return (path.parent / "..data").is_symlink() and target.name.startswith("..") and target != path.parent.resolve()
