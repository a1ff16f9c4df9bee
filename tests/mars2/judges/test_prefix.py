"""What questions begin with is shared, and never changed."""

import torch
from transformers import DynamicCache

from mars2.judges.prefix import Prefix


def test_rows_go_on_from_a_prefix_without_copying_or_changing_it() -> None:
    keys, values = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4)
    cache = DynamicCache()
    cache.update(keys, values, 0)
    prefix = Prefix(cache, 3)
    held = cache.layers[0].keys
    rows = prefix.rows(2)
    assert rows.layers[0].keys.data_ptr() == held.data_ptr()
    more = torch.randn(2, 2, 5, 4)
    seen, _ = rows.update(more, more, 0)
    assert torch.equal(seen, torch.cat([keys.expand(2, -1, -1, -1), more], dim=2))
    assert (rows.get_seq_length(), cache.get_seq_length()) == (8, 3)
    assert cache.layers[0].keys is held
    assert torch.equal(held, keys)


def test_the_mask_lets_each_position_see_the_prefix_and_what_comes_before_it() -> None:
    cache = DynamicCache()
    cache.update(torch.randn(1, 2, 2, 4), torch.randn(1, 2, 2, 4), 0)
    mask = Prefix(cache, 2).mask(3)
    out = -torch.inf
    assert mask.tolist() == [[[[0, 0, 0, out, out], [0, 0, 0, 0, out], [0, 0, 0, 0, 0]]]]
    assert mask.dtype == torch.float32
