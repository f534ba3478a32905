"""Where every array lies: one mesh, two tables.

PARAM_AXES names the dims of each parameter by its path, MESH_AXES says which mesh axis holds such a
dim. There is no catch-all rule: a path nobody thought of is an error, not a replicated array.
Optimizer states keep the parameters' paths as suffixes, so they get the same rules for free.
"""

import contextlib
import math
import re
from collections.abc import Iterable

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")

# The first pattern that matches the end of a path counts. Every path must match some pattern, and
# every pattern must be used.
# SigLIP shares most rows; adapters are `<path>/a` [L, in..., r] and `<path>/b` [L, r, out...].
PARAM_AXES = (
    (r"text/(embed|head)", ("vocab", "embed")),  # SigLIP's head [D, out] lies the same way
    (r"vision/(embed|position_table)", (None, "embed")),
    (r"(text|vision)/position", (None, None)),
    (r"layers/(attn|mlp)_norm(_bias)?", ("layers", None)),
    (r"(text|vision)/(final_norm|final_norm_bias|embed_bias|head_bias)", (None,)),
    (r"text/layers/attn/q", ("layers", "embed", "heads", None)),
    (r"text/layers/attn/[kv]", ("layers", "embed", "kv_heads", None)),
    (r"text/layers/attn/q_bias", ("layers", "heads", None)),
    (r"text/layers/attn/[kv]_bias", ("layers", "kv_heads", None)),
    (r"vision/layers/attn/qkv", ("layers", "embed", None, "heads", None)),
    (r"vision/layers/attn/qkv_bias", ("layers", None, "heads", None)),
    (r"vision/layers/attn/[qkv]", ("layers", "embed", "heads", None)),
    (r"vision/layers/attn/[qkv]_bias", ("layers", "heads", None)),
    (r"layers/attn/(o|proj)", ("layers", "heads", None, "embed")),
    (r"layers/attn/(o|proj)_bias", ("layers", None)),
    (r"layers/mlp/(gate|up)", ("layers", "embed", "mlp")),
    (r"layers/mlp/(gate|up)_bias", ("layers", "mlp")),
    (r"layers/mlp/down", ("layers", "mlp", "embed")),
    (r"layers/mlp/down_bias", ("layers", None)),
    (r"vision/pool/qkv", ("embed", None, "heads", None)),
    (r"vision/pool/qkv_bias", (None, "heads", None)),
    (r"vision/pool/o", ("heads", None, "embed")),
    (r"vision/pool/o_bias", (None,)),
    (r"vision/(merger|pool)/(norm|norm_bias|probe)", (None,)),
    (r"vision/(merger|pool/mlp)/up", ("embed", "mlp")),
    (r"vision/(merger|pool/mlp)/up_bias", ("mlp",)),
    (r"vision/(merger|pool/mlp)/down", ("mlp", "embed")),
    (r"vision/(merger|pool/mlp)/down_bias", (None,)),
    (r"text/layers/attn/[qk]_norm", ("layers", None)),
    (r"vision/deepstack/(norm|norm_bias)", ("layers", None)),
    (r"vision/deepstack/up", ("layers", "embed", "mlp")),
    (r"vision/deepstack/up_bias", ("layers", "mlp")),
    (r"vision/deepstack/down", ("layers", "mlp", "embed")),
    (r"vision/deepstack/down_bias", ("layers", None)),
    (r"layers/(attn/(q|k|v|qkv)|mlp/(gate|up))/a", ("layers", "embed", None)),
    (r"layers/attn/(o|proj)/a", ("layers", "heads", None, None)),
    (r"layers/mlp/down/a", ("layers", "mlp", None)),
    (r"layers/attn/q/b", ("layers", None, "heads", None)),
    (r"layers/attn/[kv]/b", ("layers", None, "kv_heads", None)),
    (r"layers/attn/qkv/b", ("layers", None, None, "heads", None)),
    (r"layers/(attn/(o|proj)|mlp/down)/b", ("layers", None, "embed")),
    (r"layers/mlp/(gate|up)/b", ("layers", None, "mlp")),
    (r"vision/deepstack/up/a", ("layers", "embed", None)),
    (r"vision/deepstack/up/b", ("layers", None, "mlp")),
    (r"vision/deepstack/down/a", ("layers", "mlp", None)),
    (r"vision/deepstack/down/b", ("layers", None, "embed")),
    (r"vision/merger/up/a", ("embed", None)),
    (r"vision/merger/up/b", (None, "mlp")),
    (r"vision/merger/down/a", ("mlp", None)),
    (r"vision/merger/down/b", (None, "embed")),
)
MESH_AXES = {
    "layers": None,
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}
_RULES = tuple((re.compile(rf"(?:^|/){pattern}$"), axes) for pattern, axes in PARAM_AXES)


