"""Counts by formulas what each program sends between devices, where no compiled program says it.

Weights that lie split over `fsdp` are gathered for every pass through the layers, and gradients are
summed and split again. Along `tensor` a layer sums hidden states behind attention and behind its
MLP. All of it is bfloat16. A test holds the bytes against those of small compiled programs.
"""

import jax

from videorft_jax.parallel import sharding
from videorft_jax.planning.costs import floor_seconds, program_costs
from videorft_jax.planning.jobs import Job, count_runs, device_bytes, total_bytes
from videorft_jax.planning.links import LINKS, Collective, find_wires, weigh, wired_seconds
from videorft_jax.rollout.heads import count_copies
from videorft_jax.rollout.parameters import takes_apart
from videorft_jax.rollout.sampling import bits_of_a_turn

_BF16, _FLOAT = 2, 4
# Numbers that each part of a vocabulary shares before a search for bounds and behind it.
_MAXIMA, _MASS, _FOUND = 2, 1, 6
_TILE = 16  # rows of bfloat16 that a TPU lays together
_WITH_GRADIENT = 5  # sums of a layer: two forward, attention's again, and both gradients


def program_traffic(job: Job) -> dict[str, list[Collective]]:
    """Gives the collectives of one run of each program; of decode, of all tokens but the first."""
    if job.mode == "sft":
        return {"update": _update(job)}
    found = {
        "reshard": _reshard(job),
        "vision": _encoding(job.drawing),
        "prefill": _prefill(job.drawing),
        "decode": _decode(job.drawing),
        "compact": [],
        "siglip": _siglip(job),
        "score": _score(job),
        "update": _update(job),
    }
    return {name: [one for one in sent if _matters(job, name, one)] for name, sent in found.items()}


def step_seconds(job: Job) -> float:
    """Gives the least seconds of a step by formulas, links counted where they are known."""
    sent, total = program_traffic(job), 0.0
    for name, cost in program_costs(job).items():
        floor, wires = floor_seconds(job, cost), find_wires(job.topology, job.mesh_of(name))
        least = floor if wires is None else wired_seconds(wires, floor, sent[name], name)
        total += count_runs(job, name) * least
    return total


def _matters(job, name, one):
    return one.count > 0 and any(job.mesh_of(name).shape[axis] > 1 for axis in one.axes)


def _sums(size, count):
    return Collective("all-reduce", ("tensor",), size, count)


def _gather(size, count):
    return Collective("all-gather", ("fsdp",), size, count)


def _states(job, tokens):
    """Counts the bytes of hidden states of so many tokens."""
    return _BF16 * tokens * job.weights.model.text.dim


def _gathered(tree, job):
    """Counts the bytes that a device holds of a tree once `fsdp` is gathered."""
    return device_bytes(tree) * job.mesh.shape["fsdp"]


def _looked_up(job):
    """Counts how often looked-up embeddings are added up: where the embedding is the head, too."""
    return int(job.weights.model.text.tied)


def _split_bytes(tree):
    """Counts the bytes of those arrays of a tree that are not whole on every device."""
    leaves = jax.tree.leaves(tree)
    return total_bytes([leaf for leaf in leaves if not leaf.sharding.is_fully_replicated])


def _reshard(job):
    """Counts what the rollout's weights cost. On another mesh devices along tensor first exchange
    pieces of what keeps its shape and stays split; the others are gathered from all."""
    layers, mesh = job.weights.model.text.num_layers, job.drawing.mesh
    tensor = mesh.shape["tensor"]
    kept = rest = 0.0
    for leaf, other in zip(*map(jax.tree.leaves, (job.policy, job.prepared)), strict=True):
        if leaf.shape == other.shape and not other.sharding.is_fully_replicated:
            kept += total_bytes(leaf) / layers
        else:
            rest += total_bytes(leaf) / layers
    if mesh is job.mesh:
        around, pieces = ("fsdp",), 0
    else:
        around, pieces = ("data", "fsdp"), kept / mesh.devices.size
    return [
        Collective("all-gather", sharding.AXES if tensor > 1 else around, rest, layers),
        Collective("all-gather", around, kept / tensor, layers),
        Collective("all-to-all", ("tensor",), pieces, layers if pieces else 0),
    ]


