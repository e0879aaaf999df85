"""Periodic artifacts: the meter that finds them, the remover, and the loss L_AP.

Its face: ``meter.measure_periodicity``, ``suppress.suppress_periodicity``, ``loss.PeriodicityLoss``, and
``report.PeriodicityReport``. The alarm threshold, and all else that decides what is reported: thresholds.py.
"""
