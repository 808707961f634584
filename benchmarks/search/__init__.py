"""Search methods compared in simulated time; `make bench-search`."""
