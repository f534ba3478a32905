"""A grid of runs: what is refused, what is compared, and one real grid, twice."""

import json

import numpy as np
import pytest
from tiny_run import finish, load_recipe, make_data, make_model, sft_options, start, write_config

from videorft_jax.commands.ablate import ablate, find_same, vary
from videorft_jax.commands.grpo import check_options
from videorft_jax.data.records.opening import digest_records
from videorft_jax.evaluation import ablation

VARIANTS = (
    ("letters", ()),
    ("dapo", (("grpo.variant", "dapo"), ("optim.lr", 1e-2))),
)


def rows(scores):
    """Makes the rows of one evaluation, one a record, of which two are about one clip."""
    return [
        {
            "index": i, "rollout": 0, "problem_id": i, "problem_type": "regression",
            "path": f"{i // 2}.mp4", "score": score, "outcome": "scored", "reason": "",
            "completion_tokens": 5, "stopped": True, "finite": True,
        }
        for i, score in enumerate(scores)
    ]  # fmt: skip


def test_comparison_is_of_means_over_seeds():
    rng = np.random.default_rng(0)
    scores = rng.random((2, 3, 40))  # variants, seeds, records
    table = ablation.compare(
        {name: [rows(own) for own in scores[i]] for i, name in enumerate(("one", "two"))}
    )
    for line, own in zip(table, scores, strict=True):
        np.testing.assert_allclose(line["accuracy"], own.mean(), rtol=1e-12)
        np.testing.assert_allclose(line["by_seed"], own.mean(1), rtol=1e-12)
        assert line["num_records"] == 40
    assert table[0]["difference"] is None
    difference = scores[1].mean(0) - scores[0].mean(0)
    mean, low, high = table[1]["difference"]
    np.testing.assert_allclose(mean, difference.mean(), rtol=1e-9)
    clips = difference.reshape(20, 2).mean(1)  # what is independent
    width = 2 * 1.96 * clips.std(ddof=1) / np.sqrt(20)
    np.testing.assert_allclose(high - low, width, rtol=0.1)
    text = ablation.format_table(table, 3)
    assert f"| two | {scores[1].mean():.4f} [" in text
    assert f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]" in text


def test_variants_that_train_the_same_are_found():
    """With one update the ratio of policies is 1: gspo is grpo, and clips do nothing."""
    config = load_recipe("grpo_7b")
    config.rewards = (("accuracy", 1.0),)
    changes = {
        "base": (),
        "gspo": (("grpo.variant", "gspo"),),
        "wide": (("grpo.clip_high", 0.28),),
        "dapo": (("grpo.variant", "dapo"),),
        "cispo": (("grpo.variant", "cispo"),),
        "rate": (("optim.lr", 1e-2),),
    }
    for num_updates, same in ((1, 4), (2, 0)):
        config.grpo.num_updates = num_updates
        variants = {name: check_options(vary(config, own)) for name, own in changes.items()}
        found = find_same(variants)
        assert len(found) == same
        if same:
            assert set(found) == {
                ("base", "gspo"), ("base", "wide"), ("gspo", "wide"), ("dapo", "cispo")
            }  # fmt: skip


def test_the_rules_of_the_repository_are_all_there():
    """The recipe's variant holds each option of `reward` that has a value named repo, and the
    bonus for length that only the published scripts have."""
    config = load_recipe("ablate_rewards")
    assert config.grpo.num_updates > 1  # so that clips and gspo mean something
    variant = dict(dict(config.ablate.variants)["repo_rules"])
    rules = {name: value for name, value in variant.items() if name != "rewards"}
    assert rules == {f"reward.{name}": "repo" for name in ("mode", "averaging", "text_rule")}
    assert dict(variant["rewards"])["length"] == 0.2


