"""The report of `videorft validate` as a table for people."""

from typing import Any

from videorft_jax.data.records.quarantine import reason_table
from videorft_jax.data.records.records import PAGE

MOST_KINDS = 20  # kinds of records and frame sizes that are shown


def print_report(report: dict[str, Any], most: int) -> None:
    """The table for people, with at most `most` faults one by one."""
    print(f"{report['data']}: {report['num_good']} of {report['num_records']} records are good")
    print(f"read as format {report['format']}, checked for {report['mode']} ({report['why']})")
    if report["reasons"]:
        print(reason_table(report["reasons"], report["num_records"]))
    for fault in report["faults"][:most]:
        print("  row {index}: {where}: {reason}: {detail}; {remedy}".format(**fault))
    if len(report["faults"]) > most:
        print(f"  and {len(report['faults']) - most} more; --faults N shows N, --json all of them")
    if "schema" in report["reasons"]:
        print(f"  {PAGE} has a row of each type")
    for name, count in report["unused_fields"].items():
        print(
            f"  {count} records: {name}: changes nothing; remove it, or give --allow_extra {name}"
        )
    for title in ("duplicates", "odd"):
        for what, rows in report[title].items():
            if rows:
                print(f"{title}: {what}: {len(rows)}, first row {rows[0]}")
    for name in ("types", "frame_sizes"):
        shown = list(report[name].items())[:MOST_KINDS]
        print(f"{name.replace('_', ' ')}: " + "; ".join(f"{k}: {v}" for k, v in shown))
    print(f"{'':<16}" + "".join(f"{c:>10}" for c in ("min", "mean", "median", "p95", "max")))
    for name in ("tokens", "visual_tokens", "frames", "seconds"):
        if report[name]:
            print(f"{name:<16}" + "".join(f"{v:>10.1f}" for v in report[name].values()))
    plan = report["plan"]
    print(f"text tokens: {report['text_tokens']}")
    print(f"{plan['num_shapes']} compiled shapes, {plan['num_batches']} batches an epoch")
    for shape in plan["shapes"]:
        print(
            "  {rows} rows of {length} tokens, {pairs} frame pairs, {windows} windows: {batches}"
            " batches".format(**shape)
        )
    if plan["too_many_tokens"]:
        rows = plan["too_many_tokens"]
        print(f"too long for a row: {len(rows)} records, first row {rows[0]}; raise --row_tokens")
    if plan["shapes"]:
        tokens, slots = plan["padding_of_tokens"], plan["padding_of_visual_slots"]
        print(f"padding: {tokens:.1%} of tokens, {slots:.1%} of visual token slots")
