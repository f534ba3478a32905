"""Records of several clips and images, and how transformers' own processor reads them.

The frames are sampled here by the formulas of qwen-vl-utils and PyAV's plain loop, so that nothing
of the loader's takes part in what it is compared with.
"""

import json
import math
import types
from collections.abc import Iterator

import av
import numpy as np
import torch
from clips import encode
from hf_processor import describe_frames
from PIL import Image
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

NUM_FRAMES = 4  # Each clip has so many.


def _video(name, **keys):
    return {"type": "video", "video": name} | keys


def _image(name):
    return {"type": "image", "image": name}


def _text(words):
    return {"type": "text", "text": words}


def _user(*parts):
    return {"role": "user", "content": list(parts)}


def _answer(thought, answer):
    said = f"<think>{thought}</think>\n<answer>{answer}</answer>"
    return {"role": "assistant", "content": [_text(said)]}


MIDDLE = {"start": 0.5, "end": 1.5}  # seconds of a clip
# Two clips of one file, a clip and an image, two images, and a chat about three items.
CHATS = [
    [_user(_video("a.mp4"), _video("a.mp4", **MIDDLE), _text("Which is longer?")),
     _answer("I compare.", "the first")],
    [_user(_text("Is "), _image("c.png"), _text(" in "), _video("b.mp4"), _text("?")),
     _answer("I look.", "no")],
    [_user(_image("c.png"), _image("d.png"), _text("Which is red?")), _answer("I see.", "neither")],
    [{"role": "system", "content": [_text("You are brief.")]},
     _user(_video("b.mp4"), _text("What moves?")), _answer("It rolls.", "a ball"),
     _user(_text("And in "), _image("d.png"), _text(", and in "), _video("a.mp4"), _text("?")),
     _answer("It stops.", "nothing")],
]  # fmt: skip


def write_records(folder) -> str:
    """The path of a JSONL file of CHATS, whose media stand beside it. Some must be resized."""
    folder.mkdir(exist_ok=True)
    (folder / "a.mp4").write_bytes(encode(num=50, size=(56, 56)))
    (folder / "b.mp4").write_bytes(encode(num=33, rate=10, size=(96, 64)))
    rng = np.random.default_rng(0)
    for name, size in (("c.png", (56, 84)), ("d.png", (60, 90))):
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(folder / name)
    rows = [{"id": f"chat-{i}", "messages": chat} for i, chat in enumerate(CHATS)]
    (folder / "several.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "several.jsonl")


def find_media(chat) -> list[dict]:
    """The parts of a chat that are clips or images, in order."""
    return [part for turn in chat for part in turn["content"] if part["type"] != "text"]


def read_frames(path, start=None, end=None) -> tuple[np.ndarray, float]:
    """uint8 [NUM_FRAMES, h, w, 3], and the sampled frames a second."""
    with av.open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    first = math.ceil((start or 0) * rate)
    last = len(frames) - 1 if end is None else min(math.floor(end * rate), len(frames) - 1)
    chosen = np.linspace(first, last, NUM_FRAMES).round().astype(int)
    return np.stack([frames[i] for i in chosen]), NUM_FRAMES / (last - first + 1) * rate


def process(processor, folder, chat, prompt: bool = False):
    """What transformers' processor makes of a chat; with `prompt` an answer is asked for."""
    images, videos, told = [], [], []
    for part in find_media(chat):
        if part["type"] == "image":
            images.append(Image.open(folder / part["image"]))
            continue
        frames, fps = read_frames(folder / part["video"], part.get("start"), part.get("end"))
        videos.append(torch.from_numpy(frames).permute(0, 3, 1, 2))
        told.append(describe_frames(len(frames), fps))
    text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)
    return processor(
        text=[text],
        images=images or None,
        videos=videos or None,
        videos_kwargs={"video_metadata": told} if told else {},
        return_tensors="pt",
    )


def find_targets(processor, folder, chat, length: int) -> np.ndarray:
    """bool [length]: what each assistant turn says and the end of the turn, found by processing
    each beginning of the chat."""
    targets = np.zeros(length, bool)
    for number, turn in enumerate(chat):
        if turn["role"] == "assistant":
            before = process(processor, folder, chat[:number], prompt=True)["input_ids"].shape[1]
            behind = process(processor, folder, chat[: number + 1])["input_ids"].shape[1]
            targets[before : behind - 1] = True  # but for the line break behind the turn
    return targets


def rope_positions(inputs) -> np.ndarray:
    """int [3, T], transformers' own positions of what its processor made."""
    sizes = types.SimpleNamespace(spatial_merge_size=2, tokens_per_second=2)
    twin = types.SimpleNamespace(config=types.SimpleNamespace(vision_config=sizes))
    own = Qwen2_5_VLModel.get_vision_position_ids
    twin.get_vision_position_ids = types.MethodType(own, twin)
    given = (inputs.get("image_grid_thw"), inputs.get("video_grid_thw"))
    found, _ = Qwen2_5_VLModel.get_rope_index(
        twin, inputs["input_ids"], inputs["mm_token_type_ids"], *given,
        inputs.get("second_per_grid_ts"), inputs["attention_mask"],
    )  # fmt: skip
    return found[:, 0].numpy()


def pixel_rows(inputs, chat, mean, std) -> np.ndarray:
    """uint8 [P, 1176]: the processor's patches of all items in the order of the chat, as grey
    levels before the normalisation."""
    kinds = {"image": "pixel_values", "video": "pixel_values_videos"}
    left = {kind: _split(inputs, name, kind) for kind, name in kinds.items() if name in inputs}
    rows = np.concatenate([next(left[part["type"]]) for part in find_media(chat)])
    scale = 255 * np.repeat(np.array([mean, std]), rows.shape[1] // 3, axis=1)
    return np.round(rows * scale[1] + scale[0]).astype(np.uint8)


def _split(inputs, name, kind) -> Iterator[np.ndarray]:
    sizes = inputs[f"{kind}_grid_thw"].prod(1).tolist()
    return iter(np.split(inputs[name].numpy(), np.cumsum(sizes)[:-1]))
