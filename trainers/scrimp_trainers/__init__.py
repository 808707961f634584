"""Training diffusion models: START READING in `run` (the story) and `training.loop` (a training step)."""
