"""What papers report, for a table beside our own numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

PAPER = "VideoRFT-7B"
# Shares of right answers, as the tables of VideoRFT (arXiv 2505.12434) and Video-R1 print them, at
# 32 frames. VideoRFT's own baseline row is Video-R1's model after SFT at 16 frames, so that the
# base model stands here as Video-R1 measured it with the same script.
_COLUMNS = ("vsibench", "videommmu", "mmvu", "mvbench", "tempcompass", "videomme")
_TABLE = {
    PAPER: (0.368, 0.511, 0.685, 0.621, 0.737, 0.598),
    "VideoRFT-3B": (0.325, 0.411, 0.551, 0.595, 0.610, 0.454),
    "Video-R1-7B": (0.358, 0.523, 0.638, 0.639, 0.732, 0.593),
    "Qwen2.5-VL-7B": (0.301, 0.481, 0.600, 0.590, 0.726, 0.566),
}


def published(benchmark: str) -> dict[str, float]:
    """The published numbers of a benchmark by model; empty for one that no table has."""
    if benchmark not in _COLUMNS:
        return {}
    place = _COLUMNS.index(benchmark)
    return {model: row[place] for model, row in _TABLE.items()}


def format_published(lines: Sequence[Mapping[str, Any]]) -> str:
    """A table of the headlines of runs beside the published numbers; "" where there are none."""
    whole = [line for line in lines if not line["category"] and line["published"]]
    if not whole:
        return ""
    runs = list(dict.fromkeys(line["run"] for line in whole))
    head = " | ".join(["benchmark", *runs, *(f"{model}, published" for model in _TABLE)])
    out = [
        "Headlines beside published numbers, those of the as_paper variant and --scorer=videorft",
        "",
        f"| {head} |",
        "|---" * (1 + len(runs) + len(_TABLE)) + "|",
    ]
    for name in dict.fromkeys(line["benchmark"] for line in whole):
        own = {line["run"]: line for line in whole if line["benchmark"] == name}
        cells = [f"{own[run]['headline']:.4f}" if run in own else "-" for run in runs]
        cells += [f"{value:.3f}" for value in published(name).values()]
        out.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*out, ""])
