"""Fault 13: libraries wrote lines of their own at the start of a command.

These commands are started by Python itself, as a user's are, since libraries speak as they load.
"""

import re

import pytest

CLIP = "data/clips/eval/000001.mp4"
# command -> (arguments, patterns of the lines that we write to stderr)
RUNS = {
    "validate": ("--data=data/rl.jsonl --answers=quiet_answers", [r"\[#* *\] \d+/8 records, .*"]),
    "sft": (
        "--config=tiny.py --workdir=runs/quiet --config.train.max_steps=1",
        [
            r"sft_7b on 1 x cpu, process 0 of 1, pid \d+",
            r"40 records, 0 bad; .*",
            r"an update needs at least .*",
            r"read 81 tensors, .*",
            r"steps 1 to 1; .*",
            r"cpu: not in the table of chips, .*",
            r"metrics: .*",
            r"step 1/1  loss .*",
            r"sft_7b: done; next: .*",
        ],
    ),
    "evaluate": (
        "--config=tiny.py --workdir=runs/evaluated --config.model.init_from= "
        "--config.data.records=data/eval.jsonl --config.evaluate.max_new_tokens=4 "
        "--config.evaluate.checkpoint=runs/sft",
        [
            r"sft_7b on 1 x cpu, process 0 of 1, pid \d+",
            r"4 records, 0 bad; .*",
            r"media contract \w+; 4 records are there",
        ],
    ),
    "ask": (
        f"--model=model --video={CLIP} --question=Why? --max_new_tokens=4 --dtype=float32",
        [r"model: clips are read by the media contract .*", r"an answer is not kept; next: .*"],
    ),
}


@pytest.mark.parametrize("command", RUNS)
def test_every_line_is_ours(hour, command):
    hour.evaluated()
    arguments, patterns = RUNS[command]
    code, _, err = hour.apart(command, *arguments.split(), cwd=hour.folder)
    assert code == 0, err
    lines = [line for text in err.splitlines() for line in text.split("\r") if line.strip()]
    known = re.compile("|".join(patterns))
    assert [line for line in lines if not known.fullmatch(line)] == []
    assert lines
