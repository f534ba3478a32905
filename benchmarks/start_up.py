"""How long a person waits: `--help` of every command, and the first words of `videorft ask`.

    PYTHONPATH=. python benchmarks/start_up.py --demo=runs/demo --json

Each command is a process of its own, as from a shell. Help is measured beside that of transformers,
the first token of the demo's model about one of its clips beside transformers, which loads the same
folder and draws one token of a prompt without a clip, which is less work. All take turns; medians
of wall time and processor time over the rounds. Aims on two quiet cores are 0.6 s and 8 s. A ratio
above 1 means that ours is better.
"""

import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import time

import peer

from videorft_jax.commands.catalogue import COMMANDS

HELP_S, FIRST_S = 0.6, 8.0
OURS = "from videorft_jax.cli import main; raise SystemExit(main())"
PEER_HELP = "from transformers.cli.transformers import main; main()"
PEER_ASK = """
import sys, transformers
model = transformers.AutoModelForImageTextToText.from_pretrained(sys.argv[1])
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer("What colour is the last shape?", return_tensors="pt")["input_ids"]
print(tokenizer.decode(model.generate(ids, max_new_tokens=1)[0]))
"""


def until_first_byte(code: str, *words: str) -> tuple[float, float]:
    """(seconds until the process writes to stdout, processor seconds of all of it)."""
    before, started = _processor(), time.monotonic()
    command = [sys.executable, "-c", code, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        first = process.stdout.read(1)
        seconds = time.monotonic() - started
        errors = process.communicate()[1]
    if process.returncode or not first:
        raise SystemExit(f"{' '.join(words)} failed: {errors.decode()[-500:]}")
    return seconds, _processor() - before


def _processor():
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", required=True, help="work directory of a demo that has ended")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    own = parser.parse_args()
    folder = str(pathlib.Path(own.demo, "grpo/hf"))
    clip = str(sorted(pathlib.Path(own.demo, "clips/clips/eval").glob("*.mp4"))[0])
    ask = ("ask", "--model", folder, "--video", clip, "--question=What colour is the last shape?")
    tasks = {("ours", f"help {name}"): (OURS, name, "--help") for name in COMMANDS}
    tasks |= {
        ("peer", "help"): (PEER_HELP, "--help"),
        ("ours", "first token"): (OURS, *ask, "--max_new_tokens=16"),
        ("peer", "first token"): (PEER_ASK, folder),
    }
    found = {task: [] for task in tasks}
    for _ in range(own.rounds):
        for task, words in tasks.items():
            found[task].append(until_first_byte(*words))
    medians = {task: [statistics.median(column) for column in zip(*rows, strict=True)]
               for task, rows in found.items()}  # fmt: skip
    for (side, what), (seconds, processor) in medians.items():
        print(f"{side} {what:20} {seconds:6.2f} s wall {processor:6.2f} s processor")
    slowest = max((key for key in medians if key[1].startswith("help ")), key=medians.get)
    keys = {"help": (slowest, ("peer", "help")),
            "first_token": (("ours", "first token"), ("peer", "first token"))}  # fmt: skip
    print(f"aims: {HELP_S} s for help (slowest is {slowest[1]}), {FIRST_S} s for the first token")
    if own.json:
        ours, other = ({f"{name}_s": medians[pair[side]][0] for name, pair in keys.items()}
                       for side in (0, 1))  # fmt: skip
        ours |= {f"{name}_processor_s": medians[pair[0]][1] for name, pair in keys.items()}
        ratio = {name: other[f"{name}_s"] / ours[f"{name}_s"] for name in keys}
        shape = {"commands": len(COMMANDS), "slowest_help": slowest[1]}
        body = {"machine": peer.machine(), "shape": shape, "ours": ours, "peer": other}
        print(json.dumps(body | {"ratio": ratio}))


if __name__ == "__main__":
    main()
