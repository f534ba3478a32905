"""Splits a model's parameters into trained and frozen weights, and rejoins them.

Either all weights train, or some towers are frozen (`train.freeze`), or LoRA adapters train beside
a frozen model. `Weights.split` runs when a state is built; `Weights.merged` runs inside every
compiled step.
"""

import dataclasses
import functools

import jax

from videorft_jax.models import family
from videorft_jax.models.config import ModelConfig
from videorft_jax.models.lora import LoraConfig, adapt, find_targets, init_lora
from videorft_jax.training.options import TrainOptions
from videorft_jax.training.trees import path_of, split_trained


@dataclasses.dataclass(frozen=True)
class Weights:
    """model: the configuration of the model. freeze: names of towers that do not train. lora: the
    adapters that train beside a frozen model, None where there are none."""

    model: ModelConfig
    freeze: tuple[str, ...]
    lora: LoraConfig | None

    def split(self, params, key):
        """(trained, frozen), two nested dicts. With `lora`, new adapters drawn with `key` train and
        all of `params` is frozen. Raises ValueError when nothing is left to train."""
        if self.lora is None:
            return split_trained(params, self.freeze)
        return {"lora": init_lora(params, self.lora, key)}, params

    def merged(self, joined):
        """The model's parameters, made of trained and frozen weights joined in one nested dict.
        An adapter stays beside its weight, and the two are merged where a layer reads them."""
        if self.lora is None:
            return joined
        params = {name: part for name, part in joined.items() if name != "lora"}
        return adapt(params, joined["lora"], self.lora)

    @functools.cached_property
    def trains_vision(self) -> bool:
        """Whether visual tokens change from step to step."""
        leaves = jax.tree_util.tree_leaves_with_path(family.abstract_params(self.model))
        paths = (path_of(keys) for keys, _ in leaves)
        return any(self.is_trained(path) for path in paths if path.startswith("vision/"))

    def is_trained(self, path: str) -> bool:
        """Whether a step computes the gradient of the weight at `path`."""
        return path in self.targets if self.lora else path not in self._frozen_paths

    @functools.cached_property
    def targets(self) -> frozenset[str]:
        """Paths of the weights that have an adapter; empty without `lora`."""
        if self.lora is None:
            return frozenset()
        return frozenset(find_targets(family.abstract_params(self.model), self.lora))

    @functools.cached_property
    def _frozen_paths(self):
        frozen = split_trained(family.abstract_params(self.model), self.freeze)[1]
        leaves = jax.tree_util.tree_leaves_with_path(frozen)
        return {path_of(keys) for keys, _ in leaves}


def make_weights(options: TrainOptions, model: ModelConfig) -> Weights:
    """The split of a run's model into trained and frozen weights."""
    return Weights(model, options.freeze, options.lora)
