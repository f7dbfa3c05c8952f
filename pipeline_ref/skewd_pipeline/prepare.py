"""Chooses the files of one run and learns, before anything is skewed, what is right for each.

A process of its own, so that the one that measures never loads a model:
``python -m skewd_pipeline.prepare ITEMS SEED [MODEL]`` writes the items with their expected labels and says, as one
line of JSON, how many there are.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from skewd_pipeline.corpus import CorpusError, save_items
from skewd_pipeline.model import ModelError


def main(arguments: list[str]) -> int:
    """Writes the items; the exit code."""
    try:
        count = save_items(Path(arguments[0]), arguments[2] if len(arguments) > 2 else None, seed=int(arguments[1]))
    except (CorpusError, ModelError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({"items": count}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
