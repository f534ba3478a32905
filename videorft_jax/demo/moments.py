"""A world in which a question needs a second look: two moments of a clip that its prompt skips.

A clip of ten seconds shows one colour a second, drawn at random for each. The prompt shows frames
of the seconds 0, 3, 6 and 9 alone, and the question is for the colours of two others, so that
nobody can answer it from the prompt better than by guessing: one word in four is right. A call
`<frames start=2 end=7 n=4>` shows both moments, as the first and the last of four frames.
"""

import itertools
import json
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from videorft_jax.demo.dataset import write_clip
from videorft_jax.demo.scenes import PALETTE

COLOURS = ("red", "green", "blue", "yellow")
SECONDS, FPS, SIDE, FRAMES = 10, 2, 56, 4
SHOWN = (0, 3, 6, 9)  # seconds of which four frames, evenly spaced, are
_HIDDEN = sorted(set(range(SECONDS)) - set(SHOWN))
PAIRS = tuple((a, b) for a, b in itertools.combinations(_HIDDEN, 2) if b - a > 1)
CHAIN_PAIRS = ((1, 4), (2, 5), (4, 7), (5, 8), (1, 8), (2, 7))  # those that chains ask about
SPLITS = ("sft", "rl", "eval")
CHANCE = 1 / len(COLOURS)  # the expected accuracy of a guess, since each word counts by itself


def write_moments(
    folder: str | os.PathLike, clips: Mapping[str, int], questions: int, seed: int = 0
) -> dict[str, str]:
    """Writes clips and records, and returns the record files: `sft`, whose chains contain a call,
    `sft_single`, the same questions answered at once, `rl` and `eval`.

    clips: how many clips each split has. questions: about each clip, at most 6. Clip and questions
    of a split depend on (seed, split, number) alone.
    """
    folder, files = pathlib.Path(folder), {}
    for split in SPLITS:
        (folder / split).mkdir(parents=True, exist_ok=True)
        rows: dict[str, list[dict]] = {split: []} | ({"sft_single": []} if split == "sft" else {})
        for number in range(clips[split]):
            rng = np.random.default_rng([seed, SPLITS.index(split), number])
            colours = [COLOURS[i] for i in rng.integers(len(COLOURS), size=SECONDS)]
            path = f"{split}/{number:05d}.mp4"
            frames = np.empty((SECONDS * FPS, SIDE, SIDE, 3), np.uint8)
            for second, colour in enumerate(colours):
                frames[second * FPS : (second + 1) * FPS] = PALETTE[colour]
            if not (folder / path).exists():
                write_clip(folder / path, frames, FPS)
            asked = CHAIN_PAIRS if split == "sft" else PAIRS
            for place in rng.permutation(len(asked))[:questions]:
                for name, made in rows.items():
                    calls = name == "sft"
                    made.append(_make_row(len(made), path, colours, asked[place], calls))
        for name, made in rows.items():
            files[name] = str(folder / f"{name}.jsonl")
            text = "".join(json.dumps(row) + "\n" for row in made)
            pathlib.Path(files[name]).write_text(text, encoding="utf-8")
    return files


def _make_row(number: int, path: str, colours, moments: tuple[int, int], calls: bool) -> dict:
    first, last = moments
    said = f"<answer>{colours[first]} {colours[last]}</answer>"
    clip = {"type": "video", "path": path}
    chat = [("user", f"<video>Colours at {first} and {last}?"), ("assistant", said)]
    media = [clip]
    if calls:
        call = ("assistant", f"<frames start={first} end={last} n={FRAMES}>")
        chat[1:1] = [call, ("user", "<video>")]
        media.append(clip | {"start": first, "end": last})
    return {
        "problem_id": number,
        "problem_type": "OCR",
        "messages": [{"role": role, "content": text} for role, text in chat],
        "media": media,
    }
