"""Small wrong changes of the code that some test must notice.

Each says what to replace in which file, and the tests that are run for it.
"""

from typing import NamedTuple


class Mutation(NamedTuple):
    """`old` stands once in `file`, below videorft_jax/, and becomes `new`; `tests` are arguments of
    pytest, of which at least one test must fail."""

    file: str
    old: str
    new: str
    tests: str


FAULTS = "tests/grpo/test_silent_faults.py"
LOSSES = "tests/grpo/test_grpo_losses.py"
SAMPLING = "tests/grpo/test_dynamic_sampling.py"
UPDATE = "tests/grpo/test_grpo_update.py"
REWARDS = "tests/rewards/test_rewards.py tests/rewards/test_answers.py"
COMBINE = "tests/rewards/test_combine.py tests/rewards/test_user_rewards.py"
USER = "tests/rewards/test_user_rewards.py"
DRAW = "tests/rollout/test_sampling.py"
SCHEDULE = "tests/data/test_schedule.py"
GIVEN = "tests/grpo/test_given.py"
REFERENCE = "tests/grpo/test_reference.py::test_it_moves_as_in_pytorch"
ALARMS = "tests/grpo/test_alarms.py"
_VALIDATION = "tests/training/test_validation.py::test_the_"
VALIDATION = (
    f"{_VALIDATION}best_round_is_kept_and_a_stalled_run_ends {_VALIDATION}last_step_is_asked_too"
)
RATES = "tests/data/test_pass_rates.py"


def _each(file, tests, *pairs):
    return [Mutation(file, old, new, tests) for old, new in pairs]


