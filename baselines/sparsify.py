"""Fewer entries: trimmed by magnitude or dropped at random; shared by the TIES and DARE family.

Each takes a tensor of any shape and gives one of the same shape, in which entries are zero.
"""

import torch
from torch import Tensor

from baselines.adapter import AdapterError


def check_density(density: float) -> None:
    """Refuse a density outside ``(0, 1]``.

    Raises:
        AdapterError: Saying so.
    """
    if not 0.0 < density <= 1.0:
        raise AdapterError(f"density is {density}: the fraction of entries kept is in (0, 1]")


def trim(tensor: Tensor, density: float, *, outliers: float = 0.0) -> Tensor:
    """The tensor with its largest entries by magnitude, the others zero.

    >>> trim(torch.tensor([1.0, -4.0, 3.0, 2.0]), 0.5)
    tensor([ 0., -4.,  3.,  0.])
    >>> trim(torch.tensor([1.0, -4.0, 3.0, 2.0]), 0.5, outliers=0.25)
    tensor([0., 0., 3., 2.])

    Args:
        tensor: Any shape.
        density: Fraction of entries kept, in ``(0, 1]``; their number is rounded down, as in peft,
            but at least 1. Which of several equal entries are kept is not defined.
        outliers: Fraction of entries, in ``[0, 1)``, the very largest, that are dropped as well;
            their number is rounded down.

    Raises:
        AdapterError: If a fraction is out of range, or both add up to more than 1.
    """
    check_density(density)
    if not 0.0 <= outliers < 1.0 or density + outliers > 1.0 + 1e-9:  # 0.9 + 0.1 may round up
        raise AdapterError(
            f"outliers is {outliers}, density {density}: the fraction of entries dropped as too "
            "large is in [0, 1), and both add up to 1 at most"
        )
    total = tensor.numel()
    largest = int(outliers * total)
    count = min(max(1, int(density * total)), total - largest)
    if count == total:
        return tensor
    flat = tensor.flatten()
    magnitude = flat.abs()
    # unsorted: the same entries as peft's sorted call, in a quarter of its time
    kept = magnitude.topk(largest + count, sorted=False).indices
    trimmed = torch.zeros_like(flat).scatter_(0, kept, flat[kept])
    if largest:
        trimmed[kept[magnitude[kept].topk(largest, sorted=False).indices]] = 0.0
    return trimmed.view(tensor.shape)


def drop(tensor: Tensor, density: float | Tensor, rng: torch.Generator) -> Tensor:
    """The tensor with entries kept at random and divided by the chance of being kept.

    So its expectation is the tensor itself ("drop and rescale").

    Args:
        tensor: Any shape.
        density: Chance of an entry to be kept, in ``(0, 1]``: one number, or one an entry. With one
            number, nothing is drawn at 1.
        rng: On the CPU, so that a draw is the same on every device. It gives the draws that
            ``torch.bernoulli``, and so peft, makes of float32 chances.

    Raises:
        AdapterError: If the density is out of range.
    """
    if isinstance(density, Tensor):
        if not bool(((density > 0.0) & (density <= 1.0)).all()):
            raise AdapterError("a chance of being kept is out of (0, 1]")
        kept = torch.bernoulli(density.to("cpu", torch.float32), generator=rng)
        return tensor * kept.to(tensor.device) / density.to(tensor)
    check_density(density)
    if density == 1.0:
        return tensor
    # the same draws as torch.bernoulli's of a tensor of chances, in a quarter of its time
    kept = torch.rand(tensor.shape, generator=rng, dtype=torch.float32).lt_(density)
    return (tensor * kept.to(tensor.device)).div_(density)
