"""The first half of a GRPO step: completions of a batch, their rewards and their advantages."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from videorft_jax import losses
from videorft_jax.data.batch.batch import Batch
from videorft_jax.data.batch.frames import shuffle_frames
from videorft_jax.data.loader.steps import Step
from videorft_jax.grpo.dynamic_sampling import find_differing
from videorft_jax.grpo.early import Early
from videorft_jax.grpo.given import put_given
from videorft_jax.grpo.judge import Judge, Verdict
from videorft_jax.grpo.options import GrpoOptions
from videorft_jax.models.compute_plan import choose_plan
from videorft_jax.models.config import ModelConfig
from videorft_jax.parallel import sharding
from videorft_jax.parallel.processes import gather
from videorft_jax.rollout import clips
from videorft_jax.rollout.engine import RolloutEngine
from videorft_jax.rollout.mesh import move_rows, reshape
from videorft_jax.rollout.parameters import bind_prepared
from videorft_jax.rollout.results import Rollout
from videorft_jax.rollout.sampling import make_sampling
from videorft_jax.rollout.tools import Tools
from videorft_jax.rollout.turns import TurnEngine
from videorft_jax.training.weights import Weights

_SHUFFLED = 1 << 31  # set in the step number of random keys that draw from shuffled frames


class Prompts(NamedTuple):
    """Holds the prompts of one batch of the loader, a row without a sample filled with one token.

    rows: NumPy arrays. placed: the same on the training's mesh; None where only the host has them.
    """

    rows: Batch
    placed: Batch | None


class Experience(NamedTuple):
    """Holds one batch of the loader with its completions and their worth, as NumPy arrays."""

    item: Step
    batch: Batch  # prompts; a row without a sample holds one token
    rollout: Rollout
    verdict: Verdict
    advantages: np.ndarray  # float32 [B, R]
    informative: np.ndarray  # bool [B], the rewards of the group differ
    differing: np.ndarray  # bool [B], dynamic sampling keeps the group
    visual: jax.Array | None  # visual tokens [B, Z, D] on the mesh, where the tower is frozen


def make_engine(
    options: GrpoOptions, model: ModelConfig, mesh, tokenizer, num_rollouts: int | None = None
) -> RolloutEngine:
    """Makes the rollout engine of a run, for `num_rollouts` completions (default: the run's R).

    mesh: the training's, over which batches are split; `rollout.mesh` may give the engine another
    shape of it.
    """
    rollout = options.rollout
    sampling = make_sampling(
        model,
        tokenizer,
        num_rollouts=num_rollouts or rollout.num_rollouts,
        max_new_tokens=rollout.max_new_tokens,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        min_p=rollout.min_p,
    )
    return RolloutEngine(
        model,
        sampling,
        reshape(mesh, rollout.mesh),
        rows_mesh=mesh,
        chunk=rollout.chunk,
        num_buckets=rollout.num_buckets,
        int8_weights=rollout.int8_weights,
        int8_cache=rollout.int8_cache,
        dtype=options.train.model.dtype,
        attention=options.train.model.attention,
    )


def shares_visual(options: GrpoOptions, weights: Weights) -> bool:
    """Tells whether rollout and update read the same visual tokens, made once by `make_encode`.

    They do where the vision tower does not train. With several draws the tokens of all of them
    would have to stay in memory, so each program makes its own.
    """
    return not weights.trains_vision and options.max_draws == 1


def make_encode(options: GrpoOptions, model: ModelConfig, mesh):
    """Makes the program (params, batch) -> visual tokens [B, Z, D]."""

    def encode(params, batch):
        plan = choose_plan(options.train.model.attention)
        visual = clips.encode(bind_prepared(model, params), batch, mesh, plan)
        return jax.lax.with_sharding_constraint(visual, sharding.batch_sharding(mesh))

    return jax.jit(encode)


def make_advantages(options: GrpoOptions):
    """Makes (rewards, valid) -> (advantages [B, R], informative [B]).

    rewards are the totals [B, R] or, with `normalise_each`, each of them, [B, K, R].
    """
    if not options.normalise_each:
        return functools.partial(losses.group_advantages, spread=options.spread)
    weights = [weight for _, weight in options.rewards.rewards]
    return lambda rewards, valid: losses.separate_advantages(
        jnp.moveaxis(rewards, 1, 0), weights, valid
    )


class Collector:
    """Draws and judges the completions of a run.

    weights: which weights train. num_steps: steps of the run. tools: what completions may call;
    None: nothing.
    """

    def __init__(
        self,
        options: GrpoOptions,
        weights: Weights,
        *,
        mesh,
        tokenizer,
        num_steps: int = 0,
        tools: Tools | None = None,
    ):
        self.options, self.weights, self.mesh = options, weights, mesh
        make = functools.partial(make_engine, options, weights.model, mesh, tokenizer)
        self.engine, self.shuffled_engine = make(), None
        self.tokenizer = tokenizer
        self.turns = None if tools is None else TurnEngine(self.engine, tools)
        self.rows = options.train.data.rows // jax.process_count()
        self.judge = Judge(
            options.rewards,
            options.semantic,
            mesh=mesh,
            tokenizer=tokenizer,
            contract=options.train.contract,
            rows=self.rows,
            num_rollouts=options.rollout.num_rollouts,
            num_given=options.loss.num_given,
            num_steps=num_steps,
            dtype=options.train.model.dtype,
        )
        if self.judge.wants_order:
            self.shuffled_engine = make(options.rollout.num_rollouts // 2)
        self.shares_visual = shares_visual(options, weights)
        self._encode = make_encode(options, weights.model, self.engine.mesh)
        self._move_back = move_rows(mesh)
        self._advantages = jax.jit(make_advantages(options))

    @property
    def num_programs(self) -> int:
        """Counts the programs compiled so far."""
        engines = [e for e in (self.engine, self.shuffled_engine, self.turns) if e is not None]
        own: tuple[Any, ...] = (self._encode, self._advantages)
        compiled = sum(program._cache_size() for program in own)
        return compiled + sum(engine.num_compiles for engine in engines)

    def put(self, item: Step) -> Prompts:
        """Begins to copy the prompts and clips of a batch to the devices.

        With tools a rollout makes rows of its own in every turn, so that nothing is copied.
        """
        rows = fill_rows(item.batch, item.valid, self.weights.model)
        placed = None if self.turns else sharding.place_batch(rows, self.mesh)
        return Prompts(rows, placed)

    def collect(self, policy, batches, tracker, number: int, num_left: int = 0) -> list[Experience]:
        """Draws completions of `policy`, see `GrpoPrograms.policy`, for step `number` of the run.

        batches: an iterator of (batch of the loader, what `put` made of it). Without dynamic
        sampling one of them is taken. With it (max_draws > 1) batches are
        drawn until the groups whose `grpo.filter` reward differs, and `num_left` of the step
        before, fill an update, or the draws are used up. The list is empty where the data has
        ended.
        """
        prepared, parts = self.engine.prepare(policy), []
        for _ in range(self.options.max_draws):
            with tracker.phase("data"):
                found = next(batches, None)
            if found is None:
                break
            item, prompts = found
            parts.append(self._collect_one(prepared, item, prompts, tracker, number))
            count = num_left + sum(int(part.differing.sum()) for part in parts)
            enough = count >= self.rows
            if self.options.max_draws == 1 or all(gather(enough)):
                break
        return parts

    def _collect_one(self, prepared, item: Step, prompts: Prompts, tracker, number) -> Experience:
        batch = prompts.rows
        with tracker.phase("rollout"):
            visual = None
            if self.shares_visual and batch.patches.size:
                visual = self._encode(prepared, self.engine.place(prompts.placed or batch))
            early = self.judge.begin(item)
            rollout, shuffled = self._draw(prepared, item, prompts, visual, early)
            if visual is not None and self.engine.mesh is not self.mesh:
                visual = self._move_back(visual)
        with tracker.phase("rewards"):
            verdict = self.judge(item, rollout, shuffled, number, early)
            read = (
                np.moveaxis(verdict.terms, 0, 1) if self.options.normalise_each else verdict.total
            )
            placed = sharding.place_batch((read, verdict.valid), self.mesh)
            advantages, informative = map(sharding.local_rows, self._advantages(*placed))
            taking = taking_part(self.options, verdict, rollout)
            differing = find_differing(verdict.scores, verdict.total, taking, self.options.filter)
        return Experience(item, batch, rollout, verdict, advantages, informative, differing, visual)

    def _draw(self, prepared, item: Step, prompts: Prompts, visual, early: Early):
        """Draws the completions and, for the reward "order", others from shuffled frames."""
        options, batch = self.options.rollout, prompts.rows
        uids = np.array([row[0] if row else 0 for row in item.indices])
        limits = np.full((len(uids), options.num_rollouts), options.max_new_tokens)
        num_given = self.options.loss.num_given
        limits[~item.valid] = 1
        limits[:, options.num_rollouts - num_given :] = 1  # what is given takes these places
        seed, step = self.options.train.seed, item.index
        if self.turns is not None:
            drawn = self.turns.rollout(
                prepared, batch, uids, item, seed=seed, step=step, limits=limits, visual=visual
            )
            return drawn, None
        rollout = self.engine.rollout(
            prepared, batch, uids, seed=seed, step=step, limits=limits, visual=visual,
            placed=prompts.placed, on_ended=early.take,
        )  # fmt: skip
        if num_given:
            rollout = put_given(rollout, item, num_given, self.tokenizer, self.engine.sampling)
        if not self.shuffled_engine:
            return rollout, None
        frames = shuffle_frames(batch, [(seed, step, int(uid)) for uid in uids], item.pairs)
        limits = limits[:, : options.num_rollouts // 2]
        shuffled = self.shuffled_engine.rollout(
            prepared, frames, uids, seed=seed, step=step | _SHUFFLED, limits=limits
        )
        return rollout, shuffled


def taking_part(options: GrpoOptions, verdict: Verdict, rollout: Rollout) -> np.ndarray:
    """Tells which completions are learnt from, bool [B, R]: those with a reward and, where
    `mask_truncated` asks for it, an end."""
    return verdict.valid & rollout.stopped if options.mask_truncated else verdict.valid


def fill_rows(batch: Batch, valid: np.ndarray, model: ModelConfig) -> Batch:
    """Gives the rows without a sample a prompt of one token, since every row is run."""
    if valid.all():
        return batch
    batch = Batch(*(leaf.copy() for leaf in batch))
    for row in np.flatnonzero(~valid):
        batch.tokens[row, 0], batch.segment_ids[row, 0] = model.token_ids.vision_end, 1
    return batch


def describe(parts: list[Experience], num_given: int = 0) -> dict[str, float]:
    """Makes the metrics of rollout and rewards, the means over the draws of a step; of each group
    the last `num_given` completions, which were not drawn, count in none but groups/informative."""
    found: dict[str, list[float]] = {}
    for part in parts:
        rollout, valid = part.rollout, part.item.valid
        num_drawn = rollout.lengths.shape[1] - num_given
        lengths, stopped = (x[valid, :num_drawn] for x in (rollout.lengths, rollout.stopped))
        sums = gather(
            [int(lengths.sum()), lengths.size, int(stopped.sum()), int(lengths.max(initial=0))]
        )
        tokens, count, ended, longest = zip(*sums, strict=True)
        informative = gather(float(part.informative.mean()))
        values = dict(part.verdict.metrics)
        values["groups/informative"] = float(np.mean(informative))
        if sum(count):
            values["rollout/length/mean"] = sum(tokens) / sum(count)
            values["rollout/length/max"] = max(longest)
            values["rollout/truncated"] = 1 - sum(ended) / sum(count)
        for name, value in rollout.counters.items():
            about_machine = name.endswith(("_s", "_fraction", "num_compiles"))
            values[f"{'perf' if about_machine else 'rollout'}/{name}"] = value
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()} | {
        "rollout/draws": len(parts)
    }
