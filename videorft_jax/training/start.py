"""The adapter that a run starts from, and whether it trains on or becomes part of the weights."""

import dataclasses
import logging

from videorft_jax.models import family
from videorft_jax.models.hf_folder import check_checkpoint
from videorft_jax.models.lora import find_targets
from videorft_jax.models.peft_folder import Adapter, load_adapter
from videorft_jax.training.options import TrainOptions
from videorft_jax.training.weights import Weights

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Start:
    """adapter: that of `model.adapter`. trains_on: whether its factors are the ones that train;
    else they are merged into the weights before training."""

    adapter: Adapter
    trains_on: bool


def open_start(options: TrainOptions, weights: Weights, mode: str) -> Start | None:
    """Checks the headers of the weights that a run starts from, reads `model.adapter` and says in
    one line of the log what becomes of it; None without one.

    SFT trains the adapter on where it has the rank, the scale and the targets of `lora`. GRPO never
    does: its reference policy is the model that the run starts from, and with LoRA that is the
    model under the adapters that train. Raises ValueError, before the data are measured, as
    `check_checkpoint` and `load_adapter` do.
    """
    model = options.model
    check_checkpoint(model.init_from, weights.model, model.strip_prefix)
    if not model.adapter:
        return None
    adapter = load_adapter(model.adapter, weights.model)
    reason = _find_reason(adapter, weights, mode)
    if not reason:
        log.info("%s: the adapter %s trains on", options.name, adapter.folder)
        return Start(adapter, trains_on=True)
    beside = "; new adapters train beside them" if weights.lora else ""
    log.info(
        "%s: the adapter %s is merged into the weights, since %s%s",
        options.name, adapter.folder, reason, beside,
    )  # fmt: skip
    return Start(adapter, trains_on=False)


def _find_reason(adapter, weights, mode):
    """Why an adapter cannot train on; empty where it can."""
    wanted, given = weights.lora, adapter.config
    if wanted is None:
        return "lora.rank is 0 and the weights themselves train"
    if mode != "sft":
        return "the reference policy is the model that the run starts from"
    if not adapter.is_plain:
        return "its ranks or scales differ, or it replaces whole weights"
    if (given.rank, given.scale) != (wanted.rank, wanted.scale):
        return (
            f"its rank and scale are {given.rank} and {given.scale:g}, those of the options "
            f"{wanted.rank} and {wanted.scale:g}"
        )
    theirs = set(find_targets(family.abstract_params(weights.model), given))
    if theirs != weights.targets:
        other = min(theirs ^ weights.targets)
        return f"lora.targets name other weights than it has, such as {other}"
    return ""
