"""Whether transformers computes with an exported folder what the weights of the run do.

transformers' models are written with torch, which is loaded by transformers alone, and its video
processors with torchvision. Neither is needed for anything else here.
"""

import dataclasses
import functools
import importlib.util
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import transformers
from transformers.video_utils import load_video

from videorft_jax import api
from videorft_jax.data.media.processor_files import takes_same_frames
from videorft_jax.data.media.video import read_video
from videorft_jax.data.records.chat_template import EXACT_FILE
from videorft_jax.doctor.findings import FAILURE, OK, WARNING, Finding, ok
from videorft_jax.models.family import family_of, rule_of_version
from videorft_jax.models.geometry import Geometry
from videorft_jax.models.hf_folder import flatten
from videorft_jax.parallel import sharding
from videorft_jax.training import restore
from videorft_jax.training.state import checkpoint_dtype

QUESTION = "What happens in this video?"
_MAX_NEW_TOKENS = 64
_NEAR = 1e-3  # Share of the largest logit that may differ; two programs in float32 differ by 1e-5.


def check_possible(clip: str) -> None:
    """Raises ValueError, one line, where a folder could not be compared on `clip`."""
    if importlib.util.find_spec("torch") is None:
        raise ValueError("--check runs transformers' model; pip install torch torchvision")
    if not os.path.isfile(clip):
        raise ValueError(f"--check={clip}: no such clip; give the path of a video file")


def check_export(folder: str, checkpoint: str, clip: str, *, ema: bool = False) -> list[Finding]:
    """Compares a written folder, in transformers, with the checkpoint that it was written from.

    Both answer one question about the clip, in float32, with the weights rounded as in the folder:
    the logits of the prompt must agree, the greedy text must be the same, and where torchvision is
    installed transformers' own processor must make the same tokens and pixels of the path. Holds
    the weights twice in float32. Raises ValueError for a clip that cannot be read.
    """
    ours, saved = api.load(folder, dtype="float32"), restore.find_checkpoint(checkpoint)
    own = ours.contract.mrope_rule
    rule = rule_of_version(ours.config, transformers.__version__, released=own)
    found = [_compare_media(ours.contract, saved), _compare_rules(own, rule)]
    if rule is None:
        return found
    ours.contract = dataclasses.replace(ours.contract, mrope_rule=rule)
    found.append(_compare_weights(ours, saved, checkpoint_dtype(folder), ema))
    messages = _ask(clip)
    batch = ours.prepare([messages])
    length = int((batch.segment_ids > 0).sum())
    frames = read_video(clip, ours.contract)
    inputs = _make_inputs(ours, batch.tokens[:, :length], frames)
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, dtype="float32", local_files_only=True
    ).eval()
    with jax.default_matmul_precision("highest"):
        mine = np.asarray(ours.forward(batch))[0, :length]
        out = ours.generate(
            [messages], num_rollouts=1, max_new_tokens=_MAX_NEW_TOKENS, temperature=0.0
        )
    logits = theirs(**inputs).logits[0].detach().numpy()
    ids = theirs.generate(**inputs, max_new_tokens=_MAX_NEW_TOKENS)[0, length:].tolist()
    text = ours.tokenizer.decode(ids, skip_special_tokens=True)
    found += [_compare_logits(mine, logits), _compare_texts(out.texts[0][0], text)]
    found.append(_compare_processor(ours, folder, messages, inputs, len(frames.frames)))
    return found


def _ask(clip):
    parts = [{"type": "video", "video": os.path.abspath(clip)}, {"type": "text", "text": QUESTION}]
    return [{"role": "user", "content": parts}]


def _compare_media(contract, saved):
    if difference := saved.contract.diff(contract):
        return Finding(FAILURE, f"media contract: not the run's ({difference})", "export again")
    return ok("media contract: it is the run's")


def _compare_rules(ours, theirs):
    version = f"transformers {transformers.__version__}"
    if theirs is None:
        text = f"positions: no rule of ours equals that of {version}"
        return Finding(FAILURE, text, "install another version of transformers")
    if theirs != ours:
        text = f"positions: the run has mrope_rule {ours}, {version} computes {theirs}, as here"
        return Finding(WARNING, text, "expect other answers than those of videorft ask on clips")
    return ok(f"positions: {version} has the run's mrope_rule {ours}")


def _compare_weights(ours, saved, dtype, ema):
    """Puts the checkpoint's weights, rounded as the folder's, into `ours`. Adapters are merged on
    the devices that the export merges them on, since each sum is rounded as these compute it."""
    wanted = restore.read_params(saved, ours.config, sharding.make_mesh(), ema=ema)
    wanted = jax.tree.map(jax.jit(functools.partial(_round, dtype=dtype)), wanted)
    wanted = jax.device_put(wanted, sharding.state_shardings(wanted, ours.mesh, saved.name))
    written, kept = flatten(ours.params), flatten(wanted)
    ours.params = wanted
    bad = [path for path, leaf in kept.items() if not bool((written[path] == leaf).all())]
    if bad:
        text = f"weights: {len(bad)} of {len(kept)} differ from the run's, such as {bad[0]}"
        return Finding(FAILURE, text, "export again")
    return ok(f"weights: all {len(kept)} stacks are those of {saved.name}, to the bit")


