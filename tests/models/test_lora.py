"""LoRA against explicit algebra and against `peft` on a tiny random Qwen2.5-VL."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
import transformers
from flax.traverse_util import flatten_dict, unflatten_dict
from hf_twin import write_random
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videorft_jax.models.family import load_config
from videorft_jax.models.hf_folder import read_checkpoint
from videorft_jax.models.hf_writer import write_checkpoint
from videorft_jax.models.lora import (
    LoraConfig,
    find_targets,
    init_lora,
    merge_lora,
)
from videorft_jax.models.peft_folder import load_adapter, save_adapter

# Written down apart from the table of the program: one layer's x @ W, x @ a and (x @ a) @ b.
EINSUMS = {
    "text/layers/attn/q": ("td,dnh->tnh", "td,dr->tr", "tr,rnh->tnh"),
    "text/layers/attn/k": ("td,dnh->tnh", "td,dr->tr", "tr,rnh->tnh"),
    "text/layers/attn/v": ("td,dnh->tnh", "td,dr->tr", "tr,rnh->tnh"),
    "text/layers/attn/o": ("tnh,nhd->td", "tnh,nhr->tr", "tr,rd->td"),
    "text/layers/mlp/gate": ("td,dm->tm", "td,dr->tr", "tr,rm->tm"),
    "text/layers/mlp/up": ("td,dm->tm", "td,dr->tr", "tr,rm->tm"),
    "text/layers/mlp/down": ("tm,md->td", "tm,mr->tr", "tr,rd->td"),
    "vision/layers/attn/qkv": ("td,dcnh->tcnh", "td,dr->tr", "tr,rcnh->tcnh"),
    "vision/layers/attn/proj": ("tnh,nhd->td", "tnh,nhr->tr", "tr,rd->td"),
    "vision/layers/mlp/gate": ("td,dm->tm", "td,dr->tr", "tr,rm->tm"),
    "vision/layers/mlp/up": ("td,dm->tm", "td,dr->tr", "tr,rm->tm"),
    "vision/layers/mlp/down": ("tm,md->td", "tm,mr->tr", "tr,rd->td"),
    "vision/merger/up": ("td,dm->tm", "td,dr->tr", "tr,rm->tm"),
    "vision/merger/down": ("td,dm->tm", "td,dr->tr", "tr,rm->tm"),
}
EVERYTHING = LoraConfig(
    rank=3,
    alpha=12,
    targets=(
        r"text/layers/attn/(q|k|v|o)$",
        r"/mlp/(gate|up|down)$",
        r"vision/layers/attn/(qkv|proj)$",
        r"vision/merger/(up|down)$",
    ),
)
init = jax.jit(init_lora, static_argnames="config")
merge = jax.jit(merge_lora, static_argnames="config")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """(folder of a random checkpoint with grouped-query attention, config, params in float32)."""
    folder = tmp_path_factory.mktemp("hub")
    write_random(folder)
    config = load_config(folder)
    return folder, config, read_checkpoint(folder, config)


def load_hf(folder):
    return transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).float().eval()


def random_lora(params, config, seed):
    """An adapter in which `b` is random too, as after training."""
    lora = jax.eval_shape(lambda: init_lora(params, config, jax.random.key(0, impl="rbg")))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.asarray(rng.normal(0, 0.2, x.shape), np.float32), lora)


def logits_of(model, config):
    """Logits of a prompt with an image of 4 x 4 patches."""
    torch.manual_seed(1)
    ids = config.token_ids
    tokens = torch.tensor([[5, 7, ids.vision_start, *[ids.image] * 4, ids.vision_end, 9, 11, 2]])
    with torch.no_grad():
        return model(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            pixel_values=torch.randn(16, config.vision.patch_dim),
            image_grid_thw=torch.tensor([[1, 4, 4]]),
            mm_token_type_ids=(tokens == ids.image).int(),
        ).logits.numpy()


def test_init_is_the_uniform_of_peft_and_changes_nothing(hub):
    _, _, params = hub
    lora = flatten_dict(init(params, EVERYTHING, jax.random.key(0, impl="rbg")), sep="/")
    assert {path.rsplit("/", 1)[0] for path in lora} == EINSUMS.keys()
    flat = flatten_dict(params, sep="/")
    for path, (whole, left, _) in EINSUMS.items():
        a, b = lora[f"{path}/a"], lora[f"{path}/b"]
        lead = flat[path].ndim - len(whole.split(",")[1].split("-")[0])
        inputs = np.prod(a.shape[lead:-1])
        assert a.ndim == lead + len(left.split(",")[1].split("-")[0])
        assert a.shape[-1] == b.shape[lead] == 3
        assert a.shape[:lead] + a.shape[lead:-1] + b.shape[lead + 1 :] == flat[path].shape
        oracle = torch.empty(3, int(inputs))
        torch.nn.init.kaiming_uniform_(oracle, a=5**0.5)
        bound = inputs**-0.5
        assert oracle.abs().max() <= bound
        assert 0.9 * bound < np.abs(a).max() <= bound
        np.testing.assert_allclose(np.std(a), bound / 3**0.5, rtol=0.15)
        assert not b.any()
    lora = unflatten_dict(lora, sep="/")
    jax.tree.map(np.testing.assert_array_equal, merge(params, lora, EVERYTHING), params)
    few = LoraConfig(3, 1, (r"vision/merger/up$",))
    abstract = jax.eval_shape(lambda: params)
    alone = init_lora(abstract, few, jax.random.key(0, impl="rbg"))["vision"]["merger"]["up"]["a"]
    np.testing.assert_array_equal(alone, lora["vision"]["merger"]["up"]["a"])


@pytest.fixture(scope="module")
def tuned(hub):
    """(random adapter of every linear layer, params with it merged)."""
    lora = random_lora(hub[2], EVERYTHING, 2)
    return lora, merge(hub[2], lora, EVERYTHING)


@pytest.mark.parametrize("path", EINSUMS)
def test_merged_equals_unmerged(hub, tuned, path):
    _, _, params = hub
    lora, merged = tuned
    merged = flatten_dict(merged, sep="/")
    weight = np.asarray(flatten_dict(params, sep="/")[path], np.float64)
    flat = flatten_dict(lora, sep="/")
    whole, left, right = EINSUMS[path]
    stacked = weight.ndim == len(whole.split(",")[1].split("-")[0]) + 1
    for layer in range(len(weight)) if stacked else (...,):
        w, a, b, ours = (
            x[layer] for x in (weight, flat[f"{path}/a"], flat[f"{path}/b"], merged[path])
        )
        x = np.random.default_rng(3).normal(size=(5, *a.shape[:-1]))
        unmerged = np.einsum(whole, x, w) + 4.0 * np.einsum(right, np.einsum(left, x, a), b)
        np.testing.assert_allclose(np.einsum(whole, x, ours), unmerged, atol=1e-5)


def test_nothing_but_the_targets_changes(hub, tuned):
    merged = flatten_dict(tuned[1], sep="/")
    for path, value in flatten_dict(hub[2], sep="/").items():
        assert np.array_equal(merged[path], value) == (path not in EINSUMS), path


def test_gradient_and_jit_and_mesh_agree_with_the_unmerged_form(hub):
    _, _, params = hub
    config = LoraConfig(4, 2, (r"text/layers/attn/(q|o)$",))
    lora = jax.tree.map(jnp.asarray, random_lora(params, config, 4))
    dims = params["text"]["layers"]["attn"]["q"].shape
    x = jax.random.normal(jax.random.key(5), (6, dims[1]))

    def merged(lora, params):
        attn = merge_lora(params, lora, config)["text"]["layers"]["attn"]
        y = jnp.einsum("td,ldnh->ltnh", x, attn["q"])
        return jnp.sum(jnp.einsum("ltnh,lnhd->ltd", y, attn["o"]) ** 2)

    def unmerged(lora, params):
        attn, ab = params["text"]["layers"]["attn"], lora["text"]["layers"]["attn"]
        y = jnp.einsum("td,ldnh->ltnh", x, attn["q"])
        y += 0.5 * jnp.einsum("td,ldr,lrnh->ltnh", x, ab["q"]["a"], ab["q"]["b"])
        z = jnp.einsum("ltnh,lnhd->ltd", y, attn["o"])
        z += 0.5 * jnp.einsum("ltnh,lnhr,lrd->ltd", y, ab["o"]["a"], ab["o"]["b"])
        return jnp.sum(z**2)

    want_value, want = jax.jit(jax.value_and_grad(unmerged))(lora, params)
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("fsdp", "tensor"))
    spread = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec())), params)
    attn = spread["text"]["layers"]["attn"]
    for name, spec in (("q", (None, "fsdp", "tensor")), ("o", (None, "tensor", None, "fsdp"))):
        attn[name] = jax.device_put(attn[name], NamedSharding(mesh, PartitionSpec(*spec)))
    merged_attn = merge(spread, lora, config)["text"]["layers"]["attn"]
    for name in "qo":
        assert merged_attn[name].sharding.is_equivalent_to(attn[name].sharding, 4)
    for place in (params, spread):
        value, grads = jax.jit(jax.value_and_grad(merged))(lora, place)
        np.testing.assert_allclose(value, want_value, rtol=1e-5)
        for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_bfloat16_weights_are_summed_in_float32():
    params = {"vision": {"merger": {"up": jnp.full((8, 8), 1.0, jnp.bfloat16)}}}
    config = LoraConfig(1, 1, ("up$",))
    # A hair above halfway between 1 and the next bfloat16; rounded first it would fall back to 1.
    leaf = {"a": jnp.full((8, 1), 2.0**-8 + 2.0**-17), "b": jnp.ones((1, 8))}
    merged = merge_lora(params, {"vision": {"merger": {"up": leaf}}}, config)
    up = merged["vision"]["merger"]["up"]
    assert up.dtype == jnp.bfloat16
    assert (np.asarray(up) == ml_dtypes.bfloat16(1 + 2.0**-7)).all()


def test_peft_loads_our_adapter_and_computes_what_our_merge_does(hub, tuned, tmp_path):
    folder, config, _ = hub
    lora, merged = tuned
    save_adapter(tmp_path / "adapter", lora, EVERYTHING, config, base_model=str(folder))
    model = peft.PeftModel.from_pretrained(load_hf(folder), tmp_path / "adapter")
    write_checkpoint(tmp_path / "merged", merged, config)
    ours, base = load_hf(tmp_path / "merged"), load_hf(folder)
    adapted = 0
    for name, module in model.base_model.model.named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            moved = ours.get_submodule(name).weight - base.get_submodule(name).weight
            delta = module.get_delta_weight("default")
            assert delta.abs().max() > 0.1
            np.testing.assert_allclose(delta.detach(), moved.detach(), atol=1e-6, err_msg=name)
            adapted += 1
    assert adapted == 7 * config.text.num_layers + 5 * config.vision.num_layers + 2
    with_adapter, with_merge = logits_of(model, config), logits_of(ours, config)
    scale = np.abs(with_merge).max()
    np.testing.assert_allclose(with_adapter, with_merge, atol=1e-5 * scale)
    assert np.abs(logits_of(base, config) - with_merge).max() > 0.1 * scale


@pytest.fixture(scope="module")
def peft_adapter(hub, tmp_path_factory):
    """(folder saved by peft with random matrices, its tensors by name)."""
    source = peft.LoraConfig(
        r=5, lora_alpha=7, target_modules=["q_proj", "v_proj", "o_proj", "attn.qkv"]
    )
    model = peft.get_peft_model(load_hf(hub[0]), source)
    torch.manual_seed(8)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    folder = tmp_path_factory.mktemp("peft")
    model.save_pretrained(folder)
    return folder, safetensors.numpy.load_file(folder / "adapter_model.safetensors")


def test_an_adapter_of_peft_is_read_and_written_bit_identical(hub, peft_adapter, tmp_path):
    _, config, params = hub
    folder, tensors = peft_adapter
    read = load_adapter(folder, config)
    lora, lora_config = read.factors, read.config
    assert read.is_plain
    assert (lora_config.rank, lora_config.alpha) == (5, 7)
    assert find_targets(params, lora_config) == [
        *(f"text/layers/attn/{name}" for name in "oqv"),
        "vision/layers/attn/qkv",
    ]
    attn = lora["text"]["layers"]["attn"]
    for i in range(config.text.num_layers):
        prefix = f"base_model.model.model.language_model.layers.{i}.self_attn"
        for name in "qvo":
            a = tensors[f"{prefix}.{name}_proj.lora_A.weight"]
            b = tensors[f"{prefix}.{name}_proj.lora_B.weight"]
            np.testing.assert_array_equal(attn[name]["a"][i].reshape(-1, 5), a.T)
            np.testing.assert_array_equal(attn[name]["b"][i].reshape(5, -1), b.T)
    assert attn["o"]["a"].shape[1:3] == (config.text.num_heads, config.text.head_dim)
    assert attn["v"]["b"].shape[2:] == (config.text.num_kv_heads, config.text.head_dim)

    save_adapter(tmp_path, lora, lora_config, config)
    written = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert written[name].dtype == tensor.dtype
        np.testing.assert_array_equal(written[name], tensor)
    again = load_adapter(tmp_path, config)
    assert again.config == lora_config
    jax.tree.map(np.testing.assert_array_equal, again.factors, lora)


def test_old_module_names_and_bfloat16_are_read(hub, peft_adapter, tmp_path):
    folder, tensors = peft_adapter
    old = {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): (
            tensor.astype(ml_dtypes.bfloat16)
        )
        for name, tensor in tensors.items()
    }
    safetensors.numpy.save_file(old, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
    lora = load_adapter(tmp_path, hub[1]).factors
    want = load_adapter(folder, hub[1]).factors
    for ours, theirs in zip(jax.tree.leaves(lora), jax.tree.leaves(want), strict=True):
        assert ours.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(ours, theirs.astype(ml_dtypes.bfloat16))


def test_faulty_tensors_are_listed_together_with_both_names(hub, peft_adapter, tmp_path):
    folder, tensors = peft_adapter
    tensors = dict(tensors)
    layer = "base_model.model.model.language_model.layers.1.self_attn"
    tensors[f"{layer}.extra"] = tensors.pop(f"{layer}.q_proj.lora_A.weight")
    tensors[f"{layer}.v_proj.lora_B.weight"] = np.zeros((2, 5), np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
    with pytest.raises(ValueError, match="3 faulty tensors") as error:
        load_adapter(tmp_path, hub[1])
    for part in (
        "unknown model.layers.1.self_attn.extra",
        "missing model.layers.1.self_attn.q_proj.lora_A.weight (text/layers/attn/q[1])",
        "mis-shaped model.layers.1.self_attn.v_proj.lora_B.weight (text/layers/attn/v[1]): (2, 5)",
    ):
        assert part in str(error.value)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ValueError, match="pickle"):
        load_adapter(tmp_path, hub[1])


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ((r"text/layers/attn/(q|x)$", r"attn/query"), "'attn/query' matches none"),
        ((r"attn/q",), "matches text/layers/attn/q_bias"),
        ((r"text/embed$",), "no weight of a linear layer"),
        ((r"attn/(q",), "no regular expression"),
        ((), "at least one path"),
    ],
)
def test_targets_that_match_nothing_or_too_much_are_refused(hub, targets, message):
    with pytest.raises(ValueError, match=message):
        find_targets(hub[2], LoraConfig(2, 2, targets))
