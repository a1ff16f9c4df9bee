"""Speed against the plain way, both measured in one run: `python -m benchmarks`."""
