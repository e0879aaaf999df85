"""The Flux transformer: its layers, positions (RoPE, RFR), latents as tokens, and the many-step schedule.

Its face: ``flux.Flux``, ``flux.FluxParams``, ``rope.Rfr``.
"""
