"""`videorft tfds`: a TFDS data set of records, with the paths of media or the media inside."""

import argparse
import os

from videorft_jax.commands.last_line import print_last_line
from videorft_jax.data.records.formats import FORMATS
from videorft_jax.data.records.opening import open_records

EXAMPLES = """videorft tfds --name videorft_rl --data RL.jsonl --data_root clips --out tfds --embed
videorft grpo --config=configs/grpo_7b.py --config.data.records=tfds:tfds/videorft_rl/1.0.0 ..."""
NAMES = ("videorft_cot", "videorft_rl")


def main(argv: list[str] | None = None) -> int:
    """The data set is read back by --config.data.records=tfds:FOLDER, or tfds:NAME where --out is
    the folder that TFDS_DATA_DIR names."""
    parser = argparse.ArgumentParser(
        prog="videorft tfds", usage=EXAMPLES, description=main.__doc__, allow_abbrev=False
    )
    add = parser.add_argument
    add("--name", required=True, choices=NAMES, help="with reasoning, or questions alone")
    add("--data", required=True, help="records, see videorft convert")
    add("--data_root", help="folder of the media; default: the file's own")
    add("--format", choices=FORMATS, default="auto")
    home = os.environ.get("TFDS_DATA_DIR") or os.path.expanduser("~/tensorflow_datasets")
    add(
        "--out",
        default=home,
        type=os.path.expanduser,
        help="folder of data sets; default: TFDS_DATA_DIR, else ~/tensorflow_datasets",
    )
    add("--embed", action="store_true", help="store the media's bytes beside their records")
    options = parser.parse_args(argv)
    from videorft_jax.data.progress import Bar
    from videorft_jax.data.records.tfds import build  # takes seconds to import

    source = open_records(options.data, options.data_root, options.format)
    folder = build(options.name, source, options.out, options.embed, Bar(len(source)))
    command = "sft" if options.name == NAMES[0] else "grpo"
    flags = (f"--config={command}_7b", f"--workdir=runs/{command}_7b")
    records = f"--config.data.records=tfds:{folder}"
    print_last_line(f"{len(source)} records in {folder}", command, *flags, records, "...")
    return 0
