"""The two towers of SigLIP and SigLIP 2 (FixRes) and the pure functions that run them.

Exact to Hugging Face's `SiglipModel`. Design decision: the towers are `flax.nnx` declarations only;
what is stored, saved, cast and passed to `jax.jit` is a plain nested dict with layers stacked on a
leading dim and heads kept apart, merged into the modules inside `jit`.

Traps held here: texts are always the full number of positions long (64) and never masked, because
the last position pools and padding was attended to in training; the vision pool adds its MLP to the
attention output, not to the probe; pixels past the last whole patch are dropped.
"""

import dataclasses
import functools
import logging
import math

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict

from videorft_jax.models.layers import shard_rows

log = logging.getLogger(__name__)

LAYER_NORM_EPS = 1e-6  # every published SigLIP; a config that says otherwise is refused
# Published config.json files leave out what equals SigLIP base; a wrong fill cannot survive the
# comparison with the shapes of the tensors, except the number of heads, which is checked by width.
BASE_TOWER = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
_BASE = {
    "vision_config": {**BASE_TOWER, "image_size": 224, "patch_size": 16},
    "text_config": {**BASE_TOWER, "vocab_size": 32000, "max_position_embeddings": 64},
}
CONSTANTS = {
    "layer_norm_eps": LAYER_NORM_EPS,
    "hidden_act": "gelu_pytorch_tanh",
    "num_channels": 3,
    "vision_use_head": True,
}


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """Holds the sizes of one transformer tower: width D, mlp M, layers L, heads N."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
    """Everything that decides an embedding except the weights and the vocabulary.

    `text_rule` is "v1" (lower case, no punctuation, pad 1) or "v2" (lower case, pad 0);
    `resample` is the PIL filter number, 2 bilinear, 3 bicubic; sizes are in pixels.
    """

    vision: TowerConfig
    text: TowerConfig
    image_size: int
    patch_size: int
    vocab_size: int
    text_length: int
    text_rule: str
    resample: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]

    def __post_init__(self):
        for name in ("vision", "text"):
            tower = getattr(self, name)
            if tower.hidden_size % tower.num_heads:
                raise ValueError(
                    f"siglip {name} width {tower.hidden_size} is not a multiple of its "
                    f"{tower.num_heads} heads: correct num_attention_heads in config.json"
                )
        if self.text_rule not in ("v1", "v2"):
            raise ValueError(f"siglip text_rule is {self.text_rule!r}: use 'v1' or 'v2'")


def parse_config(raw: dict, processor: dict, text_rule: str) -> SiglipConfig:
    """Reads the JSON of config.json and preprocessor_config.json. Raises ValueError."""
    vision_raw = raw.get("vision_config", {})
    if raw.get("model_type") != "siglip" or "num_patches" in vision_raw:
        raise ValueError(
            f"config.json is model_type {raw.get('model_type')!r}: only SigLIP and SigLIP 2 FixRes "
            f"(model_type 'siglip') are read, NaFlex is not; pick a fixed-resolution checkpoint"
        )
    sections = {}
    for name, base in _BASE.items():
        if name not in raw:
            raise ValueError(f"config.json has no {name!r}: use the config of a full SiglipModel")
        section = raw[name]
        for key, value in CONSTANTS.items():
            if section.get(key, value) != value:
                raise ValueError(f"config.json {name}.{key} is {section[key]!r}: must be {value!r}")
        missing = sorted(base.keys() - section.keys())
        width = section.get("hidden_size", base["hidden_size"])
        if "num_attention_heads" in missing and width != base["hidden_size"]:
            raise ValueError(
                f"config.json {name} has no 'num_attention_heads' and its width {width} is not "
                f"that of SigLIP base: add the key"
            )
        if missing:
            log.info("siglip %s omits %s: taken from SigLIP base", name, ", ".join(missing))
        sections[name] = base | section
    vision, text = sections["vision_config"], sections["text_config"]
    projection = text.get("projection_size", text["hidden_size"])
    if projection != vision["hidden_size"]:
        raise ValueError(
            f"config.json: text projection_size {projection} differs from the vision width "
            f"{vision['hidden_size']}, so the towers cannot be compared; correct text_config"
        )
    for key in ("resample", "size", "image_mean", "image_std"):
        if key not in processor:
            raise ValueError(f"preprocessor_config.json has no {key!r}: copy it from the release")
    side = vision["image_size"]
    if processor["size"] != {"height": side, "width": side}:
        raise ValueError(
            f"preprocessor_config.json size {processor['size']} is not the {side} px square of "
            f"config.json: correct one of them"
        )
    return SiglipConfig(
        vision=_parse_tower(vision),
        text=_parse_tower(text),
        image_size=side,
        patch_size=vision["patch_size"],
        vocab_size=text["vocab_size"],
        text_length=text["max_position_embeddings"],
        text_rule=text_rule,
        resample=processor["resample"],
        image_mean=tuple(processor["image_mean"]),
        image_std=tuple(processor["image_std"]),
    )


def _parse_tower(section: dict) -> TowerConfig:
    return TowerConfig(*(section[key] for key in BASE_TOWER))


def _dense(rngs: nnx.Rngs, lead: tuple, ins: tuple, outs: tuple) -> nnx.Param:
    """Makes a Xavier-uniform weight `[*lead, *ins, *outs]`."""
    bound = math.sqrt(6 / (math.prod(ins) + math.prod(outs)))
    return nnx.Param(
        jax.random.uniform(rngs.params(), lead + ins + outs, minval=-bound, maxval=bound)
    )


def _normal(rngs: nnx.Rngs, shape: tuple, std: float) -> nnx.Param:
    return nnx.Param(std * jax.random.normal(rngs.params(), shape))


def _zeros(*shape: int) -> nnx.Param:
    return nnx.Param(jnp.zeros(shape))


def _ones(*shape: int) -> nnx.Param:
    return nnx.Param(jnp.ones(shape))


def _layer_norm(x: jax.Array, scale: nnx.Param, bias: nnx.Param) -> jax.Array:
    x32 = x.astype(jnp.float32)
    x32 = x32 - x32.mean(-1, keepdims=True)
    x32 = x32 * jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + LAYER_NORM_EPS)
    return shard_rows((x32 * scale[...] + bias[...]).astype(x.dtype))


def _attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Full attention with softmax in float32: q is `[B,T,N,H]`, k and v are `[B,S,N,H]`."""
    scores = jnp.einsum("btnh,bsnh->bnts", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores * q.shape[-1] ** -0.5).astype(v.dtype)
    return jnp.einsum("bnts,bsnh->btnh", weights, v)


