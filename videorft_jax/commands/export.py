"""`videorft export`: writes one of our checkpoints as a Hugging Face folder."""

import argparse
import logging
import os

from videorft_jax.checkpoints.save_errors import silence_threads
from videorft_jax.commands.last_line import print_last_line
from videorft_jax.doctor.findings import format_findings

EXAMPLES = """videorft export --checkpoint=runs/sft_7b --out=runs/sft_7b/hf
videorft export --checkpoint=runs/sft_7b/checkpoints/00000500 --out=sft_500 --dtype=bfloat16
videorft export --checkpoint=runs/sft_7b_lora --out=adapter --adapter
videorft export --checkpoint=runs/sft_7b --out=runs/sft_7b/hf --check=clip.mp4 --push=OWNER/NAME"""


def main(argv: list[str]) -> int:
    """Adapters are merged in float32. Tokenizer, processor and generation files are those of the
    folder that the run started from. --check answers a question about the clip with transformers
    and with the run, in float32, and ends with 1 where logits, text or pixels differ. --push sends
    the folder to the hub, unless --check found a difference; a new repository is private."""
    parser = argparse.ArgumentParser(
        prog="videorft export", usage=EXAMPLES, description=main.__doc__, allow_abbrev=False
    )
    add = parser.add_argument
    add("--checkpoint", required=True, help="work directory of a run, or one of its steps")
    add("--out", required=True, type=os.path.expanduser, help="folder to write, new or empty")
    add("--dtype", help="of the weights; default: that of the folder the run started from")
    add("--ema", action="store_true", help="the moving average of the weights")
    add("--model", help="the folder that the run started from, if it has moved")
    add("--adapter", action="store_true", help="the adapters alone, as a folder that PEFT reads")
    add("--check", metavar="CLIP", help="then compare the folder with the run in transformers")
    add("--push", metavar="OWNER/NAME", help="then send the folder to the hub; log in before")
    options = parser.parse_args(argv)
    from videorft_jax.training import hub_upload
    from videorft_jax.training.export import export  # loads JAX

    if options.adapter and options.dtype:
        raise ValueError("--adapter keeps the dtype of the run; leave --dtype out")
    if options.check is not None:
        if options.adapter:
            raise ValueError("--check compares merged weights; leave --adapter out")
        from videorft_jax.doctor import clients

        clients.check_possible(options.check)
    if options.push is not None:
        hub_upload.check_upload(options.push)
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    silence_threads()
    export(
        options.checkpoint,
        options.out,
        options.dtype,
        ema=options.ema,
        model=options.model,
        adapter=options.adapter,
    )
    if options.check is not None:
        findings = clients.check_export(
            options.out, options.checkpoint, options.check, ema=options.ema
        )
        print(format_findings(findings))
        if not clients.is_alike(findings):
            return 1
    if options.push is not None:
        address = hub_upload.upload_folder(options.out, options.push)
        print_last_line(f"{options.out} is at {address}", "ask", f"--model={options.push}", "...")
    return 0
