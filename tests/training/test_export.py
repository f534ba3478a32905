"""A checkpoint of ours as a Hugging Face folder: transformers computes the same with it."""

import errno
import json
import logging
import os
import shutil

import hf_twin as hf
import hub_cache
import huggingface_hub
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny_run
import torch
import transformers
from safetensors.numpy import load_file
from trained_place import LORA, SYSTEM

import videorft_jax as vr
from videorft_jax.data.media.contract import MediaContract
from videorft_jax.models.hf_folder import flatten
from videorft_jax.parallel import sharding
from videorft_jax.training import restore
from videorft_jax.training.setup import make_train_options
from videorft_jax.training.trees import join


@pytest.fixture(autouse=True)
def logging_as_before():
    """The command sets up logging for its process, which is that of the other tests here."""
    root, absl = logging.getLogger(), logging.getLogger("absl")
    handlers, levels = list(root.handlers), (root.level, absl.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    absl.setLevel(levels[1])


@pytest.fixture
def place(trained_place):
    return trained_place


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for path in expected:
        assert found[path].dtype == expected[path].dtype
        assert found[path].tobytes() == np.asarray(expected[path]).tobytes(), path


@pytest.mark.parametrize("path", ["full", "full/checkpoints/00000003"])
def test_a_checkpoint_is_loaded_as_a_folder_is(place, path):
    """`vr.load` of a run gives the weights that its export holds."""
    model = vr.load(place.folder / path, dtype="float32")
    assert_same_bits(
        flatten(jax.tree.map(np.asarray, model.params)), flatten(place.arrays["full"][0])
    )
    assert len(model.tokenizer) == len(place.loaded.tokenizer)
    assert model.folder == str(place.model)


def test_transformers_computes_the_same(place, tmp_path, capsys):
    assert place.export("full", tmp_path / "hf") == 0
    assert f"written to {tmp_path / 'hf'} in float32" in capsys.readouterr().out
    trained, _, _ = place.arrays["full"]
    assert_same_bits(place.read(tmp_path / "hf"), flatten(trained))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        kept = f"source_{name}" if name == "generation_config.json" else name
        assert (tmp_path / "hf" / kept).read_bytes() == (place.model / name).read_bytes()
    assert not list(tmp_path.glob("*.partial"))

    place.loaded.params, before = trained, place.loaded.params
    pixels = np.random.default_rng(0).integers(0, 256, (4, 448, 448, 3), dtype=np.uint8)
    clip = {"type": "video", "video": pixels, "fps": 1.3}
    chat = [{"role": "user", "content": [clip, {"type": "text", "text": "What moves?"}]}]
    batch = place.loaded.prepare([chat])
    length = int((batch.segment_ids[0] > 0).sum())
    ours = np.asarray(place.loaded.forward(batch))[0, :length]
    place.loaded.params = before

    theirs = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert len(tokenizer) == len(place.loaded.tokenizer)
    patches, grid = hf.hf_patches(hf.Clip(pixels, 1.3))
    ids = torch.tensor(batch.tokens[:, :length]).long()
    expected = theirs(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == place.loaded.config.token_ids.video).int() * 2,
        pixel_values_videos=torch.tensor(patches),
        video_grid_thw=torch.tensor([grid]),
        second_per_grid_ts=torch.tensor([2 / 1.3]),
    ).logits.detach()[0]
    np.testing.assert_allclose(ours, expected, atol=1e-5 * float(expected.abs().max()))


