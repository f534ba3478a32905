"""`videorft score`: what the outputs of an evaluation are worth under a scorer; needs no model."""

import argparse
import json
import os
import pathlib

from videorft_jax.commands.last_line import print_last_line
from videorft_jax.evaluation.judge import JudgeOptions, judge_rows
from videorft_jax.evaluation.outputs import read_outputs, rescore
from videorft_jax.evaluation.scoring.score import SCORERS

EXAMPLES = """videorft score runs/base/all
videorft score runs/base/all --scorer=official
videorft score runs/base/all --judge=http://localhost:8000/v1 --judge_model=NAME"""
_KEYS = ("JUDGE_API_KEY", "OPENAI_API_KEY")


def main(argv: list[str]) -> int:
    """Scores every output below a work directory of `videorft evaluate` again, and writes
    scores-SCORER.json there. The judge's key is read from JUDGE_API_KEY or OPENAI_API_KEY."""
    parser = argparse.ArgumentParser(
        prog="videorft score", usage=EXAMPLES, description=main.__doc__, allow_abbrev=False
    )
    parser.add_argument("folder", metavar="DIR", help="work directory of videorft evaluate")
    parser.add_argument("--scorer", default="robust", help=", ".join(SCORERS))
    parser.add_argument("--judge", metavar="URL", help="endpoint that reads open answers")
    parser.add_argument("--judge_model", default="", help="the judge's name there")
    parser.add_argument("--json", action="store_true", help="print the figures for programs")
    own = parser.parse_args(argv)
    from videorft_jax.evaluation.scoreboard import format_scores, tabulate  # loads SciPy

    judge = None
    if own.judge or own.judge_model:
        key = next((os.environ[name] for name in _KEYS if os.environ.get(name)), "")
        judge = JudgeOptions(own.judge or "", own.judge_model, key)
    rows = rescore(read_outputs(own.folder), own.scorer)
    if judge:
        rows = judge_rows(rows, judge, pathlib.Path(own.folder, "judged.jsonl"), own.scorer)
    table = tabulate(rows, own.scorer)
    path = pathlib.Path(own.folder, f"scores-{own.scorer}.json")
    names = ("benchmark", "id", "rollout", "score", "outcome")
    body = {
        "scorer": own.scorer,
        "benchmarks": table,
        "rows": [{name: row[name] for name in names} for row in rows],
    }
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)
    print(json.dumps(table, indent=1) if own.json else format_scores(table, own.scorer))
    print_last_line(str(path), "compare", own.folder, "...", to_stderr=own.json)
    return 0
