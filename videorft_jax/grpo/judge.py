"""The judge: it gives every completion of a rollout its reward.

Most rewards are computed from the text on the host. The semantic reward looks at the frames and
runs SigLIP on the devices meanwhile. A completion gets no reward, and takes no part in the step,
when its clip could not be read, its logits were not finite or one of its rewards failed; all of
that is counted.
"""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from videorft_jax.data.batch.frames import rebuild_frames
from videorft_jax.data.loader.steps import Step
from videorft_jax.grpo.early import Early
from videorft_jax.metrics.profile import span
from videorft_jax.models.siglip.hf_folder import load_siglip
from videorft_jax.parallel import sharding
from videorft_jax.parallel.processes import gather
from videorft_jax.rewards import answers
from videorft_jax.rewards.combine import RewardBatch, RewardConfig, Rewards, reward_order, score
from videorft_jax.rewards.embedding_cache import (
    EmbeddingCache,
    identify_frames,
    identify_siglip,
)
from videorft_jax.rewards.metrics import summarize
from videorft_jax.rewards.semantic import SemanticOptions, SemanticReward, SemanticScores
from videorft_jax.rewards.user import TrainerState, Training
from videorft_jax.rollout.results import Rollout

ORDER = "order"  # the reward of T-GRPO: did it help that the frames stood in order?


class Verdict(NamedTuple):
    """Holds the rewards of this process's B prompts, and metrics over those of all processes."""

    total: np.ndarray  # float32 [B, R], the reward that is trained on; 0 where not valid
    valid: np.ndarray  # bool [B, R], the completion takes part in the step
    scores: dict[str, np.ndarray]  # name -> float64 [B, R], NaN where the reward failed
    texts: list[list[str]]  # B lists of R completions
    metrics: dict[str, float]
    terms: np.ndarray  # float32 [K, B, R], the gated rewards; NaN where one says nothing


class Judge:
    """Holds the configured rewards of one run.

    rows: number of prompts of this process. num_rollouts: R, of which the last num_given are not
    drawn; they are scored and do not count in metrics. num_steps: steps of the run. dtype: of
    SigLIP's computation. contract: the media contract under which the loader reads clips.
    """

    def __init__(
        self,
        rewards: RewardConfig,
        semantic: SemanticOptions | None,
        *,
        mesh,
        tokenizer,
        contract,
        rows: int,
        num_rollouts: int,
        num_given: int,
        num_steps: int,
        dtype: str,
    ):
        self._num_steps, self._num_drawn = num_steps, num_rollouts - num_given
        answers.check_tags(tokenizer)
        self._config, self._rewards = rewards, Rewards(rewards, in_training=True)
        self._tokenizer, self._mesh, self._rollouts = tokenizer, mesh, num_rollouts
        self.wants_order = ORDER in [name for name, _ in rewards.rewards]
        self._semantic: SemanticReward | None = None
        if semantic is not None:
            siglip = load_siglip(semantic.siglip, dtype)
            identity = identify_siglip(siglip)
            where = sharding.state_shardings(siglip.params, mesh, "siglip")
            siglip.params = jax.device_put(siglip.params, where)
            self._semantic = SemanticReward(
                siglip,
                batch_size=rows,
                num_rollouts=num_rollouts,
                num_frames=semantic.frames,
                averaging=semantic.averaging,
                text_rule=semantic.text_rule,
                scale=semantic.scale,
                cache=EmbeddingCache(contract.digest, identity, folder=semantic.cache or None),
                place=functools.partial(sharding.place_batch, mesh=mesh),
            )
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "videorft-semantic")
        self._scorer = concurrent.futures.ThreadPoolExecutor(1, "videorft-rewards")

    def read(self, tokens: np.ndarray, lengths: np.ndarray) -> list[list[str]]:
        """Decodes completions int [B, R, C] to texts, without control tokens."""
        return [
            self._tokenizer.batch_decode(
                [row[:length] for row, length in zip(rows, ends, strict=True)],
                skip_special_tokens=True,
            )
            for rows, ends in zip(tokens, lengths, strict=True)
        ]

    def check_record(self, record) -> None:
        """Raises ValueError for a user reward that needs a field which the record does not have."""
        self._rewards.check_record(record)

    def begin(self, step: Step) -> Early:
        """Begins with the rewards of a batch whose completions are about to be drawn."""
        names = [name for name, _ in self._config.rewards]
        frames = None if self._semantic is None else self._thread.submit(_rebuild, step)
        return Early(
            [own[0] if own else None for own in step.records],
            (len(step.valid), self._rollouts),
            self._scorer,
            functools.partial(self._tokenizer.decode, skip_special_tokens=True),
            self._config.mode if "accuracy" in names else None,
            frames,
        )

    def __call__(
        self,
        step: Step,
        rollout: Rollout,
        shuffled: Rollout | None = None,
        number: int = 1,
        early: Early | None = None,
    ) -> Verdict:
        """Scores the completions of one batch of the loader, drawn in step `number` of the run.

        early: what `begin` gave for this batch. shuffled: a second rollout of the same prompts with
        shuffled frames, for the reward "order".
        """
        texts = self.read(rollout.tokens, rollout.lengths)
        known = np.flatnonzero(step.valid)  # rows that hold a sample
        wait = self._start_semantic(early or self.begin(step), texts)
        state = TrainerState(number, self._num_steps, step.epoch)
        batch = self._score(step, rollout, shuffled, texts, known, wait, state)
        batch = _without_failed(batch, rollout.failed[known])
        types = [step.records[row][0].problem_type for row in known]
        drawn = _first(batch, self._num_drawn)
        metrics = self._summarise(drawn, types, wait().stats if wait else {})
        return _spread(batch, known, rollout.lengths.shape, texts, metrics)

    def _start_semantic(self, early: Early, texts) -> Callable[[], SemanticScores] | None:
        """Starts the semantic reward of all rows and returns a function that waits for it."""
        if self._semantic is None:
            return None
        return self._thread.submit(self._compare_with_frames, early, texts).result

    def _compare_with_frames(self, early, texts):
        frames, clips = early.frames.result()  # The same thread made them before.
        # A mesh is set for one thread only; without it the rows would lie on the first device.
        with span("rewards: SigLIP"), jax.set_mesh(self._mesh):
            assert self._semantic is not None
            return self._semantic(frames, texts, clips)

    def _score(self, step, rollout, shuffled, texts, known, wait, state) -> RewardBatch:
        """Computes the string rewards of the `known` rows and combines them with the others."""
        if not len(known):
            empty = np.zeros((0, self._rollouts))
            terms = np.zeros((len(self._config.rewards), 0, self._rollouts))
            return RewardBatch({}, empty, empty.astype(bool), None, {}, terms)
        records, completions = [step.records[row][0] for row in known], [texts[r] for r in known]
        given: dict[str, Any] = {}
        if wait is not None:
            given["semantic"] = lambda: wait().scores[known]
        if shuffled is not None:
            others = self.read(shuffled.tokens[known], shuffled.lengths[known])
            given[ORDER] = self._score_order(completions, others, records)
        ids = [
            [list(map(int, tokens[:length])) for tokens, length in zip(*row, strict=True)]
            for row in zip(rollout.tokens[known], rollout.lengths[known], strict=True)
        ]
        with span("step: rewards of strings"):
            return self._rewards(
                completions,
                records,
                given=given,
                num_tokens=rollout.lengths[known],
                training=Training(ids, state),
            )

    def _score_order(self, completions, shuffled, records):
        def accuracy(texts):
            return score(texts, records, self._config.mode, ("accuracy",))["accuracy"]

        is_video = np.array(
            [any(item.kind == "video" for item in record.media) for record in records]
        )
        return reward_order(accuracy(completions), accuracy(shuffled), is_video)

    def _summarise(self, batch: RewardBatch, types, stats) -> dict[str, float]:
        """Makes the metrics of a batch over the prompts of all processes."""
        own = {
            "scores": {name: array.tolist() for name, array in batch.scores.items()},
            "total": batch.total.tolist(),
            "valid": batch.valid.tolist(),
            "is_open": None if batch.is_open is None else batch.is_open.tolist(),
            "counts": batch.counts,
            "types": types,
            "stats": stats,
            "logged": dict(batch.logged),
        }
        parts = gather(own)
        filled = [part for part in parts if part["types"]]
        if not filled:
            return {"samples/masked": 1.0}
        whole = RewardBatch(
            {name: _join(part["scores"][name] for part in filled) for name in filled[0]["scores"]},
            _join(part["total"] for part in filled),
            _join(part["valid"] for part in filled).astype(bool),
            None if filled[0]["is_open"] is None else _join(part["is_open"] for part in filled),
            _add(part["counts"] for part in filled),
            terms=np.zeros(0),
        )
        means = _add(part["stats"] for part in parts)
        means = {
            name: value / (1 if name == "semantic/failed" else len(parts))
            for name, value in means.items()
        }
        types = [kind for part in filled for kind in part["types"]]
        logged = [part["logged"] for part in filled]
        names = {name for own in logged for name in own}
        own_metrics = {
            f"user/{name}": float(np.mean([own[name] for own in logged if name in own]))
            for name in sorted(names)
        }
        return summarize(whole, types, self._config) | means | own_metrics


