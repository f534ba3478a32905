"""From completions and records to one reward per completion: weights, gates, masks and counts.

The decision worth knowing: a reward that has no value is NaN, never 0. NaN in any reward that
counts makes the sample invalid; the loss leaves it out of its group and of the denominator. Each
sample is scored by itself and by its own type, so a batch equals its rows whatever the mixture.
Rewards computed elsewhere (`semantic`, on the device) come in as arrays by name.
"""

import collections
import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from videorft_jax.data.records.plain import as_record
from videorft_jax.rewards import accuracy as rules
from videorft_jax.rewards.gates import GATES, check_gates, close_gate, open_gate
from videorft_jax.rewards.once import score_once
from videorft_jax.rewards.user import NOT_APPLICABLE, Training, UserReward

BUILT_IN = ("accuracy", "format", "length", "overlong")


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """Says which rewards count, how much, and under which rules.

    Attributes:
      rewards: (name, weight) pairs. A name is built in (see BUILT_IN), a user's
        "module:function", or else an array given with each batch (semantic). A reward of weight 0
        is computed and logged but neither counts nor masks.
      mode: repo, paper or strict; see `accuracy`.
      gated: names whose reward counts only where accuracy exceeds the threshold of its type.
      gate: (problem type, threshold) pairs, 0 for a type not named; None: the mode's `GATES`.
      timeout_s: seconds that the user rewards of one batch may take together.
      overlong: the longest completion and the tokens before it in which "overlong" falls to -1.

    Raises:
      ValueError: unknown mode, repeated name, weight or threshold that is not finite, a gate or
        length bonus without accuracy.
    """

    rewards: tuple[tuple[str, float], ...]
    mode: str = "strict"
    gated: tuple[str, ...] = ("semantic",)
    gate: tuple[tuple[str, float], ...] | None = None
    timeout_s: float = 30.0
    overlong: tuple[int, int] = (768, 128)

    def __post_init__(self) -> None:
        rules.check_mode(self.mode)
        names = [name for name, _ in self.rewards]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"rewards: names are {names}; name each reward once, at least one")
        known = (*BUILT_IN, "semantic", *names)
        unknown = [name for name in self.gated if name not in known and ":" not in name]
        if unknown:
            raise ValueError(
                f"rewards: gated names {unknown[0]!r}; name one of "
                f"{', '.join(dict.fromkeys(known))}"
            )
        pairs = (*self.rewards, *(self.gate or ()), ("timeout_s", self.timeout_s))
        for name, number in pairs:
            if not math.isfinite(number):
                raise ValueError(f"rewards: {name} has the number {number}; give a finite one")
        check_gates(self.gate or ())
        limit, buffer = self.overlong
        if "overlong" in names and not 0 < buffer <= limit:
            raise ValueError(
                f"rewards: overlong_tokens is {buffer}; give at least 1 and at most the longest "
                f"completion, {limit}"
            )
        needs = [name for name in names if name == "length" or name in self.gated]
        if needs and "accuracy" not in names:
            raise ValueError(
                f"rewards: {needs[0]} depends on accuracy; add ('accuracy', 0.0) or a weight"
            )
        if "accuracy" in self.gated:
            raise ValueError("rewards: accuracy cannot be gated by itself; take it out of gated")


