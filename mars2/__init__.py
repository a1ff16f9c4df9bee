"""MARS2: measures methods that merge a subject LoRA with a style LoRA.

The public names are imported on first use, so that `import mars2` costs nothing.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    "Cost": "mars2.store",
    "Job": "mars2.job",
    "MethodSpec": "mars2.job",
    "Record": "mars2.store",
    "RunError": "mars2.job",
    "RunSpec": "mars2.job",
    "RunStore": "mars2.store",
    "Sample": "mars2.store",
    "SdxlPipeline": "mars2.pipelines",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'mars2' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
