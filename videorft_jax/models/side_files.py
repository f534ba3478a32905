"""Whether the tokenizer and processor files beside a model's weights are those of that model."""

import dataclasses
import pathlib
import re
from typing import Any

from videorft_jax.models.config import ModelConfig, TokenIds
from videorft_jax.models.family import family_of
from videorft_jax.models.json_file import read_object

# The tokens that frame pixels, as every vocabulary of the families spells them.
_CONTROLS = {
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
}
_PROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json")
_WHOLE_PROCESSOR = "processor_config.json"  # holds both in later versions of transformers


def check_side_files(config: ModelConfig, folder) -> None:
    """Raises ValueError, one line, where the tokenizer is of another vocabulary than the embedding
    of the model, or where a processor's file cuts or scales pixels as another model wants them."""
    folder = pathlib.Path(folder)
    check_vocabulary(config, folder)
    for name in _PROCESSORS:
        _check_processor(config, folder, name, _read(folder, name))
    whole = _read(folder, _WHOLE_PROCESSOR)
    for part in ("image_processor", "video_processor"):
        if isinstance(whole.get(part), dict):
            _check_processor(config, folder, f"{_WHOLE_PROCESSOR}, {part}", whole[part])


def _read(folder, name) -> dict[str, Any]:
    return read_object(folder / name) if (folder / name).is_file() else {}


def _read_tokens(folder) -> dict[int, str]:
    """The tokens of a tokenizer by their ids; none where there is no vocabulary."""
    whole = _read(folder, "tokenizer.json")
    separate = {} if whole else _read(folder, "vocab.json")
    settings = _read(folder, "tokenizer_config.json")
    added = _read(folder, "added_tokens.json")
    try:
        vocabulary = whole.get("model", {}).get("vocab", {}) if whole else separate
        # Unigram models give a list of (piece, score), all others a dict.
        if isinstance(vocabulary, dict):
            tokens = {number: token for token, number in vocabulary.items()}
        else:
            tokens = {number: pair[0] for number, pair in enumerate(vocabulary)}
        if not tokens:
            return {}
        tokens |= {token["id"]: token["content"] for token in whole.get("added_tokens", [])}
        decoder = settings.get("added_tokens_decoder", {})
        tokens |= {int(number): token.get("content") for number, token in decoder.items()}
        tokens |= {number: token for token, number in added.items()}
        max(map(int.__index__, tokens))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder}: a file of the tokenizer holds something else ({error}); copy the files of "
            "the checkpoint again"
        ) from None
    return tokens


def check_vocabulary(config: ModelConfig, folder) -> None:
    """Raises ValueError when the tokenizer has ids that the embedding has no row for, or other
    tokens where the config has those that frame pixels.

    Reads `tokenizer.json`, or `vocab.json` with `tokenizer_config.json` and `added_tokens.json`.
    More rows than ids is normal: the published matrices end in rows that were never trained.
    """
    folder = pathlib.Path(folder)
    tokens = _read_tokens(folder)
    if not tokens:
        raise ValueError(f"{folder}: no tokenizer.json or vocab.json; give a tokenizer folder")
    rows = config.text.vocab_size
    if max(tokens) >= rows:
        raise ValueError(
            f"{folder}: the tokenizer has ids up to {max(tokens)} and the model only {rows} rows "
            "(vocab_size); use the tokenizer that belongs to the checkpoint"
        )
    for field in dataclasses.fields(TokenIds):
        number, meant = getattr(config.token_ids, field.name), _CONTROLS[field.name]
        if tokens.get(number) != meant:
            raise ValueError(
                f"{folder}: token {number} of the tokenizer is {tokens.get(number)!r}, and "
                f"config.json means {meant} by it ({field.name}_token_id); use the tokenizer that "
                "belongs to the checkpoint"
            )


def _check_processor(config, folder, name, values):
    """Compares what a processor's file says with the geometry; keys that it lacks mean nothing."""
    cut = family_of(config).geometry
    wanted = {
        "patch_size": cut.patch,
        "merge_size": cut.merge,
        "temporal_patch_size": cut.temporal_patch,
        "image_mean": list(cut.pixel_mean),
        "image_std": list(cut.pixel_std),
    }
    found = {key: values[key] for key in wanted if values.get(key) not in (None, wanted[key])}
    kind = values.get("image_processor_type") or values.get("video_processor_type") or ""
    if kind and not re.match(r"Qwen\d(_\d_)?VL", str(kind)):
        found = {"type": kind}
    if found:
        key, value = next(iter(found.items()))
        raise ValueError(
            f"{folder / name}: is of another model ({key} is {value}"
            + (f", not {wanted[key]}" if key in wanted else "")
            + f"); copy that of {family_of(config).title}, or delete the file"
        )
