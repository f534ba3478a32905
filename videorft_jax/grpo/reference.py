"""The reference policy, from which the policy is kept from straying.

By default it is the model as it was before GRPO. `grpo.reference` names another checkpoint of the
same model, such as one that was trained further. Where no reward counts and the divergence from it
does, the policy learns from its own completions what the other would have said at each token: this
is on-policy distillation (Agarwal et al. 2023, "On-policy distillation of language models"). With
`grpo.sync_every` it follows the policy from time to time and is then part of the training state.
"""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp

from videorft_jax.grpo.options import GrpoOptions
from videorft_jax.models.family import load_config
from videorft_jax.models.hf_folder import check_checkpoint
from videorft_jax.models.peft_folder import load_adapter
from videorft_jax.training.state import read_params
from videorft_jax.training.trees import cast
from videorft_jax.training.weights import Weights


def check_reference(options: GrpoOptions) -> None:
    """Raises ValueError, before a weight is read, for a reference that cannot be one: options that
    exclude it, another architecture or vocabulary, and tensors that are missing."""
    folder, train = options.reference, options.train
    if not folder:
        return
    what = f"{train.name}: grpo.reference={folder}"
    if not options.loss.beta:
        raise ValueError(f"{what}: is not read, since grpo.beta is 0; set it above 0")
    if train.lora or train.freeze:
        raise ValueError(
            f"{what}: weights that do not train are shared with the reference policy, so it must "
            "be model.init_from; leave out lora.rank and train.freeze, or grpo.reference"
        )
    own, other = load_config(train.model.init_from), load_config(folder)
    if differing := _find_differing(own, other):
        raise ValueError(
            f"{what}: is another model than model.init_from ({', '.join(differing)}); give a "
            "checkpoint of the same size and family"
        )
    if _read_vocabulary(folder) != _read_vocabulary(train.model.init_from):
        raise ValueError(f"{what}: its tokenizer.json has other tokens than model.init_from")
    check_checkpoint(folder, other, train.model.strip_prefix)


def read_reference(options: GrpoOptions, weights: Weights, mesh, shardings):
    """Returns the weights of the reference policy that the policy trains, in the dtype of the
    computation and in `shardings`; an adapter in `model.adapter` is merged into those of
    `model.init_from`."""
    model = options.train.model
    if options.reference:
        model = dataclasses.replace(model, init_from=options.reference, adapter="")
    adapter = load_adapter(model.adapter, weights.model) if model.adapter else None
    params = read_params(model, weights.model, mesh, adapter)

    def build(params):
        trained, _ = weights.split(params, jax.random.key(0))
        return cast(trained, jnp.dtype(model.dtype))

    return jax.jit(build, out_shardings=shardings)(params)


def mix_reference(reference, params, mixup: float):
    """Moves the reference policy towards the policy: mixup * params + (1 - mixup) * reference, in
    float32 (TR-DPO, Gorbatovski et al. 2024, eq. 1; TRL's `sync_ref_model`). The result has the
    dtypes of `reference`."""

    def mix(old, new):
        return (mixup * new + (1.0 - mixup) * old.astype(jnp.float32)).astype(old.dtype)

    return jax.tree.map(mix, reference, params)


def _find_differing(own, other, prefix=""):
    """Returns the names of the fields in which two configurations differ."""
    if type(own) is not type(other):
        return [prefix.removesuffix(".") or "family"]
    found = []
    for field in dataclasses.fields(own):
        first, second = getattr(own, field.name), getattr(other, field.name)
        if not field.compare or first == second:
            continue
        if dataclasses.is_dataclass(first):
            found += _find_differing(first, second, f"{prefix}{field.name}.")
        else:
            found.append(f"{prefix}{field.name}")
    return found


def _read_vocabulary(folder):
    path = pathlib.Path(folder, "tokenizer.json")
    try:
        return json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path}: cannot be read; save the tokenizer as a fast one there"
        ) from None
