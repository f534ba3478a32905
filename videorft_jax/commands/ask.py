"""`videorft ask`: one question about one clip or image, the answer written as it is decoded."""

import argparse
import sys

from videorft_jax import api


def main(argv: list[str]) -> int:
    """videorft ask --model DIR --video CLIP --question TEXT"""
    parser = argparse.ArgumentParser(prog="videorft ask", description=main.__doc__)
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    media = parser.add_mutually_exclusive_group()
    media.add_argument("--video", help="clip to ask about")
    media.add_argument("--image", help="image to ask about")
    parser.add_argument("--question", required=True)
    parser.add_argument("--max_new_tokens", type=int, default=768)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest token")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--adapter", help="PEFT folder of plain LoRA, merged into the weights")
    options = parser.parse_args(argv)
    model = api.load(options.model, dtype=options.dtype, adapter=options.adapter)
    content = [{"type": "text", "text": options.question}]
    for kind in ("video", "image"):
        if getattr(options, kind):
            content.insert(0, {"type": kind, kind: getattr(options, kind)})
    shown = ""

    def show(tokens, lengths):
        nonlocal shown
        ids = tokens[0, 0, : lengths[0, 0]]
        text = model.tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd")
        sys.stdout.write(text[len(shown) :])  # half a character waits for its other half
        sys.stdout.flush()
        shown = text

    model.roll_out(
        [[{"role": "user", "content": content}]],
        seed=options.seed,
        on_tokens=show,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
    )
    print()
    return 0
