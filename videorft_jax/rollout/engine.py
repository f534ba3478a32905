"""The rollout engine: it draws R completions of each prompt with the weights of the moment.

This is the first half of a GRPO step, and all of an evaluation. Each clip is encoded once and each
prompt is run once; then its R completions are decoded side by side, reading the keys and values of
the shared prompt. Completions end at different times. A finished one would go on costing as much as
a live one, so the decode program hands control back to the host once so few completions live that
a smaller batch might hold them, and the live ones move there (compaction.py).

What is drawn does not depend on the batch, the number of devices or the moves. The random key of a
token is made of (seed, step, name of the prompt, number of the completion, place of the token), so
a run that was interrupted draws the same completions again.
"""

import math

import jax
import numpy as np

from videorft_jax.data.batch.batch import Batch
from videorft_jax.metrics import flops
from videorft_jax.models.config import ModelConfig
from videorft_jax.parallel import sharding
from videorft_jax.rollout import room
from videorft_jax.rollout.compaction import Grid, choose_grids
from videorft_jax.rollout.mesh import move_rows
from videorft_jax.rollout.programs import LIVE, Programs
from videorft_jax.rollout.requests import check_request
from videorft_jax.rollout.results import Rollout
from videorft_jax.rollout.sampling import SamplingConfig
from videorft_jax.rollout.session import Session

# Arithmetic operations that take as long as reading one byte of memory, by which the cost of a
# batch grid weighs computing against reading. A TPU v5e has 240, an H100 295.
_BALANCE, _BALANCE_CPU = 250, 10


