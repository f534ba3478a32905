"""`videorft compare`: evaluations side by side, paired by question; needs no model."""

import argparse
import json
import os

from videorft_jax.commands.last_line import print_last_line
from videorft_jax.commands.output_file import check_output
from videorft_jax.evaluation.outputs import find_common_name, read_outputs, rescore
from videorft_jax.evaluation.scoring.score import SCORERS

EXAMPLES = """videorft compare runs/base/all runs/grpo_7b/all
videorft compare runs/base/all runs/seed_0/all,runs/seed_1/all --out=compared.png"""


def main(argv: list[str]) -> int:
    """Compares work directories of `videorft evaluate` with the first of them: a table, and a
    forest plot. Folders that are joined by commas are seeds of one run."""
    parser = argparse.ArgumentParser(
        prog="videorft compare", usage=EXAMPLES, description=main.__doc__, allow_abbrev=False
    )
    parser.add_argument("runs", nargs="+", metavar="DIR", help="the first is the baseline")
    parser.add_argument("--scorer", default="robust", help=", ".join(SCORERS))
    parser.add_argument(
        "--out", type=os.path.expanduser, default="comparison.png", help="file of the forest plot"
    )
    parser.add_argument("--json", action="store_true", help="print the lines for programs")
    own = parser.parse_args(argv)
    check_output(own.out, kinds=(".png", ".pdf", ".svg"))
    from videorft_jax.evaluation.compare import compare, format_comparison, plot  # loads SciPy

    if len(own.runs) < 2:
        raise ValueError("one run is given; give two or more to compare")
    if not all(folder for name in own.runs for folder in name.split(",")):
        raise ValueError("the name of a run is empty; write DIR, or DIR,DIR for its seeds")
    given = [tuple(map(os.path.abspath, name.split(","))) for name in own.runs]
    if len(set(given)) < len(given) or any(len(set(seeds)) < len(seeds) for seeds in given):
        raise ValueError("a run is given twice; give each once")
    common = find_common_name([folder for name in own.runs for folder in name.split(",")])
    runs = {
        name: [rescore(read_outputs(folder, common), own.scorer) for folder in name.split(",")]
        for name in own.runs
    }
    lines = compare(runs, own.scorer)
    plot(lines, own.out)
    print(json.dumps(lines, indent=1) if own.json else format_comparison(lines))
    score = ("score", own.runs[-1].split(",")[0], "--scorer=official")
    print_last_line(own.out, *score, to_stderr=own.json)
    return 0
