"""The training loop (start reading at `loop`), its state, its checkpoints and its memory."""
