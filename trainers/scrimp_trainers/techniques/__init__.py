"""What techniques do within a training step, one file each."""
