"""A model and the checkpoints of three runs that started from it, without running anything."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import tiny_run

import videorft_jax as vr
from videorft_jax import cli
from videorft_jax.checkpoints.checkpointer import Checkpointer
from videorft_jax.data.media.contract import MediaContract
from videorft_jax.models.hf_folder import flatten, read_checkpoint
from videorft_jax.models.lora import LoraConfig
from videorft_jax.training.state import expected_meta
from videorft_jax.training.step import TrainState
from videorft_jax.training.weights import Weights

SYSTEM = "Think first.\nThen answer."
LORA = LoraConfig(4, 8.0, (r"text/layers/attn/(q|v)$", r"text/layers/mlp/down$"))


class TrainedPlace:
    """A model and three runs that started from it; `arrays` are what a run holds at its step 3, and
    `contract` is how they read clips."""

    def __init__(self, folder, contract=None, model_type="qwen2_5_vl"):
        self.contract = contract or MediaContract.train()
        self.folder, self.model = folder, folder / "model"
        records = tiny_run.make_data(folder / "data", num_sft=8, num_rl=0, num_eval=0)["sft"]
        tiny_run.make_model(self.model, records, model_type=model_type)
        (self.model / "generation_config.json").write_text('{"repetition_penalty": 1.5}')
        self.loaded = vr.load(self.model, dtype="float32", mrope_rule="hf5")
        self.arrays = {
            "full": self.save("full", (), None, ema=True),
            "part": self.save("part", ("vision", "merger"), None),
            "lora": self.save("lora", (), LORA),
        }

    def save(self, name, freeze, lora, ema=False, model=None):
        """A run that started from `model`, by default the folder of the place."""
        config = tiny_run.sft_config(model or self.model, "records.jsonl")
        weights = Weights(self.loaded.config, freeze, lora)
        trained, frozen = jax.jit(weights.split)(self.loaded.params, jax.random.key(1))
        rng = np.random.default_rng(2)

        def move(leaf):
            noise = 0.05 * rng.standard_normal(leaf.shape)
            return jnp.asarray(np.asarray(leaf) + noise, jnp.float32)

        trained = jax.tree.map(move, trained)
        average = jax.tree.map(move, trained) if ema else None
        zero = jnp.int32(0)
        state = TrainState(jnp.int32(3), trained, frozen, (), average, zero, zero)
        meta = expected_meta(weights, self.contract)
        meta |= {"config": json.loads(config.to_json())}
        if name != "part":  # It is as of a release that did not keep the system turn.
            meta["system"] = SYSTEM
        with Checkpointer(self.folder / name) as checkpointer:
            checkpointer.save(3, state, meta)
        return trained, frozen, average

    def export(self, name, out, *flags):
        return cli.main(
            ["export", f"--checkpoint={self.folder / name}", f"--out={out}", *map(str, flags)]
        )

    def read(self, out):
        """Exported arrays under our names, in the dtype of the files."""
        return {
            path: np.asarray(leaf)
            for path, leaf in flatten(read_checkpoint(out, self.loaded.config)).items()
        }