def _rebuild(step: Step) -> tuple[list[np.ndarray | None], list[str]]:
    """The frames of each row of a batch, and names under which their embeddings are kept."""
    with span("rewards: frames for SigLIP"):
        frames = [rebuild_frames(step.batch, row, pairs) for row, pairs in enumerate(step.pairs)]
        return frames, ["" if clip is None else identify_frames(clip) for clip in frames]


def _first(batch: RewardBatch, count: int) -> RewardBatch:
    """Returns the rewards of the first `count` completions of each group, which are those that were
    drawn; metrics tell what the policy says, not what it was given."""
    return dataclasses.replace(
        batch,
        scores={name: array[:, :count] for name, array in batch.scores.items()},
        total=batch.total[:, :count],
        valid=batch.valid[:, :count],
        is_open=None if batch.is_open is None else batch.is_open[:, :count],
    )


def _without_failed(batch: RewardBatch, failed: np.ndarray) -> RewardBatch:
    """Takes the reward from completions whose logits were not finite; failed is bool [B, R]."""
    batch.valid[failed] = False
    batch.total[failed] = np.nan
    return batch


def _spread(batch: RewardBatch, known, shape, texts, metrics) -> Verdict:
    """Spreads the rewards of the `known` rows over all rows [B, R] of the batch."""
    total, valid = np.zeros(shape, np.float32), np.zeros(shape, bool)
    total[known], valid[known] = np.where(batch.valid, batch.total, 0.0), batch.valid
    scores = {name: np.full(shape, np.nan) for name in batch.scores}
    for name, array in scores.items():
        array[known] = batch.scores[name]
    terms = np.full((len(batch.terms), *shape), np.nan, np.float32)
    terms[:, known] = batch.terms
    return Verdict(total, valid, scores, texts, metrics, terms)


def _join(lists):
    return np.concatenate([np.array(rows) for rows in lists])


def _add(dicts):
    total: dict[str, float] = {}
    for part in dicts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total
