"""Training: an autoencoder, a one-step transformer or a LoRA, from a config file.

Its face: ``trainer.Trainer``, ``config.TrainConfig``, ``config_file.read_config``.
"""
