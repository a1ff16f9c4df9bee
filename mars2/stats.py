"""Means with intervals and paired differences: those of the leaderboards, under the name used here.

They lie in `leaderboards.stats`, which imports nothing of ours, so that a run and the leaderboard
that checks it cannot compute differently.
"""

from leaderboards.stats import (
    LEVEL,
    RESAMPLES,
    Estimate,
    cluster_mean,
    crossed_mean,
    paired_difference,
)

__all__ = ["LEVEL", "RESAMPLES", "Estimate", "cluster_mean", "crossed_mean", "paired_difference"]
