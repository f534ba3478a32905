"""Whether a server's completions can be as long as is asked: by memory, and by positions."""

from videorft_jax.data.batch.batch import Batch
from videorft_jax.rollout.room import count_positions, token_gib
from videorft_jax.serving.errors import Refused
from videorft_jax.serving.options import ServeOptions


def check_memory(model, options: ServeOptions, dtype, least: int) -> None:
    """Raises ValueError, one line, where a device cannot hold one completion of `max_new_tokens`,
    or `max_slots` of the shortest, of `least` tokens with their prompts.

    model: of `videorft_jax.load`. dtype: of its keys and values.
    """
    each, limit = token_gib(model.config.text, model.mesh, dtype.itemsize)
    if limit is None:
        return
    for name, tokens in (("max_new_tokens", 1), ("max_slots", least)):
        value, most = getattr(options, name), int(limit / each / tokens)
        if value > most:
            raise ValueError(
                f"serve: {name} is {value}; give at most {most}, as keys and values take "
                f"{each:.3g} GiB a token, and a device has {limit:.2f}"
            )


def choose_limit(batch: Batch, asked: int | None, most: int, positions: int | None) -> int:
    """The most tokens of a completion behind a prompt, the one row of `batch`.

    asked: what the request names, None: as many as there can be, up to `most`. positions: those of
    the model, None where it does not say. Raises Refused for more than the model has.
    """
    limit = most if asked is None else asked
    if positions is None:
        return limit
    taken = count_positions(batch)
    left = positions - taken
    if left < 1 or (asked is not None and asked > left):
        wanted = "" if asked is None else f", and {asked} tokens are asked for"
        raise Refused(
            400, f"the model has {positions} positions, of which the prompt takes {taken}{wanted}; "
            "shorten it, or ask for less", "messages", "context_length_exceeded",
        )  # fmt: skip
    return min(limit, left)
