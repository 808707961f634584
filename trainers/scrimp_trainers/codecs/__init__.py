"""Between a dataset's items and the tensors that a network is trained on."""
