"""Costs against XLA's count of whole models, a count over jaxprs, and brute force over masks."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters.partial_eval import dce_jaxpr

from videorft_jax.data.batch import layout, patches
from videorft_jax.metrics import chips, flops
from videorft_jax.models import family, lora
from videorft_jax.models.attention.masks import Causal, SharedPrefix
from videorft_jax.models.compute_plan import choose_plan
from videorft_jax.models.kv_cache import KVCache
from videorft_jax.models.layers import REMAT_POLICIES
from videorft_jax.models.qwen2_5_vl.config import hf_values, parse_config, tiny_values
from videorft_jax.models.siglip import towers as siglip_towers


@functools.cache
def small_config(layers=1, full=(), tied=False):
    """Wide enough that norms, rotations and softmax stay under 2 %."""
    return parse_config(
        tiny_values(
            num_hidden_layers=layers,
            hidden_size=512,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=1024,
            vocab_size=1024,
            tie_word_embeddings=tied,
            rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]},
            vision_depth=layers,
            vision_hidden_size=256,
            vision_num_heads=2,
            vision_intermediate_size=512,
            vision_out_hidden_size=512,
            vision_fullatt_block_indexes=list(full),
        )
    )


@functools.cache
def make_batch():
    """Two rows of 104 tokens with a clip of 112 x 224 pixels, two windows, two frame pairs."""
    media = patches.make_media(np.zeros((4, 112, 224, 3), np.uint8), 2.0)
    length = media.num_tokens + 40
    targets = np.arange(length) >= length - 20
    sample = layout.make_sample(np.zeros(length, np.int32), targets, [8], [media])
    return layout.pack([[sample], [sample]], length, 2, 2)


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def all_logits(config, params, batch, remat="none"):
    model = family.bind(config, params)
    return model.logits(model.hidden_states(batch, plan=choose_plan("reference"), remat=remat))


def loss(params, batch, config, remat="none"):
    return jnp.mean(all_logits(config, params, batch, remat) ** 2)


def executed_everywhere():
    """The executed work with the head on every position, as `all_logits` does it."""
    _, executed = flops.packed_work(make_batch())
    return dataclasses.replace(executed, targets=executed.tokens)


def count_xla(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def count_dots(jaxpr):
    """Operations of all matrix products, the body of a scan as often as it runs. A product with a
    vector is a sum (see reductions.py)."""
    total = 0
    for equation in jaxpr.eqns:
        parameters = equation.params
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            if 1 in (len(shape), equation.invars[1].aval.ndim):
                continue
            terms = math.prod(shape[i] for i in contracted)
            total += 2 * terms * math.prod(equation.outvars[0].aval.shape)
            continue
        inner = [
            count_dots(getattr(part, "jaxpr", part))
            for value in parameters.values()
            for part in (value if isinstance(value, tuple | list) else [value])
            if hasattr(part, "jaxpr") or hasattr(part, "eqns")
        ]
        if equation.primitive.name == "cond":
            total += max(inner)
        else:
            total += sum(inner) * parameters.get("length", 1)
    return total


def count(function, *arguments):
    """Without what no result needs, such as a frozen weight's gradient; XLA drops it, too."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return count_dots(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


@pytest.mark.parametrize("full", [(), (0,)])
def test_vision_tower_is_what_xla_counts(full):
    config = small_config(full=full)
    _, work = flops.vision_work(make_batch().patch_valid)
    counted = count_xla(
        lambda params, batch: family.bind(config, params).encode_vision(
            batch, plan=choose_plan("reference")
        ),
        family.abstract_params(config),
        abstract(make_batch()),
    )
    assert flops.forward_cost(config, work).forward == pytest.approx(counted, rel=0.02)


def test_training_step_is_what_xla_counts():
    """XLA also counts elementwise operations; it sees the scan of one layer exactly once."""
    config = small_config()
    work = executed_everywhere()
    counted = count_xla(
        jax.value_and_grad(functools.partial(loss, config=config)),
        family.abstract_params(config),
        abstract(make_batch()),
    )
    assert flops.train_cost(config, work).model_flops == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize("remat", REMAT_POLICIES)
def test_every_policy_recomputes_what_the_program_says(remat):
    config = small_config(layers=3, full=(0, 1, 2))
    work = executed_everywhere()
    cost = flops.train_cost(config, work, remat=remat)
    counted = count(
        jax.value_and_grad(functools.partial(loss, config=config, remat=remat)),
        family.abstract_params(config),
        abstract(make_batch()),
    )
    assert cost.hardware_flops - flops.parts(config, work)["head"].forward == counted


FROZEN_BUT = [
    ("text",),
    ("vision/merger",),
    ("vision/merger", "text"),
    ("vision/embed", "vision/layers", "vision/merger"),
    ("text/layers",),
]


