"""Group-relative policy optimisation (GRPO), the second stage of the method.

A language model that answers questions about videos is taught by its own successes. In each step it
answers every question of a batch R times, at random, so that the answers differ. Rewards say how
good each answer is. An answer that is better than the mean of its group becomes likelier, one that
is worse becomes less likely: the *advantage* is the reward minus the group's mean, divided by the
group's spread. No second network has to guess how good a question could be answered, since the
other answers of the group show it. A penalty on the divergence from the *reference policy*, the
model as it was before GRPO, keeps its language from falling apart.

A step runs through these files:

    experience.py   draws the batch: the rollout engine (rollout/engine.py) encodes each clip once,
                    runs each prompt once and decodes R completions
    judge.py        gives each completion its reward (rewards/), SigLIP on the device meanwhile
    experience.py   makes advantages of rewards (losses.group_advantages)
    trainer.py      lays the groups out as rows on the mesh (`Trainer.make_rows`)
    logprobs.py     computes the log-probabilities again, a whole group in one row
    update.py       loss (losses.grpo_loss), gradient and optimizer step, one compiled program

A batch index and a seed decide all that is random, so a run that was killed goes on as if nothing
had happened.
"""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from videorft_jax.grpo import leftover
from videorft_jax.grpo.alarms import Watch, read_history
from videorft_jax.grpo.completion_log import CompletionLog
from videorft_jax.grpo.dynamic_sampling import TAKEN, find_shape, join_batches
from videorft_jax.grpo.experience import Collector, Experience, describe, taking_part
from videorft_jax.grpo.given import check_given
from videorft_jax.grpo.leftover import Leftover
from videorft_jax.grpo.logprobs import Groups
from videorft_jax.grpo.options import GrpoOptions
from videorft_jax.grpo.read_again import keep_models
from videorft_jax.grpo.reference import check_reference, read_reference
from videorft_jax.grpo.rehearsal import rehearse
from videorft_jax.grpo.turn_rows import fit_turns, make_turn_rows
from videorft_jax.grpo.update import GroupRows, GrpoPrograms
from videorft_jax.metrics import flops
from videorft_jax.metrics.profile import span
from videorft_jax.parallel import sharding
from videorft_jax.parallel.processes import gather
from videorft_jax.rollout.mesh import AUTO, check_sizes
from videorft_jax.training.ahead import Ahead
from videorft_jax.training.counts import over_processes, train_settings
from videorft_jax.training.loop import Taken, begin_validation, run_steps, say_nothing_left
from videorft_jax.training.run import Run, make_tools, open_records, open_run
from videorft_jax.training.validation import Measure, Validation

log = logging.getLogger(__name__)

_LANE = 128  # completion lengths are multiples of it where it divides the longest


class Laid(NamedTuple):
    """Holds the groups of one update, laid out on the mesh.

    fates: where the groups of each draw went, int [B]: TAKEN, LEFT or PASSED. is_empty: no
    completion of any process takes part.
    """

    rows: GroupRows
    fates: list[np.ndarray]
    is_empty: bool


