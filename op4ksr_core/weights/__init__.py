"""Weights files: what a file is, whether it is sound, and the model it makes.

Its face: ``checkpoint.load_autoencoder``, ``checkpoint.load_flux``, ``lora.describe_lora``, ``convert``.
"""