def make_mesh(
    data: int = 1, fsdp: int = -1, tensor: int = 1, slices: int = 1, devices=None
) -> Mesh:
    """A mesh of all `devices` (default: all there are); one size may be -1, what is left.

    `slices` is the number of TPU slices, or of other groups of processes, between which the network
    is slow: `data` is split over them first, so that only gradients travel there.

    Raises ValueError when the sizes do not multiply to the number of devices or cannot be laid out
    on them, or `slices` is not how many there are or does not divide `data`.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [data, fsdp, tensor]
    text = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(f"mesh {text}: sizes are positive, at most one is -1 (what is left)")
    given = math.prod(size for size in sizes if size != -1)
    if len(devices) % given or (-1 not in sizes and given != len(devices)):
        raise ValueError(
            f"mesh {text}: does not fit {len(devices)} devices; choose sizes whose product does"
        )
    sizes = [len(devices) // given if size == -1 else size for size in sizes]
    _check_slices(sizes, slices, devices)
    types = (AxisType.Auto,) * 3
    if slices == 1:
        return Mesh(_laid_out(sizes, devices), AXES, axis_types=types)
    within = [sizes[0] // slices, *sizes[1:]]
    placed = mesh_utils.create_hybrid_device_mesh(
        within,
        [slices, 1, 1],
        devices,
        process_is_granule=_count_slices(devices) is None,
        allow_split_physical_axes=True,
    )
    return Mesh(placed, AXES, axis_types=types)


def _laid_out(sizes, devices):
    """Orders the devices as JAX lays such axes along the links between them.

    XLA for v5e, v6e and v5p compiles one program for an axis of all devices whatever their order,
    which is therefore free to be `_compact`, for the sake of a rollout that uses the same devices
    in another shape. Of four chips JAX's own order is compact, and a ring.
    """
    cores = {(device.device_kind, getattr(device, "core_on_chip", 0)) for device in devices}
    if ("TPU v4", 1) in cores:  # libtpu describes single cores here, which no run sees.
        return np.asarray(devices).reshape(sizes)
    chips = {tuple(getattr(device, "coords", None) or ()) for device in devices}
    if max(sizes) == len(devices) and len(chips) > 4:
        return np.asarray(_compact(devices)).reshape(sizes)
    try:
        return jax.make_mesh(sizes, AXES, devices=devices).devices
    except NotImplementedError:
        text = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
        shape = "x".join(str(size + 1) for size in np.max([d.coords for d in devices], 0))
        works = _tensors_that_work(devices)
        raise ValueError(
            f"mesh {text}: no such axes along the links of {devices[0].device_kind} {shape}; "
            f"choose data=1 and a tensor among {', '.join(map(str, works))}"
        ) from None


def _compact(devices):
    """Orders devices so that 2, 4, 8, ... that follow each other stand in a box of neighbours."""
    if len(devices) == 1:
        return devices
    places = np.array([[*d.coords, getattr(d, "core_on_chip", 0)] for d in devices])
    spans = np.ptp(places, axis=0)
    if spans[:-1].any():
        spans[-1] = 0  # The cores of a chip stay together.
    order = np.argsort(places[:, spans.argmax()], kind="stable")
    half = len(devices) // 2
    first, second = ([devices[n] for n in part] for part in (order[:half], order[half:]))
    return [*_compact(first), *_compact(second)]


def _tensors_that_work(devices):
    found = []
    for tensor in (size for size in range(1, len(devices) + 1) if len(devices) % size == 0):
        with contextlib.suppress(NotImplementedError):
            jax.make_mesh((1, len(devices) // tensor, tensor), AXES, devices=devices)
            found.append(tensor)
    return found


def _count_slices(devices):
    """Counts the TPU slices that the devices lie in; None where devices do not say."""
    indices = {getattr(device, "slice_index", None) for device in devices}
    return None if None in indices else len(indices)


def _check_slices(sizes, slices, devices):
    text = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    found = _count_slices(devices)
    processes = len({device.process_index for device in devices})
    if found is not None and found != slices:
        raise ValueError(f"mesh slices={slices}: the devices lie in {found}; set slices={found}")
    if slices < 1 or (found is None and slices not in (1, processes)):
        raise ValueError(
            f"mesh slices={slices}: there are {processes} processes; give 1, or {processes} where "
            "each is a slice of its own"
        )
    if sizes[0] % slices:
        raise ValueError(
            f"mesh {text}: data does not divide by slices={slices}, and only data may cross them; "
            f"choose data={slices} or a multiple"
        )


def state_shardings(tree, mesh: Mesh, name: str = "this tree"):
    """Gives a `NamedSharding` for every leaf of a tree of (abstract) arrays.

    `tree` holds parameters, or anything whose paths end in parameter paths, such as optax states.
    Scalars are replicated. `name` is what errors call it, best the config's.

    Raises ValueError for paths without a rule, ranks that differ from the rule's, and dims that
    do not divide by their mesh axis, each with the head count or size and what would divide.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    specs, unknown, uneven, held = [], [], {}, {}
    for keys, leaf in leaves:
        path = _join(keys)
        number = _find_rule(path) if leaf.ndim else None
        if number is None:
            specs.append(PartitionSpec())
            if leaf.ndim:
                unknown.append(path)
            continue
        axes = PARAM_AXES[number][1]
        if len(axes) != leaf.ndim:
            raise ValueError(
                f"{name}: {path} has shape {list(leaf.shape)}, its rule names dims {axes}; "
                "correct PARAM_AXES"
            )
        for dim, (axis, size) in enumerate(zip(axes, leaf.shape, strict=True)):
            mesh_axis = MESH_AXES[axis] if axis else None
            if mesh_axis:
                held[mesh_axis] = math.gcd(held.get(mesh_axis, 0), size)
                if size % mesh.shape[mesh_axis]:
                    where = f"{axis} = {size} ({path}, dim {dim})"
                    uneven.setdefault((mesh_axis, axis, size), where)
        specs.append(PartitionSpec(*(MESH_AXES[axis] if axis else None for axis in axes)))
    if unknown:
        raise ValueError(
            f"{name}: {len(unknown)} paths without a sharding rule ({', '.join(unknown[:5])}); "
            "add them to PARAM_AXES"
        )
    for mesh_axis in dict.fromkeys(key[0] for key in uneven):
        dims = [text for key, text in uneven.items() if key[0] == mesh_axis]
        raise ValueError(
            f"{name}: mesh axis {mesh_axis} = {mesh.shape[mesh_axis]} does not divide "
            f"{', '.join(dims)}; choose a {mesh_axis} that divides {held[mesh_axis]}"
        )
    return jax.tree.unflatten(structure, [NamedSharding(mesh, spec) for spec in specs])


