"""The table of drills: one line of JSON for each finished moment, one row for each drill."""

import collections
import json
import pathlib
import statistics

HEAD = (
    "| drill | job | moments | survived | steps lost | samples lost or repeated | s to recover |\n"
    "|---|---|---|---|---|---|---|"
)


class Moments:
    """The finished moments of a file, to which each new one is appended."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.rows = []
        if path.exists():
            text = path.read_text()
            rows = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
            self.rows = list({_key(row): row for row in rows}.values())

    def has(self, drill: str, job: str, moment: int) -> bool:
        """Whether the moment is finished and was survived; one that was not is taken again."""
        return any(_key(row) == (drill, job, moment) and row["survived"] for row in self.rows)

    def add(self, row: dict) -> None:
        self.rows = [other for other in self.rows if _key(other) != _key(row)]
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def format(self, names: dict[str, str]) -> str:
        """The table in Markdown; `names` gives drills by their number, in order."""
        groups = collections.defaultdict(list)
        for row in self.rows:
            groups[row["drill"], row["job"]].append(row)
        order = list(names)
        lines = [HEAD]
        for (drill, job), rows in sorted(groups.items(), key=lambda item: order.index(item[0][0])):
            good = [row for row in rows if row["survived"]]
            lost = [row["steps_lost"] for row in good if row.get("steps_lost") is not None]
            wrong = [row["samples_wrong"] for row in good if row.get("samples_wrong") is not None]
            times = [row["recover_s"] for row in good if row.get("recover_s") is not None]
            lines.append(
                f"| {drill}. {names[drill]} | {job} | {len(rows)} | {len(good)} | "
                f"{_range(lost)} | {sum(wrong) if wrong else '-'} | "
                f"{f'{statistics.median(times):.1f}' if times else '-'} |"
            )
        return "\n".join(lines)


def _key(row):
    return row["drill"], row["job"], row["moment"]


def _range(values):
    if not values:
        return "-"
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"
