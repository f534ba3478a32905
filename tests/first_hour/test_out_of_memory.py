"""Fault 10: a device that ran out of memory ended a run in a trace."""

import contextlib
import re
import resource

import pytest

LONG = 16384  # tokens a row; dense attention keeps a score of 4 bytes for each pair of them
MANY = [f"--config.data.row_tokens={LONG}", f"--config.data.multiple={LONG}"]
GRPO = {"rollout.num_rollouts": 2, "rollout.max_new_tokens": 4, "grpo.beta": 0.0}


@pytest.mark.parametrize("command", ["sft", "grpo"])
def test_one_line_says_what_decides_how_much_is_needed(hour, tmp_path, command):
    """No page can be had beyond those that the process holds before its first step and four GiB."""
    options = {"data.records": hour.records["rl"], "rewards": (("format", 1.0),)} | GRPO
    if command == "sft":
        options = {}
    path = hour.recipe(
        f"long_{command}", options, recipe={"sft": "sft_7b", "grpo": "grpo_7b"}[command]
    )
    flags = [f"--config={path}", "--workdir=run", "--config.model.attention=reference", *MANY]
    process = hour.start(command, *flags, cwd=tmp_path)
    said = ""
    for line in iter(process.stdout.readline, ""):
        said += line
        if line.startswith("steps 1 to "):
            break
    with open(f"/proc/{process.pid}/statm") as file:
        most = int(file.read().split()[0]) * resource.getpagesize() + 2**32
    with contextlib.suppress(ProcessLookupError):  # It has ended where there is less memory still.
        resource.prlimit(process.pid, resource.RLIMIT_AS, (most, most))
    said += process.stdout.read()
    assert process.wait() == 1, said
    last = said.splitlines()[-1]
    assert last.startswith(
        f"videorft {command}: {command}_7b: a device ran out of memory (RESOURCE"
    )
    asked = int(re.search(r"Out of memory allocating (\d+) bytes", last)[1])
    assert asked > 4 * 4 * LONG**2
    assert "with data.rows=4, model.remat=none, train.accumulate=1; the planner estimates " in last
    assert re.search(
        rf"estimates \d+\.\d\d GiB of \d+\.\d\d GiB a device for \w+ of {LONG} to", last
    )
    assert (
        "leave model.attention at auto, or set train.accumulate=4, or set model.remat=full" in last
    )
    assert "Traceback" not in said
