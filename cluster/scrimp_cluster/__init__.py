"""The cluster: what a lab's workstations need before a sweep can run on them."""
