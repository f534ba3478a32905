"""Flags without a value, and names of other kinds than what is written, are one line at once."""

import shlex

import pytest

from videorft_jax import cli

# A shell writes a flag without a value where a variable is not set; it is not as none.
EMPTY = {
    "report run --out=": "--out",
    "benchmarks --data_root=": "--data_root",
    "score run --judge=": "--judge",
    "serve --checkpoint=run --api_key_env= --port=0": "--api_key_env",
    "ask --model=run --show '' --question=?": "--show",
    "validate --data=a.jsonl --config=": "--config",
    "export --checkpoint=run --out=": "--out",
    "doctor --workdir=": "--workdir",
    "plan --config=grpo_7b --topology= --search": "--topology",
    "curate --config=a.toml --workdir=b --export_batch=": "--export_batch",
}
# Nothing could read a file under such a name afterwards.
KINDS = {
    "convert --data=none.jsonl --out=own.parquet": ".jsonl",
    "convert --data=none.jsonl --out=own.jsonl.gz": ".jsonl",
    "convert --data=none.jsonl --out=own": ".jsonl",
    "inspect --data=none.jsonl --out=page.png": ".html",
    "report none --out=page.pdf": ".html",
    "compare one two --out=forest": ".png",
    "compare one two --out=forest.html": ".png",
}
REFUSED = {
    words: f"{flag}= is empty; give a value, or leave the flag out" for words, flag in EMPTY.items()
} | {
    words: f"{words.split()[-1]}: it is written as {kind}; name it so"
    for words, kind in KINDS.items()
}


@pytest.mark.parametrize("words", REFUSED)
def test_one_line_says_what_is_wrong_with_a_flag(words, capsys):
    assert cli.main(shlex.split(words)) == 2
    assert capsys.readouterr().err == f"videorft {words.split()[0]}: {REFUSED[words]}\n"


def test_some_may_be_empty(capsys):
    """The system turn, a prefix and options of a recipe; an empty question has its own words."""
    assert cli.main(["benchmarks"]) == 0
    assert cli.main(["ask", "--model=nowhere", "--system=", "--strip_prefix=", "--question="]) == 2
    assert "--question is empty; write what is asked" in capsys.readouterr().err
    assert cli.main(["plan", "--config=no_recipe", "--config.lora.targets=", "--topology=v"]) == 2
    assert "= is empty" not in capsys.readouterr().err