class Attention(nnx.Module):
    """Self-attention with biases; `[B,T,D]` to `[B,T,D]`."""

    def __init__(self, config: TowerConfig, lead: tuple, rngs: nnx.Rngs):
        width, heads = config.hidden_size, config.num_heads
        split = (heads, width // heads)
        for name in "qkv":
            setattr(self, name, _dense(rngs, lead, (width,), split))
            setattr(self, f"{name}_bias", _zeros(*lead, *split))
        self.o = _dense(rngs, lead, split, (width,))
        self.o_bias = _zeros(*lead, width)

    def __call__(self, x):
        q = jnp.einsum("btd,dnh->btnh", x, self.q[...]) + self.q_bias[...]
        k = jnp.einsum("btd,dnh->btnh", x, self.k[...]) + self.k_bias[...]
        v = jnp.einsum("btd,dnh->btnh", x, self.v[...]) + self.v_bias[...]
        return jnp.einsum("btnh,nhd->btd", _attend(q, k, v), self.o[...]) + self.o_bias[...]


class Mlp(nnx.Module):
    """Two layers with tanh GELU; `[...,D]` to `[...,D]`."""

    def __init__(self, config: TowerConfig, lead: tuple, rngs: nnx.Rngs):
        width, hidden = config.hidden_size, config.intermediate_size
        self.up = _dense(rngs, lead, (width,), (hidden,))
        self.up_bias = _zeros(*lead, hidden)
        self.down = _dense(rngs, lead, (hidden,), (width,))
        self.down_bias = _zeros(*lead, width)

    def __call__(self, x):
        x = jax.nn.gelu(x @ self.up[...] + self.up_bias[...], approximate=True)
        return x @ self.down[...] + self.down_bias[...]


class Blocks(nnx.Module):
    """All pre-norm blocks of a tower, stacked on L; called with one block's slice of the params."""

    def __init__(self, config: TowerConfig, rngs: nnx.Rngs):
        lead, width = (config.num_layers,), config.hidden_size
        self.attn_norm, self.attn_norm_bias = _ones(*lead, width), _zeros(*lead, width)
        self.attn = Attention(config, lead, rngs)
        self.mlp_norm, self.mlp_norm_bias = _ones(*lead, width), _zeros(*lead, width)
        self.mlp = Mlp(config, lead, rngs)

    def __call__(self, x):
        x = shard_rows(x + self.attn(_layer_norm(x, self.attn_norm, self.attn_norm_bias)))
        return shard_rows(x + self.mlp(_layer_norm(x, self.mlp_norm, self.mlp_norm_bias)))

    def scan(self, x):
        graph, stacked = nnx.split(self)
        x = shard_rows(x)
        return jax.lax.scan(lambda x, one: (nnx.merge(graph, one)(x), None), x, stacked)[0]


class Pool(nnx.Module):
    """Attention pooling by one learned probe; `[B,T,D]` to `[B,D]`."""

    def __init__(self, config: TowerConfig, rngs: nnx.Rngs):
        width, heads = config.hidden_size, config.num_heads
        split = (heads, width // heads)
        self.probe = _normal(rngs, (width,), width**-0.5)
        self.qkv = _dense(rngs, (), (width,), (3, *split))
        self.qkv_bias = _zeros(3, *split)
        self.o = _dense(rngs, (), split, (width,))
        self.o_bias = _zeros(width)
        self.norm, self.norm_bias = _ones(width), _zeros(width)
        self.mlp = Mlp(config, (), rngs)

    def __call__(self, x):
        q = jnp.einsum("d,dnh->nh", self.probe[...], self.qkv[:, 0]) + self.qkv_bias[0]
        kv = jnp.einsum("btd,dcnh->cbtnh", x, self.qkv[:, 1:]) + self.qkv_bias[1:, None, None]
        q = jnp.broadcast_to(q, (len(x), 1, *q.shape))
        y = jnp.einsum("btnh,nhd->bd", _attend(q, *kv), self.o[...]) + self.o_bias[...]
        return y + self.mlp(_layer_norm(y, self.norm, self.norm_bias))


class VisionTower(nnx.Module):
    """Float pixels `[B,S,S,3]`, already normalised, to `[B,D]`."""

    def __init__(self, config: SiglipConfig, rngs: nnx.Rngs):
        tower, width = config.vision, config.vision.hidden_size
        num_patches = (config.image_size // config.patch_size) ** 2
        self.patch_size = config.patch_size
        self.embed = _normal(
            rngs, (3 * config.patch_size**2, width), (3 * config.patch_size**2) ** -0.5
        )
        self.embed_bias = _zeros(width)
        self.position = _normal(rngs, (num_patches, width), width**-0.5)
        self.layers = Blocks(tower, rngs)
        self.final_norm, self.final_norm_bias = _ones(width), _zeros(width)
        self.pool = Pool(tower, rngs)

    def __call__(self, pixels):
        patch, side = self.patch_size, pixels.shape[1] // self.patch_size
        x = shard_rows(pixels)
        # The remainder of the pixels is dropped, as the padding "valid" of a convolution does.
        x = x[:, : side * patch, : side * patch]
        x = x.reshape(-1, side, patch, side, patch, 3).transpose(0, 1, 3, 5, 2, 4)
        x = x.reshape(len(x), side * side, -1).astype(self.embed.dtype) @ self.embed[...]
        x = self.layers.scan(x + self.embed_bias[...] + self.position[...])
        return self.pool(_layer_norm(x, self.final_norm, self.final_norm_bias))


class TextTower(nnx.Module):
    """Tokens `[B,T]`, T the number of positions, to `[B,D]` of the vision width."""

    def __init__(self, config: SiglipConfig, rngs: nnx.Rngs):
        tower, width, out = config.text, config.text.hidden_size, config.vision.hidden_size
        self.embed = _normal(rngs, (config.vocab_size, width), width**-0.5)
        self.position = _normal(rngs, (config.text_length, width), width**-0.5)
        self.layers = Blocks(tower, rngs)
        self.final_norm, self.final_norm_bias = _ones(width), _zeros(width)
        self.head = _dense(rngs, (), (width,), (out,))
        self.head_bias = _zeros(out)

    def __call__(self, tokens):
        x = self.layers.scan(self.embed[tokens] + self.position[...])
        x = _layer_norm(x[:, -1], self.final_norm, self.final_norm_bias)
        return shard_rows(x @ self.head[...] + self.head_bias[...])


class Towers(nnx.Module):
    """Both towers and the two scalars of the sigmoid loss, logit = exp(scale) * cos + bias."""

    def __init__(self, config: SiglipConfig, rngs: nnx.Rngs):
        self.vision = VisionTower(config, rngs)
        self.text = TextTower(config, rngs)
        self.logit_scale = nnx.Param(jnp.float32(math.log(10.0)))  # Zhai et al. 2023, section 3.2
        self.logit_bias = nnx.Param(jnp.float32(-10.0))


@functools.partial(jax.jit, static_argnames="config")
def init(config: SiglipConfig, key: jax.Array) -> dict:
    """Makes random float32 params as a nested dict, for training a SigLIP from scratch."""
    return nnx.to_pure_dict(nnx.split(Towers(config, nnx.Rngs(params=key)))[1])


@functools.cache
def abstract(config: SiglipConfig) -> tuple:
    """Gives the graph definitions of both towers and the flat dict path -> abstract array."""
    towers = nnx.eval_shape(lambda: Towers(config, nnx.Rngs(0)))
    params = nnx.to_pure_dict(nnx.split(towers)[1])
    return nnx.split(towers.vision)[0], nnx.split(towers.text)[0], flatten_dict(params, sep="/")


def _unit(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def encode_images(params: dict, config: SiglipConfig, pixels: jax.Array) -> jax.Array:
    """Embeds uint8 pixels `[B,S,S,3]`, S the image size, as unit-length float32 `[B,D]`; pure."""
    size = (config.image_size, config.image_size, 3)
    if pixels.dtype != jnp.uint8 or pixels.shape[1:] != size:
        raise ValueError(
            f"siglip pixels are {pixels.dtype} {pixels.shape}: must be uint8 with dims {size}"
        )
    mean, std = jnp.asarray(config.image_mean), jnp.asarray(config.image_std)
    pixels = (pixels.astype(jnp.float32) / 255 - mean) / std
    return _unit(nnx.merge(abstract(config)[0], params["vision"])(pixels))


def encode_texts(params: dict, config: SiglipConfig, tokens: jax.Array) -> jax.Array:
    """Embeds `tokenize`d texts int32 `[B,text_length]` as unit-length float32 `[B,D]`; pure."""
    if tokens.shape[1:] != (config.text_length,):
        raise ValueError(
            f"siglip tokens have shape {tokens.shape}: must be [n, {config.text_length}]"
        )
    return _unit(nnx.merge(abstract(config)[1], params["text"])(tokens))
