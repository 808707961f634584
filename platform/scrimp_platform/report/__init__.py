"""The report of a sweep: leaderboard, plots, grids."""
