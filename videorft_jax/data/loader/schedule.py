"""The schedule of all epochs: which sample stands in which batch and row.

The schedule is an array that is worked out before the run begins. Batch k of the run is a slice of
it, so that the whole state of a loader is the number k, and any process count, worker count or
starting point reads the same batches. Its `digest` is saved in checkpoints, which tells whether a
resumed run reads what the saved one did.
"""

import dataclasses
import hashlib
import json

import numpy as np

from videorft_jax.data.loader.buckets import LOOKAHEAD, Bucket, Sizes, mix, pack_rows, shuffled

VERSION = 1  # A change that gives the same input another schedule must raise it.
_MOST_READS = 10**8  # records times epochs; each takes some hundred bytes while a schedule is made
SAMPLES, ROWS, BATCHES = range(3)  # What random keys are drawn for: each purpose has its own.


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Slots in order of (batch, row, place in the row). K batches, S slots.

    digest: sha256 over all that it was made from, except the number of epochs (a run may be made
    longer); buckets: the compiled shapes; bucket, epoch int32 [K] of each batch; starts int64
    [K + 1] first slot of each batch; record int64 [S] index into the source; row int32 [S] within
    the batch.
    """

    digest: str
    buckets: tuple[Bucket, ...]
    bucket: np.ndarray
    epoch: np.ndarray
    starts: np.ndarray
    record: np.ndarray
    row: np.ndarray

    def __len__(self) -> int:
        return len(self.bucket)

    def share(self, process_index: int, process_count: int) -> "Schedule":
        """The rows of one process, numbered from 0: process p of n has rows p*B/n to (p+1)*B/n of
        every batch. Raises ValueError when a batch does not divide."""
        if not 0 <= process_index < process_count:
            raise ValueError(f"loader: process_index {process_index} of {process_count}")
        for bucket in self.buckets:
            if bucket.rows % process_count:
                raise ValueError(
                    f"loader: {bucket.rows} rows a batch do not divide among {process_count}"
                    " processes; choose a multiple"
                )
        rows = np.array([bucket.rows for bucket in self.buckets]) // process_count
        batch = np.repeat(np.arange(len(self)), np.diff(self.starts))
        first = rows[self.bucket[batch]] * process_index
        keep = (self.row >= first) & (self.row < first + rows[self.bucket[batch]])
        counts = np.bincount(batch[keep], minlength=len(self))
        return dataclasses.replace(
            self,
            buckets=tuple(b._replace(rows=b.rows // process_count) for b in self.buckets),
            starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            record=self.record[keep],
            row=(self.row - first)[keep].astype(np.int32),
        )

    def waste(self, sizes: Sizes, visual_tokens: np.ndarray) -> tuple[float, float]:
        """Padding as a share of all tokens, and of all visual token slots (empty rows included).
        visual_tokens int64 [N] of each sample, sizes of all records."""
        if not len(self):
            return 0.0, 0.0
        shapes = np.array(self.buckets, np.int64)[self.bucket]
        tokens = (shapes[:, 0] * shapes[:, 3]).sum()
        slots = (shapes[:, 1] * shapes[:, 2] * shapes[:, 3]).sum() * 16
        return (
            float(1 - sizes.tokens[self.record].sum() / tokens),
            float(1 - visual_tokens[self.record].sum() / slots),
        )


def make_schedule(
    records: np.ndarray,
    sizes: Sizes,
    buckets: tuple[Bucket, ...],
    *,
    packed: bool,
    seed: int | None,
    epochs: int,
    ranks: np.ndarray | None = None,
) -> Schedule:
    """Every one of `records` (int64, indices into `sizes`) exactly once an epoch. The last batch of
    a bucket is filled up with empty rows. seed None keeps the order, batches bucket by bucket.

    ranks: float [N] of each record. Records are then read from the lowest to the highest in each
    epoch, those of one rank in an order of their own, and batches follow by their mean rank.

    Raises ValueError for a record that fits no bucket, and for more epochs than memory holds.
    """
    if len(records) * epochs > _MOST_READS:
        raise ValueError(
            f"schedule: {epochs} epochs of {len(records)} records; give data.epochs of at most "
            f"{_MOST_READS // len(records)}"
        )
    by_epoch = [_fill_epoch(records, sizes, buckets, packed, seed, e, ranks) for e in range(epochs)]
    batches = [batch for epoch in by_epoch for batch in epoch]
    rows = [row for _, batch in batches for row in batch]
    counts = [sum(map(len, batch)) for _, batch in batches]
    places = [place for _, batch in batches for place in range(len(batch))]
    lengths = [len(row) for row in rows]
    inputs = [VERSION, packed, seed, [[int(side) for side in bucket] for bucket in buckets]]
    digest = hashlib.sha256(json.dumps(inputs).encode())
    for numbers in (records, *sizes.take(records)):
        digest.update(np.asarray(numbers).astype("<i8").tobytes())
    if ranks is not None:
        digest.update(np.asarray(ranks[records]).astype("<f8").tobytes())
    return Schedule(
        digest=digest.hexdigest(),
        buckets=buckets,
        bucket=np.array([bucket for bucket, _ in batches], np.int32),
        epoch=np.repeat(np.arange(epochs, dtype=np.int32), [len(epoch) for epoch in by_epoch]),
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        record=np.concatenate([np.zeros(0, np.int64), *rows]).astype(np.int64),
        row=np.repeat(np.array(places, np.int32), lengths),
    )


def _fill_epoch(records, sizes, buckets, packed, seed, epoch, ranks) -> list[tuple[int, list]]:
    """(bucket, rows) of each batch; a row is an array of records."""
    if not len(records):
        return []
    if seed is not None:
        records = shuffled(seed, epoch, SAMPLES, records)
    if ranks is not None:
        records = records[np.argsort(ranks[records], kind="stable")]
    needs = sizes.take(records)
    price = np.stack([bucket.price(needs, packed) for bucket in buckets])
    bucket_of = np.argmin(price, axis=0)
    if np.isinf(price.min(axis=0)).any():
        i = int(np.argmax(price.min(axis=0)))
        raise ValueError(
            f"schedule: record {records[i]} ({needs.tokens[i]} tokens, {needs.pairs[i]} frame"
            f" pairs, {needs.windows[i]} windows) fits none of {len(buckets)} buckets; choose them"
            " anew"
        )
    rows: list[list[np.ndarray]] = []
    for b, bucket in enumerate(buckets):
        own = records[bucket_of == b]
        if packed:
            found = []
            for start in range(0, len(own), LOOKAHEAD):
                chunk = own[start : start + LOOKAHEAD]
                packs = pack_rows(sizes.take(chunk), bucket.length, bucket.pairs)
                found += [chunk[pack] for pack in packs]
            if ranks is not None:
                found.sort(key=lambda row: ranks[row].mean())
            elif seed is not None:
                keys = mix(seed, epoch, ROWS, np.array([row[0] for row in found], np.int64))
                found = [found[i] for i in np.argsort(keys, kind="stable")]
        else:
            found = list(own[:, None])
        rows.append(found)
    _promote(rows, buckets)
    batches = [
        (b, found[start : start + bucket.rows])
        for b, (bucket, found) in enumerate(zip(buckets, rows, strict=True))
        for start in range(0, len(found), bucket.rows)
    ]
    if ranks is not None:
        batches.sort(key=lambda batch: np.mean([ranks[row].mean() for row in batch[1]]))
    elif seed is not None:
        order = shuffled(seed, epoch, BATCHES, np.arange(len(batches)))
        batches = [batches[i] for i in order]
    return batches


def _promote(rows: list[list[np.ndarray]], buckets: tuple[Bucket, ...]) -> None:
    """Moves what a bucket's last, part-filled batch holds to a larger bucket if that is cheaper."""
    for small, bucket in enumerate(buckets):
        left = len(rows[small]) % bucket.rows
        for large in range(small + 1, len(buckets)) if left else ():
            other = buckets[large]
            before, after = len(rows[large]), len(rows[large]) + left
            added = -(-after // other.rows) - -(-before // other.rows)
            larger = all(a <= b for a, b in zip(bucket[:3], other[:3], strict=True))
            if larger and added * other.rows * other.cost < bucket.rows * bucket.cost:
                rows[large] += rows[small][-left:]
                del rows[small][-left:]
                break
