"""A synthetic data set of real H.264 clips and PNG images, in the VideoRFT record format.

Sample `index` of a split is a function of (world, seed,
split, index) alone. Any process may write any part of a set in any order, a longer set begins with
the shorter one, and answers are balanced in blocks, so that no answer is worth guessing.
"""

import concurrent.futures
import dataclasses
import json
import logging
import os
from collections.abc import Callable

import av
import numpy as np
from PIL import Image

from videorft_jax.data.records.records import Record
from videorft_jax.data.records.source import write_records
from videorft_jax.demo.questions import KINDS, caption_scene, describe_events
from videorft_jax.demo.scenes import Scene, WorldConfig, draw_frames

logger = logging.getLogger(__name__)

SPLITS = ("sft", "rl", "eval")
VERSION = 1  # raise when the same (world, seed) begins to give other samples


@dataclasses.dataclass(frozen=True)
class Sample:
    """One record with the scene behind it and a caption of its last frame."""

    record: Record
    scene: Scene
    caption: str


def make_sample(world: WorldConfig, seed: int, split: str, index: int) -> Sample:
    """Sample `index` of a split (sft, rl or eval); pixels: `draw_frames(sample.scene)`."""
    stream = [VERSION, seed, SPLITS.index(split)]
    slot, visit = index % len(world.questions), index // len(world.questions)
    name = world.questions[slot]
    kind = KINDS[name]
    rng = np.random.default_rng([*stream, 0, index])
    values = kind.values(world)
    # Each block of len(values) visits deals every value once, in an order of its own.
    deal = np.random.default_rng([*stream, 1, slot, visit // len(values)])
    place = int(deal.permutation(len(values))[visit % len(values)])
    shuffled = kind.options and world.shuffle_options
    value = values[int(rng.integers(len(values)))] if shuffled else values[place]
    every = world.still_every
    is_still = bool(kind.still and every and visit % every == every - 1)
    question = kind.ask(world, rng, value, 1 if is_still else world.num_frames)

    options, answer, conclusion = (), question.answer, question.conclusion
    if kind.options:
        texts = list(values)
        if shuffled:
            texts = [text for text in rng.permutation(texts).tolist() if text != value]
            texts.insert(place, value)
        letters = [chr(ord("A") + i) for i in range(len(texts))]
        options = tuple(f"{letter}. {text}" for letter, text in zip(letters, texts, strict=True))
        answer = letters[texts.index(question.answer)]
        conclusion = f"{conclusion.rstrip('.')}, option {answer}."
    sentences = [question.asked] * world.restate + describe_events(question.scene) + [conclusion]
    folder, suffix = ("images", "png") if is_still else ("clips", "mp4")
    record = Record(
        problem_id=index,
        problem="\n".join([question.problem, *options]),
        data_type="image" if is_still else "video",
        problem_type=kind.problem_type,
        options=options,
        process="" if split == "rl" else " ".join(sentences),
        solution=answer,
        path=f"./{folder}/{split}/{index:06d}.{suffix}",
        data_source=f"synthetic-{name}",
    )
    return Sample(record, question.scene, caption_scene(question.scene))


def write_clip(path: str | os.PathLike, frames: np.ndarray, fps: int) -> None:
    """H.264 in MP4 from uint8 [frames, height, width, 3], through a temporary file and a rename.
    One encoder thread, no time stamp and no macroblock tree (whose vector code was measured to
    differ between runs, about once in ten, on some clips): the same frames give the same file."""
    temporary = f"{path}.{os.getpid()}.tmp"
    with av.open(temporary, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {"preset": "veryfast", "crf": "16", "x264-params": "mbtree=0"}
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    os.replace(temporary, path)


def write_image(path: str | os.PathLike, image: np.ndarray) -> None:
    """PNG from uint8 [height, width, 3], through a temporary file and a rename."""
    temporary = f"{path}.{os.getpid()}.tmp"
    Image.fromarray(image).save(temporary, format="PNG")
    os.replace(temporary, path)


def write_dataset(
    folder: str | os.PathLike,
    num_sft: int,
    num_rl: int,
    num_eval: int,
    *,
    seed: int = 0,
    world: WorldConfig | None = None,
    num_threads: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, str]:
    """Writes {sft,rl,eval}.jsonl, {split}_captions.jsonl (path, data_type, caption), the clips and
    the images; returns split -> record file. Media that are there already are kept (they are only
    ever renamed into place when complete), so a stopped run goes on where it was, and a set can be
    made longer. `progress(done, total)` is called about a hundred times.

    Raises:
      ValueError: the folder holds a set of another seed, world or version.
    """
    world = world or WorldConfig()
    folder = os.path.abspath(folder)
    _claim_folder(folder, seed, world)
    counts = dict(zip(SPLITS, (num_sft, num_rl, num_eval), strict=True))
    total, done = sum(counts.values()), 0
    files = {}
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        for split, count in counts.items():
            for kind in ("clips", "images"):
                os.makedirs(os.path.join(folder, kind, split), exist_ok=True)
            records, captions = [], []

            def write(index: int, split: str = split) -> Sample:
                sample = make_sample(world, seed, split, index)
                path = os.path.join(folder, sample.record.path)
                if not os.path.exists(path):
                    frames = draw_frames(sample.scene)
                    if sample.scene.is_still:
                        write_image(path, frames[0])
                    else:
                        write_clip(path, frames, world.fps)
                return sample

            for sample in pool.map(write, range(count)):
                record = sample.record
                records.append(record)
                row = {"path": record.path, "data_type": record.data_type}
                captions.append(json.dumps(row | {"caption": sample.caption}) + "\n")
                done += 1
                if progress and (done % max(1, total // 100) == 0 or done == total):
                    progress(done, total)
            files[split] = os.path.join(folder, f"{split}.jsonl")
            write_records(files[split], records)
            _write_text(os.path.join(folder, f"{split}_captions.jsonl"), "".join(captions))
    logger.info("synthetic data in %s: %s", folder, counts)
    return files


def _claim_folder(folder: str, seed: int, world: WorldConfig) -> None:
    claim = {"version": VERSION, "seed": seed, "world": dataclasses.asdict(world)}
    text = json.dumps(claim, indent=1)
    path = os.path.join(folder, "world.json")
    os.makedirs(folder, exist_ok=True)
    if os.path.exists(path):
        with open(path) as file:
            if file.read() != text:
                raise ValueError(
                    f"{folder}: holds synthetic data of another seed, world or version; remove it"
                    " or name another folder"
                )
    else:
        _write_text(path, text)


def _write_text(path: str, text: str) -> None:
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "w") as file:
        file.write(text)
    os.replace(temporary, path)
