"""A place for runs of GRPO: a tiny model, clips, a random SigLIP, a config; and what a run left."""

import json

from tiny_run import (
    finish,
    make_data,
    make_model,
    make_siglip,
    metrics,
    sft_options,
    start,
    write_config,
)

STEPS = 4
MACHINE = ("perf/", "time/", "memory/")
REWARDS = (("tests.support.user_rewards:count_letters", 1.0), ("accuracy", 1.0), ("semantic", 0.5))


class Place:
    def __init__(self, folder):
        self.folder = folder
        files = make_data(folder / "data", num_sft=40, num_rl=32)
        make_model(folder / "model", files["sft"])
        make_siglip(folder / "siglip", files["sft"])
        options = sft_options(
            folder / "model",
            files["rl"],
            data__row_tokens=192,
            train__max_steps=STEPS,
            optim__schedule="constant",
            optim__eps=1e-4,  # so that rounding of a gradient near 0 is no step of full length
            checkpoint__every=2,
            rollout__num_rollouts=4,
            rollout__max_new_tokens=8,
            rollout__top_p=1.0,
            grpo__length_buckets=1,
            rewards=REWARDS,
            reward__siglip=str(folder / "siglip"),
            reward__gated=(),
            reward__frames=4,
        )
        write_config(folder / "tiny.py", "grpo_7b", options)

    def start(self, name, *flags, devices=1):
        return start(
            self.folder / "compiled", "grpo", f"--config={self.folder / 'tiny.py'}",
            f"--workdir={self.folder / name}", *flags, devices=devices,
        )  # fmt: skip

    def run(self, name, *flags, devices=1, code=0):
        found, text = finish(self.start(name, *flags, devices=devices))
        assert found == code, text
        return self.folder / name


def curve(workdir):
    """What a run logged but for the machine's own figures."""
    return [
        {name: value for name, value in line.items() if not name.startswith(MACHINE)}
        for line in metrics(workdir)
    ]


def completions(workdir):
    lines = (workdir / "completions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
