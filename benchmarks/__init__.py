"""Measuring, outside the library: ``python -m benchmarks --help``, from a clone of the repository.

Each module measures one thing and gives tables; ``commands`` is their command line.
"""
