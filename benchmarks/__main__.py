import sys

from op4ksr_core.cli.main import start


def main() -> int:
    """The benchmarks' command line; PyTorch is imported after signals are handled."""
    from .commands.main import build_parser

    return start(build_parser, None)


if __name__ == "__main__":
    sys.exit(main())
