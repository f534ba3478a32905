"""Which weights of the model train, and how the model's are made of them.

Apart from assembly.py, so that the update and its benchmarks need no loader.
"""

import dataclasses
import functools

import jax

from videorft_jax.models import family
from videorft_jax.models.config import ModelConfig
from videorft_jax.models.lora import LoraConfig, adapt, find_targets, init_lora
from videorft_jax.training.trees import path_of, split_trained


@dataclasses.dataclass(frozen=True)
class Weights:
    """Which weights train, and how the model's are made of them."""

    model: ModelConfig
    freeze: tuple[str, ...]
    lora: LoraConfig | None

    def split(self, params, key):
        """(trained, frozen): adapters beside a frozen model, or the parts that are not frozen."""
        if self.lora is None:
            return split_trained(params, self.freeze)
        return {"lora": init_lora(params, self.lora, key)}, params

    def merged(self, joined):
        """The model's parameters, of what a step is given; adapters are merged where a layer is
        read."""
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
        """Whether the gradient of the model's weight at `path` is computed; for counting."""
        return path in self.targets if self.lora else path not in self._frozen_paths

    @functools.cached_property
    def targets(self) -> frozenset[str]:
        """Paths under an adapter."""
        if self.lora is None:
            return frozenset()
        return frozenset(find_targets(family.abstract_params(self.model), self.lora))

    @functools.cached_property
    def _frozen_paths(self):
        frozen = split_trained(family.abstract_params(self.model), self.freeze)[1]
        leaves = jax.tree_util.tree_leaves_with_path(frozen)
        return {path_of(keys) for keys, _ in leaves}


def make_weights(config, model_config: ModelConfig) -> Weights:
    """A command line gives `train.freeze` as one string, `vision,merger`."""
    lora = None
    freeze = tuple(name for part in config.train.freeze for name in part.split(","))
    if config.lora.rank:
        if freeze:
            raise ValueError(f"{config.name}: lora freezes every weight; leave train.freeze empty")
        lora = LoraConfig(config.lora.rank, config.lora.alpha, tuple(config.lora.targets))
    return Weights(model_config, freeze, lora)