def unused_rules(trees: Iterable) -> list[str]:
    """Lists the patterns of PARAM_AXES that no leaf of `trees` uses; a test keeps it empty."""
    used = {
        _find_rule(_join(keys))
        for tree in trees
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if leaf.ndim
    }
    return [pattern for i, (pattern, _) in enumerate(PARAM_AXES) if i not in used]


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Gives the sharding of a batch: rows over data and fsdp, the same rows along tensor."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def flattened(mesh: Mesh) -> AbstractMesh:
    """Gives the abstract mesh on which the devices along tensor hold rows of their own, too. Under
    `jax.sharding.use_abstract_mesh` rows are then dealt out to all devices."""
    data, fsdp, tensor = mesh.devices.shape
    return AbstractMesh((data, fsdp * tensor, 1), AXES, axis_types=mesh.axis_types)


def place_batch(batch, mesh: Mesh):
    """Puts the numpy leaves `[B, ...]` of this process on the mesh, as one global batch.

    Processes that hold different parts of data * fsdp hand in different rows, equally many.
    Raises ValueError when the rows do not divide by the parts this process holds.
    """
    sharding = batch_sharding(mesh)
    parts, local = mesh.shape["data"] * mesh.shape["fsdp"], count_own_parts(mesh)

    def place(leaf):
        leaf = np.asarray(leaf)
        if leaf.shape[0] % local:
            raise ValueError(
                f"batch: {leaf.shape[0]} rows do not divide over the {local} parts of data * fsdp "
                f"of this process; choose a batch size that {parts} divides"
            )
        shape = (leaf.shape[0] // local * parts, *leaf.shape[1:])
        return jax.make_array_from_process_local_data(sharding, leaf, shape)

    return jax.tree.map(place, batch)


def count_own_parts(mesh: Mesh) -> int:
    """Counts the parts of data * fsdp of which this process holds a device."""
    return len(own_rows(mesh.shape["data"] * mesh.shape["fsdp"], mesh))


def own_rows(count: int, mesh: Mesh) -> np.ndarray:
    """Which of `count` rows, split over data and fsdp, lie on this process, int, in order."""
    held = batch_sharding(mesh).addressable_devices_indices_map((count,)).values()
    return np.unique(np.concatenate([np.arange(count)[index] for index in held]))


def local_rows(array: jax.Array) -> np.ndarray:
    """Gives the rows of this process, in order, of an array that `place_batch` placed."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def dims_of(path: str) -> tuple[str | None, ...]:
    """Names the dims of the parameter at `path` as PARAM_AXES does; () for one without a rule."""
    number = _find_rule(path)
    return () if number is None else PARAM_AXES[number][1]


def _find_rule(path):
    return next((i for i, (rule, _) in enumerate(_RULES) if rule.search(path)), None)


def _join(keys):
    # simple=True gives "mu/text/embed" whatever mixes dicts, named tuples and sequences.
    return jax.tree_util.keystr(keys, simple=True, separator="/")
