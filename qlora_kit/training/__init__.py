"""Training with TRL: the run's folder, quirks of the trainer, and what is watched on the way."""
