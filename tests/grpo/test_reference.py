"""A reference policy other than the model that training starts from: distillation on-policy."""

import dataclasses
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tiny_run import (
    TinyCommands,
    make_config,
    make_data,
    make_model,
    metrics,
    read_arrays,
    sft_options,
    write_config,
)

from videorft_jax.commands.grpo import check_options
from videorft_jax.grpo.read_again import keep_models
from videorft_jax.grpo.reference import check_reference, mix_reference, read_reference
from videorft_jax.models.family import load_config
from videorft_jax.models.hf_folder import flatten, read_checkpoint
from videorft_jax.parallel import sharding
from videorft_jax.training.state import abstract_state
from videorft_jax.training.weights import Weights, make_weights

DISTIL = {"rewards": (("accuracy", 0.0),), "grpo.beta": 1.0, "grpo.kl": "k2"}


class Place(TinyCommands):
    def __init__(self, folder):
        super().__init__(folder)
        self.files = make_data(folder / "data", num_sft=16, num_rl=16, num_eval=0)
        self.student, self.teacher = folder / "student", folder / "teacher"
        make_model(self.student, self.files["sft"])
        make_model(self.teacher, self.files["sft"], scale=2.7)
        self.options = sft_options(
            self.student, self.files["rl"], data__row_tokens=192, data__epochs=6,
            train__max_steps=12, optim__lr=3e-4,
            optim__schedule="constant", rollout__num_rollouts=4, rollout__max_new_tokens=8,
            grpo__length_buckets=1, reward__gated=(),
        ) | DISTIL  # fmt: skip
        write_config(folder / "tiny.py", "grpo_7b", self.options)

    def check(self, **changes):
        options = check_options(make_config("grpo_7b", self.options, **changes))
        check_reference(options)
        return options

    def train(self, name, *flags):
        return metrics(self.run("grpo", name, *flags)[0])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("reference"))


def test_its_weights_are_those_of_its_folder(place):
    options = place.check(grpo__reference=str(place.teacher))
    config = load_config(place.teacher)
    weights, mesh = make_weights(options.train, config), sharding.make_mesh()
    params = abstract_state(options.train, weights, mesh).params
    shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
    found = flatten(read_reference(options, weights, mesh, shardings))
    wanted = flatten(read_checkpoint(place.teacher, config, "float32"))
    others = flatten(read_checkpoint(place.student, config, "float32"))
    assert found.keys() == wanted.keys()
    for path in wanted:
        np.testing.assert_array_equal(found[path], wanted[path], path)
    assert any((np.asarray(others[path]) != wanted[path]).any() for path in wanted)


@pytest.mark.slow
def test_a_teacher_is_approached_by_its_own_words_alone(place):
    """With no reward the divergence from the teacher falls; a copy of the start is the default."""
    few = "--config.train.max_steps=2"
    plain = place.train("plain", few)
    shutil.copytree(place.student, place.folder / "copy")
    copied = place.train("copied", few, f"--config.grpo.reference={place.folder / 'copy'}")
    for line, other in zip(plain, copied, strict=True):
        assert [line[name] for name in ("loss", "kl", "grad_norm")] == [
            other[name] for name in ("loss", "kl", "grad_norm")
        ]
    taught = place.train("taught", f"--config.grpo.reference={place.teacher}")
    assert plain[0]["kl"] < 1e-9
    curve = [line["kl"] for line in taught]
    assert curve[0] > 0.1
    assert np.mean(curve[-3:]) < 0.65 * np.mean(curve[:3])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_moves_as_in_pytorch(dtype):
    """TRL multiplies the reference in place by 1 - mixup and adds mixup times the policy."""
    rng = np.random.default_rng(0)
    old, new = (rng.normal(size=(7, 5)).astype(np.float32) for _ in range(2))
    found = mix_reference({"a": jnp.asarray(old, dtype)}, {"a": jnp.asarray(new)}, 0.3)["a"]
    wanted = torch.tensor(old).to(getattr(torch, dtype)).float().mul_(0.7).add_(
        torch.tensor(new), alpha=0.3
    )  # fmt: skip
    assert found.dtype == dtype
    close = 1e-6 if dtype == "float32" else 5e-3
    np.testing.assert_allclose(np.asarray(found, np.float32), wanted.numpy(), atol=close)


@pytest.mark.slow
def test_it_follows_the_policy_and_a_restart_changes_nothing(place):
    """Every second step it is 0.6 of the policy and 0.4 of what it was; between it stands still."""
    flags = [
        "--config.rewards=(('accuracy', 1.0), ('format', 1.0))", "--config.grpo.beta=0.1",
        "--config.grpo.sync_every=2", "--config.checkpoint.every=1", "--config.seed=3",
        "--config.checkpoint.keep_last=9", "--config.grpo.num_updates=2",
    ]  # fmt: skip
    whole, _ = place.run("grpo", "follows", *flags, "--config.train.max_steps=5")
    arrays = [read_arrays(whole, step) for step in range(1, 6)]
    start = flatten(read_checkpoint(place.student, load_config(place.student), "float32"))
    wanted = {path: np.asarray(start[path]) for path in start}
    for step, found in enumerate(arrays, 1):
        for path, old in wanted.items():
            if step % 2 == 0:
                own = torch.tensor(found[f"params/{path}"])
                wanted[path] = torch.tensor(old).mul_(0.4).add_(own, alpha=0.6).numpy()
            np.testing.assert_allclose(found[f"reference/{path}"], wanted[path], atol=1e-6)
    assert any((arrays[2]["reference/" + p] != np.asarray(start[p])).any() for p in start)
    parts = [*flags, "--config.train.max_steps=3"]
    place.run("grpo", "parts", *parts)
    again, _ = place.run("grpo", "parts", *flags, "--config.train.max_steps=5")
    for path, array in read_arrays(again, 5).items():
        assert array.tobytes() == arrays[-1][path].tobytes(), path
    names = ("loss", "kl", "grad_norm")
    assert [[line[n] for n in names] for line in metrics(again)] == [
        [line[n] for n in names] for line in metrics(whole)
    ]


