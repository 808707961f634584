"""Search spaces: what a sweep may vary, one YAML file a space."""
