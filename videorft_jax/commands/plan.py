"""`videorft plan`: what a config needs of a machine, before the machine is paid for."""

import argparse
import contextlib
import json
import os
import tempfile
import warnings
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from videorft_jax.commands import flags
from videorft_jax.commands.last_line import print_last_line

if TYPE_CHECKING:
    from videorft_jax.grpo.options import GrpoOptions
    from videorft_jax.training.options import TrainOptions

EXAMPLES = """videorft plan --config=configs/grpo_7b.py --topology=v5p:4x4x4 --config.data.rows=64
videorft plan --config=configs/sft_7b.py --topology=v6e-16 --config.data.rows=32 --search --json
videorft plan --config=configs/grpo_7b.py --topology=H100:8 --model=3b --config.data.rows=64
videorft plan --config=configs/grpo_7b.py --topology=v6e-16 --workdir=runs/grpo_7b \\
    --config.data.rows=64 --config.model.init_from=runs/sft_7b/hf \\
    --config.data.records=VideoRFT-RL-310K.jsonl
    (--config.section.option=value as for the runs themselves)"""


def main(argv: list[str]) -> int:
    """videorft plan --config=FILE --topology=NAME [--model=7b] [--mode=grpo] [--search] [--json]"""
    own, config = _parse(argv)
    import jax

    from videorft_jax.planning import machines
    from videorft_jax.planning.compile import Store
    from videorft_jax.planning.plan import make_jobs, plan
    from videorft_jax.planning.report import as_text
    from videorft_jax.training import compile_cache

    jax.config.update("jax_platforms", "cpu")
    machine = machines.find(own.topology)
    with contextlib.ExitStack() as stack:
        workdir = _local(own.workdir) or stack.enter_context(tempfile.TemporaryDirectory())
        os.makedirs(workdir, exist_ok=True)
        if own.workdir or config.compile_cache:
            # Programs for a machine that is not here can be written for it, but not read here.
            warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
            compile_cache.keep_compiled(config.compile_cache, os.path.abspath(workdir))
        else:
            jax.config.update("jax_enable_compilation_cache", False)
        jobs = make_jobs(read_options(config, own.mode), machine, workdir, size=own.model)
        figures = os.path.join(workdir, "plan.json") if own.workdir else None
        rows, step, problem = plan(jobs, Store(figures), own.search)
    if own.json:
        print(json.dumps({"programs": [vars(row) for row in rows], "step": step}))
    else:
        print(as_text(rows, step))
    if problem:
        raise RuntimeError(problem)
    has_file = figures and os.path.exists(figures)
    written = f"figures kept in {figures}" if has_file else "no file is written"
    recipe = next((word for word in argv if word.startswith("--config=")), "--config=RECIPE")
    workdir = own.workdir or f"runs/{config.name}"
    words = (step["mode"], recipe, f"--workdir={workdir}", "...")
    print_last_line(written, *words, to_stderr=own.json)
    return 0


def _local(folder):
    if not folder:
        return folder
    from videorft_jax.checkpoints.bucket import resolve

    if "://" in (found := resolve(folder)):
        raise ValueError(
            f"--workdir={folder}: figures are kept in a local folder; give one, and a bucket for "
            "the programs by --config.compile_cache"
        )
    return found


def read_options(config: ConfigDict, mode: str | None = None) -> "TrainOptions | GrpoOptions":
    """The options of the stage that `mode` or the config's name says; raises ValueError where
    neither does."""
    mode = mode or next((known for known in ("sft", "grpo") if known in config.name), None)
    if mode is None:
        raise ValueError(f"{config.name}: neither sft nor grpo by its name; give --mode")
    if mode == "sft":
        from videorft_jax.training.setup import make_train_options

        return make_train_options(config)
    from videorft_jax.commands import grpo

    return grpo.read_options(config)


def _parse(argv):
    parser = argparse.ArgumentParser(
        "videorft plan", usage=EXAMPLES, description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--topology", help="v5p:4x4x4, v5e-64, 2*v6e:4x4 (slices), H100:8, cpu:8")
    parser.add_argument("--model", help="7b, 3b, ...: sizes of a model that is not here")
    parser.add_argument("--mode", choices=("sft", "grpo"), help="default: by the config's name")
    parser.add_argument(
        "--search", action="store_true", help="try changes until one fits, or is faster"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--workdir",
        help="a local folder, of the run to come: keeps figures, measured sizes and the programs "
        "themselves, so that neither a second plan nor the run compiles them again",
    )
    own, rest = parser.parse_known_args(argv)
    if not own.topology:
        raise ValueError(f"--topology missing; write {EXAMPLES.splitlines()[0]}")
    config, _ = flags.parse(rest, "videorft plan", EXAMPLES, writes=False)
    return own, config
