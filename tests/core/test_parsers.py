"""The parsers' fuzzer for a moment: each target reads or refuses, with its own exception only, in little time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz_parsers import Target, all_targets, fuzz
from tests.waiting import LIMIT_S

INPUTS = 250


@pytest.fixture(scope="module")
def targets() -> Iterator[dict[str, Target]]:
    with all_targets() as every:
        yield {target.name: target for target in every}


with all_targets() as _every:
    NAMES = [target.name for target in _every]


@pytest.mark.parametrize("name", NAMES)
def test_whatever_comes_is_read_or_refused(targets: dict[str, Target], name: str) -> None:
    outcome = fuzz(targets[name], 11, seconds=LIMIT_S, inputs=INPUTS)
    assert outcome.failures == []
    assert outcome.inputs >= INPUTS
