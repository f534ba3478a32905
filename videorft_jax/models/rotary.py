"""The rotary frequencies of a decoder, plain or stretched to longer contexts."""

import dataclasses
import math
from typing import Any

import numpy as np

from videorft_jax.models.json_file import check_kind, is_list, is_whole


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched. `kind` "linear" divides all of them by `factor`.
    "yarn" (arXiv 2309.00071) divides the slow ones, keeps the fast ones and blends between: a
    frequency is fast where it turns `beta_fast` times within `original` positions and slow where it
    turns `beta_slow` times. `attention_factor` scales cosines and sines, and with them q and k."""

    kind: str
    factor: float
    attention_factor: float = 1.0
    original: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


_KEYS = {
    "default": set(),
    "linear": {"factor"},
    "yarn": {
        "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
        "mscale", "mscale_all_dim", "truncate",
    },
}  # fmt: skip
_ALWAYS = {"type", "rope_type", "rope_theta", "mrope_section", "mrope_interleaved"}


def find_rope(values: dict[str, Any], text: dict[str, Any], where: str) -> dict[str, Any]:
    """The rotary parameters of a `config.json`, whose decoder's part is `text`, {} for none.

    They may stand in the decoder's part or in the root, as `rope_parameters` or `rope_scaling`, and
    only one place would be read. Raises ValueError, one line, where two places disagree,
    and for a section that is none.
    """
    inside = "" if text is values else "text_config."
    places = [
        (f"{prefix}{key}", part[key])
        for prefix, part in ((inside, text), ("", values))
        for key in ("rope_parameters", "rope_scaling")
        if part.get(key)
    ]
    for name, rope in places:
        if not isinstance(rope, dict):
            raise ValueError(f"{where}: {name} is no object; write one")
        first, others = _plain(places[0][1]), _plain(rope)
        for key in sorted(first.keys() & others.keys() | {"type"}):
            if first.get(key) != others.get(key):
                raise ValueError(
                    f"{where}: {places[0][0]} and {name} disagree about {key} "
                    f"({first.get(key)}, {others.get(key)}); write the same, or one of them"
                )
        check_kind(rope, "mrope_section", _is_section, "list of three counts", f"{where}: {name}.")
    return places[0][1] if places else {}


def _is_section(value):
    return is_list(value, is_whole) and len(value) == 3


def _plain(rope):
    """The parameters with one name for the plain kinds, and without keys that are not set."""
    kind = rope.get("rope_type", rope.get("type"))
    given = {key: value for key, value in rope.items() if value is not None and key != "rope_type"}
    return given | {"type": "default" if kind in ("mrope", None) else kind}


def parse_scaling(rope: dict[str, Any], longest: int | None, where: str) -> RopeScaling | None:
    """The scaling that `rope_scaling` or `rope_parameters` asks for, by the rules of transformers.

    longest: `max_position_embeddings`, which stands in for an original length that is not given.
    Returns None for the plain kinds, "default" and "mrope". Raises ValueError, one line, for any
    other kind, for keys that the kind does not have and for a factor that is absent or below 1.
    """
    kind = rope.get("rope_type", rope.get("type", "default"))
    kind = "default" if kind in ("mrope", None) else kind
    if kind not in _KEYS:
        raise ValueError(
            f"{where}: rope_type {kind!r} is not supported; use {', '.join(_KEYS)}, or another "
            "checkpoint"
        )
    given = {key for key, value in rope.items() if value is not None}
    unknown = sorted(given - _ALWAYS - _KEYS[kind])
    if unknown:
        raise ValueError(
            f"{where}: rope_type {kind!r} has no key {', '.join(map(repr, unknown))}; remove it, "
            "or name the kind that it belongs to"
        )
    if kind == "default":
        return None
    factor = rope.get("factor")
    if factor is None or factor < 1:
        raise ValueError(f"{where}: rope_type {kind!r} needs a factor of 1 or more; add it")
    if kind == "linear":
        return RopeScaling(kind, float(factor))
    original = rope.get("original_max_position_embeddings") or longest
    if not original:
        raise ValueError(f"{where}: yarn needs original_max_position_embeddings; add it")
    attention = rope.get("attention_factor")
    if attention is None:
        scales = rope.get("mscale"), rope.get("mscale_all_dim")
        above, below = scales if all(scales) else (1.0, 0.0)
        attention = _magnitude(factor, above) / _magnitude(factor, below)
    return RopeScaling(
        kind,
        float(factor),
        float(attention),
        int(original),
        float(rope.get("beta_fast") or 32),
        float(rope.get("beta_slow") or 1),
        rope.get("truncate") is not False,
    )


def _magnitude(factor, scale):
    """0.1 scale ln(factor) + 1, the temperature of YaRN's attention."""
    return 0.1 * scale * math.log(factor) + 1.0


def frequencies(theta: float, head_dim: int, scaling: RopeScaling | None) -> np.ndarray:
    """Radians a position advances each pair of a head's values, float32 [H / 2]."""
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / head_dim
    plain = (1.0 / theta**exponent).astype(np.float32)
    if scaling is None:
        return plain
    slow = plain / np.float32(scaling.factor)
    if scaling.kind == "linear":
        return slow

    def place(turns):  # the pair, counted in fractions, that turns so often in `original` positions
        wave = scaling.original / (turns * 2 * math.pi)
        return head_dim * math.log(wave) / (2 * math.log(theta))

    low, high = place(scaling.beta_fast), place(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low or 0.001  # the reference's guard against a division by zero
    share = np.clip((np.arange(head_dim // 2, dtype=np.float32) - low) / width, 0, 1)
    return (slow * share + plain * (1 - share)).astype(np.float32)
