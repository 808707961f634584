"""Denoising networks, built on diffusers."""
