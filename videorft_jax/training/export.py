"""`videorft export`: one of our checkpoints becomes a Hugging Face folder."""

import argparse
import logging
import os
import sys

from videorft_jax import cli
from videorft_jax.models.hf_folder import write_checkpoint
from videorft_jax.models.qwen2_5_vl.config import load_config
from videorft_jax.models.tensor_files import DTYPES
from videorft_jax.parallel import sharding
from videorft_jax.training import restore as restoring
from videorft_jax.training import setup as assembly

EXAMPLES = """videorft export --checkpoint=runs/sft_7b --out=runs/sft_7b/hf
videorft export --checkpoint=runs/sft_7b/checkpoints/00000500 --out=sft_500 --dtype=bfloat16"""


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
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    export(options.checkpoint, options.out, options.dtype, ema=options.ema, model=options.model)
    return 0


def export(
    checkpoint: str, out: str, dtype: str | None = None, *, ema: bool = False, model=None
) -> None:
    """See `main`. The folder appears whole or not at all. Raises ValueError, one line, before an
    array is read: no checkpoint, a folder that is not empty, an unknown dtype."""
    known = [kind.name for kind in DTYPES.values()]
    if dtype is not None and dtype not in known:
        raise ValueError(f"--dtype={dtype}: unknown; choose one of {', '.join(known)}")
    if os.path.exists(out) and not (os.path.isdir(out) and not os.listdir(out)):
        raise ValueError(f"{out}: is there already and not empty; choose another or delete it")
    saved = restoring.find_checkpoint(checkpoint)
    source = model or saved.init_from
    config = load_config(source)
    target = dtype or assembly.checkpoint_dtype(source).name
    params = restoring.read_params(saved, config, sharding.make_mesh(), ema=ema)
    write_checkpoint(out, params, config, dtype=target, source_folder=source)
    print(f"{saved.name} written to {out} in {target}")


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:], "videorft export"))
