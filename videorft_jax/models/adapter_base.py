"""Whether an adapter was trained on the model that it is put on."""

import logging
import pathlib

from videorft_jax.models.config import ModelConfig
from videorft_jax.models.family import all_families, load_config, published_config

log = logging.getLogger(__name__)


def check_base(folder, base: str, model: ModelConfig) -> None:
    """Raises ValueError, one line, where the base that an adapter names has other sizes than the
    model. The base is known by its own `config.json` where it is a folder here, and by its name
    where that is a published one; of any other the shapes of the adapter's tensors must tell."""
    theirs = _find_config(base)
    if theirs is None:
        return
    if theirs.model_type != model.model_type:
        what = f"{theirs.model_type}, and the model is {model.model_type}"
    else:
        names = ("num_layers", "dim", "num_heads", "num_kv_heads", "mlp_dim")
        differ = [n for n in names if getattr(theirs.text, n) != getattr(model.text, n)]
        if not differ:
            return
        ours = getattr(model.text, differ[0])
        what = f"{differ[0]} {getattr(theirs.text, differ[0])}, and the model has {ours}"
    raise ValueError(f"{folder}: is an adapter of {base}, of {what}; give the adapter its own base")


def _find_config(base) -> ModelConfig | None:
    if not base:
        return None
    if (pathlib.Path(base) / "config.json").is_file():
        try:
            return load_config(base)
        except ValueError as error:
            log.info("the adapter's base is not compared: %s", error)
            return None
    for family in all_families():
        for size in family.sizes:
            name = f"qwen/{family.title}-{size.rpartition('_')[2]}".lower()
            if base.lower() == name or base.lower().startswith(f"{name}-"):
                return published_config(size)
    return None