@dataclasses.dataclass(frozen=True)
class RewardBatch:
    """Holds the rewards of B prompts with R completions each.

    Attributes:
      scores: name -> float64 [B, R] before weights and gates, NaN where failed or not applicable.
      total: float64 [B, R], the weighted and gated sum; NaN where not valid.
      valid: bool [B, R], every reward that counts has a value.
      is_open: bool [B, R], the gate; None when nothing is gated.
      counts: "name/reason" -> number of samples.
      terms: float64 [K, B, R], the gated rewards in the order of the config, before weights; NaN
        where one says nothing.
      logged: "name/metric" -> mean of what a user reward has logged.
    """

    scores: dict[str, np.ndarray]
    total: np.ndarray
    valid: np.ndarray
    is_open: np.ndarray | None
    counts: dict[str, int]
    terms: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    logged: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Rewards:
    """Holds the configured rewards; user functions are loaded, and refused, here and not at step
    one."""

    def __init__(self, config: RewardConfig, in_training: bool = False):
        self.config = config
        names = [name for name, _ in config.rewards if ":" in name]
        self._user = {name: UserReward(name, in_training) for name in names}

    def check_record(self, record: Any) -> None:
        """Raises ValueError for a user reward that needs a field which the record does not have."""
        record = as_record(record)
        for user in self._user.values():
            user.check_record(record)

    def __call__(
        self,
        completions: Sequence[Sequence[str]],
        records: Sequence[Any],
        prompts: Sequence[str] | None = None,
        given: Mapping[str, Any] | None = None,
        num_tokens: np.ndarray | None = None,
        training: Training | None = None,
    ) -> RewardBatch:
        """Scores a batch.

        Args:
          completions: B lists of R texts.
          records: B records (problem_type, solution, options and, for user rewards, the rest), or
            plain dicts, see `as_record`.
          prompts: B texts for user rewards; default: each record's `problem`.
          given: name -> float [B, R] of the rewards computed elsewhere, NaN where failed; or a
            function that returns it, called when the strings are scored.
          num_tokens: int [B, R], lengths of the completions; only for the length bonus.
          training: what user rewards get besides texts, in training.

        Raises:
          ValueError: shapes that do not agree, or a named reward that is not given.
        """
        config, given = self.config, dict(given or {})
        records = [as_record(record, index) for index, record in enumerate(records)]
        _check_batch(completions, records)
        names = [name for name, _ in config.rewards]
        shape = (len(completions), len(completions[0]))
        expected = {name for name in names if name not in BUILT_IN and ":" not in name}
        if expected != given.keys():
            raise ValueError(
                f"rewards: arrays given for {sorted(given)}, needed for {sorted(expected)}; "
                "give each reward that is neither built in nor module:function"
            )
        for name in {"length", "overlong"} & set(names):
            _check_shape(f"{name} (num_tokens)", num_tokens, shape)
        if prompts is None:
            prompts = [getattr(record, "problem", "") for record in records]
        deadline = time.monotonic() + config.timeout_s
        started = {
            name: user.start(prompts, completions, records, training)
            for name, user in self._user.items()
        }
        scores: dict[str, np.ndarray] = {}
        counts: collections.Counter[str] = collections.Counter()
        for name in {"accuracy", "format"} & set(names):  # The users' threads work meanwhile.
            values, outcomes = _score_texts(name, completions, records, config.mode)
            scores[name] = np.array(values, np.float64).reshape(shape)
            counts.update(f"{name}/{outcome}" for outcome in outcomes)
        for name, array in given.items():
            array = array() if callable(array) else array
            _check_shape(name, array, shape)
            scores[name] = np.array(array, np.float64)
            scores[name][~np.isfinite(scores[name])] = np.nan
            if failed := int(np.isnan(scores[name]).sum()):
                counts[f"{name}/failed"] = failed
        if "length" in names:
            scores["length"] = favour_length(scores["accuracy"], np.asarray(num_tokens))
        if "overlong" in names:
            scores["overlong"] = punish_overlong(np.asarray(num_tokens), *config.overlong)
        for name, collect in started.items():
            scores[name], reasons = collect(deadline)
            counts.update({f"{name}/{reason}": number for reason, number in reasons.items()})
        absent = {name: scores[name] == NOT_APPLICABLE for name in started}
        scores = {n: np.where(absent.get(n, False), np.nan, scores[n]) for n in names}
        types = [record.problem_type for record in records]
        total, valid, is_open = combine(scores, types, config, absent)
        terms = gate_rewards(scores, config, is_open)
        logged = {
            f"{name}/{metric}": value
            for name, user in self._user.items()
            for metric, value in user.take_metrics().items()
        }
        return RewardBatch(scores, total, valid, is_open, dict(counts), terms, logged)


