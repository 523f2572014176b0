"""Training: the trainer and its settings, checkpoints, and stopping."""
