"""From drawn tokens to rewards: texts, SigLIP beside the string rewards, and what is written down.

A completion has no reward, and takes no part in the step, when its clip could not be read, its
logits were not finite or one of its rewards failed. All of that is counted.
"""

import concurrent.futures
import functools
import json
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from videorft_jax.data.batch.frames import rebuild_frames
from videorft_jax.data.loader.steps import Step
from videorft_jax.metrics.tracker import drop_lines
from videorft_jax.models.siglip.hf_folder import load_siglip
from videorft_jax.parallel import sharding
from videorft_jax.parallel.processes import gather
from videorft_jax.rewards.combine import RewardBatch, RewardConfig, Rewards, reward_order, score
from videorft_jax.rewards.embedding_cache import EmbeddingCache, identify_siglip
from videorft_jax.rewards.metrics import summarize
from videorft_jax.rewards.semantic import SemanticReward, require_siglip
from videorft_jax.rollout.engine import Rollout

COMPLETIONS = "completions.jsonl"
ORDER = "order"  # T-GRPO: the order of the frames helped


def make_reward_config(config) -> RewardConfig:
    """Checks everything about rewards that can be checked before a weight is read; a semantic
    reward of weight 0 without a SigLIP is left out."""
    rewards, options = tuple(map(tuple, config.rewards)), config.reward
    if not require_siglip(rewards, options.siglip):
        rewards = tuple(pair for pair in rewards if pair[0] != "semantic")
    return RewardConfig(
        rewards,
        mode=options.mode,
        gated=tuple(options.gated),
        gate=tuple(map(tuple, options.gates)) or None,
        timeout_s=options.timeout_s,
    )


class Verdict(NamedTuple):
    """Rewards of this process's B prompts, and the metrics of all processes' prompts."""

    total: np.ndarray  # float32 [B, R], 0 where not valid
    valid: np.ndarray  # bool [B, R]
    scores: dict[str, np.ndarray]  # name -> float64 [B, R], NaN where it failed
    texts: list[list[str]]
    metrics: dict[str, float]


