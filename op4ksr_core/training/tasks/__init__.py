"""What is trained: one task per kind of model, with its losses and the models it starts from.

Its face: ``choose.make_task``; a new kind of model is a new ``task.Task``.
"""
