"""What leaderboards need of runs, suites and judges: entries, demands, and verdicts asked again."""

from mars2.leaderboard.drafts import About, make_drafts, track_of
from mars2.leaderboard.rejudge import rejudge
from mars2.leaderboard.suite_facts import shown_model, suite_facts

__all__ = ["About", "make_drafts", "rejudge", "shown_model", "suite_facts", "track_of"]
