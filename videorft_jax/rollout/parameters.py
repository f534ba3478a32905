"""The way of the parameters from the training's shards into the form that decoding reads."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.layout import Format, Layout
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from videorft_jax.models import family
from videorft_jax.models.config import ModelConfig
from videorft_jax.models.int8 import quantise_weights, quantised_formats
from videorft_jax.models.lora import resolve
from videorft_jax.parallel import sharding
from videorft_jax.rollout.heads import abstract_widened, widen

# XLA for TPU wants these weights, [L, D, K, H], in the memory order [L, K, D, H]; in any other it
# would copy them on every call.
_HEAD_MAJOR = ("text/layers/attn/k", "text/layers/attn/v")


class Preparation:
    """One compiled program that makes of training parameters those that decoding reads.

    The result is whole on every part of data and fsdp and split over tensor, in `dtype`, or in int8
    where `int8` says so; LoRA adapters are merged into it. Where tensor has more parts than the
    model has heads of keys, it is wider than the parameters; see `heads.widen`.
    """

    def __init__(self, config: ModelConfig, mesh, *, dtype, int8: bool):
        self.config, self.mesh, self.dtype, self.int8 = config, mesh, dtype, int8

    @functools.cached_property
    def program(self):
        """The program, params -> prepared params.

        Towers are converted a layer at a time, so that besides the result the devices hold one
        layer that is being gathered and not all of them.
        """
        return jax.jit(self._convert, out_shardings=self.formats)

    @functools.cached_property
    def formats(self):
        """Where each parameter of the result lies, and in which memory order."""

        def whole(keys, held):
            held = NamedSharding(self.mesh, P(*(None if a == "fsdp" else a for a in held.spec)))
            path = jax.tree_util.keystr(keys, simple=True, separator="/")
            if self.mesh.devices.flat[0].platform == "tpu" and path in _HEAD_MAJOR:
                return Format(Layout((0, 2, 1, 3)), held)
            return held

        tree = family.abstract_params(self.config)
        tree = abstract_widened(tree, self.config, self.mesh.shape["tensor"])
        shardings = sharding.state_shardings(tree, self.mesh, "rollout")
        formats = jax.tree_util.tree_map_with_path(whole, shardings)
        return quantised_formats(formats) if self.int8 else formats

    @functools.cached_property
    def shapes(self):
        """Shape and dtype of each parameter of the result."""
        return jax.eval_shape(self._convert, family.abstract_params(self.config))

    def _convert(self, params):
        made = {}
        for tower, tree in params.items():
            rest = {name: part for name, part in tree.items() if name != "layers"}
            made[tower] = self._quantised(self._widened({tower: resolve(self._cast(rest))}))[tower]
            one = functools.partial(self._convert_layer, tower)
            made[tower]["layers"] = jax.lax.map(one, tree["layers"])
        return made

    def _convert_layer(self, tower, layer):
        layer = jax.tree.map(lambda leaf: leaf[None], resolve(self._cast(layer)))
        layer = self._widened({tower: {"layers": layer}})
        layer = self._quantised(layer)[tower]["layers"]
        places = jax.tree.map(
            lambda held: held.sharding if isinstance(held, Format) else held,
            self.formats[tower]["layers"],
        )
        layer = jax.lax.with_sharding_constraint(layer, places)
        return jax.tree.map(lambda leaf: leaf[0], layer)

    def _cast(self, params):
        return jax.tree.map(lambda leaf: leaf.astype(self.dtype), params)

    def _widened(self, params):
        """Widens weights that are whole on each device first, since XLA cannot repeat heads or fill
        groups of them up while they are split."""
        wide = widen(params, self.config, self.mesh.shape["tensor"])
        if jax.tree.map(jnp.shape, wide) == jax.tree.map(jnp.shape, params):
            return wide
        whole = jax.lax.with_sharding_constraint(params, NamedSharding(self.mesh, P()))
        return widen(whole, self.config, self.mesh.shape["tensor"])

    def _quantised(self, params):
        return quantise_weights(params) if self.int8 else params