@pytest.mark.parametrize(
    ("prefixes", "tied"),
    [(prefixes, tied) for prefixes in FROZEN_BUT for tied in (False, True)]
    + [(("text/head",), False)],  # A tied model has no head of its own.
)
def test_frozen_parts_cost_no_gradient(prefixes, tied):
    config = small_config(layers=2, full=(0, 1), tied=tied)
    params = lora.flatten_dict(family.abstract_params(config), sep="/")

    def trained(path):
        return path.startswith(prefixes)

    def split_loss(learnt, frozen, batch):
        return loss(lora.unflatten_dict(learnt | frozen, sep="/"), batch, config)

    counted = count(
        jax.value_and_grad(split_loss),
        {path: leaf for path, leaf in params.items() if trained(path)},
        {path: leaf for path, leaf in params.items() if not trained(path)},
        abstract(make_batch()),
    )
    work = executed_everywhere()
    cost = flops.train_cost(config, work, trained=trained)
    # A product that no gradient passes has no backward pass, here in the jaxpr as there.
    assert cost.model_flops == counted


def test_adapters_pay_for_the_whole_gradient_and_the_merge():
    config = small_config(layers=2, full=(0, 1))
    setting = lora.LoraConfig(8, 16, (r"text/layers/attn/(q|v)$", r"text/layers/mlp/down$"))
    params = family.abstract_params(config)
    targets = lora.find_targets(params, setting)
    adapter = jax.eval_shape(lambda key: lora.init_lora(params, setting, key), jax.random.key(0))

    def adapted_loss(adapter, params, batch):
        return loss(lora.merge_lora(params, adapter, setting), batch, config)

    counted = count(jax.value_and_grad(adapted_loss), adapter, params, abstract(make_batch()))
    cost = flops.train_cost(
        config, executed_everywhere(), trained=targets.__contains__, merged=targets, rank=8
    )
    assert cost.model_flops == counted


def test_shared_prefix_row_and_decoding_step():
    config = small_config(layers=2)
    text, rows, rollouts, prompt, completion = config.text, 2, 4, 64, 32
    params = family.abstract_params(config)
    length = prompt + rollouts * completion
    x = jax.ShapeDtypeStruct((rows, length, text.dim), jnp.float32)
    positions = jax.ShapeDtypeStruct((rows, 3, length), jnp.int32)
    segments = jax.ShapeDtypeStruct((rows, length), jnp.int32)

    def score(params, x, positions, segments):
        model = family.bind(config, params)
        mask = SharedPrefix(segments, prompt, rollouts)
        hidden = model.text(x, positions, mask, plan=choose_plan("chunked"))
        return model.logits(hidden[:, prompt:])

    lengths = np.full(rows, prompt), np.full((rows, rollouts), completion)
    _, executed = flops.group_work(*lengths, prompt, completion)
    assert executed.pairs == rows * (prompt**2 + rollouts * completion * (prompt + completion))
    # Prompts and completions so short are blocks of the CPU's attention, each scored whole.
    pairs = rows * (length * prompt + rollouts * completion**2)
    block = dataclasses.replace(executed, pairs=pairs)
    assert flops.forward_cost(config, block).forward == count(score, params, x, positions, segments)

    heads = (text.num_kv_heads, text.head_dim)
    prefix = jax.ShapeDtypeStruct((2, rows, heads[0], prompt, heads[1]), jnp.float32)
    suffix = jax.ShapeDtypeStruct((2, rows, rollouts, heads[0], completion, heads[1]), jnp.float32)
    cache = KVCache(prefix, prefix, jax.ShapeDtypeStruct((rows, prompt), bool), suffix, suffix)
    x = jax.ShapeDtypeStruct((rows, rollouts, text.dim), jnp.float32)
    places = jax.ShapeDtypeStruct((rows, rollouts), jnp.int32)

    def decode(params, x, places, cache):
        model = family.bind(config, params)
        return model.logits(model.text.decode(x, places, cache, 3)[0])

    cost = flops.decode_cost(config, *lengths)
    assert cost.forward == count(decode, params, x, places, cache)
    read = 2 * (prefix.size + suffix.size) + sum(  # bf16; everything but the embedding and norms
        leaf.size
        for path, leaf in lora.flatten_dict(params["text"], sep="/").items()
        if path == "head" or (path.startswith("layers") and leaf.ndim > 2 and "bias" not in path)
    )
    assert cost.bytes == 2 * read


def test_siglip_towers():
    tower = siglip_towers.TowerConfig(64, 96, 3, 4)
    config = siglip_towers.SiglipConfig(
        tower, tower, 32, 8, 100, 16, "v2", 2, (0.5,) * 3, (0.5,) * 3
    )
    params = jax.eval_shape(lambda key: siglip_towers.init(config, key), jax.random.key(0))
    pixels = jax.ShapeDtypeStruct((5, 32, 32, 3), jnp.uint8)
    images = count(lambda p, x: siglip_towers.encode_images(p, config, x), params, pixels)
    # Without the pool's query, a vector that is projected once for the batch.
    assert flops.siglip_cost(tower, 16, 5, patch_dim=192).forward == images
    tokens = jax.ShapeDtypeStruct((5, 16), jnp.int32)
    texts = count(lambda p, x: siglip_towers.encode_texts(p, config, x), params, tokens)
    assert flops.siglip_cost(tower, 16, 5, head=64).forward == texts


