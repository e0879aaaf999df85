"""``python -m op4ksr_core``: the command line, as ``op4ksr`` is."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
