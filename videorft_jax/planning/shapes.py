"""The shapes that a run compiles for, from its media contract or from measured data."""

import json
import math
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp

from videorft_jax.data.batch.batch import Batch
from videorft_jax.data.batch.patches import num_windows
from videorft_jax.models.geometry import WINDOW_TOKENS, Geometry
from videorft_jax.models.siglip.hf_folder import SiglipConfig, TowerConfig, parse_config
from videorft_jax.training.options import TrainOptions

# How long a question with its template and a chain of thought are taken to be, where no data say.
TEXT_TOKENS = 256
ANSWER_TOKENS = 384
_WIDE = 16 / 9

# google/siglip-so400m-patch14-384, the judge of the paper.
_TOWER = TowerConfig(hidden_size=1152, intermediate_size=4304, num_layers=27, num_heads=16)
SO400M = SiglipConfig(
    vision=_TOWER,
    text=_TOWER,
    image_size=384,
    patch_size=14,
    vocab_size=32000,
    text_length=64,
    text_rule="v1",
    resample=3,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
)


class Shape(NamedTuple):
    """One compiled shape of a batch.

    rows: B. length: T, tokens of a row. pairs: F, frame pairs of a row. windows: W of a frame pair.
    frame: visual tokens of a frame pair. targets: tokens of a row that are learnt. samples: samples
    of a row, on average.
    """

    rows: int
    length: int
    pairs: int
    windows: int
    frame: int
    targets: int = 0
    samples: float = 1.0


class PublishedTokenizer:
    """Answers what sampling asks of the tokenizer that all published models share."""

    _IDS = {"<|im_end|>": 151645, "<|endoftext|>": 151643}

    def convert_tokens_to_ids(self, token: str) -> int:
        return self._IDS[token]

    def __len__(self) -> int:
        return 151665


def expected_shape(options: TrainOptions, packed: bool) -> Shape:
    """The largest shape of clips that use up the contract: of prompts, or of packed samples."""
    data, contract = options.data, options.contract
    down, across = _grid(contract)
    frame = down * across
    windows = num_windows(down * contract.factor, across * contract.factor, contract.geometry)
    pairs = contract.max_frames // contract.temporal_patch_size
    visual = pairs * frame
    if not packed:
        length = -(-(visual + TEXT_TOKENS) // data.multiple) * data.multiple
        if length > data.row_tokens:
            raise ValueError(
                f"{options.name}: a prompt of {contract.max_frames} frames has {visual} visual "
                f"tokens and about {TEXT_TOKENS} of text, data.row_tokens is {data.row_tokens}; "
                f"set data.row_tokens={length}"
            )
        return Shape(data.rows, length, pairs, windows, frame)
    sample = visual + TEXT_TOKENS + ANSWER_TOKENS
    if sample > data.row_tokens:
        raise ValueError(
            f"{options.name}: a sample of {contract.max_frames} frames has about {sample} tokens, "
            f"data.row_tokens is {data.row_tokens}; raise it"
        )
    share = data.row_tokens / sample
    held = math.floor(share * pairs)
    text = data.row_tokens - held * frame
    targets = round(text * ANSWER_TOKENS / (TEXT_TOKENS + ANSWER_TOKENS))
    return Shape(data.rows, data.row_tokens, held, windows, frame, targets, share)


def measured_shape(bucket, packed: bool) -> Shape:
    """The shape of a loader's bucket, taken to have full windows and one sample a row."""
    frame = bucket.windows * WINDOW_TOKENS
    text = max(bucket.length - bucket.pairs * frame, 0)
    answers = round(text * ANSWER_TOKENS / (TEXT_TOKENS + ANSWER_TOKENS)) if packed else 0
    return Shape(bucket.rows, bucket.length, bucket.pairs, bucket.windows, frame, answers)


def _grid(contract):
    """Gives the visual tokens down and across of the frame nearest to 16:9 within the pixels."""
    pixels = min(contract.max_pixels, 2 * contract.total_pixels // contract.max_frames)
    most = pixels // contract.factor**2
    return min(
        ((n, most // n) for n in range(1, most + 1)),
        key=lambda grid: (-grid[0] * grid[1], abs(math.log(grid[1] / grid[0] / _WIDE))),
    )


def batch_shapes(shape: Shape, geometry: Geometry, sharding=None) -> Batch:
    """Makes a batch of abstract arrays, which take no memory."""
    rows, length = shape.rows, shape.length
    slots = (rows, shape.pairs, shape.windows, geometry.slots)

    def array(dtype, *sizes):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)

    return Batch(
        tokens=array(jnp.int32, rows, length),
        segment_ids=array(jnp.int32, rows, length),
        positions=array(jnp.int32, rows, 3, length),
        loss_mask=array(jnp.bool_, rows, length),
        visual_index=array(jnp.int32, rows, length),
        patches=array(jnp.uint8, *slots, geometry.patch_dim),
        patch_valid=array(jnp.bool_, *slots),
        patch_hw=array(jnp.int32, *slots, 2),
    )


def siglip_config(folder: str) -> SiglipConfig:
    """Reads the config of a Hugging Face folder, or takes that of so400m where none is named."""
    if not folder:
        return SO400M
    path = pathlib.Path(folder)
    try:
        raw = json.loads((path / "config.json").read_text())
        processor = json.loads((path / "preprocessor_config.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"reward.siglip={folder}: {error}; give a SigLIP folder") from None
    return parse_config(raw, processor, "v1")  # The rule for texts changes no shape.


def siglip_batch(config: SiglipConfig, rows, rollouts, sentences, frames, sharding):
    """Makes the abstract arrays that the program of the semantic reward reads, as `SemanticReward`
    hands them over."""

    def array(dtype, *sizes):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)

    side = config.image_size
    return {
        "pixels": array(jnp.uint8, rows, frames, side, side, 3),
        "tokens": array(jnp.int32, rows, rollouts, sentences, config.text_length),
        "has_text": array(jnp.bool_, rows, rollouts, sentences),
        "embeddings": array(jnp.float32, rows, frames, config.vision.hidden_size),
        "is_known": array(jnp.bool_, rows),
        "has_frame": array(jnp.bool_, rows, frames),
    }
