"""Fault 10: `videorft ... | head` ended in a trace, or blamed the disk for it."""

import os

import pytest
from first_hour_place import STEPS

UNREAD = 128 + 13  # the code of a shell for a command that SIGPIPE ended
# (command, whether its stderr is read, exit code)
COMMANDS = (
    ("--help", True, UNREAD),
    ("--version", True, UNREAD),
    ("sft --help", True, UNREAD),
    ("validate --data=data/rl.jsonl --answers=answers", True, UNREAD),
    ("validate --data=data/rl.jsonl --answers=answers", False, UNREAD),
    ("validate --data=none.jsonl", True, 2),
    ("validate --data=none.jsonl", False, UNREAD),
    ("benchmarks", True, UNREAD),
    ("inspect --data=data/rl.jsonl --out=unread.html", True, UNREAD),
    ("init unread", True, UNREAD),
    ("cache --data=data/rl.jsonl --out=unread_frames", True, UNREAD),
    ("convert --data=data/rl.jsonl --out=unread.jsonl", True, UNREAD),
    ("plan --config=tiny.py --topology=H100:1", False, UNREAD),
    ("export --checkpoint=runs/sft --out=unread_hf", True, UNREAD),
    ("report runs/sft --out=unread_report.html", True, UNREAD),
    ("score runs/evaluated", True, UNREAD),
    ("sft --config=tiny.py --workdir=runs/unread", False, 0),  # A training goes on.
)


@pytest.mark.parametrize(("command", "reads_errors", "code"), COMMANDS)
def test_it_ends_quietly(hour, command, reads_errors, code):
    if "runs/evaluated" in command:
        hour.evaluated()
    hour.sft()
    process = hour.start_without_reader(
        *command.split(), cwd=hour.folder, reads_errors=reads_errors
    )
    said = process.stderr.read() if reads_errors else ""
    assert process.wait() == code, said
    assert "Traceback" not in said
    assert "roken" not in said
    if "unread_hf" in command:
        assert len(os.listdir(hour.folder / "unread_hf")) > 5
    if "runs/unread" in command:
        folder = hour.folder / "runs/unread"
        assert (folder / "metrics.jsonl").read_text().count("\n") == STEPS
        assert list((folder / "checkpoints").glob(f"*{STEPS}/manifest.json"))
