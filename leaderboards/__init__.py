"""Published results: entries that anyone can recompute, boards that rank them, and their site.

Imports nothing of ours. `leaderboards.check` validates, `leaderboards.table` ranks,
`leaderboards.site` writes the pages.
"""

from leaderboards.entry import Entry, read_entries, read_entry
from leaderboards.shape import EntryError, Problem

__all__ = ["Entry", "EntryError", "Problem", "read_entries", "read_entry"]
