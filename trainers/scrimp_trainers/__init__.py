"""Training diffusion models: start reading at `run` (a whole repeat) and `training.loop` (a training step)."""
