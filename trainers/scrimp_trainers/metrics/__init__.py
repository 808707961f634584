"""Scores: fidelity, memorisation, cost."""
