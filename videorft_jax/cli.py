"""`videorft COMMAND ...`: finds the main of a command and turns its errors into one line."""

import importlib
import os
import pathlib
import sys

COMMANDS = {
    "sft": "supervised fine-tuning on chains of thought",
    "grpo": "reinforced fine-tuning on questions with checkable answers",
    "ablate": "a grid of GRPO runs, compared on held-out records",
    "evaluate": "completions of every record, and what they are worth",
    "export": "a checkpoint as a Hugging Face folder",
    "demo": "the whole method on synthetic clips in minutes",
    "plan": "what a config needs of a machine that is not here",
    "report": "a page with the curves of a run and everything that the model said",
    "ask": "one question about one clip",
    "validate": "check records and media before training on them",
    "cache": "decode and resize every clip once",
}


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done or stopped by SIGTERM with a checkpoint written, 1 failed, 2 wrong usage or
    input, 130 interrupted; under a supervisor 75 instead of 0 where it was stopped."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("videorft COMMAND --help for the flags and examples of a command\n")
        for name, text in COMMANDS.items():
            print(f"  {name:<{width}}  {text}")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        print(f"videorft: no command {name!r}; choose one of {known}", file=sys.stderr)
        return 2
    return run(
        importlib.import_module(f"videorft_jax.commands.{name}").main, rest, f"videorft {name}"
    )


def run(main, argv: list[str], name: str) -> int:
    """Calls `main(argv)`; errors meant for the user become one line."""
    if mark := os.environ.get("VIDEORFT_UP"):  # a launcher waits for it, see launch/supervise.sh
        pathlib.Path(mark).touch()
    try:
        return main(argv) or 0
    except ValueError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if type(error).__module__.startswith(("jax", "jaxlib")):
            raise  # a fault of ours or of the platform: its trace is wanted
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
