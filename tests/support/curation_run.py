"""A small pool of pictures and a config file against a fake server, for tests of curation."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
from PIL import Image

from videorft_jax.curation.config_file import read_config
from videorft_jax.curation.run import Curation
from videorft_jax.demo.dataset import write_clip

ROOT = pathlib.Path(__file__).parents[2]


def residue(digest: str, modulus: int) -> int:
    """Returns a number below `modulus` that the digest of a request decides, whatever the order."""
    return int(digest[:4], 16) % modulus


def make_pool(folder, questions, *, clips=None, problem_type="free-form"):
    """Writes one picture a question (or `clips` in turn) and the record file."""
    folder.mkdir(parents=True, exist_ok=True)
    number = clips or len(questions)
    for index in range(number):
        pixels = np.random.default_rng(index).integers(0, 255, (56, 56, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    rows = [
        {
            "problem_id": index, "problem": text, "data_type": "image",
            "problem_type": problem_type, "options": [], "process": "",
            "solution": f"<answer>blue ball {index}</answer>", "path": f"./{index % number}.png",
            "data_source": "made up",
        }
        for index, text in enumerate(questions)
    ]  # fmt: skip
    path = folder / "pool.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_clips(folder, number, *, seconds=4, size=56):
    """A pool of one question about each of so many clips, at four frames a second."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(number):
        pixels = np.random.default_rng(index).integers(
            0, 255, (4 * seconds, size, size, 3), np.uint8
        )
        write_clip(folder / f"{index}.mp4", pixels, 4)
        rows.append(
            {
                "problem_id": index, "problem": ask(index), "data_type": "video",
                "problem_type": "free-form", "options": [], "process": "",
                "solution": f"<answer>blue ball {index}</answer>", "path": f"./{index}.mp4",
                "data_source": "made up",
            }
        )  # fmt: skip
    path = folder / "pool.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ask(index, drill=""):
    mark = f" [drill:{drill}]" if drill else ""
    return f"What rolls in picture {index}? (gold blue ball {index}){mark}"


def write_config(
    path,
    pool,
    url,
    *,
    budget="",
    stages="",
    endpoint="",
    per_stage=None,
    val_fraction=0.0,
    max_output=600,
):
    ends = "\n".join(
        f'[endpoints.{name}]\nmodel = "fake-{name}"\n'
        f'base_urls = ["{(per_stage or {}).get(name, url)}"]\nmax_output = {max_output}\n'
        f'terms = {{allows_training = "unknown"}}\n{endpoint}\n'
        for name in ("describe", "think", "revise")
    )
    path.write_text(
        f'[data]\nrecords = "{pool}"\nval_fraction = {val_fraction}\nisolate = false\n'
        f"[stages]\nmost_alike = 10000\n{stages}\n[budget]\n{budget}\n{ends}\n{licence('made up')}"
    )
    return path


def licence(source, *, name="CC0-1.0", allows="yes", read_on="2026-11-29"):
    """The section about one source: its questions as said, of its media nothing is known."""
    text = f'{{clause = "{name}", url = "https://a.b/c", read_on = "{read_on}", '
    text += f'allows_training = "{allows}"}}'
    return (
        f"[licences.{json.dumps(source)}]\ntext = {text}\nmedia = {{allows_training = 'unknown'}}\n"
    )


def command(config, workdir, *flags):
    name = [sys.executable, "-m", "videorft_jax.cli", "curate"]
    return [*name, f"--config={config}", f"--workdir={workdir}", *flags]


def run(config, workdir, *flags, env=None, timeout=600):
    """(exit code, last line of standard output as JSON or {}, standard error)."""
    done = subprocess.run(
        command(config, workdir, *flags),
        capture_output=True, text=True, cwd=ROOT, timeout=timeout,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | (env or {}),
    )  # fmt: skip
    lines = done.stdout.strip().splitlines()
    summary = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    return done.returncode, summary, done.stderr + done.stdout


def curate(config, workdir, shard=(0, 1)):
    """The result of a run in this process."""
    options = read_config(config)
    with Curation(options, str(workdir), shard) as curation:
        return curation.run()


def run_here(config, workdir):
    """(exit code, counts, reasons for stopping) of a run in this process."""
    result = curate(config, workdir)
    return result.exit_code, vars(result.counts), "\n".join(result.reasons)


def files(workdir):
    """Every file that curation wrote, without its store."""
    return {
        path.name: path.read_bytes()
        for path in sorted(pathlib.Path(workdir).glob("*"))
        if path.suffix in (".jsonl", ".md")
    }
