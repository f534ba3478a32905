"""`videorft ask`: one question about one clip or image, the answer written as it is decoded."""

import argparse
import logging
import os
import sys

from videorft_jax.commands import media_flags
from videorft_jax.commands.last_line import print_last_line


def main(argv: list[str]) -> int:
    """videorft ask --model DIR --video CLIP --question TEXT"""
    options = _parse(argv)
    from videorft_jax import api  # loads JAX

    # How clips are read stands beside the answer, on the other stream.
    logging.basicConfig(format="%(message)s")
    logging.getLogger(api.__name__).setLevel(logging.INFO)
    media = media_flags.read_changes(options)
    model = api.load(
        options.model, options.dtype,
        adapter=options.adapter, media=media, download=options.download,
        strip_prefix=options.strip_prefix,
    )  # fmt: skip
    content = [{"type": "text", "text": options.question}]
    for kind in ("video", "image"):
        if getattr(options, kind):
            path = os.path.expanduser(getattr(options, kind))  # No shell does it behind `--video=`.
            content.insert(0, {"type": kind, kind: path})
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


def _parse(argv):
    parser = argparse.ArgumentParser(
        prog="videorft ask", description=main.__doc__, allow_abbrev=False
    )
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
    media_flags.add_flags(parser)
    options = parser.parse_args(argv)
    if not options.question.strip():
        raise ValueError("--question is empty; write what is asked")
    return options
