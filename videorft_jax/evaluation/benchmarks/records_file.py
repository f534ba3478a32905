"""A record file as a benchmark: `eval_NAME.json` of Video-R1 and VideoRFT, `valid_data` of
EasyVideoR1, or any other."""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Collection, Iterator

from videorft_jax.evaluation.benchmarks.task import Item, Task, read_rows, without_letters

ENDINGS = (".json", ".jsonl", ".parquet")
# Rows of the files that Video-R1-eval holds.
_ROWS = {"vsibench": 5130, "videommmu": 900, "mmvu": 625, "mvbench": 4000, "videomme": 2700,
         "tempcompass": 7540}  # fmt: skip
_CATEGORIES = ("original_question_type", "duration", "domain", "sub_category", "task_type",
               "data_source")  # fmt: skip
_TAGS = re.compile(r"</?(?:think|answer)>")


@dataclasses.dataclass(frozen=True)
class RecordsTask(Task):
    """A benchmark in one record file, named as users name the file: from the data root, or from
    where they are."""

    def find_folder(
        self, data_root: str | pathlib.Path, others: Collection[str] = ()
    ) -> pathlib.Path | None:
        """The folder from which the paths of the records start."""
        root, (name,) = pathlib.Path(data_root), self.files
        return root if (root / name).is_file() or pathlib.Path(name).is_file() else None


def records_task(name: str) -> Task:
    """The benchmark of the record file `name`; eval_mmvu.json is called mmvu."""
    stem = pathlib.Path(name).stem
    called = stem.removeprefix("eval_")

    def read(folder: pathlib.Path) -> Iterator[Item]:
        path = folder / name
        return _read_items(path if path.is_file() else pathlib.Path(name))

    num_rows = _ROWS.get(called, 0) if stem.startswith("eval_") else 0
    source = "Video-R1/Video-R1-eval" if num_rows else "it from where its data come from"
    return RecordsTask(called, name, num_rows, (name,), (".",), source, "that of its data", read)


def _read_items(path):
    seen: collections.Counter[str] = collections.Counter()
    for place, row in enumerate(read_rows(path)):
        name = str(row.get("problem_id", place))
        seen[name] += 1
        if seen[name] > 1:  # some files repeat ids
            name = f"{name}#{seen[name]}"
        kind, solution = row["problem_type"], row["solution"]
        if not isinstance(solution, str | int | float):
            raise ValueError(f"{path}: row {place}: solution is {solution!r}; write the answer")
        part = {
            "type": "image" if row.get("data_type") == "image" else "video",
            "path": row["path"],
        }
        part |= {key: row[key] for key in ("start", "end") if row.get(key) is not None}
        categories = {key: row[key] for key in _CATEGORIES if row.get(key)}
        if "original_question_type" in categories:
            categories["question_type"] = categories.pop("original_question_type")
        options, lines = without_letters(row.get("options")), row.get("options")
        is_lettered = isinstance(lines, list) and options != tuple(str(x).strip() for x in lines)
        yield Item(
            id=name,
            question=row["problem"],
            kind=kind,
            gold=_TAGS.sub("", str(solution)).strip(),
            media=(part,),
            options=options,
            option_lines=tuple(map(str, lines)) if is_lettered else (),
            categories=categories or {"type": kind},
        )
