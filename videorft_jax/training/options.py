"""The options of a training run as frozen dataclasses, one for each section of a config.

`training.setup` builds them from a ConfigDict and checks every value; everything else in this room
takes them as they are. Their defaults stand in `configs/common.py` and nowhere here.
"""

import dataclasses
from typing import Any

from videorft_jax.data.media.contract import Limits, MediaContract
from videorft_jax.models.lora import LoraConfig
from videorft_jax.rollout.options import ToolOptions
from videorft_jax.training.optimizer import OptimOptions


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """init_from: Hugging Face folder with weights, tokenizer and configuration. adapter: folder of
    PEFT that is put on those weights, empty for none. strip_prefix: what another trainer put before
    the names of their tensors, empty for nothing. dtype: of the computation. attention, remat: how
    attention is computed, and what the backward pass keeps."""

    init_from: str
    adapter: str
    strip_prefix: str
    dtype: str
    attention: str
    remat: str


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Which records are read, and how a loader batches them.

    root: folder of the media, empty for that of the records. template_file, cache: empty for our
    template and for no frame cache. pass_rates: file from which `filter` and `order` choose, made
    by other weights than those of `init_from` only with `other_pass_rates`. threads: -1 means one
    per core, at most 16. The others are explained at `LoaderOptions`.
    """

    records: str
    format: str
    root: str
    template_file: str
    cache: str
    pass_rates: str
    filter: str
    order: str
    other_pass_rates: bool
    rows: int
    row_tokens: int
    max_buckets: int
    multiple: int
    epochs: int
    max_bad_fraction: float
    threads: int
    workers: int
    timeout_s: float
    isolate: bool


@dataclasses.dataclass(frozen=True)
class MeshOptions:
    """Devices along each axis of the mesh, at most one of them -1 for those that are left; `slices`
    is the number of TPU slices, over which `data` is split first."""

    data: int
    fsdp: int
    tensor: int
    slices: int


@dataclasses.dataclass(frozen=True)
class CheckpointOptions:
    """A checkpoint is written every `every` steps; the newest `keep_last` stay, and those whose
    step `keep_every` divides (0: none)."""

    every: int
    keep_last: int
    keep_every: int


@dataclasses.dataclass(frozen=True)
class ValidateOptions:
    """Held-out records that the model answers, greedily, while it trains.

    records: their file, empty for none; root: folder of their media, empty for the file's. every:
    steps between two rounds. limit: first records of the file, 0 for all. max_new_tokens: longest
    answer. keep_best: the checkpoint of the best round stays. patience: rounds without a better one
    after which a run stops, 0 for never. mode: rules of the score, those of `reward.mode`.
    """

    records: str
    root: str
    every: int
    limit: int
    max_new_tokens: int
    keep_best: bool
    patience: int
    mode: str


@dataclasses.dataclass(frozen=True)
class LogOptions:
    """interval_s: seconds between two lines on the console. wandb: project, empty for none.
    profile: the step whose trace is kept, 0 for none."""

    interval_s: float
    wandb: str
    profile: int = 0


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Everything that SFT and GRPO have in common.

    name: what errors and logs call the run. contract: of the media. limits:
    what a clip may cost. lora: None where the weights
    themselves train. freeze: towers that do not train. accumulate: slices that a batch is taken in.
    max_steps: 0 for all of the data. max_skipped_in_row: steps that were not finite, in a row,
    after which a run stops. allow_changes: a checkpoint made with
    other options is gone on from. legacy_labels: the loss of the original code, on every token.
    tools: what completions may call, None for nothing.
    recorded: the whole config as JSON values, which checkpoints keep.
    """

    name: str
    seed: int
    model: ModelOptions
    lora: LoraConfig | None
    data: DataOptions
    contract: MediaContract
    limits: Limits
    optim: OptimOptions
    mesh: MeshOptions
    freeze: tuple[str, ...]
    accumulate: int
    max_steps: int
    max_skipped_in_row: int
    allow_changes: bool
    legacy_labels: bool
    checkpoint: CheckpointOptions
    validate: ValidateOptions
    tools: ToolOptions | None
    log: LogOptions
    recorded: dict[str, Any] = dataclasses.field(compare=False, repr=False)