def test_changes_reach_the_config():
    config = load_recipe("ablate_rewards")
    for name, changes in config.ablate.variants:
        varied = vary(config, changes)
        for path, value in changes:
            found = varied
            for part in path.split("."):
                found = found[part]
            assert found == value, name
    assert config.grpo.variant == "grpo"  # and stay out of the one they came from
    with pytest.raises(ValueError, match=r"changes 'grpo.betta'; no such option"):
        vary(config, (("grpo.betta", 0.1),))
    with pytest.raises(ValueError, match=r"ablate.variants, grpo.num_updates: "):
        vary(config, (("grpo.num_updates", "two"),))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": (("a", ()), ("a", ()))}, "give each its own name"),
        ({"variants": (("../a", ()),)}, "give each its own name"),
        ({"variants": ()}, "is empty; name some"),
        ({"records": ""}, "ablate.records is empty; give held-out records"),
        (
            {"variants": (("a", ()), ("b", (("grpo.variant", "ppo"),)))},
            "variant b: grpo: variant is 'ppo'; choose one of",
        ),
        ({}, "held_out.jsonl"),  # There is no such file.
    ],
)
def test_refused_before_the_first_run(changes, message, tmp_path):
    config = load_recipe("ablate_rewards")
    config.rewards = (("accuracy", 1.0),)
    config.ablate.update({"records": "held_out.jsonl", "variants": VARIANTS} | changes)
    with pytest.raises(ValueError, match=message):
        ablate(config, str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_results_on_other_records_are_not_compared(tmp_path):
    """Results that are there are not made again, so they have to be of the same records."""
    held_out, other = tmp_path / "held_out.jsonl", tmp_path / "other.jsonl"
    for path, problem in ((held_out, "What moves?"), (other, "What stands?")):
        path.write_text(json.dumps({"problem": problem, "path": "a.mp4", "solution": "a"}) + "\n")
    folder = tmp_path / "grid/letters/0-held-out"
    folder.mkdir(parents=True)
    (folder / "completions.jsonl").write_text("{}\n")
    settings = {"records": {"sha256": digest_records(held_out), "num_records": 1}}
    (folder / "results.json").write_text(json.dumps({"settings": settings, "results": {}}))
    ablation.check_results(["letters", "dapo"], [0, 1], str(tmp_path / "grid"), str(held_out))
    config = load_recipe("ablate_rewards")
    config.rewards = (("accuracy", 1.0),)
    config.model.dtype = "float32"
    config.ablate.update({"records": str(other), "variants": VARIANTS, "seeds": (0,)})
    with pytest.raises(ValueError, match=r"records.sha256 is .* use the same value or another"):
        ablate(config, str(tmp_path / "grid"))


def test_a_grid_from_the_command_line(tmp_path):
    files = make_data(tmp_path / "data", num_sft=40, num_rl=16, num_eval=8)
    make_model(tmp_path / "model", files["sft"])
    options = sft_options(
        tmp_path / "model", files["rl"], data__row_tokens=192, train__max_steps=2,
        rollout__num_rollouts=2, rollout__max_new_tokens=6, grpo__length_buckets=1, grpo__beta=0.0,
        rewards=(("tests.support.user_rewards:count_letters", 1.0),),
        evaluate__max_new_tokens=6, ablate__variants=VARIANTS, ablate__records=files["eval"],
    )  # fmt: skip
    write_config(tmp_path / "tiny.py", "ablate_rewards", options | {"ablate.seeds": (0,)})
    command = ["ablate", f"--config={tmp_path / 'tiny.py'}", f"--workdir={tmp_path / 'grid'}"]
    code, text = finish(start(tmp_path / "compiled", *command))
    assert code == 0, text
    table = (tmp_path / "grid" / ablation.TABLE).read_text()
    assert "8 held-out records, 1 seeds" in table
    assert table.count("\n| ") == 3  # head and two variants
    picture = (tmp_path / "grid" / ablation.PLOT).read_bytes()
    assert picture.startswith(b"\x89PNG")
    runs = {}
    for name, _ in VARIANTS:
        path = tmp_path / "grid" / name / "0" / "metrics.jsonl"
        runs[name] = [json.loads(line) for line in path.read_text().splitlines()]
    first, other = (runs[name] for name, _ in VARIANTS)
    # The same rollout from the same weights; the learning rate of the second is ten times as high.
    assert first[0]["rewards/total/mean"] == other[0]["rewards/total/mean"]
    assert other[0]["update_norm"] > 5 * first[0]["update_norm"] > 0
    stamp = (tmp_path / "grid" / "dapo" / "0" / "metrics.jsonl").stat().st_mtime_ns
    code, text = finish(start(tmp_path / "compiled", *command))
    assert code == 0, text
    assert (tmp_path / "grid" / "dapo" / "0" / "metrics.jsonl").stat().st_mtime_ns == stamp
    assert (tmp_path / "grid" / ablation.TABLE).read_text() == table
    code, text = finish(start(tmp_path / "compiled", *command, "--config.optim.weight_decay=0.5"))
    assert code == 2, text
    assert "grid/letters/0: is done, and optim.weight_decay was 0.01 and is 0.5; give the" in text
    config = json.loads((tmp_path / "grid/letters/0/config.json").read_text())
    for part, option, value in (("evaluate", "max_new_tokens", 5), ("train", "max_steps", 3)):
        changed = config | {part: config[part] | {option: value}}
        with pytest.raises(ValueError, match=f"{part}.{option} was . and is {value}; give the"):
            ablation.check_done(str(tmp_path / "grid"), "letters", 0, changed)
    ablation.check_done(str(tmp_path / "grid"), "other", 0, changed)  # There is no such run.
    ablation.check_done(str(tmp_path / "grid"), "letters", 0, config)
