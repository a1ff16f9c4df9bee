"""Writes the JSON Schema of entries beside this file; a test compares them."""

import json
from pathlib import Path

from leaderboards.entry import SCHEMA, entry_schema

path = Path(__file__).with_name(f"entry-{SCHEMA}.json")
path.write_text(json.dumps(entry_schema(), indent=1) + "\n", encoding="utf-8")
print(path)
