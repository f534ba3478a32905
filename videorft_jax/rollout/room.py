"""Whether completions can be as long as is asked: by the model's positions, and by memory.

Only what no program can do without is counted, so that nothing is refused that could run.
"""

import json
import math

import jax
import numpy as np

from videorft_jax.data.batch.batch import Batch
from videorft_jax.metrics.memory import GIB, cpu_gib, device_gib
from videorft_jax.models.config import ModelConfig
from videorft_jax.rollout.programs import Programs

_DRAWN = 12  # bytes a token on the host: its id, its log-probability and its truncation


def check_length(programs: Programs, batch: Batch, rows: int, limits=None) -> None:
    """Raises ValueError, one line with the most that is possible, where completions of
    `max_new_tokens` cannot be.

    batch: the prompts of this process. rows: the prompts of all processes. limits: as in
    `RolloutEngine.rollout`.
    """
    sampling, count = programs.sampling, rows * programs.sampling.num_rollouts
    size = 1 if programs.int8_cache else programs.dtype.itemsize
    each, limit = token_gib(programs.config.text, programs.mesh, size, count)
    if limit is not None and each > limit:
        fitting = sampling.num_rollouts * limit / each / sampling.max_new_tokens
        raise ValueError(
            f"rollout: num_rollouts is {sampling.num_rollouts}; give at most {max(int(fitting), 1)}"
            f", as one token of each completion takes {each:.3g} GiB, and a device has {limit:.2f}"
        )
    reasons = []
    if limit is not None:
        reason = f"as keys and values take {each:.3g} GiB a token, and a device has {limit:.2f}"
        reasons.append((int(limit / each), sampling.max_new_tokens, reason))
    if positions := find_positions(programs.config):
        taken = count_positions(batch)
        wanted = sampling.max_new_tokens if limits is None else int(np.max(limits, initial=0))
        reason = f"as the model has {positions} positions, of which the prompt takes {taken}"
        if taken >= positions:
            raise ValueError(
                f"rollout: a prompt takes {taken} positions, and the model has {positions}; use "
                "fewer frames or pixels, or less text"
            )
        reasons.append((positions - taken, wanted, reason))
    if broken := [(most, wanted, reason) for most, wanted, reason in reasons if wanted > most]:
        most, wanted, reason = min(broken)
        raise ValueError(f"rollout: max_new_tokens is {wanted}; give at most {most}, {reason}")


def token_gib(text, mesh, size: int, count: int = 1) -> tuple[float, float | None]:
    """The least memory that one token of each of `count` completions takes on a device, and the
    memory of a device, both in GiB; None where it does not say.

    text: the decoder's part of a `ModelConfig`. size: bytes of a number of keys and values.
    """
    devices = mesh.devices.reshape(-1)
    each = 2 * text.num_layers * text.num_kv_heads * text.head_dim * size / len(devices)
    if devices[0].platform != "cpu":
        return count * each / GIB, device_gib()
    own = sum(device.process_index == jax.process_index() for device in devices)
    # Host and devices share their memory.
    return count * (each + _DRAWN / own) / GIB, cpu_gib(own)


def find_positions(config: ModelConfig) -> int | None:
    """The positions that a model was made for, with those that a scaling of its waves adds; None
    where its `config.json` does not say."""
    values = json.loads(config.source)
    given = values.get("text_config", values).get("max_position_embeddings")
    if not isinstance(given, int) or given < 1:
        return None
    scaling = config.text.rope_scaling
    return given if scaling is None else math.floor(given * scaling.factor)


def count_positions(batch: Batch) -> int:
    """The positions of the longest prompt; a completion begins behind them."""
    last = np.maximum((np.asarray(batch.segment_ids) > 0).sum(1) - 1, 0)
    return int(np.take_along_axis(batch.positions[:, 0], last[:, None], 1).max(initial=-1)) + 1
