"""First paint of a report of 10,000 groups in a browser, beside a page that holds all of it.

    PYTHONPATH=. python benchmarks/report_page.py --json

The same run of eight completions a group becomes our page, whose groups are unpacked when they are
looked at, and a plain page with every text in it. Each is opened in turn in a browser of its own;
medians over the rounds of first-contentful-paint, of the time until it can be used and, for ours,
of sorting all groups. A ratio above 1 means that ours is better.
"""

import argparse
import html
import json
import pathlib
import statistics
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests/support"))

import host  # noqa: E402
from browser import run_in_page  # noqa: E402
from written_runs import write_many  # noqa: E402

from videorft_jax.reporting.report import ReportOptions, write_report  # noqa: E402
from videorft_jax.reporting.runs import Run  # noqa: E402

_PAINT = """
    await until(() => performance.getEntriesByName('first-contentful-paint').length);
    const paint = performance.getEntriesByName('first-contentful-paint')[0].startTime;
    const ready = performance.now();"""
OURS = f"""{_PAINT}
    $('#sort').value = 'spread';
    $('#sort').dispatchEvent(new Event('change'));
    await until(() => location.hash === '#sort=spread' && $('.group h3 a').textContent !== '1/0');
    return {{ paint, ready, sort: performance.now() - ready }};"""
PEER = f"{_PAINT} return {{ paint, ready }};"


def write_plain(run: Run, path: pathlib.Path) -> None:
    """A page with a section a group, as a template would write it."""
    parts = ["<!DOCTYPE html><meta charset=utf-8><body>"]
    for group in run.groups:
        answers = "".join(
            f"<details><summary>{each.total:.3f}</summary><pre>{html.escape(each.text)}</pre></details>"
            for each in group.completions
        )
        parts.append(f"<section><h3>{group.key}</h3><p>{html.escape(group.problem)}</p>{answers}")
    parts.append("<script>document.body.dataset.ready = 'yes'</script>")
    path.write_text("".join(parts), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--groups", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    own = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        pages = {"ours": folder / "ours.html", "peer": folder / "peer.html"}
        made = write_many(folder / "run", own.groups, 8)
        (run,) = write_report([made], pages["ours"], ReportOptions())
        write_plain(run, pages["peer"])
        found: dict[str, list[dict]] = {"ours": [], "peer": []}
        for _ in range(own.rounds):
            for side, script in (("ours", OURS), ("peer", PEER)):
                found[side].append(run_in_page(pages[side], script, seconds=600))
        sizes = {f"{side}_mib": path.stat().st_size / 2**20 for side, path in pages.items()}
    medians = {
        side: {f"{key}_s": statistics.median(row[key] for row in rows) / 1000 for key in rows[0]}
        for side, rows in found.items()
    }
    for side, values in medians.items():
        print(f"{side:5}", *(f"{key} {value:.2f}" for key, value in values.items()))
    if own.json:
        ratio = {
            key: medians["peer"][f"{key}_s"] / medians["ours"][f"{key}_s"]
            for key in ("paint", "ready")
        }
        shape = {"groups": own.groups, "completions": 8, **sizes}
        machine = host.describe()
        print(json.dumps({"machine": machine, "shape": shape, **medians, "ratio": ratio}))


if __name__ == "__main__":
    main()
