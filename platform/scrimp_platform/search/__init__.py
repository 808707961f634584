"""What the sweep decides: the ledger, its records, halving, the race, and Ray Tune's side."""
