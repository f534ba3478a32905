"""A model out of one of our checkpoints, whatever was trained: all weights, a part, adapters."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath

from videorft_jax.checkpoints import manifest
from videorft_jax.checkpoints.bucket import resolve
from videorft_jax.checkpoints.checkpointer import Checkpointer
from videorft_jax.data.media.contract import MediaContract
from videorft_jax.models.config import ModelConfig
from videorft_jax.models.hf_folder import nest
from videorft_jax.models.lora import LoraConfig, merge_lora
from videorft_jax.models.sources import unreadable
from videorft_jax.parallel import sharding
from videorft_jax.training.state import expected_meta
from videorft_jax.training.trees import join
from videorft_jax.training.weights import Weights


class Saved(NamedTuple):
    """A checkpoint whose arrays have not been read."""

    workdir: str
    step: int
    meta: dict[str, Any]
    arrays: dict[str, tuple]  # path -> (dtype, shape)

    @property
    def name(self) -> str:
        """The folder of this step, for messages."""
        return f"{self.workdir}/checkpoints/{self.step:08d}"

    @property
    def init_from(self) -> str:
        """The Hugging Face folder that the run started from, with tokenizer and configuration."""
        return self.meta["config"]["model"]["init_from"]

    @property
    def lora(self) -> LoraConfig | None:
        """The adapters that the run trained, None where it trained the weights themselves."""
        lora = self.meta["lora"]
        return lora and LoraConfig(**lora | {"targets": tuple(lora["targets"])})

    @property
    def contract(self) -> MediaContract:
        """The media contract under which the run read clips."""
        return MediaContract.from_dict(self.meta["media"])

    @property
    def system(self) -> str | None:
        """The system turn that the run's prompts began with, "" where that was the chat format's
        own; None in checkpoints of before, which did not keep it."""
        return self.meta.get("system")


def find_checkpoint(path: str) -> Saved:
    """The newest whole checkpoint of a work directory, or the one that a path such as
    `runs/a/checkpoints/00000120` names. Raises ValueError when there is none."""
    folder, step = _find_run(path)
    with Checkpointer(folder) as checkpointer:
        if step is None:
            step = checkpointer.latest_step()
        kept = None if step is None else checkpointer.folder / f"{step:08d}"
        if kept is None or not kept.exists():
            raise ValueError(
                f"{path}: no checkpoint there; give the work directory of a run, or one of its "
                "steps, WORKDIR/checkpoints/00000120"
            )
        body = manifest.read(kept)
    return Saved(str(folder), step, body["meta"], body["arrays"])


def _find_run(path):
    """The work directory that a path names, and the step or None. What lies inside decides: a work
    directory may have any name, that of a step too."""
    try:
        folder = epath.Path(resolve(path))
        is_run = (folder / "checkpoints").is_dir()
    except Exception as error:
        raise unreadable(path, error) from None
    if is_run:
        return folder, None
    is_inside = folder.parent.name == "checkpoints"
    is_kept = (folder / manifest.MANIFEST).exists()
    is_ours = manifest.is_step(folder.name) or (folder.name.isdecimal() and not is_kept)
    if is_inside and is_ours:  # 120 is short for 00000120, unless it is a copy.
        return folder.parent.parent, int(folder.name)
    if is_kept:
        what = "not named as steps are" if is_inside else "outside its run"
        raise ValueError(
            f"{path}: is one step {what}; move it to WORKDIR/checkpoints/00000120, under its number"
        )
    return (folder.parent if folder.name == "checkpoints" else folder), None


def read_params(
    saved: Saved, model: ModelConfig, mesh, dtype="float32", *, ema: bool = False
) -> dict[str, Any]:
    """The model's parameters in `dtype`, adapters merged, in their shards on `mesh`.

    ema: the moving average of what was trained. Casting comes before merging, as in training.
    Raises ValueError for a damaged checkpoint, one of another model, and when no average was kept.
    """
    part = "ema" if ema else "params"
    found = _read(saved, model, mesh, part, (f"{part}/", "frozen/"))
    lora = saved.lora
    dtype = jnp.dtype(dtype)
    joined = join(
        *(jax.tree.map(lambda leaf: _cast(leaf, dtype), found[name]) for name in (part, "frozen"))
    )
    if lora is None:
        return joined
    factors = joined.pop("lora")
    places = sharding.state_shardings(joined, mesh, saved.name)
    merge = functools.partial(merge_lora, config=lora)
    return jax.jit(merge, donate_argnums=0, out_shardings=places)(joined, factors)


def read_adapter(saved: Saved, model: ModelConfig, *, ema: bool = False) -> dict[str, Any]:
    """The adapters of a run that trained them, on the first device; nothing else is read.

    Raises ValueError for a run without adapters, and as `read_params` does.
    """
    if saved.lora is None:
        raise ValueError(f"{saved.name}: its run trained no adapters; leave --adapter out")
    if saved.meta.get("base_is_merged"):
        raise ValueError(
            f"{saved.name}: its adapters belong to {saved.init_from} with "
            f"{saved.meta['config']['model']['adapter']} merged into it, and to no folder; leave "
            "--adapter out to write the merged weights"
        )
    part = "ema" if ema else "params"
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    return _read(saved, model, mesh, part, (f"{part}/lora/",))[part]["lora"]


def _read(saved, model, mesh, part, prefixes):
    """Restores the arrays whose paths begin with one of `prefixes`, in their shards."""
    if part == "ema" and not any(path.startswith("ema/") for path in saved.arrays):
        raise ValueError(f"{saved.name}: no average was kept (optim.ema_decay); leave ema out")
    shapes = {
        path: jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(kept))
        for path, (kept, shape) in saved.arrays.items()
        if path.startswith(prefixes)
    }
    tree = {"frozen": {}} | nest(shapes)
    places = sharding.state_shardings(tree, mesh, saved.name)
    wanted = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        tree, places,
    )  # fmt: skip
    expected = expected_meta(Weights(model, (), saved.lora), saved.contract)
    with Checkpointer(saved.workdir) as checkpointer:
        found, _ = checkpointer.restore(saved.step, wanted, expected, part=True)
    return found


def _cast(leaf, dtype):
    """One leaf at a time, so that the parameters never lie there twice."""
    if leaf.dtype == dtype:
        return leaf
    new = leaf.astype(dtype)
    leaf.delete()
    return new