class Judge:
    """The configured rewards of one run. `rows` is the number of prompts of this process."""

    def __init__(self, config, mesh, tokenizer, contract, rows: int):
        reward_config = make_reward_config(config)
        self._config, self._rewards = reward_config, Rewards(reward_config)
        self._tokenizer, self._semantic, self._mesh = tokenizer, None, mesh
        self._rollouts = config.rollout.num_rollouts
        names = [name for name, _ in reward_config.rewards]
        self.wants_order = ORDER in names
        if "semantic" in names:
            options = config.reward
            siglip = load_siglip(options.siglip, config.model.dtype)
            cache = EmbeddingCache(
                contract.digest, identify_siglip(siglip), folder=options.cache or None
            )
            where = sharding.state_shardings(siglip.params, mesh, "siglip")
            siglip.params = jax.device_put(siglip.params, where)
            self._semantic = SemanticReward(
                siglip,
                batch_size=rows,
                num_rollouts=self._rollouts,
                num_frames=options.frames,
                order=options.order,
                text_rule=options.text_rule,
                scale=options.scale,
                cache=cache,
                place=functools.partial(sharding.place_batch, mesh=mesh),
            )
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "videorft-semantic")

    def read(self, tokens: np.ndarray, lengths: np.ndarray) -> list[list[str]]:
        """Texts of completions int [B, R, C], without control tokens."""
        return [
            self._tokenizer.batch_decode(
                [row[:length] for row, length in zip(rows, ends, strict=True)],
                skip_special_tokens=True,
            )
            for rows, ends in zip(tokens, lengths, strict=True)
        ]

    def __call__(self, step: Step, rollout: Rollout, shuffled: Rollout | None = None) -> Verdict:
        """Scores one rollout of the loader's step; `shuffled` is another one of the same prompts
        whose frames were shuffled, for the reward "order"."""
        texts = self.read(rollout.tokens, rollout.lengths)
        known = np.flatnonzero(step.valid)
        records = [step.records[row][0] for row in known]
        completions = [texts[row] for row in known]
        given = {}
        if self._semantic is not None:
            pending = self._thread.submit(self._describe, step, texts)
            given["semantic"] = lambda: pending.result().scores[known]
        if shuffled is not None:
            given[ORDER] = self._score_order(completions, records, shuffled, known)
        batch = _nothing(self._rollouts)
        if len(known):
            lengths = rollout.lengths[known]
            batch = self._rewards(completions, records, given=given, num_tokens=lengths)
        stats = pending.result().stats if self._semantic is not None else {}
        batch.valid[rollout.failed[known]] = False
        batch.total[rollout.failed[known]] = np.nan
        total = np.zeros(rollout.lengths.shape, np.float32)
        valid = np.zeros(total.shape, bool)
        total[known], valid[known] = np.where(batch.valid, batch.total, 0.0), batch.valid
        scores = {name: np.full(total.shape, np.nan) for name in batch.scores}
        for name, array in scores.items():
            array[known] = batch.scores[name]
        metrics = self._summarize(batch, [record.problem_type for record in records], stats)
        return Verdict(total, valid, scores, texts, metrics)

    def _describe(self, step, texts):
        frames = [rebuild_frames(step.batch, row) for row in range(len(texts))]
        clips = [row[0].path if row else "" for row in step.records]
        with jax.set_mesh(self._mesh):  # a mesh is set for one thread; without it rows lie anywhere
            return self._semantic(frames, texts, clips)

    def _score_order(self, completions, records, shuffled, known):
        def accuracy(texts):
            return score(texts, records, self._config.mode, ("accuracy",))["accuracy"]

        if not len(known):
            return np.zeros((0, self._rollouts))
        others = self.read(shuffled.tokens[known], shuffled.lengths[known])
        is_video = np.array([record.data_type == "video" for record in records])
        return reward_order(accuracy(completions), accuracy(others), is_video)

    def _summarize(self, batch: RewardBatch, types, stats):
        """Statistics over the prompts of all processes."""
        own = {
            "scores": {name: array.tolist() for name, array in batch.scores.items()},
            "total": batch.total.tolist(),
            "valid": batch.valid.tolist(),
            "is_open": None if batch.is_open is None else batch.is_open.tolist(),
            "counts": batch.counts,
            "types": types,
            "stats": stats,
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
        )
        means = _add(part["stats"] for part in parts)
        means = {
            name: value / (1 if name == "semantic/failed" else len(parts))
            for name, value in means.items()
        }
        types = [kind for part in filled for kind in part["types"]]
        return summarize(whole, types, self._config) | means


def _nothing(rollouts):
    empty = np.zeros((0, rollouts))
    return RewardBatch({}, empty, empty.astype(bool), None, {})


def _join(lists):
    return np.concatenate([np.array(rows) for rows in lists])


def _add(dicts):
    total = {}
    for part in dicts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


class CompletionLog:
    """Every completion with its question, answer, rewards and advantage, one JSON line each.

    Process p > 0 writes a file of its own. Lines of `start_step` and later are dropped first.
    """

    def __init__(self, workdir, start_step: int):
        number = jax.process_index()
        name = COMPLETIONS if not number else COMPLETIONS.replace(".", f"-{number}.")
        path = pathlib.Path(workdir) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        drop_lines(path, start_step)
        self._file = path.open("a")

    def write(
        self, number: int, step: Step, rollout: Rollout, verdict: Verdict, advantages: np.ndarray
    ) -> None:
        for row in np.flatnonzero(step.valid):
            record = step.records[row][0]
            for r, text in enumerate(verdict.texts[row]):
                line = {
                    "step": number,
                    "problem_id": record.problem_id,
                    "problem_type": record.problem_type,
                    "problem": record.problem,
                    "solution": record.solution,
                    "completion": text,
                    "length": int(rollout.lengths[row, r]),
                    "stopped": bool(rollout.stopped[row, r]),
                    "rewards": {
                        name: None if np.isnan(array[row, r]) else float(array[row, r])
                        for name, array in verdict.scores.items()
                    },
                    "total": float(verdict.total[row, r]) if verdict.valid[row, r] else None,
                    "advantage": float(advantages[row, r]),
                }
                self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