class Trainer:
    """Holds the programs of one run and what flows between them.

    run: what `training.run.open_run` yields.
    """

    def __init__(self, options: GrpoOptions, run: Run):
        self.options, self.mesh, self.weights = options, run.mesh, run.weights
        self.collector = Collector(
            options,
            run.weights,
            mesh=run.mesh,
            tokenizer=run.tokenizer,
            num_steps=run.total,
            tools=make_tools(options.train, run.tokenizer, run.loader.source),
        )
        self.programs = GrpoPrograms(options, run.weights, run.optimizer, run.shardings)
        self.left = Leftover()  # Groups that wait for the next update.
        if options.max_draws > 1:
            self.left = leftover.load(run.folder, run.start)
        self.reference: tuple[Any, ...] = ()  # What the programs read of the reference policy.
        if options.loss.beta and not options.sync_every:
            places = self.programs.reference_shardings
            read = (
                None if run.weights.lora else read_reference(options, run.weights, run.mesh, places)
            )
            self.reference = (read,)

    @property
    def num_programs(self) -> int:
        """Counts the programs compiled so far."""
        return self.programs.num_compiled + self.collector.num_programs

    def collect(self, state, batches, tracker, number: int) -> list[Experience]:
        """Draws and judges completions of the state's policy; see `Collector.collect`."""
        policy = self.programs.policy(state.params, state.frozen)
        return self.collector.collect(policy, batches, tracker, number, len(self.left))

    def make_rows(self, parts: list[Experience]) -> Laid:
        """Lays the groups of an update out on the mesh, one row each.

        Of several draws (`grpo.max_draws`) the groups that differ are taken in the order in which
        they were drawn, each padded to a shape that holds all; others fill what is left. Those that
        differ and find no place wait for the next update.
        """
        options, last = self.options, parts[-1]
        found = [self._host_rows(part) for part in parts]
        fates = [np.full(len(last.differing), TAKEN)]
        if options.max_draws > 1:
            found, fates = self.left.choose(found, [part.differing for part in parts])
            rows = join_rows(found)
        else:
            rows = found[0]
        longest = max(gather(int(rows.groups.lengths.max())))
        if rows.groups.turns is not None:
            pairs = last.batch.patches.shape[1]
            rows, visual = fit_turns(rows, longest, pairs, options), None
        else:
            size = fit_length(longest, options.rollout.max_new_tokens, options.length_buckets)
            groups = rows.groups._replace(completions=rows.groups.completions[..., :size])
            rows = rows._replace(groups=groups, sampler=rows.sampler[..., :size])
            visual = last.visual
        placed = sharding.place_batch(rows, self.mesh)
        placed = placed._replace(groups=placed.groups._replace(visual=visual))
        return Laid(placed, fates, is_empty=longest == 0)

    def _host_rows(self, part: Experience) -> GroupRows:
        """Makes NumPy rows of the groups of one batch; what takes no part has length 0."""
        taking, batch = self.taking_part(part), part.batch
        if part.visual is not None:  # The visual tokens stand for the pixels.
            batch = batch._replace(patches=batch.patches[:, :0])
        lengths = np.where(taking, part.rollout.lengths, 0).astype(np.int32)
        arrays: tuple[Any, ...] = (part.rollout.tokens, lengths)
        weights: tuple[Any, ...] = (part.advantages, part.rollout.logprobs)
        rows = GroupRows(Groups(batch, *arrays), *weights)
        if part.rollout.turns is not None:
            rows = make_turn_rows(part, taking)
        if self.options.kl_in_reward:
            verdict = part.verdict
            rewards: Any = np.where(verdict.valid, verdict.total, np.nan).astype(np.float32)
            rows = rows._replace(rewards=rewards)
        return rows

    def taking_part(self, part: Experience) -> np.ndarray:
        """Tells which completions are learnt from, bool [B, R]."""
        return taking_part(self.options, part.verdict, part.rollout)

    def save_left(self, run: Run, number: int) -> None:
        """Writes the groups that wait beside the checkpoint of step `number`."""
        if self.options.max_draws > 1:
            folder = run.checkpointer.folder
            leftover.save(
                run.folder, number, self.left.parts, lambda step: (folder / f"{step:08d}").exists()
            )

    def pass_over(self, state):
        """Counts a step in which no completion takes part; returns (state, metrics).

        No program runs, since an optimizer moves weights also where the gradient is 0: by its
        momentum and by weight decay.
        """
        passed = state._replace(step=state.step + self.options.steps_per_rollout)
        return passed, {"loss": 0.0, "skipped": state.skipped, "skipped_in_row": 0}

    def update(self, state, rows: GroupRows):
        """Takes all optimizer steps of one rollout; returns (state, metrics of the last step).

        With several steps the policy changes between them, so the log-probabilities before the
        first one are computed and kept: the loss clips how far each step moves away from them.
        """
        options, reference, found = self.options, self.reference, {}
        if options.needs_score:
            before = (state.params, state.frozen, rows.groups)
            moving = () if state.reference is None else (state.reference,)
            old, known = self.programs.score(*before, *reference, *moving)
            rows = rows._replace(old=old, reference=known)
        if options.kl_in_reward:
            rows, kl = self.programs.charge(rows)
            reference, found = (), {"kl": kl}
        parts = self.programs.split(rows) if options.minibatches > 1 else [rows]
        for _ in range(options.num_updates):
            for part in parts:
                state, metrics = self.programs.step(state, part, *reference)
        return state, metrics | found

    def follow(self, state, number: int):
        """Moves the reference policy towards the policy, where that is due after step `number`."""
        every = self.options.sync_every
        if not every or number % every:
            return state
        log.info("step %d: the reference policy follows the policy", number)
        return state._replace(reference=self.programs.mix(state.reference, state.params))