def score(
    completions: Sequence[Sequence[str]] | Sequence[str],
    records: Sequence[Any],
    mode: str = "strict",
    rewards: Sequence[str] = ("accuracy", "format"),
) -> dict[str, np.ndarray]:
    """Computes each reward of each completion, unweighted and ungated.

    Args:
      completions: one text a record, or one list of R texts a record.
      records: B objects with `problem_type`, `solution` and `options`, or plain dicts: rows of any
        format that record files may have.
      mode: repo, paper or strict.
      rewards: accuracy, format, and users' "module:function".

    Returns:
      name -> float64 [B] or [B, R], NaN where failed. An answer that cannot be read is 0.

    Raises:
      ValueError: unknown mode or reward, a dict that is no sound row, or shapes that do not agree.
    """
    for name, value in (("completions", completions), ("records", records), ("rewards", rewards)):
        if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
            raise ValueError(f"score: {name} is a {type(value).__name__}; give a list")
    if not all(isinstance(record, Mapping) or hasattr(record, "solution") for record in records):
        raise ValueError("score: a record is neither a dict nor a Record; give one of them")
    is_flat = all(isinstance(texts, str) for texts in completions)
    groups: Any = [[text] for text in completions] if is_flat else completions
    for name in rewards:
        if not isinstance(name, str) or ":" not in name and name not in ("accuracy", "format"):
            name = " ".join(str(name).split())[:40]
            raise ValueError(f"score: {name} needs more than text; name accuracy, format, mod:func")
    config = RewardConfig(tuple((name, 1.0) for name in rewards), mode)
    scores = Rewards(config)(groups, records).scores
    return {name: array[:, 0] if is_flat else array for name, array in scores.items()}


