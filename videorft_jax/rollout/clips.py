"""Runs the vision tower of a rollout on all devices of its mesh.

Frame pairs know nothing of each other, so that they are dealt out to the devices along `tensor`
too, each of which holds the whole tower. Split over `tensor` the tower would add up hidden states
of all patches twice a layer, which for 7B on v5p-8 takes longer than its arithmetic.
"""

import math

import jax
import jax.numpy as jnp

from videorft_jax.data.batch.batch import Batch
from videorft_jax.models.compute_plan import ComputePlan
from videorft_jax.models.vision_language import VLM
from videorft_jax.parallel import sharding


def encode(model: VLM, batch: Batch, mesh, plan: ComputePlan) -> jax.Array:
    """Gives the visual tokens [B, Z, E] of a batch that is split over data and fsdp of `mesh`."""
    data, fsdp, tensor = mesh.devices.shape
    if tensor == 1:
        return model.encode_vision(batch, plan=plan)
    pairs = batch.patches.shape[1]
    spare = -pairs % (tensor // math.gcd(len(batch.patches) // (data * fsdp), tensor))

    def fill(leaf):
        """Adds empty frame pairs behind a row's own, so that they divide over the devices."""
        return jnp.pad(leaf, [(0, spare if dim == 1 else 0) for dim in range(leaf.ndim)])

    names = ("patches", "patch_valid", "patch_hw")
    filled = batch._replace(**{name: fill(getattr(batch, name)) for name in names})
    with jax.sharding.use_abstract_mesh(sharding.flattened(mesh)):
        visual = model.encode_vision(filled, plan=plan)
    visual = jax.lax.with_sharding_constraint(visual, sharding.batch_sharding(mesh))
    return visual[:, : visual.shape[1] // (pairs + spare) * pairs]
