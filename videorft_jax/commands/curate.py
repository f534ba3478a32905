"""`videorft curate`: verified chains of thought for a file of questions."""

import argparse
import logging
import os
import pathlib
import sys

from videorft_jax.commands.last_line import print_last_line
from videorft_jax.curation.config_file import read_config
from videorft_jax.curation.endpoints import NANO, HideSecrets

EXAMPLES = """videorft curate --config=configs/curate.toml --workdir=runs/curate --dry_run
videorft curate --config=configs/curate.toml --workdir=runs/curate --sample=20
videorft curate --config=configs/curate.toml --workdir=runs/curate"""


def main(argv: list[str]) -> int:
    """Turns a file of questions about clips into verified chains of thought. Exit code: 0 done, 1
    stopped by an endpoint's refusal, 2 wrong usage or input, 75 stopped by the budget or a server
    that is away (start again later), 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="videorft curate", usage=EXAMPLES, description=main.__doc__, allow_abbrev=False
    )
    add = parser.add_argument
    add("--config", required=True, type=os.path.expanduser,
        help="TOML file; `videorft init DIR curate` writes one to edit")  # fmt: skip
    add("--workdir", required=True, type=os.path.expanduser, help="local folder of all files")
    add("--dry_run", action="store_true", help="say what would be asked first; sends nothing")
    add("--shard", help="I/N: only clips of shard I of N, with a store of its own; I from 0")
    add("--merge", action="store_true", help="take all shards into one; sends nothing")
    add("--export_batch", metavar="DIR", type=os.path.expanduser,
        help="write what is missing to batch files; sends nothing")  # fmt: skip
    add("--import_batch", metavar="FILE", nargs="+", type=os.path.expanduser,
        help="result files of batches; sends nothing")  # fmt: skip
    add("--retry_dead", action="store_true",
        help="ask again what servers failed to answer, read what ran out of time")  # fmt: skip
    add("--sample", type=int, metavar="N",
        help="ask about N records only and write sample.html, a page to read them on")  # fmt: skip
    options = parser.parse_args(argv)
    _check_flags(options)
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    for handler in logging.getLogger().handlers:
        handler.addFilter(HideSecrets())
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line for each request
    shard = _read_shard(options.shard)
    config = read_config(options.config)
    try:
        from videorft_jax.curation import run
    except ImportError as error:
        raise ValueError(f"{error.name} is missing; pip install 'videorft_jax[curate]'") from None
    if options.merge:
        counts = run.merge(config, options.workdir)
        print(f"merged: {counts.accepted:,} chains accepted of {counts.asked:,} questions")
        _print_last(options, pathlib.Path(options.workdir), config.data_root, counts)
        return 0
    with run.Curation(config, options.workdir, shard) as curation:
        if options.retry_dead:
            logging.info("%d dead letters and clips are tried again", curation.store.revive())
        if options.dry_run:
            return _print_estimate(curation, options)
        if options.export_batch:
            return _export(curation, options)
        if options.import_batch:
            return _import(curation, options)
        result = curation.run(sample=options.sample or 0)
    for reason in result.reasons:
        print(f"videorft curate: {reason}", file=sys.stderr)
    print(run.summarise(result))
    if result.exit_code:
        print_last_line(f"everything lies in {curation.folder}", *_again(options), to_stderr=True)
    else:
        root = config.data_root
        _print_last(options, curation.folder, root, result.counts, to_stderr=True)
    return result.exit_code


def _check_flags(options) -> None:
    """Raises ValueError for flags that contradict each other, or of which one would do nothing."""
    if options.sample is not None and options.sample < 1:
        raise ValueError(f"--sample={options.sample}: give the number of records, such as 20")
    ways = ("dry_run", "merge", "export_batch", "import_batch")
    if len(given := [f"--{name}" for name in ways if getattr(options, name)]) > 1:
        raise ValueError(f"{' and '.join(given)} are two things to do; give one of them")
    if options.merge and options.shard:
        raise ValueError("--merge takes all shards; leave --shard out")
    if given and options.sample:
        raise ValueError(f"{given[0]} is of all records; leave --sample out")
    if options.retry_dead and options.merge:
        raise ValueError("--merge asks nothing again; give --retry_dead to the run that asks")


def _print_last(options, folder: pathlib.Path, root: str, counts, to_stderr=False):
    """What is in the folder of this run, and how its sets are checked; `root` holds the media."""
    from videorft_jax.curation.stage_files import RL, SFT  # its libraries are an extra

    if not options.merge and options.shard:
        following = (*_again(options)[:-1], "--merge")
    elif counts.accepted or counts.rl:
        records = folder / (SFT if counts.accepted else RL)
        following = ("validate", f"--data={records}", f"--data_root={root}")
    else:  # Both sets are empty, and this says why.
        following = (*_again(options), "--dry_run")
    print_last_line(f"everything lies in {folder}", *following, to_stderr=to_stderr)


def _export(curation, options) -> int:
    """Writes the requests that are missing now to batch files and says what was written."""
    from videorft_jax.curation.batches import export_batch

    folder = pathlib.Path(options.export_batch)
    done = export_batch(curation.units(), curation.store, curation.ledger, folder)
    for name, count in sorted(done.requests.items()):
        print(f"{name}: {count:,} requests written")
    if done.out:
        print(f"{done.out:,} requests wait in files of before; --retry_dead gives those up")
    if done.stop:
        print(f"videorft curate: {done.stop}", file=sys.stderr)
    files = " ".join(str(path) for path in done.files)
    print(f"written: {files or 'no file; nothing is missing that no file holds'}")
    again = _again(options)
    print_last_line("send each file as a batch, then import", *again, "--import_batch", "...")
    return done.stop.exit_code if done.stop else 0


def _import(curation, options) -> int:
    """Takes the results of batches and says what became of them and what is missing now."""
    from videorft_jax.curation.batches import import_batch

    paths = [pathlib.Path(name) for name in options.import_batch]
    done = import_batch(curation.units(), curation.store, curation.ledger, paths)
    for place in done.unreadable:
        print(f"videorft curate: {place}: no result in JSON; left out", file=sys.stderr)
    failed = ", ".join(f"{count:,} {code}" for code, count in sorted(done.failed.items()))
    print(
        f"{done.replies:,} replies stored, {done.dead:,} dead letters, {failed or 'none'} to be "
        f"asked again, {done.unknown:,} that answer nothing missing"
    )
    counts = curation.publish()
    if counts.pending:
        print(f"{counts.pending:,} records wait for replies")
        print_last_line("go on with", *_again(options), "--export_batch", "...")
    else:
        _print_last(options, curation.folder, curation.options.data_root, counts)
    return 0


def _again(options) -> tuple[str, ...]:
    shard = (f"--shard={options.shard}",) if options.shard else ()
    return ("curate", f"--config={options.config}", f"--workdir={options.workdir}", *shard)


def _print_estimate(curation, options) -> int:
    """What is still to be asked and what it may cost, beside the budget; 1 if that does not cover
    even what is expected."""
    found, limits, ledger = curation.estimate(), curation.ledger.limits, curation.ledger
    print(f"{found.finished:,} records are finished")
    for reason, count in sorted(found.refused.items()):
        print(f"{count:,} of them cannot be asked about: {reason}")
    for name, row in found.stages.items():
        number = row.known + row.expected
        most = f", at most {row.known + row.most:,}" if row.most > row.expected else ""
        basis = f"measured on {row.measured:,} replies" if row.measured else "assumed lengths"
        money = f"${row.nano / NANO:.4f}, at most ${row.most_nano / NANO:.4f}"
        time = f"; {row.seconds / 60:.0f} min at its limits" if row.seconds else ""
        print(
            f"{name}: {row.stored:,} replies stored, {number:,.0f} requests to go{most}; "
            f"{row.input_tokens:,.0f} tokens in, {row.output_tokens:,.0f} out, at most "
            f"{row.most_output_tokens:,.0f}, {basis}; "
            f"{money if ledger.endpoints[name].price else 'no price'}{time}"
        )
    basis = f"measured on {found.measured:,} records" if found.measured else "as in the paper"
    print(f"right chains: {found.accepted:.0%}, {basis}; requests asked twice are not foreseen")
    budget = "" if limits.dollars is None else f" of ${limits.dollars:.4f}"
    unpriced = [name for name, end in ledger.endpoints.items() if not end.price]
    without = f" without {', '.join(unpriced)}" if unpriced else ""
    print(
        f"in all: {found.tokens:,} tokens, ${found.nano / NANO:.4f}{without}, at most "
        f"${found.most_nano / NANO:.4f}; spent so far: {ledger.tokens:,} tokens and "
        f"${ledger.spent / NANO:.4f}{budget}"
    )
    over_money = limits.dollars is not None and found.nano + ledger.spent > limits.dollars * NANO
    over_tokens = limits.tokens is not None and found.tokens + ledger.tokens > limits.tokens
    if over_money or over_tokens:
        print("the budget does not cover what is expected; raise it, or ask about fewer records")
    print_last_line(f"everything lies in {curation.folder}", *_again(options))
    return int(over_money or over_tokens)


def _read_shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return 0, 1
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and int(number) < int(parts) <= 4096):
        raise ValueError(f"--shard={text}: write I/N with I from 0 to N - 1")
    return int(number), int(parts)
