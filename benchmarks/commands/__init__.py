"""``python -m benchmarks``: one module per kind of benchmark. Its face: ``main.main``."""
