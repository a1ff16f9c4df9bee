"""Trains every model of the miniature world, stage by stage, resumable.

`python -m benchmark_data.miniworld.train STAGE`
"""
