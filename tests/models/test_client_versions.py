"""Folders between us and other versions of transformers and PEFT, both ways."""

import functools
import json
import os
import pathlib
import re

import client_versions
import hf_twin as hf
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from videorft_jax.data.batch import layout
from videorft_jax.models import family
from videorft_jax.models.family import load_config
from videorft_jax.models.hf_folder import flatten, read_checkpoint
from videorft_jax.models.hf_writer import write_checkpoint
from videorft_jax.models.peft_folder import load_adapter, merge_adapter, save_adapter
from videorft_jax.models.qwen2_5_vl.config import tiny_values

# Version -> the position rule that equals its own. The last is the newest that there was.
VERSIONS = {
    "4.49.0": "qwen", "4.51.3": "qwen", "4.57.1": "hf4", "5.0.0": "hf4", "5.23.0": "hf5",
    "5.24.0": "hf5",
}  # fmt: skip
NEWEST_PEFT = "0.21.2"
YARN = tiny_values()["rope_scaling"] | {"type": "yarn", "factor": 4.0}
TRAINED = {"original_max_position_embeddings": 64}
CASES = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "yarn": {"rope_scaling": YARN, "max_position_embeddings": 64},
    # 4.49 does not read the length that the weights were trained at; 4.51 computes the factor as
    # the quotient of both lengths, whatever the file says of it.
    "trained": {"rope_scaling": YARN | TRAINED, "max_position_embeddings": 256},
    "padded": {"vocab_size": 330},  # to rows of a multiple of 64, by the method of the version
}
STEPS = 8  # ids that decoding adds, as in the script
# Three clips, one of a step of time that is no whole number, and an image.
PARTS = ((4, 4, 6, 1.3), (40, 2, 3, 0.2), (1, 3, 2, None), (6, 5, 4, 3.0))


@pytest.fixture(scope="module")
def environments(tmp_path_factory):
    """version -> interpreter; they are kept where VIDEORFT_CLIENTS says."""
    kept = os.environ.get(client_versions.KEPT_IN)
    folder = pathlib.Path(kept) if kept else tmp_path_factory.mktemp("environments")
    folder.mkdir(parents=True, exist_ok=True)

    @functools.cache
    def make(version):
        packages = [f"transformers=={version}"]
        if version == list(VERSIONS)[-1]:
            packages.append(f"peft=={NEWEST_PEFT}")
        return client_versions.make_environment(folder, *packages)

    return make


def make_inputs(path, rule):
    """The sample for us; its inputs for transformers lie in `path`."""
    rng = np.random.default_rng(0)
    config = family.parse_config(tiny_values())
    clips = [hf.random_clip(rng, *part) for part in PARTS]
    parts = [5]
    for clip in clips:
        parts += [clip, 7]
    sample = hf.make_sample(rng, config, parts, rule)
    inputs, _ = hf.hf_inputs(config, [sample], [clips], length=len(sample.tokens))
    np.savez(path, **{name: np.asarray(value) for name, value in inputs.items()})
    return sample


def compute(config, params, sample):
    """Our logits and greedy ids."""
    length = len(sample.tokens)
    batch = layout.pack([[sample]], length, sample.num_pairs, sample.num_windows)

    @jax.jit
    def logits(params, batch):
        model = family.bind(config, params)
        return model.logits(model.hidden_states(batch))

    ids = hf.decode_greedily(hf.Twin(None, config, params), batch, STEPS)
    return np.asarray(logits(params, batch))[0], np.asarray(ids)[0]


def assert_close(found, expected):
    """Two float32 programs: 1e-5 of the largest logit, and the same ids."""
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5 * np.abs(expected[0]).max())
    np.testing.assert_array_equal(found[1], expected[1])


def answers(folder):
    found = np.load(folder / "client.npz")
    return found["logits"], found["ids"]


def rename(folder, names):
    """The tensors of a folder under names as on the hub, new ones, or some of both."""
    renamed = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        old = re.sub("^model[.](language_model[.]|(?=visual))", r"model.", name)
        old = old.replace("model.visual.", "visual.")
        new = re.sub("^model[.]", "model.language_model.", old)
        new = re.sub("^visual[.]", "model.visual.", new)
        is_new = names == "new" or (names == "mixed" and old.startswith("visual."))
        renamed[new if is_new else old] = tensor
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_folders_go_both_ways(environments, version, tmp_path):
    """What this version saves we read, what we write it reads; both compute the same, in the prompt
    and in decoding."""
    sample = make_inputs(tmp_path / "inputs.npz", VERSIONS[version])
    cases = [name for name in CASES if (version, name) != ("4.49.0", "trained")]
    folders = {name: tmp_path / name for name in cases}
    for name, folder in folders.items():
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(tiny_values(**CASES[name])))
    client = functools.partial(
        client_versions.run_client, environments(version), inputs=str(tmp_path / "inputs.npz")
    )
    said = client(task="write", folders={name: str(path) for name, path in folders.items()})
    assert said["transformers"] == version
    outs, ours = {}, {}
    for name, folder in folders.items():
        config = load_config(folder)
        assert config.text.vocab_size == (384 if name == "padded" else 320)
        params = read_checkpoint(folder, config)
        ours[name] = compute(config, params, sample)
        assert_close(ours[name], answers(folder))
        outs[name] = tmp_path / f"{name}-out"
        write_checkpoint(outs[name], params, config)
        for names in ("old", "new", "mixed"):
            rename(folder, names)
            again = flatten(read_checkpoint(folder, config))
            for path, leaf in flatten(params).items():
                assert np.asarray(leaf).tobytes() == np.asarray(again[path]).tobytes(), path
    # And a config that no version has written: flat, as on the hub.
    hub = family.parse_config(tiny_values())
    params = read_checkpoint(folders["untied"], hub)
    outs["hub"], ours["hub"] = tmp_path / "hub", ours["untied"]
    write_checkpoint(outs["hub"], params, hub)
    client(task="read", folders={name: str(path) for name, path in outs.items()})
    for name, folder in outs.items():
        assert_close(ours[name], answers(folder))
        if name != "hub":
            np.testing.assert_array_equal(answers(folder)[0], answers(folders[name])[0])


@pytest.mark.slow
def test_adapters_go_both_ways(environments, tmp_path):
    """The newest PEFT: its adapter merged by us, and ours merged by it."""
    newest = list(VERSIONS)[-1]
    sample = make_inputs(tmp_path / "inputs.npz", VERSIONS[newest])
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps(tiny_values()))
    client = functools.partial(
        client_versions.run_client, environments(newest), folders={"base": str(base)},
        inputs=str(tmp_path / "inputs.npz"),
    )  # fmt: skip
    client(task="write")
    plain = answers(base)[0]
    client(task="tune", adapter=str(tmp_path / "theirs"))
    config = load_config(base)
    adapter = load_adapter(tmp_path / "theirs", config)
    ours = compute(config, merge_adapter(read_checkpoint(base, config), adapter), sample)
    assert_close(ours, answers(base))
    assert np.abs(ours[0] - plain).max() > 0.1 * np.abs(plain).max()
    again = str(tmp_path / "ours")
    save_adapter(again, adapter.factors, adapter.config, config, base_model=str(base))
    client(task="read", adapter=again)
    assert_close(ours, answers(base))
