"""Estimates what a program needs of a device by formulas, where no compiler for it is at hand.

Arguments are exact, they follow from shapes and shardings. Temporaries are the arrays that cannot
be avoided: gathered weights of two layers, layer inputs kept for the backward pass, the working set
of one layer, a chunk of logits, gradients. For 7B with 16 frames, with all that lies on a device
meanwhile, they are within 15 % of the compiler's figures (launch/PLANS.md). TPU7x is the exception:
its prefill and decode are estimated a quarter too low.
"""

from videorft_jax.ops.masked import CHUNK
from videorft_jax.planning.compile import GIB, Figures
from videorft_jax.planning.jobs import DRAWING, Job, device_bytes, prepared_bytes
from videorft_jax.rollout.parameters import takes_apart

_WIDE, _NARROW = 4, 2  # float32, bf16


def estimate(job: Job, name: str) -> Figures:
    """Estimates the memory of the program called `name`, in GiB of a device."""
    arguments, temporaries = _PROGRAMS[name](job.drawing if name in DRAWING else job)
    parts = (arguments / GIB, temporaries / GIB, (arguments + temporaries) / GIB)
    return Figures(*parts, compile_s=0.0, estimated=True)


def programs_with_estimate(job: Job) -> tuple[str, ...]:
    """The programs of a step that may need the most memory."""
    return ("update",) if job.mode == "sft" else ("prefill", "decode", "update")


def estimated_gib(job: Job, name: str) -> float:
    """GiB of a device while the program called `name` runs, with the state of training that lies
    beside those of a rollout."""
    beside = 0 if name == "update" else device_bytes((job.state, job.reference, job.judge))
    return estimate(job, name).peak + beside / GIB


def _rows(job):
    return job.shape.rows // job.parts


def _layer(job, tokens, width=_NARROW):
    """Bytes that one decoder layer works on at once for so many tokens of a device."""
    text, tensor = job.weights.model.text, job.mesh.shape["tensor"]
    heads = (2 * text.num_heads + 2 * text.num_kv_heads) * text.head_dim
    return width * tokens * (4 * text.dim + (heads + 3 * text.mlp_dim) / tensor)


def _gathered(job, size=_NARROW):
    """Bytes of the weights of two decoder layers and of the head, as gathered over `fsdp`: each
    device then holds all of them but for the tensor axis."""
    text = job.weights.model.text
    qkvo = 2 * (text.num_heads + text.num_kv_heads) * text.head_dim
    layer = text.dim * (qkvo + 3 * text.mlp_dim)
    return size * (2 * layer + text.dim * text.vocab_size) / job.mesh.shape["tensor"]


def _vision(job, rows):
    """Bytes that one layer of the vision tower works on at once."""
    vision, shape = job.weights.model.vision, job.shape
    patches = rows * shape.pairs * shape.windows * job.geometry.slots
    pixels = patches * job.geometry.patch_dim * _WIDE
    return _NARROW * patches * (8 * vision.dim + 3 * vision.mlp_dim) + pixels


def _encoding(job):
    """The bytes of `_vision` of a rollout, whose frame pairs are dealt out along tensor too."""
    return _vision(job, _rows(job) / job.mesh.shape["tensor"])


def _batch(job):
    shape = job.shape
    slots = shape.pairs * shape.windows * job.geometry.slots
    return _rows(job) * (slots * (job.geometry.patch_dim + 9) + shape.length * 25)


def _cache(job):
    text, rollout = job.weights.model.text, job.grpo.rollout
    tokens = job.shape.length + rollout.num_rollouts * rollout.max_new_tokens
    heads = text.num_kv_heads / job.mesh.shape["tensor"]
    size = 1 if rollout.int8_cache else 2
    return 2 * _rows(job) * tokens * text.num_layers * heads * text.head_dim * size


def _logits(job, positions):
    return _WIDE * positions * job.weights.model.text.vocab_size / job.mesh.shape["tensor"]


def _reshard(job):
    """The new weights, and beside them a layer and the head as they are gathered."""
    made = prepared_bytes(job) + _stack(job) + _gathered(job)
    return device_bytes((job.state.params, job.state.frozen)), made


def _stack(job):
    """The bytes of the layers' stack, while it is taken apart or put together."""
    if not takes_apart(job.drawing.mesh):
        return 0
    size = device_bytes(job.prepared["text"]["layers"])
    return size // 2 if job.grpo.rollout.int8_weights else size


def _prefill(job):
    rows, rollouts = _rows(job), job.grpo.rollout.num_rollouts
    working = max(_layer(job, rows * job.shape.length), _encoding(job))
    logits = 3 * _logits(job, rows * rollouts)
    return prepared_bytes(job) + _batch(job), _cache(job) + _stack(job) + working + logits


