"""Sampling completions: each clip encoded once, each prompt run once, R completions decoded.

The decode program (decoding.py) returns to the host when its output buffer is full, or as soon as
few enough completions live that a smaller batch might hold them; then they are moved there, so that
a finished completion stops costing (compaction.py). Nothing that is drawn depends on any of this:
keys are made of (seed, step, prompt uid, number of the completion, place of the token).
"""

import logging
import time
from typing import NamedTuple

import jax
import numpy as np

from videorft_jax.data.batch.batch import Batch
from videorft_jax.metrics import chips, flops
from videorft_jax.models.qwen2_5_vl.config import ModelConfig
from videorft_jax.parallel import sharding
from videorft_jax.rollout.compaction import Bucket, choose_buckets, fits, place
from videorft_jax.rollout.programs import FAILED, LIVE, STOPPED, Programs
from videorft_jax.rollout.sampling import SamplingConfig

log = logging.getLogger(__name__)

# Operations in the time of one byte, to choose buckets: TPU v5e 240, H100 295; and of a CPU.
_BALANCE, _BALANCE_CPU = 250, 10


class Rollout(NamedTuple):
    """Completions of this process's prompts, in the order of the batch; NumPy arrays."""

    tokens: np.ndarray  # int32 [B, R, C], pad_id after the end
    lengths: np.ndarray  # int32 [B, R], the stop id included
    logprobs: np.ndarray  # float32 [B, R, C], of the policy at the temperature; 0 after the end
    truncation: np.ndarray  # float32 [B, R, C], log of the mass drawn from; see sampling.py
    stopped: np.ndarray  # bool [B, R], ended by a stop id
    failed: np.ndarray  # bool [B, R], ended by logits that are not finite
    counters: dict[str, float]


class RolloutEngine:
    """Draws completions of one model in one way on one mesh (default: the first device).

    prompt_lengths: the prompt buckets; a batch is cut or padded to the smallest that holds its
    longest prompt. Empty: the batch's own T. num_buckets: batch buckets per prompt bucket and
    batch size, each of which is compiled once, when first needed. chunk: most tokens per call of
    the decode program, and so per call of `on_tokens`. attention: path of the prefill.
    int8_weights, int8_cache: less memory traffic, and log-probs further from the training's.
    """

    def __init__(
        self,
        config: ModelConfig,
        sampling: SamplingConfig,
        mesh=None,
        *,
        prompt_lengths: tuple[int, ...] = (),
        num_buckets: int = 6,
        chunk: int = 64,
        dtype="bfloat16",
        attention: str = "auto",
        int8_weights: bool = False,
        int8_cache: bool = False,
    ):
        self.config, self.sampling = config, sampling
        self.mesh = mesh or sharding.make_mesh(devices=jax.devices()[:1])
        self.prompt_lengths, self.num_buckets = tuple(sorted(prompt_lengths)), num_buckets
        self.programs = Programs(
            config, sampling, self.mesh,
            chunk=min(chunk, sampling.max_new_tokens), dtype=dtype, attention=attention,
            int8_weights=int8_weights, int8_cache=int8_cache,
        )  # fmt: skip
        self._buckets: dict[tuple[int, Bucket], dict[Bucket, float]] = {}

    @property
    def num_compiles(self) -> int:
        return self.programs.compiles.total()

    def prepare(self, params):
        """Parameters as `rollout` wants them: whole on every part of data and fsdp, split over
        tensor, in the engine's dtype (or int8). One compiled program. Drop the result before
        training."""
        return self.programs.prepare(params)

    def rollout(
        self, params, batch: Batch, uids, *, seed: int, step: int = 0,
        limits=None, visual=None, on_tokens=None,
    ) -> Rollout:  # fmt: skip
        """Draws R completions of each prompt.

        params: of `prepare`. batch: one right-padded prompt per row, NumPy, this process's rows.
        uids: int [B], the name of each prompt in the keys. limits: int [B, R], maximum length of
        each completion, 1 to C (default: C). visual: visual tokens [B, Z, D] on the mesh, where
        they are known already. on_tokens: called after each chunk with (tokens [B, R, C],
        lengths [B, R]) so far.

        Raises ValueError, before anything reaches the device, for a prompt that is empty, longer
        than the largest bucket or not one right-padded segment, for visual tokens that do not
        match their places, and for uids, limits, seed or step out of range.
        """
        rows = check_request(
            batch, uids, limits, self.config, self.sampling, self.prompt_lengths, seed, step
        )
        count, local = len(rows[1]), self.programs.local_shards
        if visual is not None:  # no need to send the pixels
            rows = (jax.tree.map(lambda x: x[:, :0] if x.ndim > 3 else x, rows[0]), *rows[1:])
        spare = -count % local
        if spare and visual is not None:
            raise ValueError(
                f"rollout: {count} prompts do not divide over {local} parts of the mesh; with "
                "visual tokens given, choose a number that does"
            )
        if spare:  # the last prompt again, without completions
            rows = jax.tree.map(lambda x: np.concatenate([x, *[x[-1:]] * spare]), rows)
            rows[2][count:] = 0
        inputs = (*sharding.place_batch(rows, self.mesh), visual)
        run = _Run(self, inputs, float((rows[0].segment_ids > 0).mean()))
        run.prefill(params, inputs, seed, step)
        while run.live.any():
            run.compact()
            run.decode(params)
            if on_tokens:
                on_tokens(*(part[run.rows][:count] for part in (run.tokens, run.lengths)))
        run.free()
        return run.result(count)

    def batch_buckets(self, length: int, full: Bucket) -> dict[Bucket, float]:
        """The batch buckets of one shard and the relative time of a step in each."""
        if (length, full) not in self._buckets:
            platform = self.mesh.devices.flat[0].platform
            balance = _BALANCE_CPU if platform == "cpu" else _BALANCE
            size = self.sampling.max_new_tokens

            def price(bucket):
                own = np.full(bucket, size)
                cost = flops.decode_cost(self.config, np.full(bucket.rows, length), own)
                return cost.bytes + cost.forward / balance  # they overlap, but never wholly

            chosen = choose_buckets(*full, self.programs.shards, self.num_buckets, price)
            self._buckets[length, full] = {bucket: price(bucket) for bucket in chosen}
        return self._buckets[length, full]