def _vision(job, rows=None, passes=2):
    """Counts the sums of the tower for a device's clips, `passes` a layer, and its mergers'."""
    model, shape = job.weights.model, job.shape
    rows = shape.rows // job.parts if rows is None else rows
    patches = rows * shape.pairs * shape.windows * job.geometry.slots
    merged = patches // model.vision.merge**2
    return [
        _sums(_BF16 * patches * model.vision.dim, passes * model.vision.num_layers),
        _sums(_BF16 * merged * model.visual_dim, 1),
    ]


def _prefill(job):
    """Counts the weights of a layer, which devices along tensor gather, and the keys and values
    that they exchange. Where the rows do not divide over all devices, these split the weights and
    add up hidden states."""
    rows, mesh, text = job.shape.rows // job.parts, job.mesh, job.weights.model.text
    states = _states(job, rows * job.shape.length)
    if job.shape.rows % mesh.size:
        sent = [_sums(states, 2 * text.num_layers + _looked_up(job))]
    else:
        weights = _split_bytes(job.prepared["text"]["layers"]) / text.num_layers
        values = text.num_kv_heads * text.head_dim
        kept = _BF16 * rows * job.shape.length * values / mesh.shape["tensor"]
        sent = [
            Collective("all-gather", ("tensor",), weights, text.num_layers),
            Collective("all-to-all", ("tensor",), kept, 2 * text.num_layers),
            Collective("reduce-scatter", ("tensor",), states, _looked_up(job)),
        ]
    if job.weights.trains_vision or job.grpo.max_draws > 1:  # Else its tokens are known already.
        sent += _encoding(job)
    return sent


def _encoding(job):
    """Counts the visual tokens that devices along tensor make of frame pairs of their own."""
    shape, model = job.shape, job.weights.model
    merged = shape.pairs * shape.windows * job.geometry.slots // model.vision.merge**2
    tokens = shape.rows // job.parts * merged
    return [Collective("all-gather", ("tensor",), _BF16 * tokens * model.visual_dim, 1)]


