"""What the demo is told: its sizes, and how it calls the other commands."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from videorft_jax.demo.scenes import WorldConfig


@dataclasses.dataclass(frozen=True)
class DemoOptions:
    """Sizes of one demo.

    num_clips: clips of each split, which are sft, rl and eval.
    siglip_steps: training steps of the judge; siglip_image_size: side of its images in pixels;
      siglip_text_length: tokens of its captions.
    model: keys of a Hugging Face config.json that are not the defaults of a tiny model.
    init_gain: factor on the random matrices, which are drawn from N(0, 0.02^2).
    template: fields of the prompt template, see `data.records.prompts`.
    """

    seed: int
    world: WorldConfig
    num_clips: Mapping[str, int]
    siglip_steps: int
    siglip_image_size: int
    siglip_text_length: int
    model: Mapping[str, Any]
    init_gain: float
    template: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One call of another command: where it writes, the model folder or run that it starts from,
    its record file and its prompt template."""

    folder: pathlib.Path
    init_from: pathlib.Path
    records: str
    template_file: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Commands:
    """The other commands, as a user would call them.

    sft(stage, max_steps): trains to the recipe's last step, or to `max_steps` where it is given.
    grpo(stage, siglip): trains with the SigLIP in the folder `siglip` as its judge.
    evaluate(stage, checkpoint, blank): writes greedy answers of a run's newest checkpoint, or of
      the model in `stage.init_from` where `checkpoint` is None; blank clips have no content.
    export(run, folder): writes the newest checkpoint of a run as a Hugging Face folder.
    """

    sft: Callable[[Stage, int | None], Any]
    grpo: Callable[[Stage, pathlib.Path], Any]
    evaluate: Callable[[Stage, pathlib.Path | None, bool], Any]
    export: Callable[[str, str], Any]
