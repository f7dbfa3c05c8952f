"""Give this process another wall clock: the one of its virtual node.

The problem: to show what a lying clock does to traces, a clock must lie. The tempting way is to add the skew where
the application makes its stamps, ``start_time=time_ns() + skew``. That tests nothing: it needs an altered
application, it skews only the stamps somebody thought of, and whoever wrote it knows the number it is later praised
for finding. The insight: skew *the clock*, and let everything above it be ordinary. ``install`` replaces the calls
by which Python code sees the wall clock, before OpenTelemetry is imported; then the unmodified SDK, the log lines,
the user's own model, all read the node's clock, as they would on a machine whose clock is wrong. The same page feeds
the node's daemon, which is told nothing else. (docs/why-the-clock.md tells it at length.)

Replaced: ``time.time``, ``time_ns``, ``clock_gettime`` and ``clock_gettime_ns`` for the wall's clock ids (also the
coarse one and TAI), ``localtime``, ``gmtime``, ``ctime``, ``asctime`` and ``strftime`` where they default to now, and
``datetime.datetime.now``, ``utcnow``, ``today``, ``date.today``: those two are C types whose methods cannot be
replaced, so the names in the module ``datetime`` become subclasses that accept all instances of the originals.

Not replaced, since it is not a wall clock: ``monotonic``, ``perf_counter``, ``sleep``, timeouts. Out of reach: names
a module copied before (``from time import time``; for OpenTelemetry's SDK that is refused), C code that asks the
kernel itself (librdkafka's message times, a file's mtime), child processes (call ``install`` there too).
"""

from __future__ import annotations

import datetime as _datetime
import os
import sys
import threading
import time as _time
from collections.abc import Callable
from typing import Any

from skewd.clock import VirtualPage

# Linux's ids of clocks that a step of the wall clock moves: REALTIME, REALTIME_COARSE, REALTIME_ALARM and TAI.
_WALL = _time.CLOCK_REALTIME
_WALL_COARSE = 5
_WALL_ALARM = 8
_TAI = 11
_READ_BY_SPANS = "opentelemetry.sdk"


class SkewError(RuntimeError):
    """The node's clock cannot be installed any more, or not twice; the message says why and what to do."""


_lock = threading.Lock()
_installed: VirtualPage | None = None


def install(page_path: str | os.PathLike[str]) -> VirtualPage:
    """Make the wall clock of this process that of the page, for good.

    Call it first thing in a stage's process. Installing the same page again does nothing.

    Args:
        page_path: the virtual node's page, made by ``skewd.clock.VirtualPage.create``.

    Returns:
        The mapped page.

    Raises:
        SkewError: OpenTelemetry's SDK is imported already (it keeps its own reference to ``time_ns``), or another
            page is installed.
        OSError: the page cannot be opened.
        ValueError: it is no such page.
    """
    global _installed
    with _lock:
        path = os.path.realpath(page_path)
        if _installed is not None:
            if os.path.realpath(str(_installed.path)) == path:
                return _installed
            raise SkewError(f"this process already has the clock {_installed.path}; one process is on one node")
        early = sorted(name for name in sys.modules if name == _READ_BY_SPANS or name.startswith(_READ_BY_SPANS + "."))
        if early:
            raise SkewError(
                f"{early[0]} was imported before the node's clock was installed and holds the host's time_ns, so its "
                "spans would not be skewed; call skewd_pipeline.skew.install() before importing OpenTelemetry"
            )
        page = VirtualPage.open(path)
        _replace_time(page.wall_ns)
        _replace_datetime(page.wall_ns)
        _installed = page
        return page


def installed() -> VirtualPage | None:
    """The page this process' wall clock comes from, or ``None`` when it is the host's."""
    return _installed


