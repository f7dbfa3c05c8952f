"""The daemon's two doors: a local API on a Unix socket, and metrics, health and a page over HTTP.

Both tell the same status, made anew as often as its cost allows (``fresh.py``), and neither lets one asker take
the others' turn (``doors.py``). The Unix socket is for this host's tools (``skewd check``, ``status``, ``now``) and is
open to every local user, since it only tells; the HTTP listener is for Prometheus and probes, on loopback unless
configured otherwise. ``/healthz`` says that the loop turns; ``/readyz`` that a bound is known and not too wide.

Limits: requests without bodies only, one a connection; answers of a few KiB; nothing can be changed through either.
"""

from __future__ import annotations

import html
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from skewd.ports import PortTaken, describe_holder
from skewd.problems import Severity
from skewd.publish.doors import Door
from skewd.publish.fresh import Fresh
from skewd.publish.prometheus import exposition
from skewd.status import UNSYNCHRONIZED, NodeStatus, NowAnswer, ToldProblem, encode, plain


class LocalApi:
    """The local API on a Unix socket: ``GET /v1/status``, ``GET /v1/now``."""

    def __init__(self, told: Fresh[NodeStatus], now: Callable[[], NowAnswer]) -> None:
        self._told, self._now = told, now
        self._path: Path | None = None
        self._door: Door | None = None

    def _get_status(self) -> web.Response:
        return web.Response(body=self._told.derived("json", encode), content_type="application/json")

    def _get_now(self) -> web.Response:
        return web.Response(body=encode(self._now()), content_type="application/json")

    async def open(self, path: Path) -> None:
        """Listens. A socket left by a daemon that is gone is replaced (the caller holds the directory's lock)."""
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(path))
            os.chmod(path, 0o666)
        except BaseException:
            listener.close()
            raise
        self._path = path
        self._door = Door({"/v1/status": self._get_status, "/v1/now": self._get_now})
        self._door.listen(listener)

    async def close(self) -> None:
        """Stops listening and removes the socket."""
        if self._door is not None:
            await self._door.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)


class Metrics:
    """``/metrics``, ``/healthz``, ``/readyz``, and a page at ``/``.

    Args:
        told: what all of them are made of; ``registry`` collects it from there as well.
    """

    def __init__(self, told: Fresh[NodeStatus], registry: CollectorRegistry) -> None:
        self._told, self._registry = told, registry
        self._door: Door | None = None

    async def open(self, host: str, port: int) -> tuple[str, int]:
        """Listens; port 0 picks one. Returns what was bound.

        Raises:
            PortTaken: somebody else has the port; the message names who.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            listener.close()
            if error.errno != 98:  # EADDRINUSE
                raise
            raise PortTaken(
                f"{host}:{port} is taken by {describe_holder(host, port)}; choose another with [metrics] listen"
            ) from error
        bound: tuple[str, int] = listener.getsockname()[:2]
        self._door = Door(
            {
                "/": self._get_page,
                "/metrics": self._get_metrics,
                "/healthz": self._get_health,
                "/readyz": self._get_ready,
            }
        )
        self._door.listen(listener)
        return bound

    async def close(self) -> None:
        """Stops listening."""
        if self._door is not None:
            await self._door.close()

    def _get_metrics(self) -> web.Response:
        body = self._told.derived("metrics", lambda _: exposition(self._registry))
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _get_health(self) -> web.Response:
        return web.Response(text="ok\n")

    def _get_ready(self) -> web.Response:
        told = self._told.get()
        if told.status != UNSYNCHRONIZED:
            return web.Response(text=f"{told.status}\n")
        why = "".join(f"{one.line}\n" for one in told.problems if one.severity == Severity.CRITICAL)
        return web.Response(text=f"{told.status}\n{why}", status=503)

    def _get_page(self) -> web.Response:
        return web.Response(text=self._told.derived("page", _page), content_type="text/html")


def _page(status: NodeStatus) -> str:
    told = plain(status)
    rows = "".join(
        f"<tr><th>{html.escape(key)}</th><td>{html.escape(json.dumps(told[key]))}</td></tr>"
        for key in told
        if key not in ("peers", "sources", "links", "problems", "messages")
    )
    tables = "".join(_table(name, told[name]) for name in ("peers", "sources"))
    wrong = "".join(_listed(one) for one in status.problems if one.severity != Severity.INFO)
    known = "".join(_listed(one) for one in status.problems if one.severity == Severity.INFO)
    return _PAGE.format(
        node=html.escape(status.node or ""),
        wrong=f"<h2>what is wrong</h2><ul>{wrong}</ul>" if wrong else "<p>nothing is wrong</p>",
        known=f"<h2>worth knowing</h2><ul>{known}</ul>" if known else "",
        rows=rows,
        tables=tables,
    )


def _listed(problem: ToldProblem) -> str:
    remedy = f"<br>&rarr; {html.escape(problem.remedy)}" if problem.remedy else ""
    code = html.escape(f"{problem.severity}: {problem.code}")
    return f"<li><b>{code}</b> {html.escape(problem.text)}{remedy}</li>"


def _table(name: str, rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{html.escape(key)}</th>" for key in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(value))}</td>" for value in row.values()) + "</tr>" for row in rows
    )
    return f"<h2>{name}</h2><table><tr>{head}</tr>{body}</table>"


_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>skewd: {node}</title>
<style>:root{{color-scheme:light dark}}body{{font:14px system-ui;margin:2em}}
th,td{{text-align:left;padding:.2em .8em .2em 0}}</style>
<h1>{node}</h1>{wrong}{known}<table>{rows}</table>{tables}
<p><a href="/metrics">metrics</a></p></html>
"""