def join_rows(parts: list[GroupRows]) -> GroupRows:
    """Stacks the rows of several draws, each padded to a shape that holds those of all processes,
    since groups that waited may have another shape on each."""
    batches = [rows.groups.batch for rows in parts]
    shape = np.max(gather(find_shape(batches)), axis=0).tolist()
    batch = join_batches(batches, shape)
    nothing: Any = None  # The batches are joined by themselves.
    others = [rows._replace(groups=rows.groups._replace(batch=nothing)) for rows in parts]
    whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *others)
    return whole._replace(groups=whole.groups._replace(batch=batch))


def fit_length(longest: int, limit: int, num_buckets: int) -> int:
    """Gives the smallest of `num_buckets` lengths up to `limit` that holds `longest`.

    The update is compiled for each of these lengths when it is first needed.
    """
    unit = _LANE if limit % _LANE == 0 else 1
    sizes = (-(-limit * k // (num_buckets * unit)) * unit for k in range(1, num_buckets + 1))
    return min(size for size in sizes if size >= longest)


def train(
    options: GrpoOptions,
    workdir: str,
    check_memory: Callable[..., None],
    open_validation: Callable[[Run], Measure],
    choose_mesh: Callable[..., Any],
) -> int:
    """Trains to the end of the data; returns exit code 0.

    check_memory: a function that raises ValueError when a batch does not fit on the devices; see
    `training.run.open_run`. open_validation: makes the function that answers the records of
    `validate.records`; `evaluation.validation` has one. choose_mesh: gives the sizes of the
    rollout's mesh from (weights, mesh, buckets), where `rollout.mesh` leaves the choice.

    Raises ValueError for options that cannot work, RuntimeError when too many steps in a row were
    not finite, and SystemExit once a checkpoint is written after SIGTERM.
    """
    check_reference(options)
    if options.loss.num_given:
        check_given(open_records(options.train), options.loss.num_given, options.train.data.records)
    rehearse(options)

    sizes = options.rollout.mesh

    def check_mesh(model, mesh):
        train = options.train
        options.check_parts(mesh.shape["data"] * mesh.shape["fsdp"])
        check_sizes(train.name, sizes, model, mesh, train.data.rows, train.mesh.slices)

    def check(weights, mesh, buckets):
        nonlocal sizes
        check_memory(weights, mesh, buckets)
        if sizes == AUTO:
            sizes = choose_mesh(weights, mesh, buckets)

    opened = open_run(
        options.train, workdir, "grpo", check, options.steps_per_rollout,
        has_reference=options.sync_every > 0, check_mesh=check_mesh,
    )  # fmt: skip
    with opened as run:
        start = run.start
        if start >= run.total or run.next_batch >= len(run.loader):
            say_nothing_left(run)
            return 0
        plans = gather(run.loader.digest)
        if len(set(plans)) > 1:
            raise ValueError(f"{options.train.name}: processes read different data, plans {plans}")
        keep_models(options, run)
        validation = begin_validation(run, open_validation)
        rollout = dataclasses.replace(options.rollout, mesh=sizes)
        trainer = Trainer(dataclasses.replace(options, rollout=rollout), run)
        trainer.collector.judge.check_record(run.loader.first_record)
        _loop(run, trainer, start, validation)
    return 0


def _loop(run: Run, trainer: Trainer, start: int, validation: Validation | None) -> None:
    alarms, gated = trainer.options.alarms, trainer.options.rewards.gated
    history = read_history(run.folder, start, 2 * alarms.window - 1)
    watch = Watch(alarms, history, "semantic" in gated)
    with (
        contextlib.closing(CompletionLog(run.folder, start + 1)) as completions,
        run.loader.steps(run.next_batch, span) as items,
    ):
        batches = Ahead(items, trainer.collector.put)

        def take_step(number, state, tracker):
            parts = trainer.collect(state, batches, tracker, number)
            if not parts:
                log.info("%d groups that differ are left over", len(trainer.left))
                return None
            with tracker.phase("update"):
                rows, fates, is_empty = trainer.make_rows(parts)
                if trainer.options.max_draws > 1:
                    state = run.place_schedule(state, number, parts[0].item.index)
                state, metrics = (
                    trainer.pass_over(state) if is_empty else trainer.update(state, rows)
                )
            with span("step: write completions"):  # The devices run the update meanwhile.
                for part, fate in zip(parts, fates, strict=True):
                    completions.write(number, part, fate, trainer.options)
            with span("step: describe what was drawn"):
                logged = describe(parts, trainer.options.loss.num_given)
                logged["perf/programs"] = trainer.num_programs
                if trainer.options.max_draws > 1:
                    logged["groups/left"] = float(sum(gather(len(trainer.left))))
                counts = _count_work(trainer.options, run, parts, rows)
            with tracker.phase("update"):
                if number < run.total and not is_empty:
                    batches.fetch(metrics["loss"].is_ready)
                with span("step: wait for the devices"):
                    metrics = {name: float(value) for name, value in metrics.items()}
            state = trainer.follow(state, number)
            records = [row for part in parts for row in part.item.records]
            next_batch = parts[-1].item.index + 1
            alarms, collapse = watch(number, metrics | logged)
            logged |= alarms
            return Taken(state, metrics | logged, counts, records, next_batch, is_empty, collapse)

        shown = ("loss", "rewards/total/mean", "rewards/accuracy/mean")
        run_steps(
            run,
            start,
            take_step,
            show=shown,
            validation=validation,
            before_save=functools.partial(trainer.save_left, run),
        )


def _count_work(
    options: GrpoOptions, run: Run, parts: list[Experience], rows: GroupRows
) -> dict[str, Any]:
    """Counts tokens and operations of a step over all processes, each holding as many rows."""
    weights, settings = run.weights, train_settings(run.options, run.weights)
    size, costs = rows.groups.completions.shape[-1], []
    for useful in (True, False):
        cost = flops.Cost()
        for part in parts:
            prompts = (part.batch.segment_ids > 0).sum(1)
            length, turns = part.batch.tokens.shape[1], part.rollout.turns
            lengths, shown = part.rollout.lengths, part.batch.patch_valid
            if turns is not None:
                lengths, shown = turns.lengths, np.concatenate([shown, turns.patch_valid], axis=1)
            group = flops.group_work(prompts, lengths, length, size)[not useful]
            clips = flops.vision_work(shown)[not useful]
            cost += flops.forward_cost(weights.model, group + clips)
        learnt = group if part.visual is not None and turns is None else group + clips
        for _ in range(options.num_updates):
            cost += flops.train_cost(weights.model, learnt, **settings)
        if options.loss.beta:
            cost += flops.forward_cost(weights.model, learnt)
        costs.append(over_processes(cost))
    tokens = sum(int(part.rollout.lengths.sum()) for part in parts)
    tokens += sum(int((part.batch.segment_ids > 0).sum()) for part in parts)
    return {"tokens": over_processes(tokens), "useful": costs[0], "executed": costs[1]}
