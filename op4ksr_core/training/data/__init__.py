"""What is trained on: procedural scenes, photos, their degradation, and batches of them.

Its face: ``sources.open_source``, ``batches``, ``degradation.degrade``.
"""
