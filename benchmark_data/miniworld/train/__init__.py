"""Trains every model of the miniature world, in order, resumable: `python -m benchmark_data.miniworld.train STAGE`."""
