"""The reference policy of a run of GRPO that starts from an adapter."""

import jax
import numpy as np
import pytest
from grpo_place import Place, curve

from videorft_jax.models.family import abstract_params, load_config
from videorft_jax.models.lora import LoraConfig, init_lora
from videorft_jax.models.peft_folder import save_adapter


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 4])
def test_the_reference_holds_the_adapter_that_a_run_starts_from(tmp_path, rank):
    """The divergence is 0 before the first update, whether the weights or new adapters train."""
    place = Place(tmp_path)
    config = load_config(tmp_path / "model")
    lora = LoraConfig(2, 4.0, (r"text/layers/attn/(q|o)$",))
    shapes = jax.eval_shape(lambda: init_lora(abstract_params(config), lora, jax.random.key(0)))
    rng = np.random.default_rng(0)
    factors = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)
    save_adapter(tmp_path / "adapter", factors, lora, config)
    workdir = place.run(
        "run", f"--config.model.adapter={tmp_path / 'adapter'}", f"--config.lora.rank={rank}",
        "--config.train.max_steps=1", "--config.train.accumulate=1",
    )  # fmt: skip
    assert curve(workdir)[0]["kl"] == pytest.approx(0.0, abs=1e-7)
