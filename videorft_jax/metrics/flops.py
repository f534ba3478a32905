"""What a program costs: floating-point operations and memory traffic, from sizes alone.

The same work is counted twice. `useful` counts real tokens, the keys that each may see, and real
patches. `executed` counts padded shapes with whole score matrices, which is what reference
attention computes. Utilisation is useful operations over time; one minus useful / executed is
padding. XLA's own count would not do, because it counts the body of the scan over layers once.

Only matrix products are counted, 2 per multiply and add; the embedding lookup, norms, rotations and
softmax are elementwise, a few per cent at published sizes.
"""

import dataclasses
import math
from collections.abc import Callable, Collection

import numpy as np

from videorft_jax.data.batch.batch import Batch
from videorft_jax.models.config import ModelConfig
from videorft_jax.models.family import family_of
from videorft_jax.models.names import linear_layers

_KV_BYTES = _WEIGHT_BYTES = 2  # bf16


@dataclasses.dataclass(frozen=True)
class Work:
    """How much goes through the model. Pairs are (query, key) that attention scores, per head."""

    tokens: int = 0  # through the decoder
    pairs: int = 0
    targets: int = 0  # positions through the head
    patches: int = 0  # through the vision tower
    window_pairs: int = 0  # query-key pairs of one windowed layer
    frame_pairs: int = 0  # query-key pairs of one full layer

    def __add__(self, other):
        sums = map(sum, zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True))
        return Work(*sums)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Operations and bytes of one run of a program, over all devices.

    `recompute` is what rematerialisation adds; utilisation of the model leaves it out, that of the
    hardware does not. `bytes` is the least traffic with main memory: weights, caches, optimizer
    states and layer inputs kept for the backward pass.
    """

    forward: float = 0.0
    backward: float = 0.0
    recompute: float = 0.0
    bytes: float = 0.0

    @property
    def model_flops(self) -> float:
        return self.forward + self.backward

    @property
    def hardware_flops(self) -> float:
        return self.forward + self.backward + self.recompute

    def __add__(self, other):
        sums = map(sum, zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True))
        return Cost(*sums)


@dataclasses.dataclass(frozen=True)
class Part:
    """Matrix products that follow each other in a forward pass.

    weights: path -> multiply-adds of all layers per row. rows: tokens, patches or positions that go
    through. mixing: operations of attention; half of them are scores, half weight the values.
    """

    weights: dict[str, int]
    rows: int
    mixing: float = 0.0

    @property
    def forward(self) -> float:
        return 2.0 * self.rows * sum(self.weights.values()) + self.mixing


def packed_work(batch: Batch) -> tuple[Work, Work]:
    """(useful, executed) of rows of packed samples; `batch` holds NumPy arrays.

    The executed head runs over the target positions only. What a CPU leaves out of the last layer
    is counted all the same.
    """
    segments = np.asarray(batch.segment_ids)
    lengths = _segment_lengths(segments)
    targets = int(np.count_nonzero(batch.loss_mask))
    useful, executed = vision_work(batch.patch_valid)
    tokens, rows = segments.size, segments.shape[1]
    return (
        useful + Work(int(lengths.sum()), int((lengths * (lengths + 1) // 2).sum()), targets),
        executed + Work(tokens, tokens * rows, targets),
    )


def _segment_lengths(segments):
    """Lengths of all segments of all rows; segment 0 is padding."""
    rows = np.arange(len(segments))[:, None] * (int(segments.max(initial=0)) + 1)
    counts = np.bincount((segments + rows)[segments > 0])
    return counts[counts > 0].astype(np.int64)


def vision_work(patch_valid: np.ndarray) -> tuple[Work, Work]:
    """(useful, executed) of slots bool [B, F, W, 64]."""
    valid = np.asarray(patch_valid)
    windows = np.count_nonzero(valid, axis=-1).astype(np.int64)  # [B, F, W]
    frames = windows.sum(-1)
    *_, count, slots = valid.shape
    useful = Work(
        patches=int(frames.sum()),
        window_pairs=int((windows**2).sum()),
        frame_pairs=int((frames**2).sum()),
    )
    executed = Work(
        patches=valid.size, window_pairs=valid.size * slots, frame_pairs=valid.size * count * slots
    )
    return useful, executed


def group_work(
    prompt_lengths: np.ndarray, completion_lengths: np.ndarray, prompt: int, completion: int
) -> tuple[Work, Work]:
    """(useful, executed) of shared-prefix rows `[prompt | R completions]`, vision left out.

    Lengths are int [B] and [B, R], the slots hold `prompt` and `completion` tokens each. Executed
    pairs are those of the static mask, blocks that no completion sees are skipped by every path.
    """
    lengths = np.asarray(prompt_lengths, np.int64)
    own = np.asarray(completion_lengths, np.int64)
    rows, rollouts = own.shape
    pairs = (lengths * (lengths + 1) // 2).sum()
    pairs += (own * lengths[:, None] + own * (own + 1) // 2).sum()
    slots = prompt + rollouts * completion
    scored = prompt * prompt + rollouts * completion * (prompt + completion)
    return (
        Work(int(lengths.sum() + own.sum()), int(pairs), int(own.sum())),
        Work(rows * slots, rows * scored, rows * rollouts * completion),
    )


def _matrices(config: ModelConfig, *stacks: str) -> dict[str, int]:
    """path -> multiply-adds per row, over all layers, of the matrices below the paths `stacks`."""
    family = family_of(config)
    linear = linear_layers(family.names, family.new_name)
    return {
        leaf.path: math.prod(leaf.shape)
        for leaf in family.leaves_of(config)
        if leaf.path in linear and leaf.path.startswith(stacks)
    }


def parts(config: ModelConfig, work: Work) -> dict[str, Part]:
    """The matrix products of one forward pass, by tower: embed, vision, merger, text, head."""
    vision, text = config.vision, config.text
    full = len(vision.full_layers)
    vision_pairs = full * work.frame_pairs + (vision.num_layers - full) * work.window_pairs
    mixed = 4.0 * text.num_heads * text.head_dim * text.num_layers * work.pairs
    return {
        "embed": Part({"vision/embed": vision.patch_dim * vision.dim}, work.patches),
        "vision": Part(
            _matrices(config, "vision/layers/"), work.patches, 4.0 * vision.dim * vision_pairs
        ),
        "merger": Part(
            _matrices(config, "vision/merger/", "vision/deepstack/"),
            work.patches // vision.merge**2,
        ),
        "text": Part(_matrices(config, "text/layers/"), work.tokens, mixed),
        "head": Part({_head_path(config): text.dim * text.vocab_size}, work.targets),
    }


def _head_path(config):
    return "text/embed" if config.text.tied else "text/head"


def forward_cost(config: ModelConfig, work: Work) -> Cost:
    """One forward pass: scoring, prefill (targets = rows), or the vision tower alone."""
    used = [part for part in parts(config, work).values() if part.rows]
    weights = sum(sum(part.weights.values()) for part in used)
    return Cost(forward=sum(part.forward for part in used), bytes=_WEIGHT_BYTES * weights)


def train_cost(
    config: ModelConfig,
    work: Work,
    *,
    remat: str = "none",
    trained: Callable[[str], object] = lambda path: True,
    merged: Collection[str] = (),
    rank: int = 0,
    state_bytes: int = 12,
) -> Cost:
    """Forward, backward and recomputation of one training step, with the optimizer's traffic.

    trained(path) says whether the weight at `path`, such as `text/layers/attn/q`, needs a gradient.
    A frozen tower with nothing trained before it has no backward pass. merged: paths of weights
    under an adapter of rank `rank`. Adapters are merged into their weights, so the gradient of the
    whole weight is computed; states of the adapters are too few to count. remat: the policy of the
    model; the head is computed in chunks that are always recomputed. state_bytes: bytes per trained
    weight, which are read and written once (a float32 master and two moments are 12).
    """
    todo = {name: part for name, part in parts(config, work).items() if part.rows}
    backward, recompute = _backward(todo, trained, remat)
    weights = {path: size for part in todo.values() for path, size in part.weights.items()}
    learnt = sum(size for path, size in weights.items() if trained(path) and path not in merged)
    merge = 2.0 * rank * sum(weights.get(path, 0) for path in merged)
    inputs = work.tokens * config.text.dim * config.text.num_layers
    inputs += work.patches * config.vision.dim * config.vision.num_layers
    kept = 2 * 2 * inputs  # inputs of all layers are written and read, in bf16
    passes = 2 + (remat != "none")
    traffic = _WEIGHT_BYTES * passes * sum(weights.values()) + kept
    traffic += (2 * state_bytes + 4) * learnt
    return Cost(
        forward=sum(part.forward for part in todo.values()) + merge,
        backward=backward + 2 * merge,
        recompute=recompute + merge * (remat != "none"),
        bytes=float(traffic),
    )


def _backward(todo, trained, remat):
    """(operations of the backward pass, operations that it computes again).

    A product x @ w costs as much again for the gradient of w where w is trained, and as much for
    the gradient of x where anything before it is trained.
    """
    backward = recompute = 0.0
    before = False  # whether anything upstream wants a gradient
    for name, part in todo.items():
        scale = 2.0 * part.rows
        by_weight = sum(size for path, size in part.weights.items() if trained(path))
        in_layers = name in ("vision", "text")
        if name == "text":
            before = before or bool(trained("text/embed"))
        if name == "merger":  # norm, up, down: each passes gradients to what is before it
            by_input = 0
            for stack in dict.fromkeys(path.rsplit("/", 1)[0] for path in part.weights):
                to_norm = before or bool(trained(f"{stack}/norm"))
                to_up = to_norm or bool(trained(f"{stack}/up"))
                by_input += part.weights[f"{stack}/up"] * to_norm
                by_input += part.weights[f"{stack}/down"] * to_up
        else:  # inside the scan over layers all gradients pass once any does
            passes = before or (in_layers and by_weight)
            by_input = sum(part.weights.values()) if passes else 0
        backward += scale * (by_weight + by_input)
        if in_layers and (by_weight or before):
            backward += 2.0 * part.mixing
            recompute += _recompute(part, remat)
        elif name == "head":
            recompute += part.forward
        before = before or bool(by_weight)
    return backward, recompute


# The products with weights of the decoder that a policy keeps, beside what attention returned.
_KEPT = {
    "full": (),
    "save_attention": (),
    "save_projections": ("text/layers/attn/",),
    "save_gate": ("text/layers/attn/", "text/layers/mlp/gate"),
    "save_dots": ("",),
}


def _recompute(part, remat):
    """What the backward pass of a tower computes again.

    The last product of a layer, mlp/down, is not needed for any gradient and never repeated. The
    policies keep what attention returned, or products with weights; scores are repeated unless
    nothing is, and "save_dots" keeps no result of attention.
    """
    if remat == "none":
        return 0.0
    if remat not in _KEPT:
        raise ValueError(f"remat is {remat!r}; choose none or one of {', '.join(_KEPT)}")
    again = (
        size
        for path, size in part.weights.items()
        if not path.endswith("mlp/down") and not path.startswith(_KEPT[remat])
    )
    in_text = any(path.startswith("text/") for path in part.weights)
    keeps = remat == "save_attention" or (in_text and remat in ("save_projections", "save_gate"))
    mixed = part.mixing / 2 if keeps else part.mixing
    return 2.0 * part.rows * sum(again) + mixed


def decode_cost(
    config: ModelConfig, prompt_lengths: np.ndarray, suffix: np.ndarray, *, executed: int = 0
) -> Cost:
    """One decoding step: one new token for each completion.

    `prompt_lengths` int [B] are read once per row, `suffix` int [B, R] counts the tokens of each
    completion including the new one. Bytes are weights, head and both parts of the cache, in bf16.
    With `executed` > 0 every suffix is taken to be that long, as a static cache is.
    """
    text = config.text
    own = np.full_like(suffix, executed) if executed else np.asarray(suffix, np.int64)
    prompts = np.asarray(prompt_lengths, np.int64)
    context = int((prompts[:, None] + own).sum())
    work = Work(tokens=own.size, pairs=context, targets=own.size)
    cost = forward_cost(config, work)
    per_token = 2 * _KV_BYTES * text.num_layers * text.num_kv_heads * text.head_dim
    cache = per_token * int(prompts.sum() + own.sum())
    return dataclasses.replace(cost, bytes=cost.bytes + cache)


def siglip_cost(tower, tokens: int, count: int, *, patch_dim: int = 0, head: int = 0) -> Cost:
    """Forward pass of `count` sequences of `tokens` through a SigLIP tower.

    `tower` has hidden_size, intermediate_size and num_layers. Images have a `patch_dim` (3 p^2) and
    end in the attention pool; texts end in a `head` of that many outputs, at the last position.
    """
    dim, mlp = tower.hidden_size, tower.intermediate_size
    block = 4 * dim**2 + 2 * dim * mlp
    per_sequence = tokens * tower.num_layers * 2.0 * block
    per_sequence += tower.num_layers * 4.0 * dim * tokens**2
    weights = tower.num_layers * block
    if patch_dim:  # embedding; then keys and values of all, output and MLP of the one query
        pool = dim**2 + 2 * dim * mlp
        per_sequence += 2.0 * tokens * (patch_dim * dim + 2 * dim**2) + 2.0 * pool
        per_sequence += 4.0 * dim * tokens
        weights += patch_dim * dim + 2 * dim**2 + pool
    per_sequence += 2.0 * dim * head
    weights += dim * head
    return Cost(forward=count * per_sequence, bytes=float(_WEIGHT_BYTES * weights))
