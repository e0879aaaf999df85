"""``python -m op4ksr_core``: the command line, as ``op4ksr`` is."""

import sys

from .signals import handle, leave_at_once


def run() -> int:
    """The command of this process; signals are handled before anything else is imported."""
    handle(leave_at_once)
    from .cli.main import main

    return main()


if __name__ == "__main__":
    sys.exit(run())