def test_useful_work_is_what_the_masks_allow():
    rng = np.random.default_rng(0)
    segments = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1], [0] * 6])
    real = segments > 0
    allowed = np.asarray(Causal(jnp.asarray(segments)).allowed()) & real[:, :, None]
    batch = make_batch()._replace(
        segment_ids=segments,
        loss_mask=segments == 2,
        patch_valid=rng.random((2, 3, 4, 64)) < 0.7,
    )
    useful, executed = flops.packed_work(batch)
    assert (useful.tokens, useful.targets, useful.pairs) == (11, 2, allowed.sum())
    assert (executed.tokens, executed.targets, executed.pairs) == (18, 2, 3 * 36)
    valid = batch.patch_valid
    assert useful.patches == valid.sum()
    assert useful.window_pairs == (valid[..., :, None] & valid[..., None, :]).sum()
    frames = valid.reshape(2, 3, -1)
    assert useful.frame_pairs == (frames[..., :, None] & frames[..., None, :]).sum()
    assert executed.frame_pairs == 6 * 256**2

    prompts, completions = np.array([3, 5]), np.array([[2, 0], [4, 1]])
    segments = np.zeros((2, 5 + 2 * 4), np.int32)
    for row, (prompt, own) in enumerate(zip(prompts, completions, strict=True)):
        segments[row, :prompt] = 1
        for r, length in enumerate(own):
            segments[row, 5 + 4 * r : 5 + 4 * r + length] = 1
    mask = SharedPrefix(jnp.asarray(segments), 5, 2)
    useful, executed = flops.group_work(prompts, completions, 5, 4)
    allowed = np.asarray(mask.allowed()) & (segments > 0)[:, :, None]
    assert (useful.tokens, useful.targets, useful.pairs) == (15, 7, allowed.sum())
    assert (executed.tokens, executed.targets) == (26, 16)


def test_published_sizes():
    """7B, 32 frames as 16 pairs of 512 patches, prompt 2304, eight completions of 768: the numbers
    computed by hand for the plan, in tera-operations."""
    config = parse_config(hf_values("7b"))
    useful, _ = flops.vision_work(np.ones((1, 16, 8, 64), bool))
    assert flops.forward_cost(config, useful).forward == pytest.approx(10.7e12, rel=0.02)
    group, _ = flops.group_work(np.array([2304]), np.full((1, 8), 768), 2304, 768)
    assert flops.forward_cost(config, group).forward == pytest.approx(124.6e12, rel=0.02)
    update = flops.train_cost(config, group, trained=lambda path: path.startswith("text"))
    assert update.model_flops == pytest.approx(374e12, rel=0.02)
    decode = flops.decode_cost(config, np.array([2304]), np.full((1, 8), 384))
    assert decode.forward * 768 == pytest.approx(93.5e12, rel=0.02)
    cache = 57344 * (2304 + 8 * 384)
    assert decode.bytes - cache == pytest.approx(14.1e9, rel=0.01)


def test_second_family_is_what_the_reference_counts():
    """Giga-operations of a token, by the arithmetic of the published sizes: text layers and head
    of a token, tower and mergers of a visual token, attention of a pair of 1,024 patches."""
    for size, layers, head, tower, attention in (
        ("qwen3vl_2b", 2.82, 0.62, 2.62, 0.40),
        ("qwen3vl_4b", 7.27, 0.78, 2.65, 0.40),
        ("qwen3vl_8b", 13.89, 1.24, 3.62, 0.51),
    ):
        config = family.published_config(size)
        found = {}
        for name, work in (
            ("layers", flops.Work(tokens=1)),
            ("head", flops.Work(targets=1)),
            ("tower", flops.Work(patches=4)),
            ("attention", flops.Work(frame_pairs=4 * 1024)),
        ):
            parts = flops.parts(config, work).values()
            found[name] = sum(part.forward for part in parts) / 1e9
        assert found == pytest.approx(
            {"layers": layers, "head": head, "tower": tower, "attention": attention}, abs=0.011
        )


def test_chips_by_the_names_of_their_devices():
    class Device:
        def __init__(self, kind):
            self.device_kind = kind

    peaks = {
        "TPU v4": 275,
        "TPU v5 lite": 197,
        "TPU v5": 459,
        "TPU v6 lite": 918,
        "TPU7x": 1153.5,
        "NVIDIA H100 80GB HBM3": 989,
        "NVIDIA H100 PCIe": 756,
        "NVIDIA H200": 989,
        "NVIDIA A100-SXM4-80GB": 312,
    }
    for kind, peak in peaks.items():
        assert chips.find_chip(Device(kind)).flops == peak * 1e12
    chip = chips.find_chip(jax.devices()[0])
    assert chip.measured
    assert 1e9 < chip.flops < 1e14
    chip = chips.Chip(100.0, 10.0)
    assert chips.utilisation(800.0, 2.0, 8, chip) == 0.5
    assert chips.roofline_seconds(800.0, 160.0, 8, chip) == 2.0  # memory, not the 1.0 of arithmetic
