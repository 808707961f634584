"""What the items of a dataset are, one file a kind; the protocol is in `modality.py`."""
