"""The script of `videorft completion` in a real shell: what it offers for what has been typed."""

import shutil
import subprocess

import pytest

from videorft_jax import cli
from videorft_jax.commands import recipes

# Words as bash splits them, with "=" apart, and what is offered for the last of them.
TYPED = [
    ("s", {"sft", "score", "serve"}),
    ("sft --config = grpo_7", {"grpo_7b", "grpo_7b_lora"}),
    ("sft --config =", set(recipes.names())),
    ("sft --config grpo_qwen3vl_8", {"grpo_qwen3vl_8b"}),
    ("grpo --config.optim.l", {"--config.optim.lr="}),
    ("grpo --work", {"--workdir"}),
    ("evaluate --bench", {"--benchmarks="}),
    ("ask --sh", {"--show"}),
    ("ask --video = cl", set()),  # The shell then offers files.
    ("nonsense --sh", set()),
]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scripts")
    with pytest.MonkeyPatch.context() as patch:
        for shell in ("bash", "zsh"):
            with (folder / shell).open("w") as file:
                patch.setattr("sys.stdout", file)
                assert cli.main(["completion", shell]) == 0
    return folder


def test_bash_offers_commands_flags_recipes_and_options(scripts):
    calls = "".join(
        f"COMP_WORDS=(videorft {words}); "
        'COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _videorft; echo "${COMPREPLY[@]}"\n'
        for words, _ in TYPED
    )
    script = f"source {scripts / 'bash'}\n{calls}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    offered = [set(line.split()) for line in done.stdout.split("\n")[: len(TYPED)]]
    assert offered == [wanted for _, wanted in TYPED]


def test_zsh_reads_the_same_script_behind_its_own_line(scripts):
    first, rest = (scripts / "zsh").read_text().split("\n", 1)
    assert first == "autoload -U +X bashcompinit && bashcompinit"
    assert rest == (scripts / "bash").read_text()
    if shell := shutil.which("zsh"):
        subprocess.run([shell, "-fc", f"source {scripts / 'zsh'}"], check=True)


def test_another_shell_is_refused(capsys):
    with pytest.raises(SystemExit):
        cli.main(["completion", "fish"])
    assert "invalid choice: 'fish'" in capsys.readouterr().err
