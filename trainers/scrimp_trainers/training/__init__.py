"""The training loop (`loop`, START READING THERE), its state, its checkpoints and its memory."""
