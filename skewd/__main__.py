"""``python -m skewd`` is ``skewd``."""

import sys

from skewd.cli import main

if __name__ == "__main__":
    sys.exit(main())