class _Run:
    """One rollout under way: what is on the device, and what has come back from it."""

    def __init__(self, engine: RolloutEngine, inputs, filled: float):
        """inputs: (Batch, uids, limits, visual) on the mesh; filled: share of real prompt tokens
        among this process's rows."""
        self.engine, self.programs = engine, engine.programs
        total, self.length = inputs[0].tokens.shape
        self.rollouts, size = inputs[2].shape[1], engine.sampling.max_new_tokens
        self.filled, self.shards = filled, self.programs.shards
        self.bucket = Bucket(total // self.shards, self.rollouts)
        self.costs = engine.batch_buckets(self.length, self.bucket)
        # Completion (prompt * R + number) in each slot of each shard's bucket, -1 = none.
        self.source = np.arange(total * self.rollouts).reshape(self.shards, *self.bucket)
        shape = (total, self.rollouts, size)
        self.tokens = np.full(shape, engine.sampling.pad_id, np.int32)
        self.logprobs, self.truncation = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self.lengths, self.ends = np.zeros(shape[:2], np.int32), np.zeros(shape[:2], np.int32)
        self.rows = np.zeros(0, int)  # prompts of this process
        self.places = self.executed = self.compactions = 0
        self.prefill_s = self.decode_s = self.ideal_s = 0.0

    @property
    def live(self) -> np.ndarray:
        """bool [D, G, r]."""
        return (self.source >= 0) & (self.ends.reshape(-1)[self.source] == LIVE)

    def prefill(self, params, inputs, seed, step):
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
        program = self.programs.prefill(shapes, self.bucket)
        started = time.perf_counter()
        *self.state, drawn, report = program(params, inputs, np.uint32(seed), np.uint32(step))
        self.rows = np.concatenate([first + np.arange(len(x)) for first, x in _parts(drawn[0])])
        self._take(drawn, report)
        self.prefill_s = time.perf_counter() - started

    def compact(self):
        """Moves the live completions to the cheapest bucket that holds them."""
        live = self.live
        best = min((b for b in self.costs if fits(self._per_prompt(live), b)), key=self.costs.get)
        if self.costs[best] >= self.costs[self.bucket]:
            return
        program = self.programs.compact(self.length, self.bucket, best)
        self.programs.decode(self.length, best)  # compiled before the clock runs
        started = time.perf_counter()
        self.source, *moves = place(self.source, live, self.rollouts, best)
        held = (self.source >= 0).reshape(self.shards, -1)
        old, self.bucket = self.state, best
        self.state = list(program(*old, *moves, held))
        for leaf in jax.tree.leaves(old):
            leaf.delete()
        self.compactions += 1
        self.decode_s += time.perf_counter() - started

    def decode(self, params):
        program = self.programs.decode(self.length, self.bucket)
        started, before = time.perf_counter(), self.places
        # Come back as soon as the live ones may fit a cheaper bucket, one more finished at least.
        cheaper = [b.size for b in self.costs if self.costs[b] < self.costs[self.bucket]]
        most = self.live.sum((1, 2)).max()
        wake = min(max(cheaper), most - 1) if cheaper else 0
        prefix, suffix, slots = self.state
        *state, drawn, report = program(
            params, prefix, suffix, slots, np.int32(before), np.int32(wake)
        )
        self.state = [prefix, *state]
        self._take(drawn, report)
        self.decode_s += time.perf_counter() - started
        steps = self.places - before
        self.executed += steps * self.source.size
        self.ideal_s += steps * self._ideal_step((before + self.places) // 2)

    def free(self):
        """Gives the memory of the caches back at once, not when the last name of them goes."""
        for leaf in jax.tree.leaves(self.state):
            leaf.delete()

    def _per_prompt(self, live):
        """int [D, b], live completions of each prompt of each shard."""
        counts = np.bincount(self.source[live] // self.rollouts, minlength=len(self.tokens))
        return counts.reshape(self.shards, -1)

    def _take(self, drawn, report):
        """Files what a program drew, [rows, slots, steps], under the completions it belongs to."""
        flat = self.source.reshape(-1, self.bucket.slots)
        held, steps = flat >= 0, int(report.steps)
        for mine, given in ((self.lengths, report.length), (self.ends, report.end)):
            mine.reshape(-1)[flat[held]] = np.asarray(given)[held]
        span = slice(self.places, self.places + steps)
        for mine, given in zip((self.tokens, self.logprobs, self.truncation), drawn, strict=True):
            for first, values in _parts(given):
                ids = flat[first : first + len(values)]
                chosen = values[ids >= 0][:, :steps]
                mine.reshape(-1, mine.shape[-1])[ids[ids >= 0], span] = chosen
        self.places += steps

    def _ideal_step(self, place):
        """Seconds that the roofline of one shard gives a step of this bucket, every slot counted,
        keys up to `place` read."""
        prompts = np.full(self.bucket.rows, round(self.length * self.filled))
        cost = flops.decode_cost(self.engine.config, prompts, np.full(self.bucket, place))
        mesh = self.engine.mesh
        chip = chips.find_chip(mesh.devices.flat[0])
        return chips.roofline_seconds(cost.forward, cost.bytes, mesh.shape["tensor"], chip)

    def result(self, count) -> Rollout:
        rows = self.rows[:count]
        parts = (self.tokens, self.lengths, self.logprobs, self.truncation)
        tokens = int(self.lengths.sum())
        decoded = tokens - int((self.lengths > 0).sum())
        prompts = len(self.tokens) * self.length * self.filled
        counters = {
            "prefill_tokens": prompts,
            "prefill_s": self.prefill_s,
            "prefill_tokens_per_s": prompts / self.prefill_s,
            "decode_tokens": decoded,
            "decode_s": self.decode_s,
            "decode_tokens_per_s": decoded / self.decode_s if self.decode_s else 0.0,
            "tokens_per_s": tokens / (self.prefill_s + self.decode_s),
            "padding": 1 - self.filled,
            "finished_slot_waste": 1 - decoded / self.executed if self.executed else 0.0,
            "roofline_fraction": self.ideal_s / self.decode_s if self.decode_s else 0.0,
            "compactions": self.compactions,
            "num_compiles": self.engine.num_compiles,
            "failed": int((self.ends == FAILED).sum()),
        }
        log.debug("rollout: %s", {key: round(value, 4) for key, value in counters.items()})
        ends = self.ends[rows]
        return Rollout(*(x[rows] for x in parts), ends == STOPPED, ends == FAILED, counters)


def _parts(array):
    """(first row, values) of each part of `array` that this process holds."""
    held = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return [(first, np.asarray(held[first])) for first in sorted(held)]


def check_request(
    batch: Batch, uids, limits, config: ModelConfig, sampling: SamplingConfig,
    prompt_lengths: tuple[int, ...], seed: int, step: int,
):  # fmt: skip
    """(Batch of the right length, uids uint32 [B], limits int32 [B, R]); raises ValueError by name
    for what `RolloutEngine.rollout` refuses."""
    count, shape = len(batch.tokens), (len(batch.tokens), sampling.num_rollouts)
    uids = np.asarray(uids)
    for name, value in (("seed", seed), ("step", step), *(("uid", int(uid)) for uid in uids)):
        if not 0 <= value < 2**32:
            raise ValueError(f"rollout: {name} {value} is outside 0 .. 2^32 - 1; give one inside")
    if uids.shape != (count,):
        raise ValueError(f"rollout: uids have shape {uids.shape}; give one to each of {count} rows")
    limits = np.full(shape, sampling.max_new_tokens) if limits is None else np.asarray(limits)
    if limits.shape != shape or limits.min() < 1 or limits.max() > sampling.max_new_tokens:
        raise ValueError(
            f"rollout: limits of shape {limits.shape} from {limits.min()} to {limits.max()}; give "
            f"{shape} numbers from 1 to max_new_tokens, {sampling.max_new_tokens}"
        )
    real = np.asarray(batch.segment_ids) > 0
    lengths = real.sum(1)
    largest = max(prompt_lengths, default=real.shape[1])
    slots = batch.patch_valid.reshape(count, -1, 4)[..., 0]  # of visual tokens
    media = np.isin(batch.tokens, [config.token_ids.image, config.token_ids.video]) & real
    for b, uid in enumerate(uids):
        where = f"rollout: prompt {b} (uid {uid})"
        index = batch.visual_index[b][batch.visual_index[b] >= 0]
        if not lengths[b]:
            raise ValueError(f"{where} has no tokens; leave it out")
        if lengths[b] > largest:
            raise ValueError(
                f"{where} has {lengths[b]} tokens, the largest bucket holds {largest}; add a "
                "bucket, or use fewer frames or pixels"
            )
        if not real[b, : lengths[b]].all() or batch.segment_ids[b].max() > 1:
            raise ValueError(f"{where} is not one right-padded sample; do not pack prompts")
        used = slots[b].sum()
        if not used == len(index) == media[b].sum():
            raise ValueError(
                f"{where} has {used} visual tokens, {len(index)} places for them and "
                f"{media[b].sum()} media tokens; build prompt and clips by the same contract"
            )
        if len(index) and (index.max() >= slots.shape[1] or not slots[b, index].all()):
            raise ValueError(f"{where}: visual_index names empty slots; rebuild the batch")
    length = min((n for n in prompt_lengths if n >= lengths.max()), default=real.shape[1])
    return fit(batch, length), uids.astype(np.uint32), limits.astype(np.int32)


def fit(batch: Batch, length: int) -> Batch:
    """The batch with T = `length`: padding cut off or added at the right."""

    def resize(name, fill):
        value = np.asarray(getattr(batch, name))[..., :length]
        width = [(0, 0)] * (value.ndim - 1) + [(0, length - value.shape[-1])]
        return np.pad(value, width, constant_values=fill)

    fills = {"tokens": 0, "segment_ids": 0, "positions": 0, "loss_mask": False, "visual_index": -1}
    return batch._replace(**{name: resize(name, fill) for name, fill in fills.items()})
