"""The four papers' claims, checked: `python -m benchmarks.claims run` and `report`; each claim is a YAML file here."""