MUTATIONS = [
    # The ten that no test noticed when they were first tried.
    *_each(
        "grpo/trainer.py",
        FAULTS,
        ("rows = rows._replace(old=old, reference=known)", "rows = rows._replace(reference=known)"),
        ("np.where(taking, part.rollout.lengths, 0)", "np.where(True, part.rollout.lengths, 0)"),
    ),
    *_each(
        "grpo/dynamic_sampling.py",
        SAMPLING,
        ("np.argsort(~differing", "np.argsort(differing"),
    ),
    *_each(
        "grpo/experience.py",
        FAULTS,
        ("verdict.valid & rollout.stopped", "verdict.valid & ~rollout.stopped"),
        ("step=step | _SHUFFLED", "step=step"),
    ),
    *_each(
        "grpo/judge.py",
        FAULTS,
        ("accuracy(completions), accuracy(shuffled)", "accuracy(shuffled), accuracy(completions)"),
        ("batch.valid[failed] = False", "batch.valid[failed] = True"),
    ),
    *_each(
        "losses.py",
        FAULTS,
        ("d = jnp.clip(d, -MAX_LOG_RATIO, MAX_LOG_RATIO)", "d = d * 1"),
        (
            "((ratio < low) & (advantage < 0)) | ((ratio > high) & (advantage > 0))",
            "((ratio < low) & (advantage > 0)) | ((ratio > high) & (advantage < 0))",
        ),
        ("(count[:, 0] > 1) & (high > low)", "(count[:, 0] > 2) & (high > low)"),
    ),
    *_each(
        "losses.py",
        LOSSES,
        ("jnp.maximum(count - 1, 1))\n    low", "jnp.maximum(count, 1))\n    low"),
        ('centred if spread == "none"', 'centred if spread == "batch"'),
        ("jnp.maximum(total - 1, 1)", "jnp.maximum(total, 1)"),
        ("token = -jnp.minimum(ratio * advantage", "token = -jnp.maximum(ratio * advantage"),
        (
            "1.0 - config.clip_low, 1.0 + config.clip_high",
            "1.0 - config.clip_high, 1.0 + config.clip_low",
        ),
        ("jax.lax.stop_gradient(jnp.minimum(ratio, high))", "jnp.minimum(ratio, high)"),
        ("-weight * advantage * logprobs", "-weight * advantage"),
        ("jnp.where(advantage > 0, above, below)", "jnp.where(advantage > 0, below, above)"),
        ("(ratio - 1.0)) * 4.0 / slope", "(ratio - 1.0)) * 4.0"),
        ("most = -config.dual_clip * advantage", "most = config.dual_clip * advantage"),
        ("d**2 / 2 if", "d**2 if"),
        ("else jnp.exp(d) - d - 1.0", "else jnp.exp(d) - 1.0"),
        (
            "jnp.where(mask > 0, reference - logprobs, 0.0)",
            "jnp.where(mask > 0, logprobs - reference, 0.0)",
        ),
        ("divergence = jnp.exp(own) * divergence", "divergence = jnp.exp(-own) * divergence"),
        ("token = token + config.beta * divergence", "token = token - config.beta * divergence"),
        (
            "token = token - config.entropy_bonus * entropy",
            "token = token + config.entropy_bonus * entropy",
        ),
        (
            "gap = jnp.where(drawn > 0, old - sampler, 0.0)",
            "gap = jnp.where(drawn > 0, sampler - old, 0.0)",
        ),
        (
            "(weight >= floor) & (weight <= cap), weight",
            "(weight >= floor) & (weight >= cap), weight",
        ),
        ("jnp.maximum(weight, floor) if floor else weight", "weight"),
        ("gap = jnp.broadcast_to(gap.sum(-1", "gap = jnp.broadcast_to(gap.mean(-1"),
        ("log_ratio.sum(-1, keepdims=True) / length", "log_ratio.sum(-1, keepdims=True)"),
        ('(totals["sequences"] * config.max_length)', 'totals["sequences"]'),
        (
            "counted = counted & (known >= least[..., None])",
            "counted = counted & (known <= least[..., None])",
        ),
        ("counted & ~(far & (advantages[..., None] < 0))", "counted & ~far"),
        ("sampler - jax.lax.stop_gradient(logprobs)", "jax.lax.stop_gradient(logprobs) - sampler"),
        ("return total / (std + ADVANTAGE_EPS)", "return total"),
    ),
    *_each(
        "losses.py",
        LOSSES,
        ("p / (p + config.given_shaping)", "p"),
        ("taught = -advantages[..., None]", "taught = advantages[..., None]"),
        ("jnp.where(mask > drawn, taught, token)", "jnp.where(mask > 0, taught, token)"),
        ("mask.at[:, -config.num_given :].set(0.0)", "mask.at[:, : config.num_given].set(0.0)"),
        ("drawn = mask[:, :-num_given].sum()", "drawn = mask.sum()"),
        ("_divergence(logprobs, reference, drawn", "_divergence(logprobs, reference, mask"),
    ),
    *_each(
        "grpo/reference.py",
        REFERENCE,
        ("(1.0 - mixup) * old", "(1.0 + mixup) * old"),
        (".astype(old.dtype)", ""),
    ),
    *_each(
        "grpo/given.py",
        GIVEN,
        ("places[:, first:] = 0", "places[:, first:] = 1"),
        ("failed[row, place] = not fits", "failed[row, place] = False"),
        ("+ [sampling.stop_ids[0]]", "+ []"),
        ("if len(read_given(record)) < num_given", "if not read_given(record)"),
    ),
    *_each(
        "grpo/update.py",
        LOSSES,
        ("rows.rewards - options.loss.beta * ratio", "rows.rewards + options.loss.beta * ratio"),
        ("leaf[n::count]", "leaf[:: count]"),
    ),
    *_each(
        "grpo/leftover.py",
        SAMPLING,
        ("fate == LEFT) for", "fate == PASSED) for"),
        ("fates[taken], fates[left] = TAKEN, LEFT", "fates[taken] = TAKEN"),
        ("if not is_kept(int(", "if is_kept(int("),
    ),
    *_each(
        "grpo/dynamic_sampling.py",
        SAMPLING,
        ("taking = taking & np.isfinite(values)", "taking = np.isfinite(values)"),
        ("pair * windows * WINDOW_TOKENS + slot", "pair * own * WINDOW_TOKENS + slot"),
    ),
    *_each(
        "grpo/alarms.py",
        ALARMS,
        ("self._change(TOTAL) > 0 > self._change(ACCURACY)", "self._change(TOTAL) > 0"),
        ("if self._change(TRUNCATED) > 0:", "if self._change(TRUNCATED) < 0:"),
        ("sign * (values.mean() - bound) > 0", "sign * (values.mean() - bound) < 0"),
        ("is_top = semantic.mean() >= _SATURATED", "is_top = semantic.mean() <= _SATURATED"),
        ('if row.get("step", start + 1) <= start', 'if row.get("step", start + 1) > start'),
    ),
    *_each(
        "training/validation.py",
        VALIDATION,
        ("drop_lines(self._path, start + 1)", "drop_lines(self._path, start)"),
        ("int(max(scored,", "int(min(scored,"),
        ("number % self._options.every == 0 or number == total", "number == total"),
        ("len(later) >= patience", "len(later) > patience"),
    ),
    *_each(
        "data/records/pass_rates.py",
        RATES,
        ('chosen[row["index"]] = holds(row)', 'chosen[row["index"]] = not holds(row)'),
        ('-rates if order == "easy_first" else rates', "rates"),
        ("if digest and head.get(name) != digest:", "if False:"),
        (
            "join = all if isinstance(node.op, ast.And)",
            "join = any if isinstance(node.op, ast.And)",
        ),
        ("sum(scores) / len(scores) if scores else None", "sum(scores) if scores else None"),
        (
            'if sorted(row["index"] for row in rows) != list(range(num_records)):',
            "if len(rows) > num_records:",
        ),
    ),
    *_each(
        "grpo/logprobs.py",
        UPDATE,
        ("jnp.tile(jnp.arange(size), rollouts) +", "jnp.tile(jnp.arange(size), rollouts) + 1 +"),
    ),
    *_each(
        "models/decoder.py",
        UPDATE,
        ("first, inside[:, :, :-1]", "first, inside[:, :, 1:]"),
    ),
    *_each(
        "rewards/gates.py",
        COMBINE,
        ("return accuracy > limits[:, None]", "return accuracy >= limits[:, None]"),
        ("np.where(is_open | np.isnan(scores), scores, 0.0)", "np.where(is_open, scores, 0.0)"),
    ),
    *_each(
        "rewards/combine.py",
        COMBINE,
        (
            "(num_tokens >= shortest) & (num_tokens <= longest)",
            "(num_tokens > shortest) & (num_tokens <= longest)",
        ),
        ("is_right.sum(axis=1, keepdims=True) >= 2", "is_right.sum(axis=1, keepdims=True) >= 1"),
        ("helps = mean(accuracy) >= ratio", "helps = mean(accuracy) <= ratio"),
        ("(limit - buffer - num_tokens) / buffer", "(limit - num_tokens) / buffer"),
        ("np.where(missing, 0.0, reward)", "np.where(missing, 1.0, reward)"),
        ('total[np.isnan(scores["accuracy"])] = np.nan', "pass"),
        ("valid = np.isfinite(total) & ~says_nothing", "valid = ~says_nothing"),
    ),
    *_each(
        "rewards/user.py",
        USER,
        ("values.append(NOT_APPLICABLE)", "values.append(0.0)"),
        ("itertools.islice(returned, num + 1)", "itertools.islice(returned, num)"),
        ("self._takes_chats = True", "self._takes_chats = False"),
    ),
    *_each(
        "rewards/accuracy.py",
        REWARDS,
        (
            "difference <= min(decimals, RELATIVE_TOLERANCE",
            "difference <= max(decimals, RELATIVE_TOLERANCE",
        ),
        (
            "return 1.0 - min(1.0, abs(number - truth) / abs(truth))",
            "return 1.0 - min(1.0, abs(number - truth))",
        ),
        ("return sum(scores) / 3", "return sum(scores) / 2"),
    ),
    *_each(
        "rollout/sampling.py",
        DRAW,
        ("count = min(config.top_k,", "count = min(config.top_k + 1,"),
        ("weight / exponential(keys", "weight * exponential(keys"),
        ("logprob = logit - total", "logprob = logit"),
        ("for part in (step, uid, rollout)", "for part in (step, uid)"),
        (
            "allowed[list(config.forbidden_ids)] = False",
            "allowed[list(config.forbidden_ids)] = True",
        ),
        ("finite = jnp.isfinite(logits)", "finite = ~jnp.isnan(logits)"),
    ),
    *_each(
        "data/loader/schedule.py",
        SCHEDULE,
        (
            "(self.row < first + rows[self.bucket[batch]])",
            "(self.row <= first + rows[self.bucket[batch]])",
        ),
        ("row=(self.row - first)[keep]", "row=self.row[keep]"),
        (
            "records = shuffled(seed, epoch, SAMPLES, records)",
            "records = shuffled(seed, 0, SAMPLES, records)",
        ),
        ("bucket_of = np.argmin(price, axis=0)", "bucket_of = np.argmax(price, axis=0)"),
    ),
]
