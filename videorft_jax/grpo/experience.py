"""The first half of a GRPO step: completions of a batch, their rewards and their advantages."""

import functools
from typing import NamedTuple

import jax
import numpy as np

from videorft_jax import losses
from videorft_jax.data.batch.batch import Batch
from videorft_jax.data.batch.frames import shuffle_frames
from videorft_jax.data.loader.steps import Step
from videorft_jax.grpo import judge as judging
from videorft_jax.models import family
from videorft_jax.models.compute_plan import choose_plan
from videorft_jax.models.config import ModelConfig
from videorft_jax.parallel import sharding
from videorft_jax.parallel.processes import gather
from videorft_jax.rollout.engine import Rollout, RolloutEngine
from videorft_jax.rollout.sampling import make_sampling
from videorft_jax.training.run import Run
from videorft_jax.training.weights import Weights

_SHUFFLED = 1 << 31  # set in the step of keys that draw from shuffled frames


class Drawn(NamedTuple):
    """One batch of the loader with its completions and what they are worth; NumPy arrays."""

    item: Step
    batch: Batch  # prompts; rows without a sample hold one token
    rollout: Rollout
    verdict: judging.Verdict
    advantages: np.ndarray  # float32 [B, R]
    informative: np.ndarray  # bool [B], rewards of the group differ
    visual: jax.Array | None  # visual tokens on the mesh, where the tower is frozen


def make_engine(config, model: ModelConfig, mesh, tokenizer, **changes) -> RolloutEngine:
    """The engine of a run; `changes` are fields of its SamplingConfig."""
    settings = config.rollout.to_dict()
    sampled = ("num_rollouts", "max_new_tokens", "temperature", "top_p", "top_k", "min_p")
    sampling = {name: settings.pop(name) for name in sampled}
    settings |= {"dtype": config.model.dtype, "attention": config.model.attention}
    return RolloutEngine(
        model, make_sampling(model, tokenizer, **sampling | changes), mesh, **settings
    )


def shares_visual(config, weights: Weights) -> bool:
    """Whether rollout and update read the same visual tokens, of a program of their own."""
    return not weights.trains_vision and config.grpo.max_draws == 1


def make_encode(config, model: ModelConfig, mesh):
    """The program (params, batch) -> visual tokens [B, Z, D]."""

    def encode(params, batch):
        bound = family.bind(model, params)
        visual = bound.encode_vision(batch, plan=choose_plan(config.model.attention))
        return jax.lax.with_sharding_constraint(visual, sharding.batch_sharding(mesh))

    return jax.jit(encode)


class Drawer:
    """The engine, the judge and the advantages of one run."""

    def __init__(self, config, run: Run):
        self.config, self.run, weights = config, run, run.weights
        make = functools.partial(make_engine, config, weights.model, run.mesh, run.tokenizer)
        self.engine, self.shuffled_engine = make(), None
        self.rows = config.data.rows // jax.process_count()
        self.judge = judging.Judge(config, run.mesh, run.tokenizer, run.options.contract, self.rows)
        if self.judge.wants_order:
            self.shuffled_engine = make(num_rollouts=config.rollout.num_rollouts // 2)
        self.shares_visual = shares_visual(config, weights)
        self._encode = make_encode(config, weights.model, run.mesh)
        self._advantages = jax.jit(
            functools.partial(losses.group_advantages, divide_by_std=config.grpo.divide_by_std)
        )

    @property
    def num_programs(self) -> int:
        """How many were compiled so far."""
        engines = [engine for engine in (self.engine, self.shuffled_engine) if engine]
        own = self._encode._cache_size() + self._advantages._cache_size()
        return own + sum(engine.num_compiles for engine in engines)

    def draw(self, policy, items, tracker) -> list[Drawn]:
        """Batches of completions of `policy`, see `GrpoPrograms.policy`, until their informative
        groups fill an update, or the number of draws is used up; without dynamic sampling one."""
        prepared, parts = self.engine.prepare(policy), []
        for _ in range(self.config.grpo.max_draws):
            with tracker.phase("data"):
                item = next(items, None)
            if item is None:
                break
            parts.append(self._draw_one(prepared, item, tracker))
            same = [part for part in parts if part.item.bucket == item.bucket]
            enough = sum(int(part.informative.sum()) for part in same) >= self.rows
            if self.config.grpo.max_draws == 1 or all(gather(enough)):
                break
        return parts

    def _draw_one(self, prepared, item, tracker) -> Drawn:
        config = self.config
        with tracker.phase("rollout"):
            batch = fill_rows(item.batch, item.valid, self.run.weights.model)
            uids = np.array([row[0] if row else 0 for row in item.indices])
            limits = np.full(
                (len(uids), config.rollout.num_rollouts), config.rollout.max_new_tokens
            )
            limits[~item.valid] = 1
            visual = None
            if self.shares_visual and batch.patches.size:
                visual = self._encode(prepared, sharding.place_batch(batch, self.run.mesh))
            drawn = {"seed": config.seed, "step": item.index, "limits": limits}
            rollout = self.engine.rollout(prepared, batch, uids, visual=visual, **drawn)
            shuffled = None
            if self.shuffled_engine:
                keys = [(config.seed, item.index, int(uid)) for uid in uids]
                drawn |= {"step": item.index | _SHUFFLED}
                drawn |= {"limits": limits[:, : config.rollout.num_rollouts // 2]}
                other = shuffle_frames(batch, keys)
                shuffled = self.shuffled_engine.rollout(prepared, other, uids, **drawn)
        with tracker.phase("rewards"):
            verdict = self.judge(item, rollout, shuffled)
            placed = sharding.place_batch((verdict.total, verdict.valid), self.run.mesh)
            advantages, informative = map(sharding.local_rows, self._advantages(*placed))
        return Drawn(item, batch, rollout, verdict, advantages, informative, visual)


def fill_rows(batch: Batch, valid: np.ndarray, model) -> Batch:
    """The batch with a prompt of one token in rows without a sample, so that every row runs."""
    if valid.all():
        return batch
    batch = Batch(*(leaf.copy() for leaf in batch))
    for row in np.flatnonzero(~valid):
        batch.tokens[row, 0], batch.segment_ids[row, 0] = model.token_ids.vision_end, 1
    return batch


def describe(parts: list[Drawn]) -> dict[str, float]:
    """Metrics of rollout and rewards: the means over the draws of a step."""
    found: dict[str, list[float]] = {}
    for part in parts:
        lengths, stopped = (
            part.rollout.lengths[part.item.valid],
            part.rollout.stopped[part.item.valid],
        )
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
        for name, value in part.rollout.counters.items():
            about_machine = name.endswith(("_s", "_fraction", "num_compiles"))
            values[f"{'perf' if about_machine else 'rollout'}/{name}"] = value
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()} | {
        "rollout/draws": len(parts)
    }
