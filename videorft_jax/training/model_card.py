"""The model card of an export: what it was made of, how, and under which licences."""

import json
import pathlib
import re

from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.media.processor_files import describe_equality
from videorft_jax.data.records.system_turn import FILE_NAME as SYSTEM_FILE
from videorft_jax.training.restore import Saved

FILE_NAME = "README.md"
_RULES = {
    "qwen": "transformers 4.49 to 4.51 and vLLM",
    "hf4": "transformers 4.52 to 5.2",
    "hf5": "transformers from 5.18 on",
}
_LOADED = """from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(FOLDER)
processor = AutoProcessor.from_pretrained(FOLDER)"""
_ADAPTED = """from peft import AutoPeftModel

model = AutoPeftModel.from_pretrained(FOLDER)"""


def write_card(saved: Saved, source: str, public: str = "", *, is_adapter: bool = False) -> str:
    """The Markdown of a checkpoint's card, with a header that the hub reads. `source` is the folder
    that the run started from, and `public` its name on the hub, "" where it has none; its card
    names the licence of the base, and where it has none the card says so. Files are named without
    the folders they lie in."""
    options, base = saved.meta["config"], public or pathlib.Path(source).name
    licence = find_licence(source)
    header = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "video-text-to-text",
        "base_model": base,
        "license": licence or "other",
        "tags": ["videorft_jax"],
    }
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in header.items()), "---", ""]
    lines += [f"# {options['name']}, step {saved.step}", ""]
    lines += ["## How it was made", "", *_recipe(saved, base), ""]
    lines += [*_metrics(saved), "## How clips are read", "", *_media(saved.contract), ""]
    if saved.system:
        lines += ["## How it is asked", "", *_system(saved.system), ""]
    lines += ["## How to load it", "", "```python", _ADAPTED if is_adapter else _LOADED, "```", ""]
    named = f"`{licence}`" if licence else "not named in its folder; look it up before you publish"
    lines += [
        "## Licences",
        "",
        f"- Weights it started from, `{base}`: {named}.",
        "- Data: the licences of its records and clips hold as well; they are not written here.",
    ]
    return "\n".join(lines) + "\n"


def find_licence(source: str) -> str | None:
    """The licence in the header of the README.md of a folder, None where it names none."""
    path = pathlib.Path(source) / FILE_NAME
    if not path.is_file():
        return None
    header = re.match(r"---\s*\n(.*?)\n---", path.read_text(errors="replace"), re.DOTALL)
    found = re.search(r"^license:\s*[\"']?([\w.+-]+)", header[1], re.MULTILINE) if header else None
    return found[1] if found else None


def _recipe(saved, base):
    options, lora = saved.meta["config"], saved.lora
    trained = f"adapters of rank {lora.rank}, alpha {lora.alpha:g}" if lora else "the weights"
    records = [pathlib.PurePath(name).name for name in _names(options["data"]["records"])]
    optim = options["optim"]
    return [
        f"- Recipe `{options['name']}` of videorft_jax, {saved.step} steps; it trained {trained}.",
        f"- Started from `{base}`.",
        f"- Records: {', '.join(f'`{name}`' for name in records)}.",
        f"- Optimizer {optim['name']}, learning rate {optim['lr']:g}, seed {options['seed']}.",
    ]


def _names(records):
    return records.split(",") if isinstance(records, str) else list(records)


def _metrics(saved):
    """The numbers that the run logged last, up to the step of the checkpoint. A line that is torn,
    as the last one of a run that goes on or was killed may be, is left out."""
    path, last = pathlib.Path(saved.workdir) / "metrics.jsonl", {}
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and values.get("step", 0) <= saved.step:
            last |= {name: x for name, x in values.items() if isinstance(x, int | float)}
    kinds = ("loss", "reward", "accuracy", "kl")
    shown = {name: x for name, x in last.items() if any(kind in name for kind in kinds)}
    if not shown:
        return []
    lines = ["## Metrics of its training", "", "| metric | value |", "|---|---|"]
    return [*lines, *(f"| {name} | {value:.4g} |" for name, value in sorted(shown.items())), ""]


def _system(text):
    return [
        f"Its prompts began with this system turn, which `{SYSTEM_FILE}` holds. `videorft ask` and",
        "`videorft serve` put it first; other programs want it in the messages.",
        "",
        *(f"> {line}" for line in text.splitlines()),
    ]


def _media(contract: MediaContract):
    rows = (f"| {name} | {value} |" for name, value in contract.to_dict().items())
    return [
        "`media_contract.json` holds the rules by which it was trained, and `videorft ask` reads",
        f"them. {describe_equality(contract)} Positions are those of",
        f"{_RULES[contract.mrope_rule]}; other versions number clips otherwise.",
        "",
        "| rule | value |",
        "|---|---|",
        *rows,
    ]
