"""`videorft demo`: the whole method on synthetic clips, in minutes on a CPU."""

import functools
import pathlib

from ml_collections import ConfigDict

from videorft_jax.commands import flags
from videorft_jax.commands.evaluate import evaluate
from videorft_jax.commands.grpo import grpo
from videorft_jax.commands.last_line import print_last_line
from videorft_jax.commands.sft import sft
from videorft_jax.demo.options import Commands, DemoOptions, Stage
from videorft_jax.demo.report import ANSWERS, REPORT
from videorft_jax.demo.run import Demo
from videorft_jax.demo.scenes import WorldConfig
from videorft_jax.training.export import export

EXAMPLES = """videorft demo --config=configs/demo.py --workdir=runs/demo
videorft demo --config=configs/demo.py --workdir=runs/demo_1 --config.seed=1"""


def main(argv: list[str]) -> int:
    """videorft demo --config=FILE --workdir=DIR [--config.section.option=value ...]"""
    config, workdir = flags.parse(argv, "videorft demo", EXAMPLES)
    commands = Commands(
        sft=functools.partial(train_sft, config),
        grpo=functools.partial(train_grpo, config),
        evaluate=functools.partial(evaluate_stage, config),
        export=export,
    )
    code = Demo(make_options(config), workdir, commands).run()
    written = f"{workdir}: report.md, {REPORT}, {ANSWERS}"
    given = (f"--model={workdir}/grpo", "--video=CLIP", "--question=TEXT")
    print_last_line(written, "ask", *given)
    return code


def make_options(config: ConfigDict) -> DemoOptions:
    """The sizes of the demo; raises ValueError for a world that no scene can be drawn from."""
    model = config.model.to_dict()
    return DemoOptions(
        seed=config.seed,
        world=WorldConfig(**config.world.to_dict()),
        num_clips=config.clips.to_dict(),
        siglip_steps=config.siglip.steps,
        siglip_image_size=config.siglip.image_size,
        siglip_text_length=config.siglip.text_length,
        init_gain=model.pop("init_gain"),
        model=model,
        template=config.template.to_dict(),
    )


def train_sft(config: ConfigDict, stage: Stage, max_steps: int | None) -> None:
    """Runs `videorft sft` with the recipe in `config.sft`."""
    own = _fill_in(config, config.sft, stage)
    if max_steps is not None:
        own.train.max_steps = max_steps
    sft(own, str(stage.folder))


def train_grpo(config: ConfigDict, stage: Stage, siglip: pathlib.Path) -> None:
    """Runs `videorft grpo` with the recipe in `config.grpo`."""
    own = _fill_in(config, config.grpo, stage)
    own.reward.siglip = str(siglip)
    grpo(own, str(stage.folder))


def evaluate_stage(
    config: ConfigDict, stage: Stage, checkpoint: pathlib.Path | None, blank: bool
) -> None:
    """Runs `videorft evaluate` on all records of the stage, in large batches."""
    own = _fill_in(config, config.sft, stage)
    own.name = f"evaluation, {stage.folder.name}"
    own.data.epochs, own.data.rows = 1, 50
    own.data.row_tokens = 4 * own.data.row_tokens
    own.evaluate.checkpoint = str(checkpoint or "")
    own.evaluate.max_new_tokens = config.grpo.rollout.max_new_tokens
    own.evaluate.blank = blank
    own.rollout.num_buckets = 1
    evaluate(own, str(stage.folder))


def _fill_in(config, recipe, stage):
    """A copy of the recipe with the seed of the demo and the folders of the stage."""
    own = ConfigDict(recipe.to_dict())
    own.seed = config.seed
    own.model.init_from = str(stage.init_from)
    own.data.records = stage.records
    own.data.template_file = str(stage.template_file)
    return own
