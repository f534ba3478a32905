"""A model, a contract, a cache or a checkpoint of one family where another is asked for: one line,
before anything is allocated."""

import jax.numpy as jnp
import pytest
import tiny_run

from videorft_jax.checkpoints.checkpointer import Checkpointer
from videorft_jax.data.loader.cache import FrameCache
from videorft_jax.data.loader.cache_writer import write_cache
from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.records.source import RecordSource
from videorft_jax.models import family
from videorft_jax.models.geometry import PLAIN_16, WINDOWED_14, find_geometry
from videorft_jax.training.state import expected_meta
from videorft_jax.training.weights import Weights

OTHER = {"qwen2_5_vl": ("Qwen2.5-VL", 14, PLAIN_16), "qwen3_vl": ("Qwen3-VL", 16, WINDOWED_14)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    files = tiny_run.make_data(folder / "data", num_sft=4, num_rl=0, num_eval=0)
    for name in OTHER:
        tiny_run.make_model(folder / name, files["sft"], model_type=name)
    return folder, files["sft"]


@pytest.mark.parametrize("name", OTHER)
def test_a_contract_of_the_other_family(place, name):
    folder, _ = place
    title, patch, other = OTHER[name]
    config = family.load_config(folder / name)
    family.check_contract(config, MediaContract.train(family.family_of(config).geometry), "run")
    with pytest.raises(ValueError, match=f"patches of {title} have {patch} pixels; set"):
        family.check_contract(config, MediaContract.train(other), "run")


def test_sft_refuses_it_before_it_reads_a_weight(place, tmp_path):
    folder, records = place
    (folder / "empty").mkdir()
    for path in (folder / "qwen3_vl").iterdir():
        if path.suffix != ".safetensors":  # no weights: reading one would fail otherwise
            (folder / "empty" / path.name).write_bytes(path.read_bytes())
    options = tiny_run.sft_options(folder / "empty", records)
    tiny_run.write_config(tmp_path / "config.py", "sft_7b", options)
    arguments = ("sft", f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}")
    code, text = tiny_run.finish(tiny_run.start(tmp_path / "cache", *arguments))
    assert code == 2
    assert "media.patch_size is 14, but the patches of Qwen3-VL have 16 pixels" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("patch", [14, 16])
def test_a_cache_of_the_other_family(place, tmp_path, patch):
    _, records = place
    own, other = (MediaContract.train(find_geometry(size)) for size in (patch, 30 - patch))
    write_cache(RecordSource(records), own, str(tmp_path / "cache"), threads=1)
    with pytest.raises(ValueError, match=f"patch_size: {patch} != {30 - patch}") as error:
        FrameCache(str(tmp_path / "cache"), other)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", OTHER)
def test_a_checkpoint_of_the_other_family(place, tmp_path, name):
    folder, _ = place
    found = {}
    for each in OTHER:
        config = family.load_config(folder / each)
        contract = MediaContract.train(family.family_of(config).geometry)
        found[each] = expected_meta(Weights(config, (), None), contract)
    own = found.pop(name)
    state = {"x": jnp.zeros(2)}
    with Checkpointer(str(tmp_path / "run")) as checkpointer:
        checkpointer.save(1, state, own)
        checkpointer.wait()
        with pytest.raises(ValueError, match="model") as error:
            checkpointer.restore(1, state, *found.values())
    assert "\n" not in str(error.value)
