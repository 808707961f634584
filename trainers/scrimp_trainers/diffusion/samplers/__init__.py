"""Samplers, one a file: `sample(process, settings, predict, noise, clip=...)` draws images.

`clip` allows a sampler to keep its estimates of the clean images in [-1, 1]: true of pixels, false of latents, which
have no such bounds. Clipping those of unit variance would shrink them to a standard deviation of 0.6 to 0.7.
"""
