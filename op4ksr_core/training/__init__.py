"""Training: an autoencoder, a one-step transformer, a LoRA or an enlarger, from a config file.

Its face: ``trainer.Trainer``, ``config.TrainConfig``, ``config_file.read_config``.
"""
