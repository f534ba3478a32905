"""`videorft export`: one of our checkpoints becomes a Hugging Face folder."""

import os

from videorft_jax.models.family import load_config
from videorft_jax.models.hf_writer import write_checkpoint
from videorft_jax.models.tensor_files import DTYPES
from videorft_jax.parallel import sharding
from videorft_jax.training import restore
from videorft_jax.training.state import checkpoint_dtype


def export(
    checkpoint: str, out: str, dtype: str | None = None, *, ema: bool = False, model=None
) -> None:
    """See `main`. The folder appears whole or not at all. Raises ValueError, one line, before an
    array is read: no checkpoint, a folder that is not empty, an unknown dtype."""
    known = [kind.name for kind in DTYPES.values()]
    if dtype is not None and dtype not in known:
        raise ValueError(f"--dtype={dtype}: unknown; choose one of {', '.join(known)}")
    if os.path.exists(out) and not (os.path.isdir(out) and not os.listdir(out)):
        raise ValueError(f"{out}: is there already and not empty; choose another or delete it")
    saved = restore.find_checkpoint(checkpoint)
    source = model or saved.init_from
    if not os.path.isdir(source):
        raise ValueError(
            f"{source}: the folder that the run started from is not there; give it by --model"
        )
    config = load_config(source)
    target = dtype or checkpoint_dtype(source).name
    params = restore.read_params(saved, config, sharding.make_mesh(), ema=ema)
    write_checkpoint(out, params, config, dtype=target, source_folder=source)
    print(f"{saved.name} written to {out} in {target}")