def combine(
    scores: Mapping[str, np.ndarray],
    problem_types: Sequence[str],
    config: RewardConfig,
    absent: Mapping[str, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Computes the weighted, gated sum: R = sum_i w_i R_i, gated ones times 1[R_a > threshold]
    (paper, R).

    Args:
      scores: name -> float [B, R], NaN where failed.
      problem_types: B type names.
      absent: name -> bool [B, R], where a reward does not apply: it adds nothing, and a completion
        to which no reward that counts applies is not valid (as in TRL).

    Returns:
      total float64 [B, R] (NaN where not valid), valid bool [B, R], is_open bool [B, R] or None.
    """
    gated = [name for name, _ in config.rewards if name in config.gated]
    is_open = None
    if gated:
        gate = GATES[config.mode] if config.gate is None else config.gate
        is_open = open_gate(scores["accuracy"], problem_types, dict(gate))
    absent = absent or {}
    total = np.zeros(next(iter(scores.values())).shape)
    says_nothing = np.full(total.shape, any(weight for _, weight in config.rewards))
    for name, weight in config.rewards:
        if weight:
            reward = scores[name]
            if name in gated and is_open is not None:
                reward = close_gate(reward, is_open)
            missing = absent.get(name, np.zeros(total.shape, bool))
            total += weight * np.where(missing, 0.0, reward)
            says_nothing &= missing
    if any(weight for name, weight in config.rewards if name in gated):
        total[np.isnan(scores["accuracy"])] = np.nan  # nobody knows whether the gate was open
    valid = np.isfinite(total) & ~says_nothing
    return np.where(valid, total, np.nan), valid, is_open


def gate_rewards(
    scores: Mapping[str, np.ndarray], config: RewardConfig, is_open: np.ndarray | None
) -> np.ndarray:
    """Returns the scores [K, B, R] in the order of the config, 0 where a gate is closed."""
    return np.stack(
        [
            close_gate(scores[name], is_open)
            if name in config.gated and is_open is not None
            else scores[name]
            for name, _ in config.rewards
        ]
    )


def favour_length(
    accuracy: np.ndarray,
    num_tokens: np.ndarray,
    shortest: int = 320,
    longest: int = 512,
    threshold: float = 0.1,
) -> np.ndarray:
    """1 for right completions of favoured length, in groups with at least two right ones.

    Constants of the original's code (the paper does not mention it), where it is worth 0.2.

    Args:
      accuracy: float [B, R]; right means above `threshold`, NaN is not right.
      num_tokens: int [B, R], completion tokens with the end token; both bounds are included.

    Returns:
      float64 [B, R] of 0 and 1.
    """
    is_right = accuracy > threshold
    enough = is_right.sum(axis=1, keepdims=True) >= 2
    fits = (num_tokens >= shortest) & (num_tokens <= longest)
    return (is_right & enough & fits).astype(np.float64)


def punish_overlong(num_tokens: np.ndarray, limit: int, buffer: int) -> np.ndarray:
    """Gives the soft overlong punishment (DAPO, eq. 13), float64 [B, R]: 0 up to limit - buffer
    tokens, then falling to -1 at `limit` tokens, int [B, R] with the end token."""
    return np.clip((limit - buffer - num_tokens) / buffer, -1.0, 0.0)


def reward_order(
    accuracy: np.ndarray,
    shuffled_accuracy: np.ndarray,
    is_video: np.ndarray,
    ratio: float = 0.8,
    threshold: float = 0.1,
) -> np.ndarray:
    """T-GRPO (Video-R1): 1 for right completions of a video whose order of frames mattered.

    It mattered when mean accuracy over ordered frames >= ratio * mean over shuffled frames. The
    constants are those of Video-R1's code, where it is worth 0.3.

    Args:
      accuracy: float [B, R] over ordered frames, NaN left out.
      shuffled_accuracy: float [B, S], S rollouts over shuffled frames, NaN left out.
      is_video: bool [B], the prompt shows a video, whose frames have an order.

    Returns:
      float64 [B, R] of 0 and 1.
    """

    def mean(array: np.ndarray) -> np.ndarray:
        count = np.isfinite(array).sum(axis=1)
        return np.where(count > 0, np.nansum(array, axis=1) / np.maximum(count, 1), np.nan)

    helps = mean(accuracy) >= ratio * mean(shuffled_accuracy)
    return ((accuracy > threshold) & (helps & is_video)[:, None]).astype(np.float64)


def _score_texts(name, completions, records, mode) -> tuple[list[float], list[rules.Outcome]]:
    """Scores of a built-in reward, and the outcomes that are no number."""
    if name == "accuracy":
        found = _score_batch(completions, records, mode)
        outcomes = [outcome for outcome in found if isinstance(outcome, rules.Outcome)]
        return [rules.to_float(score) for score in found], outcomes
    texts = [text for group in completions for text in group]
    return [rules.score_format(text, mode) for text in texts], []


def _score_batch(completions, records, mode: str) -> list[float | rules.Outcome]:
    return [
        score_once(text, record.solution, record.problem_type, options, mode)
        for group, record in zip(completions, records, strict=True)
        for options in [tuple(getattr(record, "options", None) or ())]
        for text in group
    ]


def _check_batch(completions: Sequence[Sequence[str]], records: Sequence[Any]) -> None:
    sizes = {len(group) if isinstance(group, list | tuple) else 0 for group in completions}
    if len(completions) != len(records) or len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"rewards: {len(completions)} groups of {sorted(sizes)} completions for {len(records)} "
            "records; give each record the same number of completions, at least one"
        )
    if not all(isinstance(text, str) for group in completions for text in group):
        raise ValueError("rewards: a completion is not a string; decode the tokens first")


def _check_shape(name: str, array: Any, shape: tuple[int, int]) -> None:
    if np.shape(array) != shape:
        raise ValueError(f"rewards: {name} has shape {np.shape(array)}; give {list(shape)}")
