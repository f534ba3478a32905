"""Trains a small SigLIP from scratch, so that the semantic reward has a judge without a download.

Equal captions within a batch are all positives. In a small world two clips often look alike, and
pushing a caption away from a frame that it describes would teach the wrong thing.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.trainers import WordLevelTrainer
from transformers import PreTrainedTokenizerFast

from videorft_jax.models.siglip.hf_folder import (
    Siglip,
    SiglipConfig,
    TowerConfig,
    encode_images,
    encode_texts,
    init,
)

_INPUT_GAIN = 4.0
_SPECIAL = ["<pad>", "</s>", "<unk>"]  # ids 0, 1, 2; SigLIP 1 ends and pads with </s>


def make_tokenizer(texts: Sequence[str], vocab_size: int = 512) -> PreTrainedTokenizerFast:
    """The most frequent words of `texts`, without case and punctuation; others are <unk>."""
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), "")]
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = WordLevelTrainer(
        vocab_size=vocab_size, special_tokens=_SPECIAL, show_progress=False, min_frequency=2
    )
    words.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )


def tiny_config(
    vocab_size: int,
    image_size: int = 112,
    patch_size: int = 14,
    width: int = 64,
    num_layers: int = 2,
    text_length: int = 64,
) -> SiglipConfig:
    """SigLIP small enough to be trained in about a minute on one CPU core."""
    tower = TowerConfig(width, 2 * width, num_layers, num_heads=max(1, width // 32))
    return SiglipConfig(
        vision=tower,
        text=tower,
        image_size=image_size,
        patch_size=patch_size,
        vocab_size=vocab_size,
        text_length=text_length,
        text_rule="v1",
        resample=3,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
    )


def sigmoid_loss(
    images: jax.Array, texts: jax.Array, scale: jax.Array, bias: jax.Array, is_match: jax.Array
) -> jax.Array:
    """-1/B sum_ij log sigmoid(z_ij (exp(scale) <text_i, image_j> + bias)), z = 1 or -1.

    Equation 1 of Zhai et al. 2023 (arXiv 2303.15343), where z_ij = 1 only on the diagonal.

    Args:
      images, texts: unit-length float32 [B, D].
      scale, bias: scalars, the scale as a logarithm.
      is_match: bool [B, B], text i describes image j.
    """
    logits = jnp.exp(scale) * texts @ images.T + bias
    signs = jnp.where(is_match, 1.0, -1.0)
    return -jax.nn.log_sigmoid(signs * logits).sum(axis=1).mean()


def train_siglip(
    frames: np.ndarray,
    captions: Sequence[str],
    config: SiglipConfig,
    tokenizer: PreTrainedTokenizerFast,
    *,
    num_steps: int,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    seed: int = 0,
    progress: Callable[[int, int, float], None] | None = None,
) -> tuple[Siglip, np.ndarray]:
    """Trains both towers from random weights with Adam, warmed up over a twentieth of the steps.

    beta2 = 0.95 is that of SigLIP (Zhai et al. 2023). Two departures, each measured to shorten the
    plateau at the start, on which all embeddings are alike: their bias of -10 is -log of their
    batch of 32 k, how rare a match is, so here it is -log(batch_size); and what the towers see
    begins `_INPUT_GAIN` times as strong as where they see it (80 steps instead of 160).

    Args:
      frames: uint8 [n, h, w, 3], RGB, resized once to the config's image size.
      captions: n texts; to teach several texts of a frame, give the frame several times.
      progress: called as (step, num_steps, loss) about a hundred times.

    Returns:
      The trained SigLIP in float32 and the losses float32 [num_steps]. The same arguments give
      the same weights on the same machine.

    Raises:
      ValueError: numbers of frames and captions differ or are below a batch.
    """
    if len(frames) != len(captions) or len(frames) < batch_size:
        raise ValueError(
            f"siglip training: {len(frames)} frames and {len(captions)} captions for batches of "
            f"{batch_size}; give one caption a frame, at least a batch of them"
        )
    params = init(config, jax.random.key(seed))
    params["logit_bias"] = jnp.float32(-math.log(batch_size))
    for tower in ("text", "vision"):
        params[tower]["embed"] *= _INPUT_GAIN
    siglip = Siglip(config, params, tokenizer)
    frames, tokens = siglip.resize(frames), siglip.tokenize(captions)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, max(1, num_steps // 20), max(2, num_steps), learning_rate / 20
    )
    optimizer = optax.adam(schedule, b2=0.95)

    step = _make_step(config, optimizer)
    rng = np.random.default_rng(seed)
    state, losses = optimizer.init(siglip.params), []
    order = np.empty(0, int)
    for i in range(num_steps):
        if len(order) < batch_size:
            order = rng.permutation(len(frames))
        rows, order = order[:batch_size], order[batch_size:]
        siglip.params, state, loss = step(siglip.params, state, frames[rows], tokens[rows])
        losses.append(loss)
        if progress and ((i + 1) % max(1, num_steps // 100) == 0 or i + 1 == num_steps):
            progress(i + 1, num_steps, float(loss))
    return siglip, np.array(losses, np.float32)


def _make_step(config, optimizer):
    """The compiled function (params, state, pixels, tokens) -> (params, state, loss)."""

    def loss_of(params, pixels, tokens):
        images = encode_images(params, config, pixels)
        texts = encode_texts(params, config, tokens)
        is_match = (tokens[:, None] == tokens[None]).all(axis=-1)
        return sigmoid_loss(images, texts, params["logit_scale"], params["logit_bias"], is_match)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, pixels, tokens):
        loss, gradient = jax.value_and_grad(loss_of)(params, pixels, tokens)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss

    return step
