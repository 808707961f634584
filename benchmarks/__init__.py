"""Ratios against a peer: both sides in one run, side by side."""
