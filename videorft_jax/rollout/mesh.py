"""The rollout may use the devices of the training in another shape.

Training splits weights over `fsdp`, since it computes on many tokens at once. Decoding draws one
token of each completion at a time and would read all weights on every part that holds prompts of
its own, so that it is faster where fewer parts share the weights by `tensor`. Devices keep their
order, so that one compiled program can read arrays of one mesh and write those of the other.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh

from videorft_jax.models import family
from videorft_jax.models.config import ModelConfig
from videorft_jax.parallel import sharding
from videorft_jax.rollout.heads import abstract_widened

AUTO = "auto"  # The planner chooses; where nothing is known of the links, the training's mesh.
Sizes = tuple[int, int, int]
Choice = Sizes | str | None


def parse_sizes(text: str) -> Choice:
    """Reads sizes of data, fsdp and tensor such as `1,4,4`, or `auto`; an empty text gives None,
    which stands for the mesh of the training. Raises ValueError for anything else."""
    if not text or text == AUTO:
        return text or None
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) for part in parts):
        raise ValueError(
            f"rollout.mesh is {text!r}; give the sizes of data, fsdp and tensor, such as 1,4,4, "
            "auto for the planner's choice, or nothing for the mesh of the training"
        )
    data, fsdp, tensor = map(int, parts)
    return data, fsdp, tensor


def reshape(mesh: Mesh, sizes: Choice) -> Mesh:
    """Returns the devices of `mesh` in the shape `sizes`, in their order; None and a choice that is
    still to be made leave `mesh`."""
    if not isinstance(sizes, tuple) or sizes == mesh.devices.shape:
        return mesh
    types = (AxisType.Auto,) * len(sharding.AXES)
    return Mesh(mesh.devices.reshape(sizes), sharding.AXES, axis_types=types)


def without_fsdp(mesh: Mesh) -> Mesh:
    """Returns the mesh with its fsdp as part of data, since weights that decoding reads are split
    over tensor alone."""
    data, fsdp, tensor = mesh.devices.shape
    return reshape(mesh, (data * fsdp, 1, tensor))


def check_sizes(
    name: str, sizes: Choice, model: ModelConfig, mesh: Mesh, rows: int, slices: int = 1
) -> None:
    """Raises ValueError, with the nearest sizes that work, where `sizes` are not those of all
    devices of `mesh`, do not divide the model's heads and widths, or the `rows` of a batch, or
    where tensor would reach over several of the `slices` between which the network is slow."""
    find_fault = functools.partial(_find_fault, model=model, mesh=mesh, rows=rows, slices=slices)
    if not isinstance(sizes, tuple) or not (fault := find_fault(sizes)):
        return
    count = mesh.devices.size
    tensors = [tensor for tensor in range(1, count + 1) if count % tensor == 0]
    shapes = [
        (data, count // tensor // data, tensor)
        for tensor in tensors
        for data in range(1, count // tensor + 1)
        if count // tensor % data == 0
    ]
    works = [shape for shape in shapes if not find_fault(shape)]
    text = ",".join(map(str, sizes))
    if not works:
        raise ValueError(f"{name}: rollout.mesh={text}: {fault}; leave rollout.mesh empty")
    data, _, tensor = sizes
    near = min(works, key=lambda shape: (abs(shape[2] - tensor), abs(shape[0] - data)))
    nearest = ",".join(map(str, near))
    raise ValueError(f"{name}: rollout.mesh={text}: {fault}; the nearest that works is {nearest}")


def _find_fault(sizes, model, mesh, rows, slices):
    """Says what speaks against a mesh of these sizes; the text is empty where nothing does."""
    if math.prod(sizes) != mesh.devices.size:
        return f"these are {math.prod(sizes)} devices of {mesh.devices.size}"
    parts, within = sizes[0] * sizes[1], mesh.devices.size // slices
    if within % sizes[2]:
        return f"tensor = {sizes[2]} does not divide the {within} devices of a slice"
    if rows % parts:
        return f"data.rows={rows} prompts do not divide over data * fsdp = {parts}"
    try:
        decoder = {"text": family.abstract_params(model, jnp.float32)["text"]}
        tree = abstract_widened(decoder, model, sizes[2])
        sharding.state_shardings(tree, without_fsdp(reshape(mesh, sizes)), "the model")
    except ValueError as error:
        return str(error).split(";")[0].removeprefix("the model: ")
    return ""


def move_rows(mesh: Mesh):
    """Makes the program that lays a tree of global arrays [B, ...] out as rows of `mesh`."""
    return jax.jit(lambda tree: tree, out_shardings=sharding.batch_sharding(mesh))
