"""What a run will need, before anything is computed: tokens, FLOPs, bytes.

Its face: ``make.make_plan``, which gives a ``plan.Plan``; ``cost`` counts, ``geometries`` has the named shapes.
"""
