"""The held-out records of a run, which must show other clips than those that it trains on.

A run opens and compares them before it reads a weight.
"""

import os

from videorft_jax.data.records import opening
from videorft_jax.data.records.records import RecordError
from videorft_jax.data.records.source import FirstRecords, Source
from videorft_jax.training.options import ValidateOptions


def open_held_out(options: ValidateOptions) -> Source:
    """The records of `validate.records` up to `validate.limit`. Raises ValueError for a file that
    holds none."""
    source = opening.open_records(options.records, options.root or None, "auto")
    return FirstRecords(source, options.limit) if options.limit else source


def check_held_out(options: ValidateOptions, trained: Source) -> None:
    """Raises ValueError where records to validate with cannot be read or show a clip that is
    trained on."""
    if options.records:
        check_overlap(open_held_out(options), trained, options.records)


def check_overlap(held_out: Source, trained: Source, name: str) -> None:
    """Raises ValueError where records to validate with show a clip that is trained on.

    Clips are the same where their paths lead to the same file. Media that a source holds itself
    have no path and are not compared.
    """
    seen = {path for _, path in _find_paths(trained)}
    both = [(index, path) for index, path in _find_paths(held_out) if path in seen]
    if both:
        index, path = both[0]
        num_records = len({index for index, _ in both})
        raise ValueError(
            f"validate.records={name}: {num_records} records show clips that are trained on, the "
            f"first {held_out.where(index)}: {path}; take them out of one of the two files"
        )


def _find_paths(source):
    """(record, file that a path of its media leads to) of all records that can be read."""
    for index in range(len(source)):
        try:
            items = source[index].media
        except RecordError:  # The loader names it.
            continue
        for item in items:
            paths = item.path if isinstance(item.path, tuple) else (item.path,)
            for path in paths:
                if path:
                    yield index, os.path.realpath(os.path.join(source.data_root, path))
