"""The sweep: plan, connect, search, race, report. Start reading in `sweep.py`."""
