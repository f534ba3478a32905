"""Adapters of PEFT on a tiny random Qwen3-VL: read, they compute as in PEFT; written, PEFT computes
with them what our merged weights do."""

import copy
import warnings

import hf_twin as hf
import jax
import numpy as np
import peft
import pytest
import torch

from videorft_jax.data.batch import layout
from videorft_jax.models import family
from videorft_jax.models.geometry import PLAIN_16
from videorft_jax.models.lora import LoraConfig, init_lora, merge_lora
from videorft_jax.models.peft_folder import load_adapter, merge_adapter, save_adapter

FORMS = {
    "every matrix": {"target_modules": "all-linear", "use_rslora": True},
    "DeepStack": {
        "target_modules": r".*(deepstack_merger_list\.[01]|visual\.merger)\.linear_fc[12]",
    },
    "one of DeepStack's": {"target_modules": r".*deepstack_merger_list\.1\.linear_fc2"},
    "norms of heads": {"target_modules": ["o_proj"], "modules_to_save": ["q_norm", "k_norm"]},
}


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    """A model with two DeepStack mergers, its logits as a function of parameters, and a function of
    a torch model that gives that model's logits."""
    twin = hf.make_twin(tmp_path_factory.mktemp("twin"), model_type="qwen3_vl")
    rng = np.random.default_rng(0)
    clip = hf.random_clip(rng, 3, 2, 3, 2.0, unit=32)
    sample = hf.make_sample(rng, twin.config, [3, clip, 4])
    length = len(sample.tokens)
    batch = layout.pack([[sample]], length, sample.num_pairs, sample.num_windows, geometry=PLAIN_16)
    inputs, _ = hf.hf_inputs(twin.config, [sample], [[clip]], length=length)

    @jax.jit
    def ours(params):
        model = family.bind(twin.config, params)
        return model.logits(model.hidden_states(batch))[0]

    def theirs(model):
        with torch.no_grad():
            return model(**inputs).logits.numpy()[0]

    return twin, ours, theirs


def assert_close(found, wanted, plain):
    """The logits agree, and are not those of the model without an adapter."""
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, atol=1e-5 * scale)
    assert np.abs(plain - wanted).max() > 1e-3 * scale


@pytest.mark.parametrize("name", FORMS)
def test_an_adapter_computes_what_peft_does(problem, tmp_path, name):
    twin, ours, theirs = problem
    config = peft.LoraConfig(r=3, lora_alpha=4, **FORMS[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(copy.deepcopy(twin.hf), config).eval()
    torch.manual_seed(2)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(tmp_path)
    params = merge_adapter(copy.deepcopy(twin.params), load_adapter(tmp_path, twin.config))
    assert_close(ours(params), theirs(adapted), theirs(twin.hf))


REFUSED = {
    "embedding": ({"target_modules": ["embed_tokens", "q_proj"]}, "changes model.language_model"),
    "saved embedding": (
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        "changes model.language_model.embed_tokens, and the model ties head and embedding",
    ),
    "head": ({"target_modules": ["lm_head"]}, "changes lm_head, and the model ties head and emb"),
    "patches": (
        {"target_modules": ["proj", "q_proj"]},
        "adapts model.visual.patch_embed.proj, which is no matrix product; merge it into the weig",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_merged_is_refused(problem, tmp_path, name):
    """PEFT leaves the head alone where an embedding that is tied to it is adapted; here the two are
    one weight, as in the published 4B."""
    form, message = REFUSED[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = peft.get_peft_model(copy.deepcopy(problem[0].hf), peft.LoraConfig(r=3, **form))
    made.save_pretrained(tmp_path)
    values = family.find_family("qwen3_vl").tiny_values()
    values["tie_word_embeddings"] = values["text_config"]["tie_word_embeddings"] = True
    tied = family.parse_config(values)
    with pytest.raises(ValueError, match=message) as error:
        load_adapter(tmp_path, tied)
    assert "; " in str(error.value)


def test_peft_computes_with_our_adapter_what_our_merge_does(problem, tmp_path):
    """Factors on the decoder, the tower, the merger and DeepStack's mergers."""
    twin, ours, theirs = problem
    config = LoraConfig(
        rank=3, alpha=12, targets=(r"text/.*/(q|o|up)$", r"vision/.*/(up|down|qkv)$")
    )
    lora = jax.eval_shape(lambda: init_lora(twin.params, config, jax.random.key(0)))
    rng = np.random.default_rng(4)
    lora = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), lora)
    save_adapter(tmp_path, lora, config, twin.config, base_model="")
    model = peft.PeftModel.from_pretrained(copy.deepcopy(twin.hf), tmp_path).eval()
    adapted = sum(isinstance(part, peft.tuners.lora.LoraLayer) for part in model.modules())
    text, vision = twin.config.text.num_layers, twin.config.vision.num_layers
    assert adapted == 3 * text + 3 * vision + 2 * (1 + 2)
    assert_close(ours(merge_lora(twin.params, lora, config)), theirs(model), theirs(twin.hf))