def test_the_media_contract_travels(place, tmp_path):
    """A run, its step and its export read clips as the run did, whatever the folder is called."""
    trained = MediaContract.train()
    out = tmp_path / "checkpoints" / "00000003"
    (out / "checkpoints").mkdir(parents=True)
    (out / "checkpoints").rmdir()
    assert place.export("full", out) == 0
    (out / "checkpoints").mkdir()
    for folder in (place.folder / "full", place.folder / "full/checkpoints/00000003", out):
        assert vr.load(folder, dtype="float32").contract == trained
    assert vr.load(out, mrope_rule="hf5").contract.mrope_rule == "hf5"
    assert vr.load(place.model).contract == MediaContract.evaluate()
    (out / "media_contract.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        vr.load(out)


def test_the_system_turn_travels(place, tmp_path, capsys):
    """A run, its step, its export and its adapter say which one it was trained with."""
    assert place.export("full", tmp_path / "hf") == 0
    assert f"> {SYSTEM.splitlines()[0]}" in (tmp_path / "hf" / "README.md").read_text()
    assert place.export("lora", tmp_path / "adapter", "--adapter") == 0
    full = place.folder / "full"
    for folder in (full, full / "checkpoints/00000003", tmp_path / "hf"):
        assert vr.load(folder, dtype="float32").system == SYSTEM
    assert vr.load(place.model, dtype="float32", adapter=tmp_path / "adapter").system == SYSTEM
    capsys.readouterr()
    assert vr.load(place.model, dtype="float32").system == ""
    assert "system turn" not in capsys.readouterr().err
    assert vr.load(place.folder / "part", dtype="float32").system == ""
    assert "was saved without the system turn of its training; give it" in capsys.readouterr().err
    assert place.export("part", tmp_path / "part") == 0
    assert not (tmp_path / "part" / "system_prompt.txt").exists()


def test_a_run_is_known_by_what_lies_inside(place, tmp_path, capsys):
    """A work directory may be called like a step; a step outside its run says what is wrong."""
    named = tmp_path / "checkpoints" / "00000120"
    shutil.copytree(place.folder / "full", named)
    assert restore.find_checkpoint(str(named)).step == 3
    assert vr.load(named, dtype="float32").contract == place.contract
    shutil.copytree(named / "checkpoints" / "00000003", tmp_path / "best")
    assert place.export(tmp_path / "best", tmp_path / "a") == 2
    assert "best: is one step outside its run; move it to" in capsys.readouterr().err
    assert restore.find_checkpoint(str(named / "checkpoints" / "3")).step == 3
    shutil.copytree(named / "checkpoints" / "00000003", named / "checkpoints" / "3")
    assert place.export(named / "checkpoints" / "3", tmp_path / "a") == 2  # It may be another's.
    assert "3: is one step not named as steps are; move it to" in capsys.readouterr().err
    assert place.export(named / "checkpoints" / "\u00b2", tmp_path / "a") == 2
    assert "no checkpoint there" in capsys.readouterr().err


def test_frozen_parts_are_those_of_the_start(place, tmp_path):
    assert place.export("part", tmp_path / "hf") == 0
    trained, frozen, _ = place.arrays["part"]
    assert_same_bits(place.read(tmp_path / "hf"), flatten(join(trained, frozen)))


def test_lora_is_merged(place, tmp_path):
    """W + (alpha / rank) a b in float64 for the targets; every other bit is the base's."""
    assert place.export("lora", tmp_path / "hf") == 0
    found, base = place.read(tmp_path / "hf"), flatten(place.loaded.params)
    factors = flatten(place.arrays["lora"][0]["lora"])
    factors = {path: np.asarray(leaf, np.float64) for path, leaf in factors.items()}
    targets = {path.removesuffix("/a") for path in factors if path.endswith("/a")}
    assert targets == {"text/layers/attn/q", "text/layers/attn/v", "text/layers/mlp/down"}
    for path in base:
        weight = np.asarray(base[path])
        if path not in targets:
            assert found[path].tobytes() == weight.tobytes(), path
            continue
        a, b = factors[f"{path}/a"], factors[f"{path}/b"]
        layers, rank = len(weight), LORA.rank
        delta = a.reshape(layers, -1, rank) @ b.reshape(layers, rank, -1)
        expected = weight + LORA.alpha / rank * delta.reshape(weight.shape)
        assert np.abs(expected - weight).max() > 0.01  # the adapter is no zero
        np.testing.assert_allclose(found[path], expected, rtol=1e-5, atol=1e-6)


def test_bfloat16_is_rounded_once(place, tmp_path):
    assert place.export("full", tmp_path / "hf", "--dtype=bfloat16") == 0
    trained = flatten(place.arrays["full"][0])
    rounded = {path: np.asarray(leaf).astype(ml_dtypes.bfloat16) for path, leaf in trained.items()}
    assert_same_bits(place.read(tmp_path / "hf"), rounded)
    values = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert values.get("dtype", values.get("torch_dtype")) == "bfloat16"
    raw = load_file(next((tmp_path / "hf").glob("*.safetensors")))
    assert {str(array.dtype) for array in raw.values()} == {"bfloat16"}


def test_average_and_a_named_step(place, tmp_path):
    assert place.export("full/checkpoints/00000003", tmp_path / "hf", "--ema") == 0
    assert_same_bits(place.read(tmp_path / "hf"), flatten(place.arrays["full"][2]))


def test_model_that_has_moved(place, tmp_path, capsys):
    moved = tmp_path / "moved"
    shutil.copytree(place.model, moved)
    assert place.export("full", tmp_path / "hf", f"--model={moved}") == 0
    values = json.loads((moved / "config.json").read_text())
    (values.get("text_config") or values)["num_hidden_layers"] = 3
    (moved / "config.json").write_text(json.dumps(values))
    capsys.readouterr()
    assert place.export("full", tmp_path / "other", f"--model={moved}") == 2
    assert "model.text.num_layers is 2 in the checkpoint and 3" in capsys.readouterr().err


def test_a_run_that_began_with_a_name_of_the_hub(place, tmp_path, monkeypatch, capsys):
    """The run keeps the name, and finds tokenizer and config again in the cache of this machine."""
    snapshot = hub_cache.put(tmp_path / "hub", "org/tiny", place.model, monkeypatch)
    options = make_train_options(tiny_run.sft_config("org/tiny", "records.jsonl"))
    assert options.model.init_from == str(snapshot)
    assert options.recorded["model"]["init_from"] == "org/tiny"
    trained, _, _ = place.save("named", (), None, model="org/tiny")
    assert vr.load(place.folder / "named", dtype="float32").folder == str(snapshot)
    base = vr.load("org/tiny", dtype="float32")
    assert_same_bits(flatten(jax.tree.map(np.asarray, base.params)), place.read(place.model))
    assert place.export("named", tmp_path / "hf") == 0
    assert_same_bits(place.read(tmp_path / "hf"), flatten(trained))
    (snapshot / "tokenizer.json").unlink()
    capsys.readouterr()
    assert place.export("named", tmp_path / "again") == 2
    assert "lacks tokenizer.json; if it is a name there, fetch it by: hf download org/tiny" in (
        capsys.readouterr().err
    )


def test_a_model_in_a_bucket_is_loaded(place, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bucket = hub_cache.make_bucket(monkeypatch)
    for path in place.model.iterdir():
        bucket.pipe(f"gs://bucket/tiny/{path.name}", path.read_bytes())
    options = make_train_options(tiny_run.sft_config("gs://bucket/tiny", "records.jsonl"))
    assert options.recorded["model"]["init_from"] == "gs://bucket/tiny"
    for name in ("gs://bucket/tiny", options.model.init_from):
        found = vr.load(name, dtype="float32").params
        assert_same_bits(flatten(jax.tree.map(np.asarray, found)), place.read(place.model))


def test_bad_input(place, tmp_path, capsys):
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    damaged = place.folder / "damaged"
    shutil.copytree(place.folder / "full", damaged)
    files = [path for path in damaged.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    for arguments, message in (
        (("model", tmp_path / "a"), "no checkpoint there; give the work directory of a run"),
        (("none", tmp_path / "a"), "no checkpoint there"),
        (("full/checkpoints/00000009", tmp_path / "a"), "no checkpoint there"),
        (("full", full), "is there already and not empty; choose another or delete it"),
        (("full", full / "notes.txt"), "is there already and not empty"),
        (("full", tmp_path / "a", "--dtype=int4"), "--dtype=int4: unknown; choose one of float32"),
        (("part", tmp_path / "a", "--ema"), "no average was kept (optim.ema_decay); leave ema out"),
        (("full", tmp_path / "a", "--model=/none"), "/none/config.json: no such file"),
        (("damaged", tmp_path / "a"), "is not what was saved"),
    ):
        assert place.export(*arguments) == 2
        said = capsys.readouterr().err.splitlines()
        assert said[-1].startswith("videorft export: ")
        assert message in said[-1]
        assert "Traceback" not in "".join(said)
        assert not list(tmp_path.glob("a*"))
    assert [path.name for path in full.iterdir()] == ["notes.txt"]


def test_weights_lie_on_the_whole_mesh(place):
    saved = restore.find_checkpoint(str(place.folder / "lora"))
    mesh = sharding.make_mesh()
    params = restore.read_params(saved, place.loaded.config, mesh, "bfloat16")
    expected = sharding.state_shardings(params, mesh)
    for leaf, wanted in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        assert leaf.sharding == wanted
        assert leaf.dtype == jnp.bfloat16


def test_adapters_are_written_alone_and_merged_again(place, tmp_path, capsys, monkeypatch):
    """The adapter folder on its base gives the weights of the merged export."""
    assert place.export("lora", tmp_path / "adapter", "--adapter") == 0
    assert place.export("lora", tmp_path / "merged") == 0
    apart = vr.load(place.model, dtype="float32", adapter=tmp_path / "adapter")
    merged = vr.load(tmp_path / "merged", dtype="float32")
    for path, leaf in flatten(merged.params).items():
        got = flatten(apart.params)[path]
        np.testing.assert_allclose(np.asarray(got), np.asarray(leaf), atol=1e-6, err_msg=path)
    (tmp_path / "file").write_text("")
    assert place.export("lora", tmp_path / "file" / "adapter", "--adapter") == 2
    assert "file/adapter: cannot be written" in capsys.readouterr().err

    def fill(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr("videorft_jax.data.media.contract_file.write_contract", fill)
        assert place.export("lora", tmp_path / "other", "--adapter") == 1
    assert "other: could not be written (No space left on device)" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "file", "merged"]
    assert place.export("full", tmp_path / "none", "--adapter") == 2
    assert "trained no adapters; leave --adapter out" in capsys.readouterr().err


def test_a_folder_is_sent_to_the_hub(place, tmp_path, monkeypatch, capsys):
    """The name and the login are looked at before anything is written; the hub may refuse."""
    sent = []

    class Hub:
        def create_repo(self, repo, **settings):
            sent.append((repo, settings["private"], settings["exist_ok"]))
            return f"https://hub/{repo}"

        def upload_folder(self, repo_id, folder_path, repo_type):
            if "full" in repo_id:
                raise OSError("the hub is\nfull")
            sent.append((repo_id, sorted(os.listdir(folder_path))))

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    out = tmp_path / "hf"
    for repo, said in (
        ("me/mine", "nobody is logged in to the hub; run hf auth login"),
        ("mine", "give owner and name, as in --push=OWNER/mine"),
        ("me/mi ne", "--push=me/mi ne: no name of a repository"),
    ):
        assert place.export("full", out, f"--push={repo}") == 2
        assert said in capsys.readouterr().err
    assert not out.exists()
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "secret")
    assert place.export("full", out, "--push=me/mine") == 0
    assert sent == [("me/mine", True, True), ("me/mine", sorted(os.listdir(out)))]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"{out} is at https://hub/me/mine; next: videorft ask --model=me/mine ..."
    assert place.export("full", tmp_path / "other", "--push=me/full") == 1
    said = capsys.readouterr().err
    assert (
        "is written and not pushed (the hub is full); send it later by: hf upload me/full" in said
    )
    assert "secret" not in said
    assert (tmp_path / "other/config.json").exists()
