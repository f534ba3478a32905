"""`videorft validate`: everything that is wrong with a data set, before it is trained on."""

import argparse
import json
import logging
import os
import sys

from videorft_jax.data.records.source import RecordSource
from videorft_jax.data.validate import guess_mode, print_report, validate


def main(argv: list[str] | None = None) -> int:
    """videorft validate --data FILE --data_root DIR: checks records and media, predicts shapes.
    Returns 0 when all is good, 1 when records are bad, 2 when it cannot run."""
    parser = argparse.ArgumentParser(prog="videorft validate", description=main.__doc__)
    add = parser.add_argument
    add("--data", required=True, help="record file, JSON or JSONL")
    add("--data_root", help="folder of the media; default: the file's own")
    add("--mode", choices=("sft", "grpo", "evaluate"), help="default: sft if rows have reasoning")
    add("--contract", choices=("train", "evaluate"), default="train", help="media contract")
    add("--tokenizer", help="local folder; without it text tokens are estimated")
    add("--template_file", help="prompt template, .json or .toml")
    add("--rows", type=int, default=8, help="rows of a batch")
    add("--row_tokens", type=int, default=8192, help="tokens of a packed row, most of a prompt")
    add("--max_buckets", type=int, default=4, help="most shapes to compile")
    add("--multiple", type=int, default=128, help="row lengths are multiples of this")
    add("--quick", action="store_true", help="look at packets only, decode nothing")
    add("--isolate", action="store_true", help="decode in killable processes")
    add("--threads", type=int, default=min(16, os.cpu_count() or 1))
    add("--answers", help="folder that remembers what was checked; default: FILE.sizes")
    add("--json", help="write the report here")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    options.answers = options.answers or f"{options.data}.sizes"
    try:
        source = RecordSource(options.data, options.data_root)
        if options.mode is None:
            options.mode = guess_mode(source)
        report = validate(source, options)
    except (ValueError, OSError) as error:
        print(f"videorft validate: {error}", file=sys.stderr)
        return 2
    print_report(report)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
        print(f"report written to {os.path.abspath(options.json)}")
    return 1 if report["failures"] or report["plan"]["too_many_tokens"] else 0
