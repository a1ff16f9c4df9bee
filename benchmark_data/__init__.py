"""What to merge and on what: suites of subjects, styles and prompts, with their reference images.

`benchmark_data.fetch` downloads the images; `benchmark_data.miniworld` is the miniature world.
"""

from benchmark_data.load import load_references, load_suite, open_references, suite_names
from benchmark_data.suite import (
    Case,
    Concept,
    Generation,
    Models,
    Reference,
    Suite,
    SuiteError,
)

__all__ = [
    "Case",
    "Concept",
    "Generation",
    "Models",
    "Reference",
    "Suite",
    "SuiteError",
    "load_references",
    "load_suite",
    "open_references",
    "suite_names",
]
