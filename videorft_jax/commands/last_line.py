"""The last line of a command, which says what was written and which command usually follows."""

import shlex
import sys


def print_last_line(written: str, *following: str, to_stderr: bool = False) -> None:
    """Prints the last line: `written` is a clause, `following` the words of the next command behind
    `videorft`. A command whose stdout is read by programs prints it `to_stderr`.

    Words are quoted as a shell wants them; "..." stands for what the user has to fill in.
    """
    words = " ".join(shlex.quote(str(word)) for word in following)
    out = sys.stderr if to_stderr else sys.stdout
    print(f"{written}; next: videorft {words}", file=out, flush=True)
