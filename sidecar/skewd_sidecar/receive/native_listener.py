"""A socket that the native transport's thread serves, and what is to be undone when that ends.

Both native receivers listen alike: an address is bound here, where errors are told as everyone else tells them, and
its descriptor is handed to the hub, which outlives neither the last listener nor a failure half-way.
"""

from __future__ import annotations

from collections.abc import Callable

from skewd_sidecar.native_hub import Hub
from skewd_sidecar.receive.listen import BACKLOG, UNIX, Address, UnixSocketFile, bind_tcp, bind_unix, name_of


class NativeListener:
    """Made by :meth:`open`."""

    def __init__(self, hub: Hub, server: int, address: Address, file: UnixSocketFile | None) -> None:
        self.hub = hub
        self.address = address
        self._server = server
        self._file = file

    @classmethod
    def open(cls, listen: str, setting: str, serve: Callable[[Hub, int, bool], int]) -> NativeListener:
        """Listens on ``host:port`` (port 0 picks one) or ``unix:///path``.

        Args:
            listen: where.
            setting: what the address is called where it is configured.
            serve: takes the hub, the descriptor and whether it is a Unix socket; gives the server's number.

        Raises:
            ValueError, PortTaken, OSError: as :func:`skewd_sidecar.receive.listen.bind_tcp` and ``UnixSocketFile``.
        """
        file = UnixSocketFile(listen, setting) if listen.startswith(UNIX) else None
        with bind_tcp(listen, setting) if file is None else bind_unix(file, setting) as bound:
            bound.listen(BACKLOG)
            address = name_of(bound) if file is None else file.path
            hub = Hub.acquire()
            fd = bound.detach()
        try:
            server = serve(hub, fd, file is not None)
        except BaseException:
            hub.release()
            if file is not None:
                file.remove()
            raise
        return cls(hub, server, address, file)

    async def close(self, grace_s: float) -> None:
        """Takes nothing more, lets what is under way finish within ``grace_s``, and frees the address."""
        try:
            await self.hub.close(self._server, grace_s)
        finally:
            self.hub.release()
            if self._file is not None:
                self._file.remove()
