"""All that waits for a GPU, in one run of minutes: ``run.sh`` starts ``campaign``, whose steps are the other modules.

Each step is a program of its own (``python -m benchmarks.gpu.checks --help``); weights are random where the step says
so, which shows time and memory, never quality.
"""
