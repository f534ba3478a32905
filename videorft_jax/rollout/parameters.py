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
from videorft_jax.models.vision_language import VLM
from videorft_jax.parallel import sharding
from videorft_jax.rollout.heads import abstract_widened, widen
from videorft_jax.rollout.mesh import reshape, without_fsdp

# XLA for TPU wants these weights, [L, D, K, H], in the memory order [L, K, D, H]; in any other it
# would copy them on every call.
_HEAD_MAJOR = ("text/layers/attn/k", "text/layers/attn/v")
_FETCHING = ("TPU v5 lite", "TPU v6 lite")  # what JAX calls v5e and v6e


def bind_prepared(config: ModelConfig, params) -> VLM:
    """The module whose weights are what `Preparation` gives; call it inside `jax.jit`. Layers that
    lie apart are stacked for it, which costs nothing where nobody reads the stack."""
    layers = params["text"]["layers"]
    if isinstance(layers, list):
        layers = jax.tree.map(lambda *parts: jnp.stack(parts), *layers)
    return family.bind(config, params | {"text": params["text"] | {"layers": layers}})


def prepared_shardings(config: ModelConfig, mesh):
    """Gives where each parameter lies that a rollout reads: the decoder's are whole on every part
    of data and fsdp and split over tensor; the tower's are whole on every device, since its frame
    pairs are dealt out to all devices instead (see `clips.encode`). So is an embedding that is not
    the head as well, since rows of a split one would have to be summed for every token."""
    tensor = mesh.shape["tensor"]
    tree = abstract_widened(family.abstract_params(config), config, tensor)
    whole = jax.tree.map(lambda _: NamedSharding(mesh, P()), tree)
    split = tree if tensor == 1 else {"text": tree["text"]}

    def gather(held):
        return NamedSharding(mesh, P(*(None if axis == "fsdp" else axis for axis in held.spec)))

    held = sharding.state_shardings(split, without_fsdp(mesh), "rollout")
    places = whole | jax.tree.map(gather, held)
    if "head" in tree["text"]:
        places["text"]["embed"] = NamedSharding(mesh, P())
    return places


def takes_apart(mesh) -> bool:
    """Whether each of the decoder's layers is to lie in memory of its own.

    Devices along tensor wait for a sum of hidden states twice a layer, and meanwhile a v5e or v6e
    fetches the next weights from memory, but only those that are an array of their own. On v5p the
    compiler fetches none.
    """
    return mesh.shape["tensor"] > 1 and mesh.devices.flat[0].device_kind in _FETCHING


def _is_tpu(mesh):
    return mesh.devices.flat[0].platform == "tpu"


class Preparation:
    """One compiled program that makes of training parameters those that decoding reads.

    The result lies as `prepared_shardings` says, in `dtype`, or in int8 where `int8` says so; LoRA
    adapters are merged into it. Where tensor has more parts than the model has heads of keys, it is
    wider than the parameters; see `heads.widen`.

    Where `takes_apart` says so, the decoder's layers are a list of trees instead of one tree with a
    leading L.
    """

    def __init__(self, config: ModelConfig, mesh, *, dtype, int8: bool):
        self.config, self.mesh, self.dtype, self.int8 = config, mesh, dtype, int8
        self.is_apart = takes_apart(mesh)

    @functools.cached_property
    def program(self):
        """The program, params -> prepared params.

        Towers are converted a layer at a time, so that besides the result the devices hold one
        layer that is being gathered and not all of them; where layers come apart, also their stack.
        """
        return jax.jit(self._convert, out_shardings=self.formats)

    @functools.cached_property
    def formats(self):
        """Where each parameter of the result lies, and in which memory order."""

        def of_one(held):
            if isinstance(held, Format):
                return Format(Layout((1, 0, 2)), of_one(held.sharding))
            return NamedSharding(self.mesh, P(*held.spec[1:]))

        if not self.is_apart:
            return self._stacked
        text = self._stacked["text"]
        layers = [jax.tree.map(of_one, text["layers"])] * self.config.text.num_layers
        return self._stacked | {"text": text | {"layers": layers}}

    @functools.cached_property
    def _stacked(self):
        """What `formats` is where the layers are one stack."""

        def order(keys, held):
            path = jax.tree_util.keystr(keys, simple=True, separator="/")
            if _is_tpu(self.mesh) and path in _HEAD_MAJOR:
                return Format(Layout((0, 2, 1, 3)), held)
            return held

        shardings = prepared_shardings(self.config, self.mesh)
        formats = jax.tree_util.tree_map_with_path(order, shardings)
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
        if self.is_apart:
            stack, numbers = made["text"]["layers"], range(self.config.text.num_layers)
            made["text"]["layers"] = [jax.tree.map(lambda x, i=i: x[i], stack) for i in numbers]
        return made

    def _convert_layer(self, tower, layer):
        layer = jax.tree.map(lambda leaf: leaf[None], resolve(self._cast(layer)))
        layer = self._widened({tower: {"layers": layer}})
        layer = self._quantised(layer)[tower]["layers"]
        places = jax.tree.map(
            lambda held: held.sharding if isinstance(held, Format) else held,
            self._stacked[tower]["layers"],
        )
        layer = jax.lax.with_sharding_constraint(layer, places)
        return jax.tree.map(lambda leaf: leaf[0], layer)

    def _cast(self, params):
        return jax.tree.map(lambda leaf: leaf.astype(self.dtype), params)

    def _widened(self, params):
        """Widens weights, and lays them out on the rollout's mesh.

        Those of a decoder that keep their shape are first split over all devices, so that these
        exchange pieces and gather no more than their own part of tensor. Those that change
        it are whole on each device first, since XLA cannot repeat heads or fill groups of them up
        while they are split.
        """
        tensor = self.mesh.shape["tensor"]
        if tensor == 1 or "text" not in params:
            return params
        wide = abstract_widened(params, self.config, tensor)
        count = self.mesh.devices.size // tensor
        divides = self.config.text.dim % count == 0
        parts = reshape(self.mesh, (1, count, tensor) if divides else (count, 1, tensor))
        split = sharding.state_shardings(wide, parts, "rollout")
        everywhere = NamedSharding(self.mesh, P())

        def place(leaf, other, held):
            where = held if leaf.shape == other.shape else everywhere
            return jax.lax.with_sharding_constraint(leaf, where)

        return widen(jax.tree.map(place, params, wide, split), self.config, tensor)

    def _quantised(self, params):
        return quantise_weights(params) if self.int8 else params
