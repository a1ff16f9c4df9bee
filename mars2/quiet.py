"""Keeps other libraries' chatter off the terminal: their warnings, notes and bars of loading.

`mars2 --verbose`, or the variable MARS2_VERBOSE, lets it through.
"""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

VERBOSE_VARIABLE = "MARS2_VERBOSE"
LIBRARIES = ("transformers", "diffusers", "huggingface_hub", "torch", "open_clip", "timm", "peft")


def is_verbose() -> bool:
    """Return whether other libraries may talk."""
    return os.environ.get(VERBOSE_VARIABLE, "").lower() not in ("", "0", "false", "no", "off")


def silence_libraries() -> None:
    """Let libraries, imported already or later, tell errors only; a user's own setting stands."""
    if is_verbose():
        return
    for library in ("transformers", "diffusers"):
        os.environ.setdefault(f"{library.upper()}_VERBOSITY", "error")
        if logging := sys.modules.get(f"{library}.utils.logging"):
            logging.set_verbosity_error()
    if not sys.warnoptions:
        for library in LIBRARIES:
            warnings.filterwarnings("ignore", module=rf"{library}(\.|$)")


@contextmanager
def no_bars() -> Iterator[None]:
    """Show no bar of transformers while this is open: weights are loaded in seconds."""
    from transformers.utils import logging

    if is_verbose() or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()  # the hub's too, which downloads are shown by
