"""A stage's commands: none is missed, however waiting and looking meet."""

from __future__ import annotations

import io
import json
import os
import queue
import select
import sys

import pytest

from skewd_pipeline.worker import Commands


def test_after_a_look_that_found_nothing_each_command_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    there, here = os.pipe()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(os.fdopen(there, "rb", buffering=0)))
    commands = Commands()
    with os.fdopen(here, "w") as telling:
        for number in range(50):
            with pytest.raises(queue.Empty):
                commands.next(0)
            telling.write("not JSON\n" + json.dumps({"do": "cell", "number": number}) + "\n")
            telling.flush()
            select.select([commands.bell], [], [])
            assert commands.next(0) == {"do": "cell", "number": number}
        telling.write(json.dumps({"do": "finish"}) + "\n")
        telling.flush()
        assert commands.next(60) == {"do": "finish"}
        assert commands.finish.is_set()
    assert commands.next(60) is None, "the input has ended"
