"""A flag without a value, as a shell writes it where a variable is not set, is not as none."""

import shlex

import pytest

from videorft_jax import cli

COMMANDS = {
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


@pytest.mark.parametrize("words", COMMANDS)
def test_a_flag_without_a_value_is_refused(words, capsys):
    assert cli.main(shlex.split(words)) == 2
    said = f"{COMMANDS[words]}= is empty; give a value, or leave the flag out"
    assert capsys.readouterr().err == f"videorft {words.split()[0]}: {said}\n"


def test_some_may_be_empty(capsys):
    """The system turn, a prefix and options of a recipe; an empty question has its own words."""
    assert cli.main(["benchmarks"]) == 0
    assert cli.main(["ask", "--model=nowhere", "--system=", "--strip_prefix=", "--question="]) == 2
    assert "--question is empty; write what is asked" in capsys.readouterr().err
    assert cli.main(["plan", "--config=no_recipe", "--config.lora.targets=", "--topology=v"]) == 2
    assert "= is empty" not in capsys.readouterr().err
