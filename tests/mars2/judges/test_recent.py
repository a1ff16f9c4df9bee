"""What was computed last is kept, and computed once."""

from mars2.judges.recent import Recent


def test_what_is_not_kept_is_computed_in_parts_and_then_kept():
    parts = []

    def double(given: list[int]) -> list[int]:
        parts.append(given)
        return [2 * number for number in given]

    recent: Recent[int] = Recent(100, lambda value: 1)
    assert recent.of({"a": 1, "b": 2, "c": 3}, double, 2) == {"a": 2, "b": 4, "c": 6}
    assert parts == [[1, 2], [3]]
    assert recent.of({"c": 3, "d": 4}, double, 2) == {"c": 6, "d": 8}
    assert parts[2:] == [[4]]


def test_all_that_is_asked_for_comes_even_if_not_all_of_it_can_be_kept():
    recent: Recent[int] = Recent(1, lambda value: 1)
    assert recent.of({"a": 1, "b": 2}, lambda given: given, 2) == {"a": 1, "b": 2}
    assert (recent.get("a"), recent.get("b")) == (None, 2)
