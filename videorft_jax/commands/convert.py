"""`videorft convert`: writes records as JSONL from the formats of the field."""

import argparse
import collections
import os
import sys

from videorft_jax.commands.last_line import print_last_line
from videorft_jax.commands.output_file import check_output
from videorft_jax.data.progress import Bar
from videorft_jax.data.records.formats import FORMATS
from videorft_jax.data.records.opening import open_records
from videorft_jax.data.records.records import RecordError
from videorft_jax.data.records.source import check_extra, write_records

EXAMPLES = """videorft convert --data llava_video.json --out records.jsonl
videorft convert --data train.parquet --format messages --out records.jsonl"""


def main(argv: list[str] | None = None) -> int:
    """Reads Qwen and Hugging Face messages, ShareGPT and LLaVA conversations, TRL prompts and
    VideoRFT rows from JSON, JSONL (.gz, .zst), CSV, parquet, Arrow, or a Hugging Face data set on
    disk. Paths are kept as they are. Returns 0 when every row was written, 1 when some are bad."""
    parser = argparse.ArgumentParser(
        prog="videorft convert", usage=EXAMPLES, description=main.__doc__, allow_abbrev=False
    )
    parser.add_argument("--data", required=True, help="file, or folder of a data set")
    parser.add_argument("--format", choices=FORMATS, default="auto")
    parser.add_argument("--out", required=True, type=os.path.expanduser, help="JSONL file to write")
    options = parser.parse_args(argv)
    check_output(options.out, kinds=(".jsonl",))
    if os.path.exists(options.out) and os.path.realpath(options.out) == os.path.realpath(
        options.data
    ):
        raise ValueError(f"--out={options.out}: is the file of --data; name another")
    source = open_records(options.data, None, options.format)
    bad: collections.Counter[str] = collections.Counter()
    bar = Bar(len(source))

    def good():
        for index in range(len(source)):
            try:
                record = source[index]
                check_extra(record, source.where(index))
                yield record
            except RecordError as error:
                bad[error.field] += 1
                print(error, file=sys.stderr)
            bar(index + 1)

    count = write_records(options.out, good())
    form = getattr(source, "form", "tfds")
    place = os.path.dirname(os.path.abspath(options.out))
    root = () if form == "tfds" or source.data_root == place else (source.data_root,)
    written = f"{count} of {len(source)} rows written to {options.out}, read as format {form}"
    flags = (f"--data={options.out}", *(f"--data_root={folder}" for folder in root))
    print_last_line(written, "validate", *flags)
    return 1 if bad else 0
