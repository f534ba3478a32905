"""The names that other trainers and other classes give to the tensors of a model."""

import logging
import pathlib
import re

from videorft_jax.models import tensor_files
from videorft_jax.models.config import ModelConfig
from videorft_jax.models.family import family_of
from videorft_jax.models.names import Leaf
from videorft_jax.models.tensor_files import Entry

log = logging.getLogger(__name__)

_BARE = "model."  # what the base model's own class leaves out


def read_names(
    folder: pathlib.Path, config: ModelConfig, leaves: list[Leaf], strip_prefix: str = ""
) -> dict[str, Entry]:
    """The tensors of a Hugging Face folder by their names on the hub; only headers are read.

    Names of the base model without its head, which lack "model.", are understood. `strip_prefix` is
    taken off every name, and a dot behind it may be left out. Raises ValueError, one line, for
    names behind a prefix that was not asked for, for a prefix that not all of them have, for
    adapters that were not merged, and for one tensor under two names.
    """
    old_name = family_of(config).old_name
    known = {name for leaf in leaves for name, _ in leaf.names()} | {"lm_head.weight"}
    entries = tensor_files.read_folder(folder)
    if (folder / tensor_files.ADAPTER_NAME).is_file():
        log.warning(
            "%s: holds an adapter of PEFT beside the weights, which are read alone; transformers "
            "would put it on its own base. Where it is not merged into them, give it as the "
            "adapter (model.adapter, --adapter)", folder,
        )  # fmt: skip
    if strip_prefix:
        entries = _strip(folder, entries, strip_prefix.rstrip(".") + ".")
    found, bare = {}, 0
    for name, entry in entries.items():
        old = old_name(name)
        if old not in known and old_name(_BARE + name) in known:
            old, bare = old_name(_BARE + name), bare + 1
        if old in found:
            raise ValueError(
                f"{folder}: {old} is there under its old and its new name; delete one of the two"
            )
        found[old] = entry
    if bare:
        log.info("%s: %d names of a base model, which lack %s", folder, bare, _BARE)
    _check_adapters(folder, found)
    _check_prefix(folder, [name for name in found if name not in known], old_name, known)
    _check_head(folder, config, found, known)
    return found


def _strip(folder, entries, prefix):
    others = [name for name in entries if not name.startswith(prefix)]
    if others:
        raise ValueError(
            f"{folder}: {len(others)} of {len(entries)} names, such as {min(others)}, do not begin "
            f"with {prefix} (strip_prefix); leave it out, or keep only the model's own tensors"
        )
    return {name.removeprefix(prefix): entry for name, entry in entries.items()}


def _check_adapters(folder, names):
    count = sum(bool(re.search(r"\.(lora_\w+|base_layer)\.", name)) for name in names)
    if count:
        raise ValueError(
            f"{folder}: {count} of {len(names)} tensors are of an adapter that was not merged; "
            "save it with PEFT (merge_and_unload, then save_pretrained)"
        )


def _check_prefix(folder, unknown, old_name, known):
    """Raises ValueError where the unknown names are known ones behind the same words."""
    if not unknown:
        return
    parts = unknown[0].split(".")
    for count in range(1, len(parts)):
        head = ".".join(parts[:count]) + "."
        if old_name(unknown[0].removeprefix(head)) in known:
            behind = sum(name.startswith(head) for name in unknown)
            raise ValueError(
                f"{folder}: {behind} tensors are named {head}NAME, as wrappers of trainers save "
                f"them; give strip_prefix={head} (model.strip_prefix, --strip_prefix), or save the "
                "model inside"
            )


def _check_head(folder, config, found, known):
    """A base model that is saved without its head computes no logits, unless the head is the
    embedding."""
    absent = known - found.keys()
    if not config.text.tied and absent == {"lm_head.weight"}:
        raise ValueError(
            f"{folder}: no lm_head.weight, as where the base model was saved, and config.json does "
            "not tie it to the embedding (tie_word_embeddings); save the model with its head"
        )
