"""Memory of batches is used again, and never while anybody can still see it."""

import gc
import threading

import jax
import numpy as np
import pytest

from videorft_jax.data.batch.layout import make_sample, pack
from videorft_jax.data.batch.patches import Media
from videorft_jax.data.loader.buckets import Bucket, Sizes
from videorft_jax.data.loader.buffers import KEPT, Pool, Trays, patches_shape
from videorft_jax.data.loader.schedule import make_schedule
from videorft_jax.models.geometry import WINDOWED_14


def address(array):
    return array.ctypes.data


def test_memory_comes_back_with_the_last_view_and_no_sooner():
    pool = Pool(1 << 20)
    first = pool.take((1024, 1024))
    where = address(first)
    view = first[3:, ::2].view(np.int8).T
    del first
    second = pool.take((1 << 10, 1 << 5, 1 << 5))
    assert address(second) != where
    second[...] = 7
    view[...] = 3
    assert (second == 7).all()
    del view
    third = pool.take((5, 5))  # a smaller one from the same block
    assert address(third) == where
    assert third.flags.c_contiguous
    assert third.flags.writeable
    with pytest.raises(ValueError, match="more than 1048576 bytes"):
        pool.take((1025, 1024))


def test_no_more_is_kept_than_announced():
    pool = Pool(1 << 12)
    held = [pool.take((1 << 12,)) for _ in range(KEPT + 4)]
    places = [address(array) for array in held]
    assert len(set(places)) == KEPT + 4
    held.clear()
    assert len(pool._free) == KEPT


def test_arrays_on_a_device_keep_the_memory_that_they_look_at():
    """On a CPU `device_put` shares aligned memory with NumPy: the danger that this must survive."""
    pool, size = Pool(1 << 20), 1 << 18
    block = pool.take((1 << 20,))
    where = address(block)
    start = -where % 128
    part = block[start : start + size].view(np.float32)
    part[...] = 3
    device = jax.device_put(part)
    shared = device.unsafe_buffer_pointer() == address(part)
    assert shared, "jax copies now: nothing is tested, find memory that it shares"
    del part, block
    others = [pool.take((1 << 20,))]
    others[0][...] = 9
    np.testing.assert_array_equal(np.asarray(device), np.full(size // 4, 3, np.float32))
    total = jax.jit(lambda x: x + 1)(device)  # may still be reading when the next line runs
    del device
    others.append(pool.take((1 << 20,)))
    others[1][...] = 9
    np.testing.assert_array_equal(np.asarray(total), np.full(size // 4, 4, np.float32))
    del others, total
    gc.collect()
    jax.device_put(0.0).block_until_ready()  # jax drops its references in its next call
    assert where in [address(array) for array in [pool.take((1,)) for _ in range(KEPT)]]


def random_sample(rng, pairs, grid):
    frames = rng.integers(0, 256, (2 * pairs, 28 * grid[0], 28 * grid[1], 3), np.uint8)
    media = Media(frames.transpose(0, 3, 1, 2), (pairs, *grid), 1.0, WINDOWED_14)
    length = media.num_tokens + 4
    return make_sample(np.arange(length), np.zeros(length), [2], [media])


def test_threads_fill_the_places_of_the_plan():
    """Oracle: `pack` of the same samples in the plan's rows, in one thread and fresh memory."""
    rng = np.random.default_rng(0)
    samples = [
        random_sample(rng, int(rng.integers(1, 4)), tuple(rng.integers(1, 6, 2))) for _ in range(40)
    ]
    sizes = Sizes(
        np.array([len(s.tokens) for s in samples]),
        np.array([s.num_pairs for s in samples]),
        np.array([s.num_windows for s in samples]),
    )
    buckets = (Bucket(160, 6, 2, 2), Bucket(256, 7, 4, 4))
    plan = make_schedule(np.arange(40), sizes, buckets, packed=True, seed=0, epochs=2).share(1, 2)
    pool = Pool(max(np.prod(patches_shape(bucket, WINDOWED_14)) for bucket in plan.buckets))
    trays = Trays(plan, sizes.pairs[plan.record], pool, WINDOWED_14)
    placed = {}

    def work(slots):
        for slot in slots:
            placed[slot] = trays.put(int(slot), samples[plan.record[slot]])

    order = rng.permutation(len(plan.record))
    threads = [threading.Thread(target=work, args=(order[i::3],)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(len(plan)):
        slots = range(plan.starts[k], plan.starts[k + 1])
        bucket = plan.buckets[plan.bucket[k]]
        rows = [[s for s in slots if plan.row[s] == row] for row in range(bucket.rows)]
        memory = trays.take(k)
        assert all(np.shares_memory(placed[s].media[0].slots, memory) for s in slots)
        ours = pack([[placed[s] for s in row] for row in rows], *bucket[:3], memory)
        theirs = pack([[samples[plan.record[s]] for s in row] for row in rows], *bucket[:3])
        for name in ours._fields:
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), name)
        for s in slots:  # `pack` had nothing to move
            first = int(np.argmax(plan.row[slots] == plan.row[s])) + slots.start
            pair = int(sizes.pairs[plan.record[first:s]].sum())
            assert address(placed[s].media[0].slots) == address(memory[plan.row[s], pair])
