"""`videorft ask`: one question about one clip or image, the answer written as it is decoded."""

import argparse
import sys
from typing import Any

from videorft_jax.commands.last_line import print_last_line


def main(argv: list[str]) -> int:
    """videorft ask --model DIR --video CLIP --question TEXT"""
    parser = argparse.ArgumentParser(prog="videorft ask", description=main.__doc__)
    parser.add_argument(
        "--model", required=True, help="Hugging Face folder, its name on the hub, or a run"
    )
    parser.add_argument("--download", action="store_true", help="fetch a name of the hub")
    media = parser.add_mutually_exclusive_group()
    media.add_argument("--video", help="clip to ask about")
    media.add_argument("--image", help="image to ask about")
    parser.add_argument("--question", required=True)
    parser.add_argument("--max_new_tokens", type=int, default=768)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest token")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--adapter", help="PEFT folder of LoRA, merged into the weights")
    parser.add_argument("--strip_prefix", default="", help="begin of all tensors' names to ignore")
    parser.add_argument("--frames", type=int, help="take so many frames of a clip")
    parser.add_argument("--fps", type=float, help="take so many frames a second, from 4 to 768")
    parser.add_argument("--max_pixels", type=int, help="most pixels of a frame or image")
    parser.add_argument("--system", help="system turn in place of the model's own")
    options = parser.parse_args(argv)
    from videorft_jax import api  # loads JAX

    media = media_changes(options.frames, options.fps, options.max_pixels)
    model = api.load(
        options.model, options.dtype,
        adapter=options.adapter, media=media, download=options.download,
        strip_prefix=options.strip_prefix,
    )  # fmt: skip
    content = [{"type": "text", "text": options.question}]
    for kind in ("video", "image"):
        if getattr(options, kind):
            content.insert(0, {"type": kind, kind: getattr(options, kind)})
    chat = [{"role": "user", "content": content}]
    if options.system is not None:
        chat.insert(0, {"role": "system", "content": options.system})
    shown = ""

    def show(tokens, lengths):
        nonlocal shown
        ids = tokens[0, 0, : lengths[0, 0]]
        text = model.tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd")
        sys.stdout.write(text[len(shown) :])  # half a character waits for its other half
        sys.stdout.flush()
        shown = text

    model.roll_out(
        [chat],
        seed=options.seed,
        on_tokens=show,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
    )
    print(flush=True)
    about = "an answer is not kept"
    print_last_line(about, "serve", f"--checkpoint={options.model}", to_stderr=True)
    return 0


def media_changes(frames: int | None, fps: float | None, max_pixels: int | None) -> dict[str, Any]:
    """Fields of a media contract that the flags replace; without flags none. Raises ValueError for
    flags that contradict each other and for numbers that no contract can hold."""
    if frames is not None and fps is not None:
        raise ValueError("--frames and --fps both say how many frames are taken; give one")
    changes: dict[str, Any] = {}
    if frames is not None:
        if frames < 2:
            raise ValueError(f"--frames={frames}: a clip has at least 2; give an --image for one")
        changes = {"num_frames": None, "min_frames": frames, "max_frames": frames}
    if fps is not None:
        if not 0 < fps < 1000:
            raise ValueError(f"--fps={fps}: give a rate above 0 and below 1000")
        changes = {"num_frames": None, "fps": fps, "min_frames": 4, "max_frames": 768}
    if max_pixels is not None:
        if max_pixels < 28 * 28:
            raise ValueError(f"--max_pixels={max_pixels}: less than one visual token; give more")
        changes |= {"max_pixels": max_pixels, "image_max_pixels": max_pixels}
    return changes
