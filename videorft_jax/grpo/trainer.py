"""Stage two: GRPO. Draw R completions of each prompt, judge them, make the better ones likelier.

A step is a few compiled programs. *Rollout*: clips once, prompts once, then R completions each
(rollout.py). *Rewards*: SigLIP on the device while strings are scored on the host (judging.py).
*Advantages*: group-normalised. *Update*: log-probs of policy and reference with a group in one row
(scoring.py), the loss (losses.py) and the optimizer (step.py). A batch index and a seed decide
all that is random, so a run that was killed goes on as if nothing had happened.
"""

import contextlib
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from videorft_jax.grpo import judge as judging
from videorft_jax.grpo import update as updating
from videorft_jax.grpo.experience import Drawer, Drawn, describe
from videorft_jax.grpo.logprobs import Groups
from videorft_jax.grpo.update import GroupRows, make_grpo_config
from videorft_jax.metrics import flops
from videorft_jax.parallel import sharding
from videorft_jax.parallel.processes import gather
from videorft_jax.training.counts import over_processes, train_settings
from videorft_jax.training.loop import Taken, run_steps
from videorft_jax.training.run import Run, open_run
from videorft_jax.training.setup import make_train_options
from videorft_jax.training.state import read_params
from videorft_jax.training.trees import cast

log = logging.getLogger(__name__)

_LANE = 128  # completion lengths are multiples of it where it divides the longest


class Trainer:
    """The compiled programs of one run and what flows between them."""

    def __init__(self, config, run: Run):
        self.config, self.run, weights = config, run, run.weights
        self.drawer = Drawer(config, run)
        self.programs = updating.GrpoPrograms(config, weights, run.optimizer, run.shardings)
        self.reference = ()
        if config.grpo.beta:
            self.reference = (None if weights.lora else self._read_reference(),)

    def _read_reference(self):
        """The weights that train as they are in `model.init_from`, in the dtype of the model."""
        params = read_params(self.config.model.init_from, self.run.weights, self.run.mesh)

        def build(params):
            trained, _ = self.run.weights.split(params, jax.random.key(0))
            return cast(trained, jnp.dtype(self.config.model.dtype))

        return jax.jit(build, out_shardings=self.programs.reference_shardings)(params)

    @property
    def num_programs(self) -> int:
        return self.programs.num_compiled + self.drawer.num_programs

    def policy(self, state):
        """The model's parameters, for the rollout."""
        return self.programs.policy(state.params, state.frozen)

    def make_rows(self, parts: list[Drawn]) -> GroupRows:
        """The groups of an update on the mesh. Of several draws, those of the shape that has the
        most informative groups; these come first, others fill what is left."""
        config, last = self.config, parts[-1]
        if len(parts) > 1:
            shapes = {part.item.bucket for part in parts}
            counts = {
                shape: min(gather(_num_informative(parts, shape))) for shape in sorted(shapes)
            }
            shape = max(counts, key=counts.get)
            parts = [part for part in parts if part.item.bucket == shape]
        rows = [self._host_rows(part) for part in parts]
        rows = jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows)
        if len(parts) > 1:
            informative = np.concatenate([part.informative for part in parts])
            chosen = np.argsort(~informative, kind="stable")[: len(last.informative)]
            rows = jax.tree.map(lambda leaf: leaf[np.sort(chosen)], rows)
        longest = max(gather(int(rows.groups.lengths.max())))
        size = fit_length(longest, config.rollout.max_new_tokens, config.grpo.length_buckets)
        groups = rows.groups._replace(completions=rows.groups.completions[..., :size])
        rows = rows._replace(groups=groups, sampler=rows.sampler[..., :size])
        placed = sharding.place_batch(rows, self.run.mesh)
        return placed._replace(groups=placed.groups._replace(visual=last.visual))

    def _host_rows(self, part: Drawn) -> GroupRows:
        taking = part.verdict.valid
        if self.config.grpo.mask_truncated:
            taking = taking & part.rollout.stopped
        batch = part.batch
        if part.visual is not None:  # no need to send the pixels again
            batch = batch._replace(patches=batch.patches[:, :0])
        lengths = np.where(taking, part.rollout.lengths, 0).astype(np.int32)
        groups = Groups(batch, part.rollout.tokens, lengths)
        return GroupRows(groups, part.advantages, part.rollout.logprobs)

    def update(self, state, rows: GroupRows):
        """All updates of one rollout; metrics are those of the last."""
        if self.config.grpo.num_updates > 1:
            before = (state.params, state.frozen, rows.groups)
            old, reference = self.programs.score(*before, *self.reference)
            rows = rows._replace(old=old, reference=reference)
        for _ in range(self.config.grpo.num_updates):
            state, metrics = self.programs.step(state, rows, *self.reference)
        return state, metrics


