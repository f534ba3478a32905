"""`videorft completion`: a script by which a shell completes commands, flags, options and recipes.

Flags are read from each command's own `--help`, so that there is one text to keep.
"""

import argparse
import contextlib
import io
import re

from videorft_jax.commands import recipes
from videorft_jax.commands.catalogue import COMMANDS, print_help
from videorft_jax.commands.last_line import print_last_line

SHELLS = ("bash", "zsh")
# A shell splits `--config=sft_7b` into three words, so the option of a value stands before the "=".
_SCRIPT = """
_videorft() {{
  local now="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words="" option=""
  if [[ $now == "=" ]]; then option=$before now=""
  elif [[ $before == "=" ]]; then option="${{COMP_WORDS[COMP_CWORD-2]}}"
  elif [[ $before == --config ]]; then option=$before
  fi
  if [[ $option == --config ]]; then words="{recipes}"
  elif [[ -z $option && $COMP_CWORD -eq 1 ]]; then words="{commands}"
  elif [[ -z $option ]]; then
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$now"))
  [[ ${{#COMPREPLY[@]}} -eq 1 && ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace 2>/dev/null
  return 0
}}
complete -o default -F _videorft videorft
"""


def main(argv: list[str]) -> int:
    """Writes a script for a shell, which completes what may follow `videorft`. Keep it where the
    shell looks for such scripts, or source it."""
    parser = argparse.ArgumentParser(
        prog="videorft completion",
        usage="videorft completion bash > ~/.local/share/bash-completion/completions/videorft",
        description=main.__doc__,
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=SHELLS)
    own = parser.parse_args(argv)
    cases = [f'      {name}) words="{" ".join(find_flags(name))}" ;;' for name in COMMANDS]
    script = _SCRIPT.format(
        recipes=" ".join(recipes.names()), commands=" ".join(COMMANDS), cases="\n".join(cases)
    )
    if own.shell == "zsh":
        script = f"autoload -U +X bashcompinit && bashcompinit\n{script}"
    print(script)
    print_last_line(f"a script for {own.shell}", "completion", own.shell, to_stderr=True)
    return 0


def find_flags(command: str) -> list[str]:
    """The flags and options of a command, those of a recipe with the "=" of their value."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        print_help(command, ["--help"])
    found = set(re.findall(r"^\s+(?:-\w, )?(--[\w.]+=?)", text.getvalue(), re.MULTILINE))
    if "--config=" in text.getvalue():  # Some name it in their examples alone.
        found.add("--config=")
    return sorted(name for name in found - {"--help"} if f"{name}=" not in found)
