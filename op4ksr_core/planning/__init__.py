"""What a run will need, before anything is computed: tokens, FLOPs, bytes.

Its face: ``plan.make_plan``; ``cost`` counts, ``geometries`` has the named shapes.
"""