def _num_informative(parts: list[Drawn], shape: int) -> int:
    return sum(int(part.informative.sum()) for part in parts if part.item.bucket == shape)


def fit_length(longest: int, limit: int, num_buckets: int) -> int:
    """The smallest of `num_buckets` lengths up to `limit` that holds `longest`; each is compiled
    when it is first needed."""
    unit = _LANE if limit % _LANE == 0 else 1
    sizes = (-(-limit * k // (num_buckets * unit)) * unit for k in range(1, num_buckets + 1))
    return min(size for size in sizes if size >= longest)


def check(config) -> None:
    """Raises ValueError for losses and rewards that cannot work; nothing is read but names."""
    make_grpo_config(config)
    judging.make_reward_config(config)


def train(config, workdir: str, check_memory) -> int:
    """Runs to the end of the data. Returns exit code 0. `check_memory` is that of `open_run`.

    Raises ValueError for a config that cannot work, RuntimeError when too many steps in a row were
    not finite, and SystemExit once a checkpoint is written after SIGTERM.
    """
    updates = config.grpo.num_updates
    check(config)
    with open_run(make_train_options(config), workdir, "grpo", check_memory, updates) as run:
        start = int(run.state.step) // updates
        if start >= run.total or run.next_batch >= len(run.loader):
            log.info("step %d of %d: nothing left to do", start, run.total)
            return 0
        plans = gather(run.loader.digest)
        if len(set(plans)) > 1:
            raise ValueError(f"{config.name}: processes read different data, plans {plans}")
        _loop(config, run, Trainer(config, run), start)
    return 0


def _loop(config, run, trainer, start):
    with (
        contextlib.closing(judging.CompletionLog(run.folder, start + 1)) as completions,
        run.loader.steps(run.next_batch) as items,
    ):

        def take_step(number, state, tracker):
            parts = trainer.drawer.draw(trainer.policy(state), items, tracker)
            if not parts:
                return None
            with tracker.phase("update"):
                rows = trainer.make_rows(parts)
                state, metrics = trainer.update(state, rows)
            for part in parts:  # while the update runs
                completions.write(number, part.item, part.rollout, part.verdict, part.advantages)
            logged = describe(parts) | {"perf/programs": trainer.num_programs}
            counts = _counts(config, run, parts, rows)
            with tracker.phase("update"):
                metrics = {name: float(value) for name, value in metrics.items()}
            records = [row for part in parts for row in part.item.records]
            is_empty = not any(gather(any(bool(part.verdict.valid.any()) for part in parts)))
            next_batch = parts[-1].item.index + 1
            return Taken(state, metrics | logged, counts, records, next_batch, is_empty)

        shown = ("loss", "rewards/total/mean", "rewards/accuracy/mean")
        run_steps(run, start, take_step, show=shown)


def _counts(config, run: Run, parts: list[Drawn], rows: GroupRows) -> dict[str, Any]:
    """Tokens and operations of a step over all processes, each holding as many rows."""
    weights, settings = run.weights, train_settings(run.options, run.weights)
    size, costs = rows.groups.completions.shape[-1], []
    for useful in (True, False):
        cost = flops.Cost()
        for part in parts:
            prompts = (part.batch.segment_ids > 0).sum(1)
            length = part.batch.tokens.shape[1]
            group = flops.group_work(prompts, part.rollout.lengths, length, size)[not useful]
            clips = flops.vision_work(part.batch.patch_valid)[not useful]
            cost += flops.forward_cost(weights.model, group + clips)
        learnt = group if part.visual is not None else group + clips
        for _ in range(config.grpo.num_updates):
            cost += flops.train_cost(weights.model, learnt, **settings)
        if config.grpo.beta:
            cost += flops.forward_cost(weights.model, learnt)
        costs.append(over_processes(cost))
    tokens = sum(int(part.rollout.lengths.sum()) for part in parts)
    tokens += sum(int((part.batch.segment_ids > 0).sum()) for part in parts)
    return {"tokens": over_processes(tokens), "useful": costs[0], "executed": costs[1]}
