"""`videorft report`: a page with the curves of a run and everything that the model said."""

import argparse
import os
import time
from collections.abc import Callable

from videorft_jax.commands.last_line import print_last_line
from videorft_jax.commands.output_file import check_output
from videorft_jax.data.progress import Bar

EXAMPLES = """videorft report runs/grpo_7b
videorft report runs/no_semantic runs/grpo_7b --out=compared.html
videorft report runs/grpo_7b/mmvu --data=eval_mmvu.json --data_root=videos
videorft report runs/grpo_7b --live"""
_LIVE_S = 30


def main(argv: list[str]) -> int:
    """Writes one HTML file that needs no other: curves, and a gallery of questions, frames,
    completions, rewards and advantages, with filters. A second run is shown beside the first."""
    parser = argparse.ArgumentParser(
        prog="videorft report",
        usage=EXAMPLES,
        description=main.__doc__,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN_DIR", help="work directory of sft, grpo or evaluate")
    add(
        "--out",
        type=os.path.expanduser,
        help="file to write; default: report.html in the first run",
    )
    add("--data", default="", help="record file of the clips; default: that of the run")
    add("--data_root", default="", help="folder of the media; default: that of the run")
    add("--films_mib", type=int, default=32, help="most MiB of frames, default: 32; 0: show none")
    add("--live", action="store_true", help=f"write the page again every {_LIVE_S} s, until Ctrl-C")
    own = parser.parse_args(argv)
    if len(own.runs) > 2:
        raise ValueError(f"{len(own.runs)} runs are given; give one, or two to compare them")
    if own.films_mib < 0:
        raise ValueError(f"--films_mib={own.films_mib}; give at least 0")
    if own.out:
        check_output(own.out, kinds=(".html", ".htm"))
    from videorft_jax.reporting.report import ReportOptions, default_path, write_report

    path = own.out or default_path(own.runs[0])
    refresh = _LIVE_S if own.live else 0
    options = ReportOptions(own.data, own.data_root, own.films_mib, refresh)
    while True:
        runs = write_report(own.runs, path, options, _make_show())
        for run in runs:
            for note in run.notes:
                print(f"{run.folder}: {note}")
        print_last_line(f"{path} is for a browser", "report", *own.runs[:1], "--live")
        if not own.live:
            return 0
        time.sleep(_LIVE_S)


def _make_show() -> Callable[[int, int], None]:
    """What draws how many of all clips have been read."""
    bars: dict[int, Bar] = {}

    def show(done, total):
        if total not in bars:
            bars[total] = Bar(total, unit="clips")
        bars[total](done)

    return show
