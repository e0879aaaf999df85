import argparse
import sys

from op4ksr_core.cli.main import start


def build_parser() -> argparse.ArgumentParser:
    """The benchmarks' parser; PyTorch is imported with it, after signals are handled."""
    from .commands import main

    return main.build_parser()


if __name__ == "__main__":
    sys.exit(start(build_parser, None))
