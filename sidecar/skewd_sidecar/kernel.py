"""Which of the two twins patches: the native one where it is installed, else the Python one.

Both obey the rules of ``patch/`` and give the same bytes, counts and refusals, so what chooses between them is cost
alone: the native one takes about an eightieth of the CPU time. It is a distribution of its own, ``skewd-native``, since
it has to be compiled; a sidecar without it is whole. Which one is active is said in the log at start, by ``skewd
--version``, and in ``skewd_build_info{patch}``, for a sidecar that quietly lost its fast half would cost its node an
order of magnitude more and nobody would know why.

Limits: a native kernel of another version than this package expects (``INTERFACE``) is refused, not tried.
"""

from __future__ import annotations

import importlib
from enum import StrEnum
from typing import Any, Protocol

from skewd.bounds.table import Table
from skewd_sidecar.patch import (
    Action,
    Census,
    CorrectionAt,
    MalformedRequest,
    PatchOptions,
    PatchResult,
    patch_logs,
    patch_traces,
    take_census,
)

INTERFACE = 4
"""What this module expects of ``skewd_native.PATCH_INTERFACE``: changes with what is called and with what comes out."""

_ACTIONS = tuple(Action)


class Choice(StrEnum):
    """``[sidecar] kernel``: the native one where there is one; that or an error; the Python one."""

    AUTO = "auto"
    NATIVE = "native"
    PYTHON = "python"


class KernelMissing(ValueError):
    """The native kernel was asked for and cannot be had; the message says why and what to do."""


class KernelFault(RuntimeError):
    """The native kernel broke; a fault of its own, whatever the body was. The message says how."""


class Kernel(Protocol):
    """One of the twins.

    Attributes:
        name: ``native`` or ``python``.
        inline_bytes: how long a body may be that is patched where it is; longer ones would keep others waiting.
        record_bytes, element_bytes: what it keeps in mind, at most, for each record and element that a census counts,
            beside the bytes that come out.
    """

    name: str
    inline_bytes: int
    record_bytes: int
    element_bytes: int

    def census(self, body: bytes, logs: bool, records_max: int, elements_max: int) -> Census:
        """As :func:`skewd_sidecar.patch.take_census`."""
        ...

    def traces(
        self,
        body: bytes,
        options: PatchOptions,
        ask: CorrectionAt,
        table: Table | None,
        until_ns: int | None = None,
    ) -> PatchResult:
        """As :func:`skewd_sidecar.patch.patch_traces`."""
        ...

    def logs(
        self,
        body: bytes,
        options: PatchOptions,
        ask: CorrectionAt,
        table: Table | None,
        until_ns: int | None = None,
    ) -> PatchResult:
        """As :func:`skewd_sidecar.patch.patch_logs`."""
        ...


class PythonKernel:
    """The twin that is always there."""

    name = "python"
    inline_bytes = 32 * 1024
    record_bytes = 768
    element_bytes = 256

    def census(self, body: bytes, logs: bool, records_max: int, elements_max: int) -> Census:
        """As :func:`skewd_sidecar.patch.take_census`."""
        return take_census(body, logs, records_max, elements_max)

    def traces(
        self,
        body: bytes,
        options: PatchOptions,
        ask: CorrectionAt,
        table: Table | None,
        until_ns: int | None = None,
    ) -> PatchResult:
        """As :func:`skewd_sidecar.patch.patch_traces`."""
        return patch_traces(body, options, ask, table, until_ns)

    def logs(
        self,
        body: bytes,
        options: PatchOptions,
        ask: CorrectionAt,
        table: Table | None,
        until_ns: int | None = None,
    ) -> PatchResult:
        """As :func:`skewd_sidecar.patch.patch_logs`."""
        return patch_logs(body, options, ask, table, until_ns)


class NativeKernel:
    """The twin in Rust. Options and tables are handed over once, as long as they stay the same objects.

    Args:
        native: the module ``skewd_native``.
    """

    name = "native"
    inline_bytes = 256 * 1024
    record_bytes = 96
    element_bytes = 64

    def __init__(self, native: Any) -> None:
        self._native = native
        # Each with what it was made of, in one piece: requests may be patched on several threads at once.
        self._patcher: tuple[PatchOptions | None, Any] = (None, None)
        self._table: tuple[Table | None, Any] = (None, None)

    def census(self, body: bytes, logs: bool, records_max: int, elements_max: int) -> Census:
        """As :func:`skewd_sidecar.patch.take_census`."""
        try:
            return Census(*self._native.census(body, logs, records_max, elements_max))
        except self._native.MalformedBody as error:
            raise MalformedRequest(str(error)) from None
        except BaseException as error:
            _refuse_panic(error)
            raise

    def traces(
        self,
        body: bytes,
        options: PatchOptions,
        ask: CorrectionAt,
        table: Table | None,
        until_ns: int | None = None,
    ) -> PatchResult:
        """As :func:`skewd_sidecar.patch.patch_traces`."""
        return self._patch(body, False, options, ask, table, until_ns)

    def logs(
        self,
        body: bytes,
        options: PatchOptions,
        ask: CorrectionAt,
        table: Table | None,
        until_ns: int | None = None,
    ) -> PatchResult:
        """As :func:`skewd_sidecar.patch.patch_logs`."""
        return self._patch(body, True, options, ask, table, until_ns)

    def _patch(
        self,
        body: bytes,
        logs: bool,
        options: PatchOptions,
        ask: CorrectionAt,
        table: Table | None,
        until_ns: int | None,
    ) -> PatchResult:
        of_options, patcher = self._patcher
        if of_options is not options:
            patcher = self._native.Patcher(
                options.mode.value,
                options.node,
                options.prefix,
                options.keep_original,
                options.placement.value,
                options.incoming.value,
                options.stamps.value,
            )
            self._patcher = (options, patcher)
        of_table, native_table = self._table
        if of_table is not table:
            native_table = None
            if table is not None:
                packed, references = table.packed()
                native_table = self._native.Table(packed, references, table.max_uncertainty_ns)
            self._table = (table, native_table)
        try:
            patched, counts = patcher.patch(body, logs, ask, native_table, until_ns)
        except self._native.MalformedBody as error:
            raise MalformedRequest(str(error)) from None
        except BaseException as error:
            _refuse_panic(error)
            raise
        actions = {action.value: count for action, count in zip(_ACTIONS, counts, strict=True) if count}
        return PatchResult(patched, sum(counts), actions)


def _refuse_panic(error: BaseException) -> None:
    """
    Raises:
        KernelFault: it is a panic, which comes as an exception that nothing catches, lest it is overlooked: here it is
            the end of one request.
    """
    if type(error).__name__ == "PanicException":
        raise KernelFault(f"the native kernel failed: {error}") from None


def choose(choice: Choice = Choice.AUTO) -> Kernel:
    """The kernel to patch with.

    Raises:
        KernelMissing: the native one was asked for by name and is not there, or of another version.
    """
    if choice is Choice.PYTHON:
        return PythonKernel()
    try:
        native = importlib.import_module("skewd_native")
    except ImportError as error:
        problem = f"skewd-native cannot be loaded ({error})"
    else:
        if getattr(native, "PATCH_INTERFACE", None) == INTERFACE:
            return NativeKernel(native)
        problem = f"skewd-native {getattr(native, '__version__', 'of an unknown version')} is not for this skewd"
    if choice is Choice.NATIVE:
        raise KernelMissing(
            f'{problem}; install the skewd-native of the same release, or write [sidecar] kernel = "auto"'
        )
    return PythonKernel()
