"""`videorft export`: writes one of our checkpoints as a Hugging Face folder."""

import argparse
import logging

EXAMPLES = """videorft export --checkpoint=runs/sft_7b --out=runs/sft_7b/hf
videorft export --checkpoint=runs/sft_7b/checkpoints/00000500 --out=sft_500 --dtype=bfloat16
videorft export --checkpoint=runs/sft_7b_lora --out=adapter --adapter"""


def main(argv: list[str]) -> int:
    """Adapters are merged in float32. Tokenizer, processor and generation files are those of the
    folder that the run started from."""
    parser = argparse.ArgumentParser(
        prog="videorft export",
        description=f"{EXAMPLES}\n\n{main.__doc__}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", required=True, help="work directory of a run, or one of its steps")
    add("--out", required=True, help="folder to write, new or empty")
    add("--dtype", help="of the weights; default: that of the folder the run started from")
    add("--ema", action="store_true", help="the moving average of the weights")
    add("--model", help="the folder that the run started from, if it has moved")
    add("--adapter", action="store_true", help="the adapters alone, as a folder that PEFT reads")
    options = parser.parse_args(argv)
    from videorft_jax.training.export import export  # loads JAX

    if options.adapter and options.dtype:
        raise ValueError("--adapter keeps the dtype of the run; leave --dtype out")
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    export(
        options.checkpoint,
        options.out,
        options.dtype,
        ema=options.ema,
        model=options.model,
        adapter=options.adapter,
    )
    return 0