class RolloutEngine:
    """Draws completions of one model, in one way of sampling, on one mesh.

    config: the model's. sampling: how tokens are drawn and when a completion ends. mesh: default
    is the first device alone. rows_mesh: the mesh over whose processes the prompts of a batch are
    split; default is `mesh`, and any other has the same devices in the same order.
    prompt_lengths: the prompt grids; a batch is cut or padded to the smallest that holds its
    longest prompt, and () means the batch's own length. num_buckets: batch
    sizes that finished completions are compacted to, at most, each compiled when first needed.
    chunk: most tokens that one call of the decode program draws, and so the interval of
    `on_tokens`. dtype: of weights and computation. attention: path of the prefill.
    int8_weights, int8_cache: weights or keys and values in int8 halve the memory traffic of
    decoding, but the recorded log-probabilities then differ from the training's.
    """

    def __init__(
        self,
        config: ModelConfig,
        sampling: SamplingConfig,
        mesh=None,
        *,
        rows_mesh=None,
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
        self.rows_mesh = rows_mesh or self.mesh
        self._move = move_rows(self.mesh)
        self.prompt_lengths, self.num_buckets = tuple(sorted(prompt_lengths)), num_buckets
        self.programs = Programs(
            config, sampling, self.mesh,
            chunk=min(chunk, sampling.max_new_tokens), dtype=dtype, attention=attention,
            int8_weights=int8_weights, int8_cache=int8_cache,
        )  # fmt: skip
        self._grids: dict[tuple[int, Grid], dict[Grid, float]] = {}

    @property
    def num_compiles(self) -> int:
        """Number of programs compiled so far."""
        return self.programs.compiles.total()

    def prepare(self, params):
        """Copies parameters into the form that `rollout` reads, by one compiled program.

        The result is whole on every part of data and fsdp, since each token reads all of it, split
        over tensor, and in the engine's dtype or int8. Drop it before the update, which needs the
        memory.
        """
        return self.programs.prepare(params)

    def rollout(
        self, params, batch: Batch, uids, *, seed: int, step: int = 0,
        limits=None, visual=None, placed=None, on_tokens=None, on_ended=None,
    ) -> Rollout:  # fmt: skip
        """Draws R completions of each of the B prompts of this process.

        params: the result of `prepare`. batch: NumPy arrays, one right-padded prompt per row.
        uids: int [B], the name of each prompt in the random keys. limits: int [B, R], the maximum
        length of each completion, 1 to C (default: C). visual: visual tokens [B, Z, D] on the mesh,
        where they are already known; the clips are then not encoded. placed: the arrays of `batch`
        on `rows_mesh`, where they are there already. on_tokens: a function that is called after
        each chunk with (tokens [B, R, C], lengths [B, R]) drawn so far. on_ended: the same with
        a third argument, bool [B, R], which completions have ended.

        Raises ValueError, before anything reaches a device, for a prompt that is empty, longer than
        the largest grid or not one right-padded segment, for visual tokens that do not match
        their places, and for completions, uids, limits, seed or step out of range.
        """
        self.check_length(batch, limits)
        rows = check_request(
            batch, uids, limits, self.config, self.sampling, self.prompt_lengths, seed, step
        )
        count, unit = len(rows[1]), self._least_rows()
        if visual is not None:  # The visual tokens stand for the pixels, which need not be sent.
            rows = (jax.tree.map(lambda x: x[:, :0] if x.ndim > 3 else x, rows[0]), *rows[1:])
        spare = -count % unit
        if spare and visual is not None:
            raise ValueError(
                f"rollout: {count} prompts do not divide over {unit} parts of the mesh; with "
                "visual tokens given, choose a number that does"
            )
        if spare:  # The last prompt fills the spare rows; a limit of 0 draws nothing there.
            rows = jax.tree.map(lambda x: np.concatenate([x, *[x[-1:]] * spare]), rows)
            rows[2][count:] = 0
        is_same = visual is None and not spare and rows[0].tokens.shape == batch.tokens.shape
        inputs = (*self.place((placed if placed and is_same else rows[0], *rows[1:])), visual)
        own = sharding.own_rows(len(inputs[1]), self.rows_mesh)[:count]
        total, length = inputs[0].tokens.shape
        full = Grid(total // self.programs.shards, inputs[2].shape[1])
        costs, filled = self.batch_grids(length, full), float((rows[0].segment_ids > 0).mean())
        session = Session(self.programs, costs, inputs, filled)
        session.prefill(params, inputs, seed, step)
        while session.live.any():
            session.compact()
            session.decode(params)
            so_far = [part[own] for part in (session.tokens, session.lengths)]
            if on_tokens:
                on_tokens(*so_far)
            if on_ended:
                on_ended(*so_far, session.ends[own] != LIVE)
        session.free()
        return session.result(own)

    def check_length(self, batch: Batch, limits=None) -> None:
        """Raises ValueError, which names the most that is possible, where the completions that are
        asked for have no room behind these prompts, or in memory."""
        parts = self.rows_mesh.shape["data"] * self.rows_mesh.shape["fsdp"]
        rows = len(batch.tokens) * parts // sharding.count_own_parts(self.rows_mesh)
        room.check_length(self.programs, batch, rows, limits)

    def place(self, rows):
        """Puts the rows [B, ...] of this process on the rollout's mesh; arrays may lie on
        `rows_mesh` already.

        Where the meshes differ they are placed as rows of `rows_mesh` and moved by one compiled
        program, so that processes which share a part of the mesh all get its rows.
        """

        def put(leaf):
            is_there = isinstance(leaf, jax.Array)
            return leaf if is_there else sharding.place_batch(leaf, self.rows_mesh)

        placed = jax.tree.map(put, rows)
        return placed if self.rows_mesh is self.mesh else self._move(placed)

    def _least_rows(self) -> int:
        """Prompts of this process of which a batch must be a multiple, so that all of them divide
        over the parts of both meshes."""
        parts = self.rows_mesh.shape["data"] * self.rows_mesh.shape["fsdp"]
        own = sharding.count_own_parts(self.rows_mesh)
        return math.lcm(parts, self.programs.shards) * own // parts

    def batch_grids(self, length: int, full: Grid) -> dict[Grid, float]:
        """Chooses the batch grids of a shard for prompts of `length` tokens.

        full: the grid that holds all completions. Returns each grid with the relative time of
        one decode step in it, the largest first. The choice is kept for the next call.
        """
        if (length, full) not in self._grids:
            platform = self.mesh.devices.flat[0].platform
            balance = _BALANCE_CPU if platform == "cpu" else _BALANCE
            size = self.sampling.max_new_tokens

            def price(grid):
                own = np.full(grid, size)
                cost = flops.decode_cost(self.config, np.full(grid.rows, length), own)
                return cost.bytes + cost.forward / balance  # Reading and computing hardly overlap.

            chosen = choose_grids(*full, self.programs.shards, self.num_buckets, price)
            self._grids[length, full] = {grid: price(grid) for grid in chosen}
        return self._grids[length, full]
