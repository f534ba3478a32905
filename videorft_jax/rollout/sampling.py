"""Draws one token from logits, on the device, in float32.

The log-probability that is recorded is the policy's: that of softmax(logits / temperature) over the
whole vocabulary, which is the number that training computes again. Forbidden ids, top-k, top-p and
min-p leave only a part of the vocabulary to draw from. `truncation` is the log of the probability
that this part has, so `logprob - truncation` is the log-probability with which the token was drawn.

Top-k and top-p do not sort. The lowest logit that stays is found by bisection on the bit pattern of
float32, with 32 counts or sums over the vocabulary. Where the vocabulary is split over devices each
of these waits for all of them, so that three or seven bounds are tried at once, in fewer turns. Ids
whose logits tie at that bound all stay, so the result depends on no order.
"""

import dataclasses
import functools
import json
import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from videorft_jax.models.config import ModelConfig

_NUM_NUMBERS = 6  # fields of SamplingConfig that a caller gives as one number


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How completions are drawn and when they end.

    temperature: 0 is greedy. top_k: 0 is off. top_p in (0, 1]. min_p in [0, 1): an id stays when
    its probability is at least this share of the likeliest one's. The three apply in this order,
    each to what the one before left, as in Hugging Face. stop_ids end a completion and belong to
    it; pad_id fills the places after the end. Never drawn are forbidden_ids and the ids from
    num_real_tokens on, the tokenizer's length, by which an embedding is padded (None: no padding).
    """

    num_rollouts: int = 1
    max_new_tokens: int = 768
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop_ids: tuple[int, ...] = ()
    pad_id: int = 0
    forbidden_ids: tuple[int, ...] = ()
    num_real_tokens: int | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self)[:_NUM_NUMBERS]:
            value, kind = getattr(self, field.name), numbers.Real
            if isinstance(field.default, int):
                kind = numbers.Integral
            if not isinstance(value, kind) or isinstance(value, bool):
                wanted = "a number" if kind is numbers.Real else "a whole number"
                raise ValueError(f"sampling: {field.name} is {str(value)[:40]!r}; give {wanted}")
        conditions = [
            ("num_rollouts", self.num_rollouts >= 1, "at least 1"),
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < np.inf, "0 (greedy) or a positive number"),
            ("top_k", self.top_k >= 0, "0 (off) or a count"),
            ("top_p", 0 < self.top_p <= 1, "a probability above 0; 1 is off"),
            ("min_p", 0 <= self.min_p < 1, "a share below 1; 0 is off"),
        ]
        for name, holds, wanted in conditions:
            if not holds:
                raise ValueError(f"sampling: {name} is {getattr(self, name)}; give {wanted}")


def media_ids(config: ModelConfig) -> tuple[int, ...]:
    """Lists the ids that stand for pixels or frame them. A completion that held one could not be
    scored, since no pixels belong to it."""
    marker = json.loads(config.source).get("vision_token_id")
    return (*dataclasses.astuple(config.token_ids), *(() if marker is None else (marker,)))


def make_sampling(config: ModelConfig, tokenizer, **settings) -> SamplingConfig:
    """Makes the sampling of a model: stop, pad and forbidden ids are the model's own, `settings`
    are the other fields of SamplingConfig."""
    stop = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    return SamplingConfig(
        stop_ids=tuple(stop),
        pad_id=stop[-1],
        forbidden_ids=media_ids(config),
        num_real_tokens=len(tokenizer),
        **settings,
    )


class Draw(NamedTuple):
    """What was drawn for each row of logits [..., V], each field [...]."""

    token: jax.Array  # int32
    logprob: jax.Array  # float32, of the policy at this temperature
    truncation: jax.Array  # float32 <= 0, log of the mass drawn from
    failed: jax.Array  # bool, some logit is not finite: token and numbers mean nothing


def completion_key(seed, step, uid, rollout) -> jax.Array:
    """Makes the random key of one completion, uint32 [2], from four scalars."""
    key = jax.random.key(seed, impl="threefry2x32")
    for part in (step, uid, rollout):
        key = jax.random.fold_in(key, part)
    return jax.random.key_data(key)


def draw(
    logits, keys, position, config: SamplingConfig, *, parts: int = 1, share=lambda x: x
) -> Draw:
    """Draws from float32 logits [..., V] with keys uint32 [..., 2] of the completions.

    position: place of the token in the completion; place and id are the counter of the noise, so
    the same token of the same completion meets the same noise in any batch. parts: over how many
    devices V is split, which changes how bounds and token are found and not what is drawn. share:
    gives an array [..., parts, n], split by parts, whole to each of them.
    """
    over = functools.partial(_reduce, parts=parts, share=share)
    finite = jnp.isfinite(logits)
    scaled = jnp.where(finite, logits, 0.0) / (config.temperature or 1.0)
    allowed = _find_allowed(logits.shape[-1], config)
    peak, highest = over(jnp.max, [scaled, jnp.where(allowed, scaled, -jnp.inf)])
    peak = peak[..., None]
    weight = jnp.exp(scaled - peak)
    ids = jnp.arange(logits.shape[-1], dtype=jnp.uint32)
    kept = _kept(scaled, allowed, highest, config, bits_of_a_turn(parts), over)
    if config.temperature == 0:
        racing = jnp.where(kept, scaled, -jnp.inf)
    else:
        racing = jnp.where(kept, weight / exponential(keys, position, ids), -1.0)
    # What follows is an argmax that takes the lowest id of equals. The barrier keeps XLA for CPU
    # from fusing noise and search into one loop, which takes eight times as long.
    racing = jax.lax.optimization_barrier(racing)
    masses = [jnp.where(finite, 0.0, 1.0), weight, jnp.where(kept, weight, 0.0)]
    token, logit, (bad, whole, left) = _find_first(racing, scaled, masses, ids, parts, share)
    total = jnp.log(whole) + peak[..., 0]
    logprob = logit - total
    if config.temperature == 0:  # Only one id could be drawn.
        truncation = logprob
    elif _keeps_all(config):
        truncation = jnp.zeros_like(total)
    else:
        truncation = jnp.minimum(jnp.log(left) + peak[..., 0] - total, 0.0)
    return Draw(token.astype(jnp.int32), logprob, truncation, bad > 0)


def _reduce(reduce, arrays, parts, share):
    """Gives the sums or maxima over V of arrays [..., V]. Devices that split V gather what each
    part gives, of all arrays in one exchange; sums of theirs would take two, there and back."""
    if parts == 1:
        return [reduce(x, -1) for x in arrays]
    own = [reduce(x.reshape(*x.shape[:-1], parts, -1), -1) for x in arrays]
    return jnp.moveaxis(reduce(share(jnp.stack(own, -1)), -2), -1, 0)


def _find_first(racing, scaled, masses, ids, parts, share):
    """Gives the lowest id [...] of those with the largest number in `racing` [..., V], what it has
    in `scaled`, and the sums of all `masses` [..., V]. Each part of V finds its own, and all put
    them together after one exchange."""

    def split(x):
        return x.reshape(*x.shape[:-1], parts, x.shape[-1] // parts)

    racing, scaled, ids = split(racing), split(scaled), split(ids)
    sums = [split(mass).sum(-1) for mass in masses]
    best = racing.max(-1)
    token = jnp.where(racing == best[..., None], ids, jnp.uint32(ids.size - 1)).min(-1)
    # A sum with one term stays where the term lies, which a gather would not.
    logit = jnp.where(ids == token[..., None], scaled, 0.0).sum(-1)
    if parts == 1:
        return token[..., 0], logit[..., 0], [part[..., 0] for part in sums]
    bits = [jax.lax.bitcast_convert_type(x, jnp.int32) for x in (logit, *sums)]
    found = share(jnp.stack([order_bits(best), token.astype(jnp.int32), *bits], -1))
    first = jnp.argmax(found[..., 0], -1)[..., None, None]  # Of equals, that with lower ids.
    token, logit = jnp.moveaxis(jnp.take_along_axis(found, first, -2)[..., 0, 1:3], -1, 0)
    totals = jax.lax.bitcast_convert_type(found[..., 3:], jnp.float32).sum(-2)
    logit = jax.lax.bitcast_convert_type(logit, jnp.float32)
    return token.astype(jnp.uint32), logit, jnp.moveaxis(totals, -1, 0)


def exponential(keys, position, ids) -> jax.Array:
    """Makes exponential noise, float32 [..., V], of keys uint32 [..., 2].

    The id with the largest weight / noise is a draw in proportion to the weights; minus the log of
    this noise is the noise of the Gumbel trick. All 32 random bits count where the noise is small,
    which is where the winner is. The usual 23 bits would tie in a vocabulary of 152 thousand.
    """
    bits = threefry(keys[..., :1], keys[..., 1:], jnp.uint32(position), ids)
    uniform = (bits.astype(jnp.float32) + 0.5) * 2.0**-32
    return -jnp.log1p(-jnp.minimum(uniform, 1 - 2.0**-24))


def threefry(key0, key1, counter0, counter1) -> jax.Array:
    """Computes the first word of Threefry-2x32 with 20 rounds (Salmon et al. 2011), uint32.

    The arguments broadcast. The rounds are unrolled, so that XLA fuses them with what follows;
    JAX's own Threefry is a loop, which is slow on the CPU.
    """
    keys = key0, key1, key0 ^ key1 ^ jnp.uint32(0x1BD11BDA)
    x, y = counter0 + key0, counter1 + key1
    for block in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[block % 2]:
            x = x + y
            y = x ^ ((y << turn) | (y >> (32 - turn)))
        x = x + keys[(block + 1) % 3]
        y = y + keys[(block + 2) % 3] + jnp.uint32(block + 1)
    return x


def _keeps_all(config):
    bounds = config.top_k, config.top_p, config.min_p, config.num_real_tokens
    return bounds == (0, 1.0, 0.0, None) and not config.forbidden_ids


def _find_allowed(size, config):
    """Tells which of `size` ids are neither forbidden nor padding, a NumPy array bool [V]."""
    allowed = np.arange(size) < (config.num_real_tokens or size)
    allowed[list(config.forbidden_ids)] = False
    return allowed


def _kept(scaled, allowed, peak, config, bits, over):
    """Tells which ids may be drawn, bool [..., V] or [V].

    allowed: see `_find_allowed`. peak: the largest number of those [...]. bits: see `find_largest`.
    over: reduces arrays over V, see `_reduce`.
    """
    if config.temperature == 0 or (config.top_k, config.top_p, config.min_p) == (0, 1.0, 0.0):
        return jnp.asarray(allowed)
    scaled = jnp.where(allowed, scaled, -jnp.inf)
    order = order_bits(scaled)
    bound = order_bits(jnp.full(scaled.shape[:-1], jnp.finfo(jnp.float32).min))
    if config.top_k:
        count = min(config.top_k, int(allowed.sum()))

        def are_enough(bounds):
            counts = over(jnp.sum, [order >= bound[..., None] for bound in bounds])
            return [each >= count for each in counts]

        bound = find_largest(are_enough, bound, bits)
    if config.top_p < 1:
        mass = jnp.where(order >= bound[..., None], jnp.exp(scaled - peak[..., None]), 0.0)
        (whole,) = over(jnp.sum, [mass])
        wanted = config.top_p * whole

        def are_wanted(bounds):
            masses = [jnp.where(order >= bound[..., None], mass, 0.0) for bound in bounds]
            return [each >= wanted for each in over(jnp.sum, masses)]

        bound = jnp.maximum(bound, find_largest(are_wanted, bound, bits))
    if config.min_p:
        bound = jnp.maximum(bound, order_bits(peak + np.float32(np.log(config.min_p))))
    return order >= bound[..., None]


def order_bits(x):
    """Maps float32 to int32 so that the order of the numbers stays."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def bits_of_a_turn(parts: int) -> int:
    """Chooses how many bits of a bound are found at once: more questions where an exchange between
    more devices takes longer."""
    return 1 if parts == 1 else 2 if parts <= 4 else 3


def find_largest(hold, like, bits: int = 1):
    """Finds the largest int32 [...] of which something holds that holds up to some number and not
    beyond it.

    hold: takes a list of numbers [...] and tells of each whether it holds, bool [...]. bits: how
    many of the 32 bits a turn finds, with 2 ** bits - 1 questions at once; the first finds what is
    left over.
    """
    turns = 31 // bits
    end = bits * (turns + 1)

    def narrow(low, step, bits):
        tried = [low + step * count for count in range(1, 2**bits)]
        return low + step * sum(held.astype(jnp.int32) for held in hold(tried))

    def turn(number, low):
        return narrow(low, jnp.int32(1) << (end - bits * (number + 1)), bits)

    # The first turn stands before the loop, where its questions need no exchange of their own.
    # 1 << 31 is negative, and the sum wraps.
    low = jnp.full_like(like, np.iinfo(np.int32).min)
    low = narrow(low, jnp.int32(1) << (end - bits), 32 - bits * turns)
    return jax.lax.fori_loop(1, turns + 1, turn, low)
