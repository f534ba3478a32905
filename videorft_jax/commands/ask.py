"""`videorft ask`: questions about clips and images, each answer written as it is decoded."""

import argparse
import json
import logging
import os
import pathlib
import sys
import time
from collections.abc import Iterator

from videorft_jax.commands import media_flags
from videorft_jax.commands.last_line import print_last_line
from videorft_jax.commands.output_file import check_output

EXAMPLES = """videorft ask --model DIR --video CLIP --question TEXT
videorft ask --model DIR --video first.mp4 --image after.jpg --question "What has changed?"
videorft ask --model DIR --video CLIP --chat
videorft ask --model DIR --video CLIP --question TEXT --show frames.png --json"""


def main(argv: list[str]) -> int:
    """Asks a model about clips and images. With --chat each further line of the input is another
    turn about the same media, and the model sees what was said before. A run or an export of ours
    is asked behind the system turn that it was trained with."""
    options = _parse(argv)
    _check_media(options.media)
    from videorft_jax import api  # loads JAX
    from videorft_jax.rollout.sampling import SamplingConfig

    # Weights take minutes to load; what is wrong in the flags is told before.
    SamplingConfig(max_new_tokens=options.max_new_tokens, temperature=options.temperature)
    # How clips are read stands beside the answer, on the other stream.
    logging.basicConfig(format="%(message)s")
    logging.getLogger(api.__name__).setLevel(logging.INFO)
    media = media_flags.read_changes(options)
    model = api.load(
        options.model, options.dtype,
        adapter=options.adapter, media=media, download=options.download,
        strip_prefix=options.strip_prefix,
    )  # fmt: skip
    seen = _look(model.contract, options) if options.show or options.json else []
    system = model.system if options.system is None else options.system
    chat = [{"role": "system", "content": system}] if system else []
    content = [{"type": kind, kind: path} for kind, path in options.media]
    for question in _questions(options):
        content.append({"type": "text", "text": question})
        chat.append({"role": "user", "content": content})
        answer = _answer(model, chat, options, seen)
        chat.append({"role": "assistant", "content": answer})
        content = []
    kept = f"the frames are in {options.show}" if options.show else "an answer is not kept"
    print_last_line(kept, "serve", f"--checkpoint={options.model}", to_stderr=True)
    return 0


def _check_media(media) -> None:
    """Opens each file that a flag names. Raises MediaError for one that cannot be."""
    from videorft_jax.data.media.contract import Limits
    from videorft_jax.data.media.files import list_files, open_media
    from videorft_jax.data.media.given import read_given

    for kind, path in media:
        source = read_given(path, kind)
        for file in [] if isinstance(source, bytes) else list_files(source, None, Limits()):
            with open_media(file, None, Limits()):
                pass


def _questions(options) -> Iterator[str]:
    """The question of the command line and, in a chat, the lines of the input that follow."""
    if options.question:
        yield options.question
    if not options.chat:
        return
    is_person = sys.stdin.isatty()
    while True:
        if is_person:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _answer(model, chat, options, seen):
    """Writes the answer to the last turn of a chat, and returns its text."""
    shown, started, first = "", time.monotonic(), None

    def show(tokens, lengths):
        nonlocal shown, first
        first = first or time.monotonic() - started
        ids = tokens[0, 0, : lengths[0, 0]]
        text = model.tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd")
        if not options.json:
            sys.stdout.write(text[len(shown) :])  # half a character waits for its other half
            sys.stdout.flush()
        shown = text

    out = model.roll_out(
        [chat],
        seed=options.seed,
        on_tokens=show,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
    )
    if options.json:
        seconds = {"first": first or 0.0, "all": time.monotonic() - started}
        line = {
            "question": chat[-1]["content"][-1]["text"],
            "answer": shown,
            "num_tokens": int(out.lengths[0, 0]),
            "stopped": bool(out.stopped[0, 0]),
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
        }
        print(json.dumps(line | _describe(model, options, seen), ensure_ascii=False), flush=True)
    else:
        print(flush=True)
    return shown


def _describe(model, options, seen):
    """What the answers of one command have in common, for a program that reads them."""
    media = [
        {"path": path, "size": list(frames.shape[1:3]), "times": list(map(float, times))}
        for path, frames, times in seen
    ]
    contract = model.contract.digest
    return {"model": options.model, "media_contract": contract, "media": media}


def _look(contract, options):
    """(path, frames, seconds of the frames) of all media as the model reads them; the picture that
    --show names is written."""
    from videorft_jax.data.media.image import read_image
    from videorft_jax.data.media.video import read_video

    seen = []
    for kind, path in options.media:
        clip = (read_video if kind == "video" else read_image)(path, contract)
        seen.append((path, clip.frames, clip.timestamps if kind == "video" else ()))
    if options.show:
        from videorft_jax.reporting.sheet import draw_sheet

        pathlib.Path(options.show).write_bytes(draw_sheet(seen))
    return seen


def _parse(argv):
    parser = argparse.ArgumentParser(
        prog="videorft ask", usage=EXAMPLES, description=main.__doc__, allow_abbrev=False
    )
    add = parser.add_argument
    add("--model", required=True, help="Hugging Face folder, its name on the hub, or a run")
    add("--download", action="store_true", help="fetch a name of the hub")
    for kind in ("video", "image"):
        add(
            f"--{kind}", action="append", dest="media", default=[], metavar=kind.upper(),
            type=lambda path, kind=kind: (kind, os.path.expanduser(path)),
            help=f"{kind} to ask about; several are shown in the order of their flags",
        )  # fmt: skip
    add("--question", help="what is asked; with --chat the first turn")
    add("--chat", action="store_true", help="ask each line of the input too, until it ends")
    add("--show", metavar="PNG", help="write a picture of the frames that the model sees")
    add("--json", action="store_true", help="write each answer as a line of JSON, for programs")
    add("--max_new_tokens", type=int, default=768, help="longest answer; default: %(default)s")
    add("--temperature", type=float, default=0.0, help="0, the default: the likeliest token")
    add("--seed", type=int, default=0, help="of draws with a temperature; default: %(default)s")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16",
        help="what it is computed in; default: %(default)s")  # fmt: skip
    add("--adapter", help="PEFT folder of LoRA, merged into the weights")
    add("--strip_prefix", default="", help="begin of all tensors' names to ignore")
    media_flags.add_flags(parser)
    options = parser.parse_args(argv)
    if options.question is None and not options.chat:
        raise ValueError("--question missing; write what is asked, or take --chat")
    if options.question is not None and not options.question.strip():
        raise ValueError("--question is empty; write what is asked")
    if not 0 <= options.seed < 2**32:
        raise ValueError(f"--seed={options.seed}: is outside 0 .. 2^32 - 1; give one inside")
    if options.show:
        options.show = os.path.expanduser(options.show)
        if not options.media:
            raise ValueError(f"--show={options.show}: nothing is shown; give a --video or --image")
        if not options.show.lower().endswith(".png"):
            raise ValueError(f"--show={options.show}: the picture is a PNG; name it so")
        if not os.path.isdir(os.path.dirname(options.show) or "."):
            raise ValueError(f"--show={options.show}: no such folder; make it first")
        check_output(options.show, "--show")
    return options