def _decode(job):
    positions = _rows(job) * job.grpo.rollout.num_rollouts
    return prepared_bytes(job) + _cache(job), 3 * _logits(job, positions)


def _compact(job):
    return _cache(job), _cache(job)


def _encode(job):
    return device_bytes(job.prepared["vision"]) + _batch(job), _encoding(job)


def _siglip(job):
    tower, config = job.siglip.vision, job.siglip
    patches = (config.image_size // config.patch_size) ** 2
    images = _rows(job) * patches * (8 * tower.hidden_size + 2 * tower.intermediate_size) * _WIDE
    scores = _rows(job) * tower.num_heads * patches**2 * _WIDE / job.mesh.shape["tensor"]
    pixels = _rows(job) * job.grpo.semantic.frames * config.image_size**2 * 3
    return device_bytes(job.judge) + pixels, images + 2 * scores


def _score(job):
    """All rows go through at once, and nothing is kept for a backward pass."""
    rows, copies = _rows(job), device_bytes(job.policy) if job.weights.lora is None else 0
    working = max(_layer(job, rows * _row_tokens(job)), _vision(job, rows))
    arguments = device_bytes((job.state.params, job.state.frozen, job.reference)) + _batch(job)
    return arguments, copies + working + _gathered(job) + _logits(job, rows * CHUNK)


def _update(job):
    rows, tokens = _slice(job)
    copies = device_bytes(job.policy) if job.weights.lora is None else 0
    gradients = device_bytes(job.state.params) * (2 if job.train.accumulate > 1 else 1)
    working = max(2 * _layer(job, tokens), 2 * _vision(job, rows))
    kept = _kept_inputs(job) + _kept_products(job)
    temporaries = copies + gradients + kept + working + _gathered(job)
    temporaries += 3 * _logits(job, rows * CHUNK)
    return _update_arguments(job), temporaries


def _update_arguments(job):
    return device_bytes((job.state, job.reference)) + _batch(job)


def _slice(job):
    """Gives (rows, decoder tokens) of a device that an update goes through at once."""
    minibatches = job.grpo.minibatches if job.grpo else 1
    rows = max(1, _rows(job) // (minibatches * job.train.accumulate))
    return rows, rows * _row_tokens(job)


def _row_tokens(job):
    if job.mode == "sft":
        return job.shape.length
    return job.shape.length + job.grpo.rollout.num_rollouts * job.grpo.rollout.max_new_tokens


def _kept_inputs(job):
    """Bytes of the inputs of all layers, which are kept so that the backward pass can compute each
    layer again from its input."""
    (rows, tokens), text, vision = _slice(job), job.weights.model.text, job.weights.model.vision
    kept = text.num_layers * tokens * text.dim * _NARROW
    if job.weights.trains_vision:
        patches = rows * job.shape.pairs * job.shape.windows * job.geometry.slots
        kept += vision.num_layers * patches * vision.dim * _NARROW
    return kept


def _kept_products(job):
    """Bytes of what `model.remat` keeps of all layers beside their inputs."""
    text, tokens, tensor = job.weights.model.text, _slice(job)[1], job.mesh.shape["tensor"]
    mixed = text.num_heads * text.head_dim / tensor
    around = mixed + 2 * text.num_kv_heads * text.head_dim / tensor + text.dim
    widths = {
        "full": 0,
        "save_attention": mixed,
        "save_projections": mixed + around,
        "save_gate": mixed + around + text.mlp_dim / tensor,
    }
    if (remat := job.train.model.remat) in widths:
        return _NARROW * text.num_layers * tokens * widths[remat]
    return (3 if remat == "save_dots" else 4) * text.num_layers * _layer(job, tokens) / 4


def least_update(job: Job) -> float:
    """GiB of a device without which no compiler can do an update: arguments; gradients in the dtype
    of the model, none of which is applied before all are known to be finite; layer inputs; and, of
    layers that are not computed again, q, k, v and the MLP's two inner products."""
    text, tensor = job.weights.model.text, job.mesh.shape["tensor"]
    gradients = device_bytes(job.state.params) * _NARROW / _WIDE
    kept = _kept_inputs(job)
    if job.train.model.remat in ("save_dots", "none"):
        heads = (text.num_heads + 2 * text.num_kv_heads) * text.head_dim
        width = (heads + 2 * text.mlp_dim) / tensor
        kept += _NARROW * text.num_layers * _slice(job)[1] * width
    return (_update_arguments(job) + gradients + kept) / GIB


_PROGRAMS = {
    "reshard": _reshard,
    "vision": _encode,
    "prefill": _prefill,
    "decode": _decode,
    "compact": _compact,
    "siglip": _siglip,
    "score": _score,
    "update": _update,
}
