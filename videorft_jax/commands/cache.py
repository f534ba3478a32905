"""`videorft cache`: decodes and resizes every clip of a data set once."""

import argparse
import os
from collections import Counter

from videorft_jax.commands.data_flags import (
    add_contract_flags,
    add_data_flags,
    at_least_one,
    make_limits,
    read_contract,
)
from videorft_jax.commands.last_line import print_last_line
from videorft_jax.data.loader.cache_writer import write_cache
from videorft_jax.data.progress import Bar
from videorft_jax.data.records.opening import open_records
from videorft_jax.data.records.quarantine import one_line, reason_table
from videorft_jax.models.geometry import find_geometry

MOST_SHOWN = 20


def main(argv: list[str] | None = None) -> int:
    """videorft cache --data FILE --data_root DIR --out DIR: decodes every clip once."""
    parser = argparse.ArgumentParser(
        prog="videorft cache", description=main.__doc__, allow_abbrev=False
    )
    add_data_flags(parser)
    parser.add_argument("--out", required=True, type=os.path.expanduser, help="folder of the cache")
    add_contract_flags(parser)
    parser.add_argument(
        "--patch_size", type=int, default=14, help="of the model: 14 for Qwen2.5-VL, 16 Qwen3-VL"
    )
    parser.add_argument("--threads", type=at_least_one, default=min(16, os.cpu_count() or 1))
    parser.add_argument("--isolate", action="store_true", help="decode in killable processes")
    options = parser.parse_args(argv)
    source = open_records(options.data, options.data_root, options.format)
    contract = read_contract(options, find_geometry(options.patch_size))
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
    flags = ("--config=sft_7b", "--workdir=runs/sft_7b", f"--config.data.cache={folder}")
    print_last_line(written, "sft", *flags, "...")
    return 1 if failures else 0
