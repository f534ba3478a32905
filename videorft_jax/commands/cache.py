"""`videorft cache`: decodes and resizes every clip of a data set once."""

import argparse
import os
from collections import Counter

from videorft_jax.commands.data_flags import (
    THREADS,
    add_contract_flags,
    add_data_flags,
    at_least_one,
    given_media,
    make_limits,
    name_recipe,
    read_contract,
)
from videorft_jax.commands.last_line import print_last_line
from videorft_jax.data.loader.cache_writer import write_cache
from videorft_jax.data.progress import Bar
from videorft_jax.data.records.opening import open_records
from videorft_jax.data.records.quarantine import one_line, reason_table
from videorft_jax.models.geometry import WINDOWED_14, find_geometry

MOST_SHOWN = 20


EXAMPLES = """videorft cache --data FILE.jsonl --data_root DIR --out CACHE
videorft cache --data FILE.jsonl --out CACHE --config=sft_7b --config.media.max_frames=8"""


def main(argv: list[str] | None = None) -> int:
    """Decodes and resizes every clip once, for runs with --config.data.cache=CACHE."""
    parser = argparse.ArgumentParser(
        prog="videorft cache", usage=EXAMPLES, description=main.__doc__, allow_abbrev=False
    )
    add_data_flags(parser)
    parser.add_argument("--out", required=True, type=os.path.expanduser, help="folder of the cache")
    add_contract_flags(parser)
    parser.add_argument(
        "--patch_size", type=int, help="of the model: 14 (default) for Qwen2.5-VL, 16 for Qwen3-VL"
    )
    parser.add_argument(
        "--threads", type=at_least_one, default=min(16, os.cpu_count() or 1), help=THREADS
    )
    parser.add_argument("--isolate", action="store_true", help="decode in killable processes")
    options = parser.parse_args(argv)
    if options.patch_size is not None and (options.config or given_media(options)):
        raise ValueError(
            f"--patch_size={options.patch_size}: a recipe says it itself; give "
            f"--config.media.patch_size={options.patch_size}, or leave the recipe out"
        )
    source = open_records(options.data, options.data_root, options.format)
    contract = read_contract(options, find_geometry(options.patch_size or WINDOWED_14.patch))
    added, failures = write_cache(
        source,
        contract,
        options.out,
        threads=options.threads,
        limits=make_limits(options),
        isolate=options.isolate,
        progress=Bar(len(source)),
    )
    folder = os.path.abspath(options.out)
    if failures:
        print(f"{len(failures)} of {len(source)} records have no readable clip:")
        for found in failures[:MOST_SHOWN]:
            print(f"  row {found.index}: {one_line(found.path)}: {found.reason}; {found.remedy}")
        print(reason_table(Counter(failure.reason for failure in failures), len(source)))
    written = f"{added} clips added to {folder}, contract {contract.digest[:16]}"
    default = "sft_7b" if contract.geometry == WINDOWED_14 else "sft_qwen3vl_8b"
    following = name_recipe(options, default)
    print_last_line(written, *following, f"--config.data.cache={folder}", "...")
    return 1 if failures else 0