@dataclasses.dataclass
class Opened:
    """What `keep_models` reads of a run that goes on from a checkpoint of step 2."""

    saved: dict
    weights: Weights
    folder: str = "runs/a"
    start: int = 2
    meta: dict = dataclasses.field(default_factory=dict)
    checkpointer = property(lambda self: self)

    def holds(self, step):
        return step == 2

    def read_meta(self, step):
        return self.saved


def test_a_run_goes_on_with_the_reference_that_it_had(place, tmp_path):
    """Weights that are written anew into its folder would replace it in the middle of a run."""
    base = tmp_path / "base"
    shutil.copytree(place.student, base)
    config = load_config(place.student)

    def keep(saved=None, **changes):
        options = place.check(**{"model.init_from": str(base)} | changes)
        run = Opened(saved or {}, make_weights(options.train, config))
        keep_models(options, run)
        return run.meta

    before = keep()
    assert set(before) == {"reference"}
    moved = keep(before, model__init_from=str(place.student))
    assert moved == before
    shutil.copy(place.teacher / "model.safetensors", base)
    message = f"runs/a: its reference policy was read from other weights than {base} holds now; put"
    with pytest.raises(ValueError, match=message):
        keep(before)
    assert keep(before, train__allow_changes=True) == keep() != before
    taught = keep(keep(), grpo__reference=str(place.teacher))
    assert taught == keep()  # The same weights in another folder.
    with pytest.raises(ValueError, match=f"other weights than {place.student} holds now"):
        keep(taught, grpo__reference=str(place.student))
    for without in ({"lora__rank": 2}, {"grpo__sync_every": 2}):  # It lies in the checkpoint.
        assert keep(before, **without) == {}
    rewards = (("accuracy", 1.0), ("format", 1.0))
    assert keep(before, grpo__beta=0.0, rewards=rewards) == {}


def test_a_run_goes_on_with_the_siglip_that_it_had(place, tmp_path):
    folders = [tmp_path / name for name in ("first", "moved", "other")]
    for folder, source in zip(folders, (place.student, place.student, place.teacher), strict=True):
        shutil.copytree(source, folder)  # Any weights will do, since they are not read.
    weights = make_weights(place.check().train, load_config(place.student))

    def keep(folder, saved):
        options = place.check(grpo__sync_every=2)
        semantic = types.SimpleNamespace(siglip=str(folder))
        run = Opened(saved, weights)
        keep_models(dataclasses.replace(options, semantic=semantic), run)
        return run.meta

    before = keep(folders[0], {})
    assert set(before) == {"siglip"}
    assert keep(folders[1], before) == before
    with pytest.raises(ValueError, match=f"its SigLIP was read from other .* {folders[2]} holds"):
        keep(folders[2], before)


@pytest.mark.slow
def test_other_weights_are_no_longer_the_reference(place):
    base = place.folder / "base"
    shutil.copytree(place.student, base)
    flags = ["--config.rewards=(('accuracy', 1.0), ('format', 1.0))", "--config.grpo.beta=0.1"]
    flags.append(f"--config.model.init_from={base}")
    place.run("grpo", "moved", *flags, "--config.train.max_steps=1")
    shutil.copy(place.teacher / "model.safetensors", base)
    flags.append("--config.train.max_steps=2")
    _, text = place.run("grpo", "moved", *flags, code=2)
    said = f"its reference policy was read from other weights than {base} holds now; put those back"
    assert said in text.splitlines()[-1]
    workdir, _ = place.run("grpo", "moved", *flags, "--allow_changes")
    assert [line["step"] for line in metrics(workdir)] == [1, 2]


def test_a_teacher_does_not_follow(place):
    with pytest.raises(ValueError, match="a teacher that follows its pupil is none"):
        place.check(grpo__reference=str(place.teacher), grpo__sync_every=2)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"grpo.beta": 0.0}, "grpo.beta is 0"),
        ({"lora.rank": 4}, "must be model.init_from"),
        ({"train.freeze": ("vision",)}, "must be model.init_from"),
    ],
)
def test_options_that_exclude_it(place, changes, line):
    with pytest.raises(ValueError, match=line):
        place.check(grpo__reference=str(place.teacher), **changes)


def test_folders_that_cannot_be_one(place, tmp_path):
    shutil.copytree(place.teacher, tmp_path / "wide")
    values = json.loads((tmp_path / "wide/config.json").read_text())
    text = values.get("text_config", values)
    text["rope_theta"] = 5e5
    for scope in (values, text):
        if "rope_theta" in scope:
            scope["rope_theta"] = 5e5
    (tmp_path / "wide/config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="another model than model.init_from .*rope_theta"):
        place.check(grpo__reference=str(tmp_path / "wide"))
    shutil.copytree(place.teacher, tmp_path / "words")
    tokens = json.loads((tmp_path / "words/tokenizer.json").read_text())
    first, second, *_ = tokens["model"]["vocab"]
    vocab = tokens["model"]["vocab"]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (tmp_path / "words/tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(ValueError, match="has other tokens than model.init_from"):
        place.check(grpo__reference=str(tmp_path / "words"))
    (tmp_path / "words/tokenizer.json").unlink()
    with pytest.raises(ValueError, match="tokenizer.json: cannot be read"):
        place.check(grpo__reference=str(tmp_path / "words"))
    for name in ("none", "org/none"):
        with pytest.raises(ValueError, match="none"):
            place.check(grpo__reference=name)
