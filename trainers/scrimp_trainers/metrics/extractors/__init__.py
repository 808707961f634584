"""Feature extractors, one a file; `extractor.py` says what such a file has."""
