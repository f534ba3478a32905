"""`videorft inspect`: one record as the model sees it, as a page."""

import argparse
import logging
import os

from videorft_jax.commands.data_flags import (
    add_contract_flags,
    add_data_flags,
    check_tokenizer,
    make_limits,
    read_contract,
)
from videorft_jax.commands.last_line import print_last_line
from videorft_jax.commands.output_file import check_output
from videorft_jax.data.records.opening import open_records
from videorft_jax.data.records.prompts import DEFAULT_TEMPLATE, load_template
from videorft_jax.data.records.tokenizer_folder import load_tokenizer

EXAMPLES = """videorft inspect --data records.jsonl --index 3
videorft inspect --data records.jsonl --index 3 --model Qwen2.5-VL-7B-Instruct --mode grpo"""


def main(argv: list[str] | None = None) -> int:
    """Writes an HTML page with the sampled frames after resizing, their times, the tokens of the
    prompt, those that are learnt, and positions."""
    parser = argparse.ArgumentParser(
        prog="videorft inspect", usage=EXAMPLES, description=main.__doc__, allow_abbrev=False
    )
    add_data_flags(parser)
    add = parser.add_argument
    add("--index", type=int, default=0, help="row of the file, from 0")
    add("--model", help="Hugging Face folder whose tokenizer cuts the text")
    add("--mode", choices=("sft", "grpo"), default="sft", help="with the answer to learn, or not")
    add_contract_flags(parser)
    add("--template_file", help="prompt template, .json or .toml")
    add("--out", type=os.path.expanduser, default="inspect.html", help="page to write")
    flags = parser.parse_args(argv)
    check_output(flags.out, kinds=(".html", ".htm"))
    # These load transformers, which --help does without.
    from videorft_jax.data.inspection import draw_page, inspect_record
    from videorft_jax.data.loader.measure import Measurer

    logging.basicConfig(level=logging.WARNING)
    check_tokenizer("--model", flags.model)
    source = open_records(flags.data, flags.data_root, flags.format)
    if not 0 <= flags.index < len(source):
        raise ValueError(f"--index {flags.index}: {flags.data} has rows 0 to {len(source) - 1}")
    record = source[flags.index]
    is_sft = flags.mode == "sft" and bool(record.process or record.turns)
    tokenizer, note = _find_tokenizer(flags.model, record)
    template = load_template(flags.template_file) if flags.template_file else DEFAULT_TEMPLATE
    contract = read_contract(flags)
    limits = make_limits(flags)
    measurer = Measurer(source, contract, tokenizer, template, is_sft, limits)
    if flags.mode == "sft" and not is_sft:
        note += " The record has no reasoning, so that nothing is learnt."
    page = draw_page(inspect_record(measurer, flags.index), note)
    with open(flags.out, "w", encoding="utf-8") as file:
        file.write(page)
    written = f"{source.where(flags.index)} drawn in {os.path.abspath(flags.out)}"
    print_last_line(written, "validate", f"--data={flags.data}")
    return 0


def _find_tokenizer(folder, record):
    """The tokenizer of a folder, or one made for the record, with a note that says so."""
    if folder:
        return load_tokenizer(folder), ""
    from videorft_jax.demo.tiny_tokenizer import train_tiny_tokenizer

    texts = [record.problem, record.process, *(text for _, text in record.turns)]
    note = "The tokenizer was made for this record; give --model for that of a model."
    return train_tiny_tokenizer(texts, 400), note
