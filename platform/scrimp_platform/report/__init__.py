"""The report of a sweep: leaderboard, plots and sample grids."""
