"""Which samples share a row and a shape: everything here is integers, no pixels.

The oracle is the definition: every record once an epoch, needs within the bucket, numbers
recounted from the plan itself.
"""

import numpy as np
import pytest

from videorft_jax.data.batch.patches import num_windows, token_grid
from videorft_jax.data.loader.buckets import Bucket, Sizes, choose_buckets, mix, pack_rows, shuffled
from videorft_jax.data.loader.schedule import make_schedule
from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.media.sampling import target_size
from videorft_jax.models.geometry import PLAIN_16, WINDOW_TOKENS, WINDOWED_14

NUM = 1500  # records
SHAPES = ((720, 1280), (360, 640), (480, 640), (240, 320), (1280, 720))


def mixed(num, seed=0, answer=True, geometry=WINDOWED_14):
    """Needs of a set like the published one: two videos in three, the rest images of any size."""
    rng, contract, rows, visual = np.random.default_rng(seed), MediaContract.train(geometry), [], []
    for _ in range(num):
        if rng.random() < 0.68:
            frames = 16 if rng.random() < 0.9 else 2 * int(rng.integers(2, 8))
            size = target_size(*SHAPES[rng.integers(len(SHAPES))], frames, contract)
        else:
            frames = 1
            size = target_size(*rng.integers(200, 1200, 2).tolist(), 1, contract, image=True)
        pairs = -(-frames // 2)
        visual.append(pairs * int(np.prod(token_grid(*size, geometry))))
        text = int(rng.integers(150, 350)) + (int(rng.integers(200, 600)) if answer else 0)
        rows.append((visual[-1] + text, pairs, num_windows(*size, geometry)))
    return Sizes(*np.array(rows, np.int64).T), np.array(visual)


@pytest.fixture(scope="module")
def sft():
    sizes, visual = mixed(NUM)
    return sizes, visual, choose_buckets(sizes, 8, 8192, 4, 128, packed=True)


@pytest.fixture(scope="module")
def grpo():
    sizes, visual = mixed(NUM, answer=False)
    return sizes, visual, choose_buckets(sizes, 8, 2048, 6, 128, packed=False)


def check(plan, sizes, records, epochs):
    for epoch in range(epochs):
        batches = np.flatnonzero(plan.epoch == epoch)
        seen = [plan.record[plan.starts[k] : plan.starts[k + 1]] for k in batches]
        assert sorted(np.concatenate(seen).tolist()) == sorted(records.tolist())
    for k in range(len(plan)):
        span, bucket = slice(plan.starts[k], plan.starts[k + 1]), plan.buckets[plan.bucket[k]]
        for row in range(bucket.rows):
            own = sizes.take(plan.record[span][plan.row[span] == row])
            assert own.tokens.sum() <= bucket.length
            assert own.pairs.sum() <= bucket.pairs
            assert own.windows.max(initial=0) <= bucket.windows
        assert (np.diff(plan.row[span]) >= 0).all()


def test_packed_rows_hold_each_record_once_and_waste_little(sft):
    sizes, visual, buckets = sft
    assert 1 <= len(buckets) <= 4
    plan = make_schedule(np.arange(NUM), sizes, buckets, packed=True, seed=1, epochs=2)
    check(plan, sizes, np.arange(NUM), 2)
    space = sum(buckets[b].rows * buckets[b].length for b in plan.bucket)
    waste, visual_waste = plan.waste(sizes, visual)
    assert waste == pytest.approx(1 - 2 * sizes.tokens.sum() / space)
    assert waste < 0.1
    assert visual_waste < 0.35  # 64-slot windows alone lose a quarter on these frames


def test_more_epochs_than_memory_holds_are_refused(sft):
    sizes, _, buckets = sft
    with pytest.raises(ValueError, match=r"10+ epochs of 8 records; give .* at most 12500000$"):
        make_schedule(np.arange(8), sizes, buckets, packed=True, seed=1, epochs=10**11)


def test_prompt_rows_hold_one_record_and_waste_little(grpo):
    sizes, visual, buckets = grpo
    assert 1 <= len(buckets) <= 6
    plan = make_schedule(np.arange(NUM), sizes, buckets, packed=False, seed=1, epochs=1)
    check(plan, sizes, np.arange(NUM), 1)
    batch = np.repeat(np.arange(len(plan)), np.diff(plan.starts))
    assert len(set(zip(batch.tolist(), plan.row.tolist(), strict=True))) == NUM
    assert plan.waste(sizes, visual)[0] < 0.1
    for bucket in buckets:
        assert bucket.length % 128 == 0


def test_frames_without_square_windows_waste_less_than_a_tenth():
    """Frames cut into patches of 16 pixels. A packed row has besides room for frame pairs that
    other rows need, which is no waste of a frame's own."""
    sizes, visual = mixed(NUM, answer=False, geometry=PLAIN_16)
    buckets = choose_buckets(sizes, 8, 2048, 6, 128, packed=False)
    plan = make_schedule(np.arange(NUM), sizes, buckets, packed=False, seed=1, epochs=1)
    assert max(plan.waste(sizes, visual)) < 0.1

    sizes, visual = mixed(300, geometry=PLAIN_16)
    buckets = choose_buckets(sizes, 8, 8192, 4, 128, packed=True)
    plan = make_schedule(np.arange(300), sizes, buckets, packed=True, seed=1, epochs=1)
    windows = np.array([buckets[b].windows for b in plan.bucket])
    windows = np.repeat(windows, np.diff(plan.starts))  # Each record has its bucket's windows.
    room = (sizes.pairs[plan.record] * windows).sum() * WINDOW_TOKENS
    assert 1 - visual.sum() / room < 0.1


@pytest.mark.parametrize("packed", [True, False])
def test_more_buckets_never_cost_more(packed, sft, grpo):
    sizes = (sft if packed else grpo)[0]
    costs = []
    for most in (1, 3):
        buckets = choose_buckets(sizes, 8, 8192, most, 128, packed)
        assert len(buckets) <= most
        plan = make_schedule(np.arange(NUM), sizes, buckets, packed=packed, seed=1, epochs=1)
        costs.append(sum(buckets[b].rows * buckets[b].cost for b in plan.bucket))
    assert costs[1] < costs[0]


@pytest.mark.parametrize("count", range(1, 8))
def test_shards_split_the_same_batches(count, sft):
    sizes, _, buckets = sft
    buckets = tuple(b._replace(rows=420) for b in buckets)
    plan = make_schedule(np.arange(NUM), sizes, buckets, packed=True, seed=1, epochs=2)
    shares = [plan.share(p, count) for p in range(count)]
    assert {len(share) for share in shares} == {len(plan)}  # same number of steps: nobody waits
    for k in range(len(plan)):
        whole = slice(plan.starts[k], plan.starts[k + 1])
        records, rows = [], []
        for p, share in enumerate(shares):
            own = slice(share.starts[k], share.starts[k + 1])
            assert share.row[own].max(initial=0) < 420 // count
            records += share.record[own].tolist()
            rows += (share.row[own] + p * 420 // count).tolist()
        assert records == plan.record[whole].tolist()
        assert rows == plan.row[whole].tolist()
    first = np.concatenate([s.record[: s.starts[np.sum(s.epoch == 0)]] for s in shares])
    assert sorted(first.tolist()) == list(range(NUM))


def test_rows_that_do_not_divide_are_refused(sft):
    plan = make_schedule(np.arange(9), sft[0], sft[2], packed=True, seed=1, epochs=1)
    with pytest.raises(ValueError, match="8 rows a batch do not divide among 3 processes"):
        plan.share(0, 3)
    with pytest.raises(ValueError, match="process_index 3 of 3"):
        plan.share(3, 3)


def test_seed_epoch_and_input_decide_the_plan(sft):
    sizes, _, buckets = sft

    def plan(seed=1, epochs=2, num=600, packed=True):
        return make_schedule(
            np.arange(num), sizes, buckets, packed=packed, seed=seed, epochs=epochs
        )

    first, again, longer = plan(), plan(), plan(epochs=3)
    np.testing.assert_array_equal(first.record, again.record)
    assert first.digest == again.digest == longer.digest
    np.testing.assert_array_equal(longer.record[: len(first.record)], first.record)
    assert len({first.digest, plan(seed=2).digest, plan(num=599).digest}) == 3
    cut = first.starts[np.sum(first.epoch == 0)]
    assert first.record[:cut].tolist() != first.record[cut:].tolist()
    assert plan(seed=2).record.tolist() != first.record.tolist()


def test_each_epoch_forms_other_batches(grpo):
    """Not the same batches in another order: records meet others in the next epoch."""
    sizes, _, buckets = grpo
    plan = make_schedule(np.arange(NUM), sizes, buckets, packed=False, seed=0, epochs=2)
    batches = [frozenset(own.tolist()) for own in np.split(plan.record, plan.starts[1:-1])]
    first, second = (
        {batch for batch, epoch in zip(batches, plan.epoch, strict=True) if epoch == number}
        for number in range(2)
    )
    assert len(first) > 0.1 * NUM
    assert len(first & second) < 0.05 * len(first)


def test_without_seed_the_order_is_kept(grpo):
    sizes, _, buckets = grpo
    plan = make_schedule(np.arange(500), sizes, buckets, packed=False, seed=None, epochs=1)
    check(plan, sizes, np.arange(500), 1)
    assert (np.diff(plan.bucket) >= 0).all()
    for b in range(len(buckets)):
        batches = np.flatnonzero(plan.bucket == b)[:-1]  # the last may hold what others left over
        records = [plan.record[plan.starts[k] : plan.starts[k + 1]] for k in batches]
        assert (np.diff(np.concatenate([np.zeros(0), *records])) > 0).all()


def test_best_fit_by_hand():
    sizes = Sizes(np.array([6, 5, 4, 3, 2]), np.array([1, 1, 1, 3, 1]), np.ones(5, np.int64))
    rows = pack_rows(sizes, 10, 4)  # the three-pair sample first, then 6, 5, 4, 2
    assert [row.tolist() for row in rows] == [[0, 3], [1, 2], [4]]


def test_left_over_rows_move_up_only_when_that_is_cheaper():
    sizes = Sizes(np.array([10] * 5 + [20] * 7), np.ones(12, np.int64), np.ones(12, np.int64))
    small, large = Bucket(10, 1, 1, 4), Bucket(20, 1, 1, 4)
    plan = make_schedule(np.arange(12), sizes, (small, large), packed=False, seed=None, epochs=1)
    assert plan.bucket.tolist() == [0, 1, 1]  # the fifth short one fills up seven long ones
    assert plan.record[plan.starts[2] :].tolist() == [9, 10, 11, 4]
    sizes.tokens[11] = 10  # six and six: both have half a batch left, joined in the larger
    plan = make_schedule(np.arange(12), sizes, (small, large), packed=False, seed=None, epochs=1)
    assert plan.bucket.tolist() == [0, 1, 1]


def splitmix(state):
    """One output of splitmix64 in Python's integers."""
    z = (state + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_random_keys():
    assert splitmix(0) == 0xE220A8397B1DCDAF  # its published first output
    for index in (0, 1, 310_000):
        state = 0
        for part in (3, 1, 2, index):
            state = splitmix((state + part) % 2**64)
        assert int(mix(3, 1, 2, np.array([index]))[0]) == state
    keys = mix(3, 1, 0, np.arange(4096))
    assert len(np.unique(keys)) == 4096
    assert np.abs(np.bincount((keys >> np.uint64(60)).astype(int)) - 256).max() < 80
    order = shuffled(0, 0, 0, np.arange(50))
    np.testing.assert_array_equal(order, shuffled(0, 0, 0, order))  # whatever order it came in


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 0}, "rows is 0"),
        ({"row_tokens": 8000}, "no multiple of 128"),
        ({"row_tokens": 128}, "raise row_tokens"),
        ({"max_buckets": 0}, "max_buckets is 0"),
    ],
)
def test_impossible_settings(change, message, sft):
    settings = {"rows": 8, "row_tokens": 8192, "max_buckets": 4, "multiple": 128, "packed": True}
    with pytest.raises(ValueError, match=message):
        choose_buckets(sft[0], **(settings | change))


def test_nothing_to_plan():
    with pytest.raises(ValueError, match="every record is bad"):
        choose_buckets(Sizes(*np.zeros((3, 0), np.int64)), 8, 256, 4, 128, packed=True)
