"""What a network is conditioned on besides the noise level."""
