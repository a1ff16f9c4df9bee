"""The published JSON Schema of entries; `python -m leaderboards.schema` writes it."""