def _replace_time(wall_ns: Callable[[], int]) -> None:
    host_time_ns = _time.time_ns
    host_clock_gettime_ns = _time.clock_gettime_ns
    host_clock_gettime = _time.clock_gettime

    def time() -> float:
        return wall_ns() / 1e9

    def time_ns() -> int:
        return wall_ns()

    def clock_gettime_ns(clk_id: int, /) -> int:
        if clk_id in (_WALL, _WALL_COARSE, _WALL_ALARM):
            return wall_ns()
        if clk_id == _TAI:
            host = host_clock_gettime_ns(clk_id)
            return host + wall_ns() - host_time_ns()
        return host_clock_gettime_ns(clk_id)

    def clock_gettime(clk_id: int, /) -> float:
        if clk_id in (_WALL, _WALL_COARSE, _WALL_ALARM, _TAI):
            return clock_gettime_ns(clk_id) / 1e9
        return host_clock_gettime(clk_id)

    def now_by_default(host: Callable[[float | None], Any]) -> Callable[..., Any]:
        def converted(seconds: float | None = None, /) -> Any:
            return host(wall_ns() / 1e9 if seconds is None else seconds)

        return converted

    host_localtime, host_asctime, host_strftime = _time.localtime, _time.asctime, _time.strftime

    def asctime(time_tuple: Any = None, /) -> str:
        return host_asctime(host_localtime(wall_ns() / 1e9) if time_tuple is None else time_tuple)

    def strftime(form: str, time_tuple: Any = None, /) -> str:
        return host_strftime(form, host_localtime(wall_ns() / 1e9) if time_tuple is None else time_tuple)

    replaced: dict[str, Callable[..., Any]] = {
        "time": time,
        "time_ns": time_ns,
        "clock_gettime": clock_gettime,
        "clock_gettime_ns": clock_gettime_ns,
        "localtime": now_by_default(_time.localtime),
        "gmtime": now_by_default(_time.gmtime),
        "ctime": now_by_default(_time.ctime),
        "asctime": asctime,
        "strftime": strftime,
    }
    for name, function in replaced.items():
        host = getattr(_time, name)
        function.__name__ = function.__qualname__ = name
        function.__doc__ = f"{host.__doc__}\n\n(On a virtual node: its wall clock, not the host's.)"
        setattr(_time, name, function)


def _replace_datetime(wall_ns: Callable[[], int]) -> None:
    host_datetime, host_date = _datetime.datetime, _datetime.date

    class LikeHost(type):
        """A subclass that also accepts what C code, and arithmetic on older values, makes of the original type."""

        host: type

        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, cls.host) if "host" in vars(cls) else super().__instancecheck__(instance)

        def __subclasscheck__(cls, subclass: type) -> bool:
            return issubclass(subclass, cls.host) if "host" in vars(cls) else super().__subclasscheck__(subclass)

    class datetime(host_datetime, metaclass=LikeHost):  # type: ignore[valid-type, misc]  # a base made at run time
        host = host_datetime

        @classmethod
        def now(cls, tz: _datetime.tzinfo | None = None) -> Any:
            seconds, rest_ns = divmod(wall_ns(), 1_000_000_000)
            return cls.fromtimestamp(seconds, tz).replace(microsecond=rest_ns // 1000)

        @classmethod
        def utcnow(cls) -> Any:
            return cls.now(_datetime.UTC).replace(tzinfo=None)

        @classmethod
        def today(cls) -> Any:
            return cls.now()

        def __repr__(self) -> str:
            # Only a type from C says its module.
            return f"datetime.{super().__repr__()}" if "host" in vars(type(self)) else super().__repr__()

    class date(host_date, metaclass=LikeHost):  # type: ignore[valid-type, misc]
        host = host_date

        @classmethod
        def today(cls) -> Any:
            return cls.fromtimestamp(wall_ns() // 1_000_000_000)

        def __repr__(self) -> str:
            return f"datetime.{super().__repr__()}" if "host" in vars(type(self)) else super().__repr__()

    for name, replacement in (("datetime", datetime), ("date", date)):
        # Values are pickled by the class's name: these names, in another process, are the originals.
        replacement.__module__ = "datetime"
        replacement.__qualname__ = replacement.__name__ = name
        setattr(_datetime, name, replacement)
