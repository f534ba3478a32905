"""The semantic-consistency reward R_s: does the reasoning describe what the frames show?

Frames once per video and texts once per completion go through a frozen SigLIP, and cosines become
rewards, in one XLA program of one fixed shape. The decision worth knowing: embeddings that are
known already enter the same program, which skips its image tower when it needs none, so a cache
hit equals a miss bit for bit and nothing is compiled twice. The gate on accuracy is not here but
with the other gates, in `combine`.

Departures from the original's code (numbers of the defect list): frames are uint8 and never colour
negatives (1), each is encoded once and not once per completion (2), the description is found by a
sentence splitter and an absent one is worth 0 (3), truncation is counted (4).
"""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from videorft_jax.models.siglip.hf_folder import (
    Siglip,
    SiglipConfig,
    encode_images,
    encode_texts,
    tokenize,
)
from videorft_jax.parallel import sharding
from videorft_jax.rewards.embedding_cache import EmbeddingCache
from videorft_jax.rewards.sentences import MAX_CHARS, TEXT_RULES, describe

logger = logging.getLogger(__name__)

AVERAGINGS = ("paper", "repo")
_ENDS = (0, 1)  # end and padding tokens of both vocabularies of SigLIP


@dataclasses.dataclass(frozen=True)
class SemanticOptions:
    """Holds the options of the semantic reward, as a recipe sets them in its section `reward`.

    Attributes:
      siglip: Hugging Face folder of a SigLIP.
      frames: frames of a clip that SigLIP sees.
      averaging, text_rule, scale: see `SemanticReward`.
      cache: folder where frame embeddings are kept; empty keeps them in memory.

    Raises:
      ValueError: an unknown averaging or text rule, or a number that is not positive.
    """

    siglip: str
    frames: int = 16
    averaging: str = "paper"
    text_rule: str = "paper"
    scale: float = 2.0
    cache: str = ""

    def __post_init__(self) -> None:
        for name, number in (("num_frames", self.frames), ("scale", self.scale)):
            if not number > 0:
                raise ValueError(f"semantic: {name} is {number}; give a positive number")
        for name, value, known in (
            ("averaging", self.averaging, AVERAGINGS),
            ("text rule", self.text_rule, TEXT_RULES),
        ):
            if value not in known:
                raise ValueError(f"semantic: {name} is {value!r}; choose one of {', '.join(known)}")


@dataclasses.dataclass(frozen=True)
class SemanticScores:
    """Holds R_s of B videos with R completions each, before gate and weight.

    Attributes:
      scores: float32 [B, R] in [0, 1]; NaN for a video without frames, 0 without a description.
      cosine: float32 [B, R], what was scaled (averaging repo: mean over frames); NaN where unknown.
      is_truncated: bool [B, R], SigLIP did not see all of the description.
      is_empty: bool [B, R], there was no description.
      stats: semantic/truncated and semantic/empty (shares of all completions), semantic/failed
        (number of videos without frames), semantic/cached (share of the others whose embeddings
        were known), semantic/saturated (share of scores that reached 1) and semantic/cosine
        (mean); a figure without a single sample behind it is left out.
    """

    scores: np.ndarray
    cosine: np.ndarray
    is_truncated: np.ndarray
    is_empty: np.ndarray
    stats: dict[str, float]


def require_siglip(rewards: Sequence[tuple[str, float]], folder: str | None) -> bool:
    """Tells whether the semantic reward is to be computed; checks for weights before anything
    starts.

    Args:
      rewards: (name, weight) pairs of the reward config.
      folder: Hugging Face folder of a SigLIP, or None.

    Raises:
      ValueError: semantic has a weight and the folder holds no SigLIP.
    """
    weights = dict(rewards)
    if "semantic" not in weights:
        return False
    missing = "no folder is named"
    if folder:
        path = pathlib.Path(folder)
        missing = ", ".join(
            name
            for name, is_there in (
                ("config.json", (path / "config.json").is_file()),
                ("tokenizer.json", (path / "tokenizer.json").is_file()),
                ("*.safetensors", any(path.glob("*.safetensors"))),
            )
            if not is_there
        )
        missing = f"{folder} has no {missing}" if missing else ""
    if missing and weights["semantic"]:
        raise ValueError(
            f"rewards: semantic has weight {weights['semantic']} but {missing}; name the folder of "
            "a SigLIP checkpoint or take semantic out of the rewards"
        )
    if missing:
        logger.warning("semantic reward of weight 0 is left out: %s", missing)
    return not missing