def _round(leaf, dtype):
    return leaf.astype(dtype).astype(jnp.float32)


def _make_inputs(model, tokens, clip):
    """The arguments of transformers' model, made of our own tokens and frames."""
    ids, cut = model.config.token_ids, family_of(model.config).geometry
    rows, grid = _rows(clip.frames, cut)
    values = {
        "input_ids": tokens.astype(np.int64),
        "attention_mask": np.ones(tokens.shape, np.int64),
        "mm_token_type_ids": ((tokens == ids.image) + 2 * (tokens == ids.video)).astype(np.int32),
        "pixel_values_videos": rows,
        "video_grid_thw": np.array([grid], np.int64),
    }
    if not cut.timestamps:
        values["second_per_grid_ts"] = np.array([cut.temporal_patch / clip.fps], np.float32)
    return transformers.BatchFeature(values, tensor_type="pt")


def _rows(frames: np.ndarray, cut: Geometry) -> tuple[np.ndarray, tuple[int, int, int]]:
    """uint8 [n, h, w, 3] -> float32 [patches, values] in the order of transformers' processors, in
    which the patches of one visual token follow each other, and the grid in patches."""
    pairs, side, merge = cut.temporal_patch, cut.patch, cut.merge
    frames = np.concatenate([frames, frames[-1:].repeat(-len(frames) % pairs, 0)])
    count, height, width, _ = frames.shape
    grid = count // pairs, height // side, width // side
    mean, std = (255 * np.asarray(x, np.float32) for x in (cut.pixel_mean, cut.pixel_std))
    values = ((frames.astype(np.float32) - mean) / std).transpose(0, 3, 1, 2)
    down, across = grid[1] // merge, grid[2] // merge
    values = values.reshape(grid[0], pairs, 3, down, merge, side, across, merge, side)
    values = values.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return values.reshape(int(np.prod(grid)), -1), grid


def _compare_logits(ours, theirs):
    largest = float(np.abs(theirs).max())
    difference = float(np.abs(ours - theirs).max()) / largest
    text = f"logits: they differ by {difference:.1e} of the largest over {len(ours)} tokens"
    if not difference <= _NEAR:
        return Finding(FAILURE, f"{text}; at most {_NEAR:.0e} is rounding", "do not use the folder")
    return ok(text)


def _compare_texts(ours, theirs):
    if ours != theirs:
        text = f"text: ours is {_short(ours)}, that of transformers {_short(theirs)}"
        return Finding(FAILURE, text, "do not use the folder")
    return ok(f"text: both write {_short(ours)}")


def _short(text):
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _compare_processor(model, folder, messages, ours, num_frames):
    """Compares what the folder's own processor makes of the path with our tokens and pixels."""
    if importlib.util.find_spec("torchvision") is None:
        text = "processor: not compared, since it needs torchvision, which is missing"
        return Finding(WARNING, text, "pip install torchvision")
    processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
    processor.video_processor.fetch_videos = _fetch
    exact = pathlib.Path(folder) / EXACT_FILE
    words = {"chat_template": exact.read_text()} if exact.exists() else {}
    theirs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        **words,
    )  # fmt: skip
    names = ("input_ids", "video_grid_thw")
    differ = [name for name in names if theirs[name].tolist() != ours[name].tolist()]
    if not differ:
        rows = (np.asarray(x["pixel_values_videos"]) for x in (theirs, ours))
        std = min(family_of(model.config).geometry.pixel_std)
        levels = float(np.abs(np.subtract(*rows)).max()) * 255 * std
        if levels < 1.5:
            said = f"same tokens, pixels within {levels:.0f} of 255 levels, from the path"
            return ok(
                f"processor: {said}" + (f", with the chat template {EXACT_FILE}" * bool(words))
            )
        differ = [f"pixels, by {levels:.0f} of 255 levels"]
    text = f"processor: it reads the clip otherwise ({', '.join(differ)})"
    level = FAILURE if takes_same_frames(model.contract, num_frames) else WARNING
    return Finding(level, text, "give clients frames that were sampled by videorft_jax")


def _fetch(paths, sample_indices_fn=None):
    """Decodes with PyAV; the library's own choice depends on which decoders are installed."""
    if isinstance(paths, list):
        return list(zip(*(_fetch(path, sample_indices_fn) for path in paths), strict=True))
    return load_video(paths, backend="pyav", sample_indices_fn=sample_indices_fn)


def is_alike(findings: list[Finding]) -> bool:
    """Whether no finding is a failure."""
    return all(finding.level in (OK, WARNING) for finding in findings)
