"""`videorft COMMAND ...`: finds the main of a command and turns its errors into one line."""

from __future__ import annotations  # Pythons that are too old read this far.

import _thread
import difflib
import functools
import importlib
import itertools
import os
import pathlib
import sys
import threading

import videorft_jax
from videorft_jax.commands.catalogue import COMMANDS, WITH_OPTIONS, list_commands, print_help

PYTHON = sys.version_info[:2]
# An empty system turn is none, an empty prefix that of no tensor, and options of a recipe may be
# empty; `ask` has words of its own for an empty question.
_MAY_BE_EMPTY = ("--system", "--strip_prefix", "--config.", "--question")


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done or stopped with a checkpoint written, 1 failed, 2 wrong usage or input, 130
    interrupted, 141 when nobody reads the output; under a supervisor 75 instead of 0 where it was
    stopped. `--debug` anywhere shows the trace of an error instead of its line."""
    # transformers would begin every command with a line that it misses PyTorch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    hook, sys.unraisablehook = sys.unraisablehook, _repeat_interrupt
    try:
        try:
            return _dispatch(sys.argv[1:] if argv is None else list(argv))
        finally:  # argparse prints its help and raises SystemExit
            sys.stdout.flush()
    except BrokenPipeError:  # `videorft ... | head`; nobody would read more
        return 141
    finally:
        sys.unraisablehook = hook
        _close_broken()


def _repeat_interrupt(unraisable):
    """Sends a Ctrl-C again that Python has swallowed, as it does where one comes while JAX cleans
    up behind the garbage collector: the command went on as if nothing had been asked of it."""
    if unraisable.exc_type is KeyboardInterrupt:
        threading.Timer(0.05, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(unraisable)


def _close_broken():
    """Lets what nobody reads go nowhere, so that Python finds nothing to complain of at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            stream.flush()


def _dispatch(argv):
    is_debugging = "--debug" in argv
    argv = [argument for argument in argv if argument != "--debug"]
    if argv[:1] == ["help"]:
        argv = [*argv[1:2], "--help"]
    if argv[:1] in (["--version"], ["version"]):
        print(f"videorft {videorft_jax.__version__}")
        return 0
    if not argv or argv[0] in ("-h", "--help"):
        print(list_commands())
        return 0
    if not (3, 11) <= PYTHON < (3, 13):
        from videorft_jax.doctor.installation import check_python

        finding = check_python(PYTHON)
        print(f"videorft: {finding.text}; {finding.remedy}", file=sys.stderr)
        return 2
    if os.getcwd() not in sys.path:  # The user's own rewards lie here; last, it hides no module.
        sys.path.append(os.getcwd())
    name, *rest = argv
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        known = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(COMMANDS)}"
        print(f"videorft: no command {name!r}; {known}", file=sys.stderr)
        return 2
    if name in WITH_OPTIONS:
        from videorft_jax.commands import flags

        if flags.wants_help(rest):
            return run(functools.partial(print_help, name), rest, f"videorft {name}", is_debugging)

    def command(argv):  # Its import takes seconds, in which Ctrl-C may come.
        if name not in WITH_OPTIONS:
            _check_flags(argv)
        return importlib.import_module(f"videorft_jax.commands.{name}").main(argv)

    return run(command, rest, f"videorft {name}", is_debugging)


def _check_flags(argv):
    """Raises ValueError for a flag without a value, as --out=$OUT where OUT is not set: a command
    would take what it takes without the flag."""
    for flag, value in itertools.pairwise([*argv, None]):
        flag, found, own = flag.partition("=")
        is_empty = not own if found else value == ""
        is_own = flag.startswith("--") and not flag.startswith(_MAY_BE_EMPTY)
        if is_own and is_empty:
            raise ValueError(f"{flag}= is empty; give a value, or leave the flag out")


def run(main, argv: list[str], name: str, is_debugging: bool = False) -> int:
    """Calls `main(argv)`; errors meant for the user become one line."""
    if mark := os.environ.get("VIDEORFT_UP"):  # a launcher waits for it, see launch/supervise.sh
        pathlib.Path(mark).touch()
    try:
        return main(argv) or 0
    except BrokenPipeError:  # an OSError that is no fault of a file
        raise
    except KeyboardInterrupt:
        if is_debugging:
            raise
        print(f"{name}: interrupted; the same command goes on from what is kept", file=sys.stderr)
        return 130
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        if is_debugging or not (text := _explain(error)):
            raise  # a fault of ours or of the platform: its trace is wanted
        print(f"{name}: {text}", file=sys.stderr)
        return 2 if isinstance(error, ValueError | ImportError) else 1


def _explain(error):
    """The line for an error that the user can do something about; "" for other errors."""
    if type(error).__module__.startswith(("jax", "jaxlib")):
        if "RESOURCE_EXHAUSTED" not in str(error):
            return ""
        return (
            f"a device ran out of memory ({' '.join(str(error).split())[:120]}); take fewer rows, "
            "frames or new tokens, or more devices; `videorft plan` says what each program of a "
            "config needs"
        )
    if isinstance(error, ImportError):
        if (error.name or "").startswith("videorft_jax"):
            return ""
        if isinstance(error, ModuleNotFoundError):
            return f"{error}; see the extras under Start in the README"
        return f"{error}; an installed package is broken, `videorft doctor` says which"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}; see that it can be read and written and has room"
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
