"""``python -m op4ksr_core``, also installed as ``op4ksr``: one module per command. The only place that prints.

Its face: ``main.main``.
"""
