"""Diffusion processes: preconditioning, loss and samplers as small plain functions."""
