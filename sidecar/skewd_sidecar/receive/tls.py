"""The listeners' certificate, as it is on disk: renewed files are taken up without a restart.

Certificates live for weeks, sidecars for longer. What renews certificates replaces files; so the files are looked at
when a client connects (once a second at most, a few ``stat`` calls), and read again if they changed. Connections that
stand keep theirs. Files that don't fit together, or can't be read, leave the old ones in force and are complained
about: a renewal caught between its certificate and its key is whole a moment later.

Both protocols get the same: the HTTP listener an ``ssl.SSLContext``, gRPC the PEM texts. The context is built for
either, because it is what notices that a key belongs to another certificate.

Limits: keys without a passphrase, files of ``FILE_MAX_BYTES``; TLS 1.2 and newer. Sessions are not resumed, so that
every connection is judged by the authority in force.
"""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from skewd.quiet import QuietLog

CHECK_S = 1.0
FILE_MAX_BYTES = 1024 * 1024

log = QuietLog(__name__)


class TlsError(ValueError):
    """A certificate, key or authority that cannot be used; the message names the setting, the file and the fix."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Which files.

    Attributes:
        certificate: the chain, PEM, this sidecar's own first.
        key: its private key, PEM.
        client_ca: authorities whose certificates clients must show, PEM; None: clients need none.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """What the files held, checked.

    Attributes:
        context: for asyncio.
        certificate, key, client_ca: PEM texts, for gRPC.
    """

    context: ssl.SSLContext
    certificate: bytes
    key: bytes
    client_ca: bytes | None


class ServerTls:
    """The material in force. Its methods may be called from any thread.

    Args:
        files: where it is.
        monotonic: seconds.

    Raises:
        TlsError: the files cannot be used.
    """

    def __init__(self, files: TlsFiles, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._files = files
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._signature = _signature(files)
        self._material = _read(files)
        self._checked_s = monotonic()

    @property
    def mutual(self) -> bool:
        """Whether clients must show a certificate."""
        return self._files.client_ca is not None

    def current(self) -> TlsMaterial:
        """The material for a new connection: what the files hold, as far as they can be used."""
        with self._lock:
            now_s = self._monotonic()
            if now_s - self._checked_s < CHECK_S:
                return self._material
            self._checked_s = now_s
            signature = _signature(self._files)
            if signature == self._signature:
                return self._material
            try:
                material = _read(self._files)
            except TlsError as error:
                log.warning("new certificates cannot be used, the old ones stay in force", why=str(error))
                return self._material
            if _signature(self._files) == signature:  # else they changed while they were read: next time
                self._signature, self._material = signature, material
            return self._material

    def http_context(self) -> ssl.SSLContext:
        """A context for a listener, which gives each connection the material of its moment."""
        context = _read(self._files).context

        def give_current(connection: ssl.SSLObject, name: str | None, listener: ssl.SSLContext) -> None:
            connection.context = self.current().context

        context.sni_callback = give_current  # called for every client, whether it names a server or not
        return context


def _signature(files: TlsFiles) -> tuple[object, ...]:
    """What tells whether any file changed."""
    found: list[object] = []
    for path in (files.certificate, files.key, files.client_ca):
        try:
            stat = os.stat(path) if path is not None else None
        except OSError:
            stat = None
        found.append(None if stat is None else (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return tuple(found)


def _read(files: TlsFiles) -> TlsMaterial:
    """
    Raises:
        TlsError: see there.
    """
    certificate = _content("tls_certificate", files.certificate, "BEGIN CERTIFICATE")
    key = _content("tls_key", files.key, "PRIVATE KEY")
    client_ca = _content("tls_client_ca", files.client_ca, "BEGIN CERTIFICATE") if files.client_ca is not None else None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0

    def passphrase() -> str:
        raise TlsError(
            f"--tls-key or [sidecar] tls_key: '{files.key}' has a passphrase, which nobody can type; store it without"
        )

    try:
        context.load_cert_chain(files.certificate, files.key, passphrase)
    except OSError as error:  # ssl.SSLError is one
        raise TlsError(
            f"[sidecar] tls_certificate and tls_key: '{files.certificate}' and '{files.key}' cannot be used together: "
            f"{_reason(error)}; give a PEM certificate (its chain after it) and the key that it was made for"
        ) from None
    if client_ca is not None:
        try:
            context.load_verify_locations(cadata=client_ca.decode())
        except (OSError, ValueError) as error:
            raise TlsError(
                f"--tls-client-ca or [sidecar] tls_client_ca: '{files.client_ca}' cannot be used: {_reason(error)}; "
                "give the PEM certificates of the authorities that sign clients' certificates"
            ) from None
        context.verify_mode = ssl.CERT_REQUIRED
    return TlsMaterial(context, certificate, key, client_ca)


def _content(key: str, path: Path, mark: str) -> bytes:
    setting = f"--{key.replace('_', '-')} or [sidecar] {key}"
    try:
        with path.open("rb") as file:
            content = file.read(FILE_MAX_BYTES + 1)
    except OSError as error:
        fix = "make it readable for the sidecar's user" if isinstance(error, PermissionError) else "correct the path"
        raise TlsError(f"{setting}: '{path}' cannot be read: {error.strerror or error}; {fix}") from None
    if len(content) > FILE_MAX_BYTES:
        raise TlsError(f"{setting}: '{path}' is larger than {FILE_MAX_BYTES} bytes; is it the right file?")
    if mark.encode() not in content:
        raise TlsError(f"{setting}: '{path}' has no '{mark}' in it; give a file in PEM")
    return content


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason).replace("_", " ").lower() if reason else str(error)
