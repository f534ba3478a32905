"""One rollout under way: which completions live, where they sit on the devices, what they hold.

The engine alternates `compact` and `decode` until no completion lives. Between the two the host
knows the length and the end of every completion, and decides from them how large the next batch
must be.
"""

import logging
import time

import jax
import numpy as np

from videorft_jax.metrics import chips, flops
from videorft_jax.metrics.profile import span
from videorft_jax.rollout.compaction import Grid, fits, place
from videorft_jax.rollout.programs import FAILED, LIVE, STOPPED, Programs
from videorft_jax.rollout.results import Rollout

log = logging.getLogger(__name__)


class Session:
    """The state of one rollout: caches on the devices, and the tokens that came back from them.

    A shard is one part of data x fsdp; it holds G = rows of its grid, r slots each.
    """

    def __init__(self, programs: Programs, costs: dict[Grid, float], inputs, filled: float):
        """Prepares to draw the completions of `inputs`, (Batch, uids, limits, visual) on the mesh.

        costs: the batch grids of a shard and the relative time of a step in each, the full one
        first. filled: share of real tokens among the prompt tokens of this process's rows.
        """
        self.programs, self.costs = programs, costs
        total, self.length = inputs[0].tokens.shape
        self.rollouts, size = inputs[2].shape[1], programs.sampling.max_new_tokens
        self.filled, self.shards = filled, programs.shards
        self.grid = Grid(total // self.shards, self.rollouts)
        # The completion (prompt * R + number) in each slot of each shard's grid; -1 is none.
        self.source = np.arange(total * self.rollouts).reshape(self.shards, *self.grid)
        shape = (total, self.rollouts, size)
        self.tokens = np.full(shape, programs.sampling.pad_id, np.int32)
        self.logprobs, self.truncation = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self.lengths, self.ends = np.zeros(shape[:2], np.int32), np.zeros(shape[:2], np.int32)
        self.places = self.executed = self.compactions = 0
        self.prefill_s = self.decode_s = self.ideal_s = 0.0

    @property
    def live(self) -> np.ndarray:
        """Which slots hold a completion that goes on, bool [shards, G, r]."""
        return (self.source >= 0) & (self.ends.reshape(-1)[self.source] == LIVE)

    def prefill(self, params, inputs, seed, step):
        """Encodes the clips, runs the prompts and draws the first token of every completion."""
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
        program = self.programs.prefill(shapes, self.grid)
        started = time.perf_counter()
        with span("step: prefill"):
            *self.state, drawn, report = program(params, inputs, np.uint32(seed), np.uint32(step))
            self._take(drawn, report)
        self.prefill_s = time.perf_counter() - started

    def compact(self):
        """Moves the live completions into the cheapest grid that holds them, if it is cheaper
        than the present one."""
        live = self.live
        best = min(
            (b for b in self.costs if fits(self._per_prompt(live), b)),
            key=lambda grid: self.costs[grid],
        )
        if self.costs[best] >= self.costs[self.grid]:
            return
        program = self.programs.compact(self.length, self.grid, best)
        self.programs.decode(self.length, best)  # A compilation is no decoding time.
        started = time.perf_counter()
        self.source, *moves = place(self.source, live, self.rollouts, best)
        held = (self.source >= 0).reshape(self.shards, -1)
        old, self.grid = self.state, best
        self.state = list(program(*old, *moves, held))
        for leaf in jax.tree.leaves(old):
            leaf.delete()
        self.compactions += 1
        self.decode_s += time.perf_counter() - started

    def decode(self, params):
        """Draws tokens until the buffer of the program is full or a cheaper grid may do."""
        program = self.programs.decode(self.length, self.grid)
        started, before = time.perf_counter(), self.places
        # The program returns once so few completions live that a cheaper grid might hold them,
        # but not before at least one more has finished.
        cheaper = [b.size for b in self.costs if self.costs[b] < self.costs[self.grid]]
        most = self.live.sum((1, 2)).max()
        wake = min(max(cheaper), most - 1) if cheaper else 0
        prefix, suffix, slots = self.state
        with span("step: decode"):
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
        """Frees the memory of the caches now; the update that follows needs it."""
        for leaf in jax.tree.leaves(self.state):
            leaf.delete()

    def _per_prompt(self, live):
        """Counts the live completions of each prompt of each shard, int [shards, prompts]."""
        counts = np.bincount(self.source[live] // self.rollouts, minlength=len(self.tokens))
        return counts.reshape(self.shards, -1)

    def _take(self, drawn, report):
        """Copies what a program drew, [rows, slots, steps], to the completions it belongs to."""
        flat = self.source.reshape(-1, self.grid.slots)
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
        """Estimates the least seconds that a step of this grid can take at token `place`.

        Every slot of the grid is counted, also those whose completion has ended.
        """
        prompts = np.full(self.grid.rows, round(self.length * self.filled))
        cost = flops.decode_cost(self.programs.config, prompts, np.full(self.grid, place))
        mesh = self.programs.mesh
        chip = chips.find_chip(mesh.devices.flat[0])
        return chips.roofline_seconds(cost.forward, cost.bytes, mesh.shape["tensor"], chip)

    def result(self, rows: np.ndarray) -> Rollout:
        """Gathers the completions of the prompts `rows`, which this process holds, and the
        counters."""
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
            "num_compiles": self.programs.compiles.total(),
            "failed": int((self.ends == FAILED).sum()),
        }
        log.debug("rollout: %s", {key: round(value, 4) for key, value in counters.items()})
        ends = self.ends[rows]
        return Rollout(
            tokens=self.tokens[rows],
            lengths=self.lengths[rows],
            logprobs=self.logprobs[rows],
            truncation=self.truncation[rows],
            stopped=ends == STOPPED,
            failed=ends == FAILED,
            counters=counters,
        )


def _parts(array):
    """Lists (first row, values) of each part of `array` that this process holds."""
    held = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return [(first, np.asarray(held[first])) for first in sorted(held)]
