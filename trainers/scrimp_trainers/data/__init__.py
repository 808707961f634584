"""Datasets: reading sources, writing shards, loading batches."""
