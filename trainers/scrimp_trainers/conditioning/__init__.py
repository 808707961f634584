"""What a network is told besides a noisy image and its noise level."""
