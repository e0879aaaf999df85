"""The F16 autoencoder, whole or in exact row strips within a given number of bytes.

Its face: ``autoencoder.AutoEncoder``, ``strips.StripSettings``, ``estimate.choose_strips``.
"""