class SemanticReward:
    """R_s = min(1, w max(cos(t, v), 0)), w = 2 (VideoRFT, arXiv 2505.12434, semantic reward).

    One program scores `batch_size` videos of `num_frames` frames and `num_rollouts` completions;
    fewer videos are padded, more are cut into batches, so it compiles once.

    Args:
      siglip: frozen weights. On a mesh place them first, `jax.device_put(params,
        state_shardings(params, mesh))`.
      batch_size: videos per program on this process.
      num_rollouts: R.
      num_frames: frames per video; longer clips are thinned evenly, shorter ones are masked.
      averaging: paper takes the cosine with the mean frame embedding and scales it; repo scales and
        clamps each frame's cosine and takes the mean.
      text_rule: which text is held against the frames, see `sentences.describe`. The default,
        "paper", reads the span that the original reads, without its accidents.
      scale: w.
      num_sentences: most sentences per completion, for the text rule "pooled", whose embeddings
        are averaged; a longer description counts as truncated.
      cache: where frame embeddings are kept between calls.
      place: puts a tree of numpy arrays [batch_size, ...] on devices, `sharding.place_batch`
        with a mesh; default: one device.

    Raises:
      ValueError: an unknown option, a size below 1, or weights that lie elsewhere than the batch.
    """

    def __init__(
        self,
        siglip: Siglip,
        *,
        batch_size: int,
        num_rollouts: int,
        num_frames: int = 16,
        averaging: str = "paper",
        text_rule: str = "paper",
        scale: float = 2.0,
        num_sentences: int = 8,
        cache: EmbeddingCache | None = None,
        place: Callable[[Any], Any] = jax.device_put,
    ):
        SemanticOptions("", num_frames, averaging, text_rule, scale)  # checks them
        sizes = {"batch_size": batch_size, "num_rollouts": num_rollouts}
        for name, size in (sizes | {"num_sentences": num_sentences}).items():
            if not size > 0:
                raise ValueError(f"semantic: {name} is {size}; give a positive number")
        self.siglip, self.cache = siglip, cache
        self._shape = (batch_size, num_rollouts, num_sentences if text_rule == "pooled" else 1)
        self._num_frames, self._text_rule, self._place = num_frames, text_rule, place
        side = siglip.config.image_size
        # What enters as pixels when every embedding is known; it stays on the devices.
        self._pixels = (batch_size, num_frames, side, side, 3)
        self._blank = place(np.zeros(self._pixels, np.uint8))
        self._params = {name: siglip.params[name] for name in ("vision", "text")}
        lie = jax.tree.leaves(self._params)[0].sharding.device_set
        if lie != self._blank.sharding.device_set:
            raise ValueError(
                f"semantic: the siglip weights lie on {len(lie)} devices, its batches on "
                f"{len(self._blank.sharding.device_set)}; place the weights on the same mesh"
            )
        where = self._blank.sharding
        self._program = make_program(siglip.config, averaging=averaging, scale=scale, where=where)

    def __call__(
        self,
        frames: Sequence[np.ndarray | None],
        completions: Sequence[Sequence[str]],
        clips: Sequence[str] | None = None,
    ) -> SemanticScores:
        """Scores B videos.

        Args:
          frames: per video uint8 [n, h, w, 3] (RGB), or float32 [n, D] embeddings of frames, or
            None for a clip that could not be read.
          completions: B lists of R texts.
          clips: B identities of media and shown part, keys of the cache; None: no cache.

        Raises:
          ValueError: shapes that do not agree.
        """
        batch_size, num_rollouts, _ = self._shape
        _check(frames, completions, clips, num_rollouts)
        texts = [[describe(text, self._text_rule) for text in group] for group in completions]
        parts = []
        for start in range(0, len(frames), batch_size):
            rows = slice(start, start + batch_size)
            names = clips[rows] if clips and self.cache is not None else None
            parts.append(self._run(frames[rows], texts[rows], names))
        scores, cosine, is_truncated, is_empty, is_cached = map(
            np.concatenate, zip(*parts, strict=True)
        )
        is_failed = np.array([row is None for row in frames])
        scores[is_empty] = 0.0
        scores[is_failed] = np.nan
        cosine[is_empty | is_failed[:, None]] = np.nan
        stats = {
            "semantic/truncated": is_truncated.mean(),
            "semantic/empty": is_empty.mean(),
            "semantic/failed": is_failed.sum(),
        }
        if not is_failed.all():
            stats["semantic/cached"] = is_cached[~is_failed].mean()
            stats["semantic/saturated"] = (scores[~is_failed] >= 1).mean()
        if np.isfinite(cosine).any():
            stats["semantic/cosine"] = np.nanmean(cosine)
        stats = {name: float(number) for name, number in stats.items()}
        return SemanticScores(scores, cosine, is_truncated, is_empty, stats)

    def _run(
        self,
        frames: Sequence[np.ndarray | None],
        texts: Sequence[Sequence[Sequence[str]]],
        clips: Sequence[str] | None,
    ) -> tuple[np.ndarray, ...]:
        """Computes one batch: scores, cosine, is_truncated, is_empty [b, R] and is_cached [b]."""
        batch, is_truncated = self._tokenize(texts)
        rows, width, num = self._shape[0], self.siglip.config.vision.hidden_size, self._num_frames
        batch |= {
            "embeddings": np.zeros((rows, num, width), np.float32),
            "is_known": np.ones(rows, bool),  # Texts without embedding count as known.
            "has_frame": np.zeros((rows, num), bool),
        }
        cache = self.cache if clips else None
        fresh, is_cached = {}, np.zeros(len(frames), bool)
        for i, row in enumerate(frames):
            if row is None:
                continue
            if row.ndim == 4:
                cached = cache.get(clips[i], num, width) if cache is not None and clips else None
                is_cached[i] = cached is not None
                row = row if cached is None else cached
            row = row[_thin(len(row), num)]
            batch["has_frame"][i, : len(row)] = True
            if row.ndim == 4:
                fresh[i] = self.siglip.resize(row)
                batch["is_known"][i] = False
            elif row.shape[1] == width:
                is_cached[i] = True
                batch["embeddings"][i, : len(row)] = row
            else:
                raise ValueError(f"semantic: embeddings {row.shape} for a siglip of width {width}")
        if fresh:
            batch["pixels"] = np.zeros(self._pixels, np.uint8)
            for i, images in fresh.items():
                batch["pixels"][i, : len(images)] = images
        placed = {"pixels": self._blank} | self._place(batch)
        outputs = self._program(self._params, placed)
        scores, cosine, embeddings = (sharding.local_rows(array) for array in outputs)
        if cache is not None and clips:
            for i, images in fresh.items():
                cache.put(clips[i], num, embeddings[i, : len(images)])
        is_empty = np.logical_not(batch["has_text"].any(axis=-1))
        number = len(frames)
        return scores[:number], cosine[:number], is_truncated[:number], is_empty[:number], is_cached

    def _tokenize(
        self, texts: Sequence[Sequence[Sequence[str]]]
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """tokens int32 [batch_size, R, K, T] with has_text [batch_size, R, K], and is_truncated."""
        config, num_sentences = self.siglip.config, self._shape[2]
        length = config.text_length
        tokens = np.zeros((*self._shape, length), np.int32)
        has_text, is_truncated = np.zeros(self._shape, bool), np.zeros(self._shape[:2], bool)
        flat, places = [], []
        for i, group in enumerate(texts):
            for r, sentences in enumerate(group):
                is_truncated[i, r] = len(sentences) > num_sentences
                for k, text in enumerate(sentences[:num_sentences]):
                    is_truncated[i, r] |= len(text) > MAX_CHARS
                    # A lone surrogate is no text to a tokenizer.
                    flat.append(text[:MAX_CHARS].encode(errors="replace").decode())
                    places.append((i, r, k))
        if flat:
            # One column more shows which texts are longer; the last kept token is the end token.
            wider = dataclasses.replace(config, text_length=length + 1)
            rows = tokenize(self.siglip.tokenizer, wider, flat)[:, :length]
            is_cut = ~np.isin(rows[:, -1], _ENDS)
            rows[is_cut, -1] = 1
            where = tuple(np.array(places).T)
            tokens[where], has_text[where] = rows, True
            np.logical_or.at(is_truncated, where[:2], is_cut)
        return {"tokens": tokens, "has_text": has_text}, is_truncated


def make_program(config: SiglipConfig, *, averaging: str, scale: float, where):
    """`_score` compiled on first use, its results lying as `where` says.

    Each device of a mesh gathers the towers once and takes images and texts of its own, since sums
    of hidden states or a gather per frame take longer than the arithmetic. Only where the rows do
    not divide over all devices do those along tensor share rows and weights.
    """
    score = functools.partial(_score, config=config, averaging=averaging, scale=scale)

    def dealt(params: dict, batch: dict):
        mesh = getattr(where, "mesh", None)
        if mesh is None or len(batch["pixels"]) % mesh.size:
            return score(params, batch)
        with jax.sharding.use_abstract_mesh(sharding.flattened(mesh)):
            return score(jax.lax.with_sharding_constraint(params, PartitionSpec()), batch)

    return jax.jit(dealt, out_shardings=where)


def _score(
    params: dict, batch: dict, *, config: SiglipConfig, averaging: str, scale: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """scores and cosine [B, R], frame embeddings [B, n, D]. The program; pure."""
    pixels, tokens = batch["pixels"], batch["tokens"]
    has_frame, has_text = batch["has_frame"][..., None], batch["has_text"][..., None]

    def encode() -> jax.Array:
        # One frame of every video at a time: attention over all patches would take gigabytes.
        images = jax.lax.map(lambda x: encode_images(params, config, x), jnp.moveaxis(pixels, 1, 0))
        return jnp.moveaxis(images, 0, 1)

    known = batch["embeddings"]
    images = jax.lax.cond(batch["is_known"].all(), lambda: known, encode)
    images = jnp.where(batch["is_known"][:, None, None], known, images)
    texts = encode_texts(params, config, tokens.reshape(-1, tokens.shape[-1]))
    texts = _unit((texts.reshape(*tokens.shape[:-1], -1) * has_text).sum(axis=2))
    num_frames = jnp.maximum(has_frame.sum(axis=1), 1)  # [B, 1]
    dot = functools.partial(jnp.einsum, precision="highest")  # a TPU would round to bf16
    if averaging == "paper":
        mean = _unit((images * has_frame).sum(axis=1) / num_frames)
        cosine = dot("brd,bd->br", texts, mean)
        scores = jnp.clip(scale * cosine, 0, 1)
    else:
        cosines = dot("brd,bfd->brf", texts, images)
        mask = has_frame[:, None, :, 0]
        cosine = (cosines * mask).sum(axis=-1) / num_frames
        scores = (jnp.clip(scale * cosines, 0, 1) * mask).sum(axis=-1) / num_frames
    return scores, cosine, images


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _thin(length: int, num: int) -> np.ndarray:
    """Indices of at most `num` of `length` frames, evenly spaced, first and last included."""
    return np.linspace(0, length - 1, min(num, length)).round().astype(int)


def _check(
    frames: Sequence[Any],
    completions: Sequence[Sequence[str]],
    clips: Sequence[str] | None,
    num_rollouts: int,
) -> None:
    sizes = {0 if isinstance(group, str) else len(group) for group in completions}
    if not len(frames) or len(completions) != len(frames) or sizes != {num_rollouts}:
        raise ValueError(
            f"semantic: {len(frames)} videos and {len(completions)} groups of {sorted(sizes)} "
            f"completions; give one group of {num_rollouts} for each video, at least one"
        )
    if clips is not None and len(clips) != len(frames):
        raise ValueError(f"semantic: {len(clips)} clips for {len(frames)} videos; name each")
    for i, row in enumerate(frames):
        if row is None:
            continue
        kind = (row.dtype, row.ndim, row.shape[-1] if row.ndim == 4 else 3)
        if kind not in ((np.uint8, 4, 3), (np.float32, 2, 3)) or not len(row):
            raise ValueError(
                f"semantic: video {i} is {row.dtype} {row.shape}; give uint8 [n, h, w, 3], "
                "embeddings float32 [n, D], or None for a clip that failed"
            )
