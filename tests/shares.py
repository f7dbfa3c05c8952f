"""Which of a test's cases every change needs, and which are left to the long part (``-m long``)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def first(count: int, cases: Iterable[Any]) -> list[Any]:
    """The cases of a ``parametrize``, all but the first ``count`` of them long."""
    every = list(cases)
    return every[:count] + [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.long) for case in every[count:]
    ]
