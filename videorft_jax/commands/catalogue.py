"""The names of all commands, and the help of those that take a recipe."""

from __future__ import annotations  # Pythons that are too old read this far.

import ast
import importlib
import pathlib

COMMANDS = {
    "init": "a folder with recipes to edit",
    "sft": "supervised fine-tuning on chains of thought",
    "grpo": "reinforced fine-tuning on questions with checkable answers",
    "pass_rate": "how often a checkpoint answers each training question right",
    "ablate": "a grid of GRPO runs, compared on held-out records",
    "evaluate": "completions of every record, and what they are worth",
    "score": "what the outputs of an evaluation are worth under a scorer",
    "compare": "evaluations side by side, paired by question",
    "benchmarks": "the benchmarks that can be evaluated, and what of them is on this disk",
    "export": "a checkpoint as a Hugging Face folder",
    "demo": "the whole method on synthetic clips in minutes",
    "plan": "what a config needs of a machine that is not here",
    "report": "a page with the curves of a run and everything that the model said",
    "ask": "questions about clips and images",
    "doctor": "what is wrong with this installation, this machine or the inputs of a run",
    "validate": "check records and media before training on them",
    "cache": "decode and resize every clip once",
    "convert": "records from the formats of the field",
    "inspect": "a record as the model sees it: frames, tokens, targets",
    "curate": "verified chains of thought out of questions and clips",
    "serve": "a checkpoint behind OpenAI's protocol of chat completions",
    "tfds": "a TFDS data set of records",
    "completion": "a script by which bash or zsh completes these commands",
}
WITH_OPTIONS = (
    "sft",
    "grpo",
    "pass_rate",
    "ablate",
    "evaluate",
    "demo",
)  # their --help lists configs/common.py


def list_commands() -> str:
    """A line for each command."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        ["videorft COMMAND --help for the flags and examples of a command", "", *lines]
    )


def print_help(name: str, argv: list[str]) -> None:
    """Prints what `videorft NAME --help` says. A command with a recipe is not imported for it,
    which would load JAX. Others raise SystemExit, as argparse does."""
    if name not in WITH_OPTIONS:
        importlib.import_module(f"videorft_jax.commands.{name}").main(argv)
        return
    from videorft_jax.commands import flags

    source = pathlib.Path(__file__).with_name(f"{name}.py").read_text()
    examples = next(
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "EXAMPLES"
    )
    print(flags.format_help(argv, examples))
