"""Stretched rotary frequencies against transformers, as numbers and in a whole model."""

import hf_twin as hf
import jax
import numpy as np
import pytest
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig

from videorft_jax.data.batch import layout
from videorft_jax.models import family
from videorft_jax.models.rotary import frequencies, parse_scaling

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    "rope",
    [
        {"type": "linear", "factor": 3.0},
        YARN,
        YARN | {"factor": 2.5, "beta_fast": 16, "beta_slow": 2},
        YARN | {"attention_factor": 1.3},
        YARN | {"mscale": 0.8, "mscale_all_dim": 0.5},
        YARN | {"truncate": False},
        YARN | {"factor": 1.0},
    ],
)
@pytest.mark.parametrize(("theta", "head_dim"), [(1e6, 128), (1e4, 64)])
def test_frequencies_are_those_of_transformers(rope, theta, head_dim):
    rope = {"rope_type": rope["type"], "rope_theta": theta} | rope
    config = Qwen2_5_VLTextConfig(
        hidden_size=4 * head_dim, num_attention_heads=4, rope_parameters=dict(rope)
    )
    expected, factor = ROPE_INIT_FUNCTIONS[rope["type"]](config, "cpu")
    scaling = parse_scaling(rope, None, "config.json")
    np.testing.assert_allclose(frequencies(theta, head_dim, scaling), expected, rtol=3e-7)
    assert scaling.attention_factor == pytest.approx(factor, rel=1e-9)


@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("kind", ["yarn", "linear"])
def test_logits_are_those_of_transformers(tmp_path, kind, model_type):
    plain = family.find_family(model_type).tiny_values()
    rope = dict((plain.get("text_config") or plain)["rope_scaling"])
    rope.pop("type", None)
    rope |= {"rope_type": kind, "factor": 4.0}
    if kind == "yarn":
        rope["original_max_position_embeddings"] = 64
    twin = hf.make_twin(tmp_path, model_type=model_type, rope_scaling=rope)
    rng = np.random.default_rng(0)
    unit = twin.config.vision.patch * 2
    clip = hf.random_clip(rng, 4, 3, 4, 1.3, unit)
    sample = hf.make_sample(rng, twin.config, [30, clip, 40, 5])
    length = len(sample.tokens)
    cut = family.family_of(twin.config).geometry
    batch = layout.pack([[sample]], length, sample.num_pairs, sample.num_windows, geometry=cut)
    inputs, _ = hf.hf_inputs(twin.config, [sample], [[clip]], length=length)
    expected = twin.hf(**inputs).logits.detach().numpy()

    @jax.jit
    def logits(params, batch):
        model = family.bind(twin.config, params)
        return model.logits(model.hidden_states(batch))

    found = np.asarray(logits(twin.params, batch))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
