"""Training diffusion models. Start reading in `train.py`."""
