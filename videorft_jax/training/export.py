"""`videorft export`: one of our checkpoints becomes a Hugging Face folder."""

import math
import os

import jax.numpy as jnp

from videorft_jax.data.media import contract_file
from videorft_jax.data.records import system_turn
from videorft_jax.data.records.tokenizer_folder import load_tokenizer
from videorft_jax.models.family import load_config
from videorft_jax.models.hf_writer import (
    check_new,
    check_place,
    explained,
    whole_folder,
    write_checkpoint,
)
from videorft_jax.models.peft_folder import save_adapter
from videorft_jax.models.side_files import check_side_files
from videorft_jax.models.sources import find_folder, split_public
from videorft_jax.models.tensor_files import DTYPES
from videorft_jax.parallel import sharding
from videorft_jax.rollout.client_files import client_files
from videorft_jax.training import model_card, restore
from videorft_jax.training.state import checkpoint_dtype


def export(
    checkpoint: str,
    out: str,
    dtype: str | None = None,
    *,
    ema: bool = False,
    model: str | None = None,
    adapter: bool = False,
) -> None:
    """Writes the weights of a checkpoint and all that belongs to them as a Hugging Face folder.

    checkpoint: work directory of a run, or one of its steps. dtype: of the weights, by default that
    of the folder the run started from. ema: write the moving average. model: that folder, where it
    has moved, or its name on the hub. adapter: write the adapters alone, as a folder that PEFT
    reads. The folder appears whole or not at all. Raises ValueError, one line, before an array is
    read: no checkpoint, a folder that is not empty, an unknown dtype, no adapters."""
    known = [kind.name for kind in DTYPES.values()]
    if dtype is not None and dtype not in known:
        raise ValueError(f"--dtype={dtype}: unknown; choose one of {', '.join(known)}")
    check_new(out)
    saved = restore.find_checkpoint(checkpoint)
    name = model or saved.init_from
    source = find_folder(name)
    if model is None and not os.path.isdir(source):
        raise ValueError(
            f"{source}: the folder that the run started from is not there; give it by --model"
        )
    config = load_config(source)
    if not adapter:
        check_side_files(config, source)
    with explained(out):
        _write(saved, config, out, source, split_public(name), dtype, ema, adapter)


def _write(saved, config, out, source, public, dtype, ema, adapter):
    if adapter:
        check_place(out, 0)
        lora = restore.read_adapter(saved, config, ema=ema)
        base, revision = public[0] or source, public[1]
        card = model_card.write_card(saved, source, public[0], is_adapter=True)
        with whole_folder(out) as partial:
            save_adapter(partial, lora, saved.lora, config, base, revision)
            (partial / model_card.FILE_NAME).write_text(card, encoding="utf-8")
            contract_file.write_contract(partial, saved.contract)
            if saved.system:
                (partial / system_turn.FILE_NAME).write_text(saved.system, encoding="utf-8")
        print(f"adapters of {saved.name} written to {out}; next: videorft ask --adapter={out} ...")
        return
    target = dtype or checkpoint_dtype(source).name
    check_target(out, saved, jnp.dtype(target).itemsize)
    files = client_files(config, saved.contract, load_tokenizer(source))
    params = restore.read_params(saved, config, sharding.make_mesh(), ema=ema)
    files[model_card.FILE_NAME] = model_card.write_card(saved, source, public[0])
    if saved.system:
        files[system_turn.FILE_NAME] = saved.system
    write_checkpoint(out, params, config, dtype=target, source_folder=source, side_files=files)
    print(f"{saved.name} written to {out} in {target}; next: videorft ask --model={out} ...")


def check_target(out: str, saved: restore.Saved, itemsize: int) -> None:
    """Finds out, before an array is read, whether the folder can be written and has room for the
    weights of `itemsize` bytes each. Raises ValueError."""
    size = sum(
        math.prod(shape) * itemsize
        for path, (_, shape) in saved.arrays.items()
        if path.startswith(("params/", "frozen/"))
    )
    check_place(out, size)
