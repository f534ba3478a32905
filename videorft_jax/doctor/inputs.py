"""Checks of what a run reads: model, records, clips, the judge, and its own checkpoints."""

import collections
import os

import numpy as np
from etils import epath

from videorft_jax.checkpoints import manifest
from videorft_jax.data.media.contract import MediaContract, MediaError
from videorft_jax.data.media.load import load_media
from videorft_jax.data.records.opening import open_records
from videorft_jax.data.records.records import RecordError
from videorft_jax.data.records.source import media_of
from videorft_jax.doctor.findings import FAILURE, WARNING, Finding, ok
from videorft_jax.models.family import check_contract
from videorft_jax.models.hf_folder import check_checkpoint
from videorft_jax.models.peft_folder import load_adapter
from videorft_jax.models.sources import find_folder
from videorft_jax.planning.shapes import siglip_config
from videorft_jax.training.run import load_model_files

NUM_CLIPS = 8  # So many clips are decoded, spread evenly over the records.


def check_model(
    folder: str, contract: MediaContract | None = None, strip_prefix: str = "", adapter: str = ""
) -> Finding:
    """Whether a Hugging Face folder holds a model that can be trained under a media contract, with
    an adapter of PEFT put on it. Of the weights the headers are read."""
    if not folder:
        return ok("model: none is named; give --config.model.init_from=DIR to check one")
    try:
        config, tokenizer = load_model_files(folder)
        check_checkpoint(find_folder(folder), config, strip_prefix)
        if contract is not None:
            check_contract(config, contract, folder)
        if adapter:
            load_adapter(adapter, config)
    except (ValueError, OSError) as error:
        text, _, remedy = str(error).partition("; ")
        return Finding(FAILURE, f"model: {text}", remedy or "give the folder of a checkpoint")
    beside = f", with the adapter {adapter}" if adapter else ""
    return ok(f"model: {folder}, {config.model_type}, {len(tokenizer):,} tokens{beside}")


def check_siglip(folder: str) -> Finding:
    """Whether the judge of the semantic reward can be loaded; no weight is read."""
    if not folder:
        return ok("SigLIP: none is named; GRPO with the semantic reward needs reward.siglip")
    try:
        siglip_config(folder)
    except (ValueError, OSError) as error:
        text, _, remedy = str(error).partition("; ")
        return Finding(FAILURE, f"SigLIP: {text}", remedy or "give the folder of a SigLIP")
    return ok(f"SigLIP: {folder}")


def check_records(file: str, root: str, contract: MediaContract) -> list[Finding]:
    """Whether the record file can be read, and a few of its clips be decoded."""
    if not file:
        return [ok("records: none are named; give --config.data.records=FILE to check them")]
    try:
        source = open_records(file, root or None)
    except ValueError as error:
        text, _, remedy = str(error).partition("; ")
        return [Finding(FAILURE, f"records: {text}", remedy)]
    places = np.unique(np.linspace(0, len(source) - 1, NUM_CLIPS).round().astype(int))
    reasons: collections.Counter = collections.Counter()
    example = ""
    for place in map(int, places):
        problem = _look(source, place, contract)
        if problem:
            reasons[problem[0]] += 1
            example = example or problem[1]
    found = [ok(f"records: {len(source):,} in {source.path}")]
    if not reasons:
        return [*found, ok(f"clips: {len(places)} of {len(places)} decoded, in {source.data_root}")]
    bad = sum(reasons.values())
    level = FAILURE if bad == len(places) else WARNING
    what = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    text = f"clips: {bad} of {len(places)} cannot be used ({what}), such as {example}"
    remedy = f"videorft validate --data={file} --data_root={source.data_root} tells of all of them"
    if bad == len(places):
        remedy = "give the folder of the media with --config.data.root=DIR"
    return [*found, Finding(level, text, remedy)]


def _look(source, place, contract):
    """("kind of problem", where), or None for a record whose clips can all be decoded."""
    try:
        record = source[place]
    except RecordError as error:
        return "bad row", str(error)
    for item in record.media:
        media = media_of(source, place, item)
        clip = load_media(media, source.data_root, **item.load_arguments(contract))
        if isinstance(clip, MediaError):
            return clip.reason, item.name
    return None


def check_checkpoints(workdir: str) -> Finding:
    """Whether the checkpoints of a work directory are whole."""
    folder = epath.Path(workdir) / "checkpoints"
    steps = sorted(path for path in folder.glob("*") if manifest.is_step(path.name))
    if not steps:
        return ok(f"checkpoints: none in {os.fspath(workdir)}; a run starts at step 0")
    try:
        damage = {path.name: manifest.find_damage(path) for path in steps}
    except ValueError as error:
        text, _, remedy = str(error).partition("; ")
        return Finding(FAILURE, f"checkpoints: {text}", remedy)
    bad = [f"{name} ({why})" for name, why in damage.items() if why]
    good = [name for name, why in damage.items() if not why]
    if not bad:
        return ok(f"checkpoints: {', '.join(good)} are whole")
    text = f"checkpoints: damaged are {', '.join(bad)}"
    if good:
        return Finding(WARNING, text, f"nothing: a run goes on from {good[-1]}")
    if not any(map(manifest.was_whole, steps)):
        return Finding(WARNING, text, "nothing: a run starts at step 0")
    return Finding(FAILURE, text, f"delete {folder} to start at step 0, or restore a copy")