def _decode(job):
    """Counts the sums of hidden states, beside which the next weights are fetched, and the numbers
    that parts of the vocabulary share for a draw. Devices that share a head of keys gather their
    queries and send results back."""
    rollout, model, tensor = job.grpo.rollout, job.weights.model, job.mesh.shape["tensor"]
    draws = job.shape.rows // job.parts * rollout.num_rollouts
    steps, layers = rollout.max_new_tokens - 1, model.text.num_layers
    copies = count_copies(model, tensor)
    queries = job.prepared["text"]["layers"]["attn"]["q"].shape[2] // tensor * copies
    shared = draws * queries * model.text.head_dim if copies > 1 else 0
    found = [
        _sums(_states(job, draws), steps * 2 * layers),
        Collective("all-gather", ("tensor",), _BF16 * shared, steps * layers, copies),
        Collective("all-to-all", ("tensor",), _FLOAT * shared, steps * layers, copies),
    ]
    found = [one for one in found if one.bytes]
    if takes_apart(job.mesh):
        weights = steps * device_bytes(job.prepared["text"]["layers"])
        found = _fetching(found, weights / (2 if rollout.int8_weights else 1))
    # The bound of top_p or top_k is searched in turns, each of which asks several questions.
    searches, bits = (rollout.top_p < 1) + (rollout.top_k > 0), bits_of_a_turn(tensor)
    numbers = [
        (_MAXIMA, 1), (_MASS, rollout.top_p < 1), (2**bits - 1, (1 + 31 // bits) * searches),
        (_FOUND, 1),
    ]  # fmt: skip
    size = _FLOAT * draws * tensor
    return [
        *found,
        _sums(_states(job, draws), steps * _looked_up(job)),
        *(Collective("all-gather", ("tensor",), size * n, steps * each) for n, each in numbers),
    ]


def _fetching(sent, size):
    """Divides `size` bytes, fetched while one or another of `sent` runs, between these."""
    parts = [one.count * weigh(one.kind, one.bytes) for one in sent]
    return [
        one._replace(fetched=size * part / sum(parts) / one.count)
        for one, part in zip(sent, parts, strict=True)
    ]


def _siglip(job):
    """Counts both towers once, gathered on every device, where the rows divide over all devices;
    else those along tensor add up hidden states, and each frame gathers the tower anew."""
    if job.siglip is None:
        return []
    if job.shape.rows % job.mesh.size == 0:
        towers = _split_bytes((job.judge["vision"], job.judge["text"]))
        return [Collective("all-gather", ("fsdp", "tensor"), towers, 1)]
    rows, config = job.shape.rows // job.parts, job.siglip
    patches = (config.image_size // config.patch_size) ** 2 * rows
    words = config.text_length * rows * job.grpo.rollout.num_rollouts
    frames, dim = job.grpo.semantic.frames, config.vision.hidden_size
    vision = job.judge["vision"]
    return [
        _gather(_gathered([vision["layers"], vision["pool"]], job), frames),
        _gather(_gathered(job.judge["text"]["layers"], job), 1),
        _sums(_BF16 * patches * dim, 2 * config.vision.num_layers * frames),
        _sums(_BF16 * words * dim, 2 * config.text.num_layers),
    ]


def _slice(job):
    """Gives (slices of an update, rows of one, decoder tokens of a row)."""
    minibatches = job.grpo.minibatches if job.grpo else 1
    rows = job.shape.rows // job.parts // minibatches
    slices = min(job.train.accumulate, rows) or 1
    tokens = job.shape.length
    if job.mode == "grpo":
        tokens += job.grpo.rollout.num_rollouts * job.grpo.rollout.max_new_tokens
    return slices, max(1, rows // slices), tokens


def _stacks(job):
    """Gives the layers of the policy that an update runs, and its other weights that are gathered:
    the head, once a pass; the embedding's rows are looked up where it lies. The tower is one of
    them only where it trains or comes with the batch."""
    text = job.policy["text"]
    head = text["head" if "head" in text else "embed"]
    if job.grpo and not job.weights.trains_vision and job.grpo.max_draws == 1:
        return [text["layers"]], head
    return [text["layers"], job.policy["vision"]], head


def _score(job):
    if not job.grpo.needs_score:
        return []
    passes = 2 if job.grpo.loss.beta else 1
    rows, tokens = job.shape.rows // job.parts, _slice(job)[2]
    layers = job.weights.model.text.num_layers
    stacks, head = _stacks(job)
    return [
        _gather(_gathered(stacks, job) / layers, layers * passes),
        _gather(_gathered(head, job), passes),
        _sums(_states(job, rows * tokens), 2 * layers * passes),
    ]


def _gradient_kind(job):
    """Names how gradients are summed: each device keeps its part, but XLA for TPU leaves sums whole
    where a part is no whole number of tiles."""
    rows = job.weights.model.text.dim // job.mesh.shape["fsdp"]
    return "all-reduce" if job.topology.kind in LINKS and rows % _TILE else "reduce-scatter"


def _update(job):
    slices, rows, tokens = _slice(job)
    layers, again = job.weights.model.text.num_layers, job.train.model.remat != "none"
    reference = bool(job.grpo and job.grpo.loss.beta and not job.grpo.needs_score)
    stacks, head = _stacks(job)
    learnt = job.state.params
    if "text" in learnt and "head" in learnt["text"]:
        rest = {name: leaf for name, leaf in learnt["text"].items() if name != "embed"}
        learnt = learnt | {"text": rest}
    gradients = _gathered(learnt, job) / 2  # The state is float32.
    states = _states(job, rows * tokens)
    sent = [
        _gather(_gathered(stacks, job) / layers, slices * layers * (1 + again + reference)),
        _gather(_gathered(head, job), slices * (1 + reference)),
        Collective(_gradient_kind(job), ("fsdp",), gradients / layers, slices * layers),
        Collective("all-to-all", ("fsdp",), states, 3 * slices),
        _sums(states, slices * layers * (_WITH_GRADIENT - (not again) + 2 * reference)),
    ]
    if job.mode == "sft" or job.weights.trains_vision:
        trains = job.weights.trains_vision
        per_slice = _vision(job, rows, passes=_WITH_GRADIENT if trains else 2)
        sent += [one._replace(count=one.count * slices) for one in per_slice]
    if job.mesh.shape["data"] > 1:  # Gradients of parts that hold the same weights.
        sent.append(Collective("all-reduce", ("data",), device_bytes(job.state.params), 1))
    return sent
