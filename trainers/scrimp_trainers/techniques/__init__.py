"""The four papers' techniques, one file each."""
