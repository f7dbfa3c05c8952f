"""One stage of the pipeline as a process of its own: ``python -m skewd_pipeline.stages --config stage.json``.

producer -> preprocess -> inference -> postprocess -> consumer: real files go in, a real model says what they are,
and the consumer compares each answer with the expected one. Every stage handles a message the same way: receive,
work (for at least the service floor), send on, all under one span of the unmodified OpenTelemetry SDK whose W3C
context travels in the message's headers.

The first thing this process does is to take on its node's wall clock; only then is OpenTelemetry imported (by
``worker.py``, which has the rest). From there on nothing here knows that the clock may lie, let alone by how much.

It is directed by lines of JSON on its input and answers with lines of JSON; when its input ends, so does it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from skewd_pipeline.stage_orders import StageConfig


def main(arguments: list[str]) -> int:
    """Runs the stage that ``--config FILE`` describes."""
    if len(arguments) != 2 or arguments[0] != "--config":
        print("usage: python -m skewd_pipeline.stages --config FILE", file=sys.stderr)
        return 64
    config = StageConfig(**json.loads(Path(arguments[1]).read_text()))

    from skewd_pipeline import skew

    skew.install(config.page)

    from skewd_pipeline.worker import serve

    serve(config)
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # Without the input there is nobody to deliver to: what transports and exporters still hold is not waited for.
    os._exit(code)
