"""What happens to an image before a model sees it, and how images are told apart."""

import hashlib
from functools import cache
from importlib.metadata import version

from PIL import Image, ImageOps

LONG_SIDE = 512
"""Pixels: the published protocol shrinks larger images to this."""


PREPARATION = 1
"""Counts the versions of `prepare`: another one may give other pixels."""


@cache
def preprocessor() -> str:
    """Return the versions of all that turns an image into what a model sees."""
    return (
        f"prepare {PREPARATION}, pillow {version('pillow')}, transformers {version('transformers')}"
    )


def prepare(image: Image.Image) -> Image.Image:
    """Return an image upright, in RGB, its longer side shrunk to 512 pixels (bicubic)."""
    upright = ImageOps.exif_transpose(image).convert("RGB")
    longest = max(upright.size)
    if longest <= LONG_SIDE:
        return upright
    width, height = (max(1, round(side * LONG_SIDE / longest)) for side in upright.size)
    return upright.resize((width, height), Image.Resampling.BICUBIC)


def image_digest(image: Image.Image) -> str:
    """Return 32 hex of an image's mode, size and pixels."""
    content = hashlib.blake2b(f"{image.mode} {image.size}".encode(), digest_size=16)
    content.update(image.tobytes())
    return content.hexdigest()
