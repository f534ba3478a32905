"""The next batch is taken while the devices compute, and errors keep to the step they belong to."""

import pytest

from videorft_jax.training.ahead import Ahead


class Source:
    """A loader whose batches are ready when `is_ready` says so; an error stands for a batch."""

    def __init__(self, *items):
        self.items, self.is_ready, self.taken = list(items), True, 0

    def __next__(self):
        if self.taken == len(self.items):
            raise StopIteration
        item = self.items[self.taken]
        if isinstance(item, Exception):
            raise item
        self.taken += 1
        return item


def refuse():
    raise AssertionError("A batch that is ready needs no look at the devices.")


def test_a_batch_that_is_ready_is_put_once_and_early():
    put = []

    def place(item):
        put.append(item)
        return -item

    source = Source(1, 2, 3)
    batches = Ahead(source, place)
    assert next(batches) == (1, -1)
    batches.fetch(refuse)
    assert put == [1, 2]
    batches.fetch(refuse)  # One batch ahead is enough.
    assert put == [1, 2]
    assert [tuple(found) for found in batches] == [(2, -2), (3, -3)]
    assert put == [1, 2, 3]


def test_a_late_batch_is_waited_for_until_the_devices_have_ended():
    source = Source(1, 2, 3)
    batches, looks = Ahead(source, str), []
    source.is_ready = False

    def ends_first():
        looks.append(source.taken)
        return len(looks) == 3

    batches.fetch(ends_first)
    assert (looks, source.taken) == ([0, 0, 0], 0)

    def comes_first():
        source.is_ready = True
        return False

    batches.fetch(comes_first)
    assert source.taken == 1
    assert next(batches) == (1, "1")


def test_what_the_loader_raises_comes_with_the_next_step():
    batches = Ahead(Source(1, RuntimeError("stalled")), str)
    next(batches)
    batches.fetch(refuse)
    with pytest.raises(RuntimeError, match="stalled"):
        next(batches)
    batches = Ahead(Source(1), str)
    next(batches)
    batches.fetch(refuse)
    assert next(batches, None) is None
