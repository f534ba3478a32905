"""Video-MME, Video-MME-v2, LVBench, MLVU and LongVideoBench as their releases have them."""

import collections
import pathlib
from collections.abc import Iterator

from videorft_jax.evaluation.benchmarks import wording
from videorft_jax.evaluation.benchmarks.subtitles import Subtitles
from videorft_jax.evaluation.benchmarks.task import (
    Item,
    Task,
    choose,
    find_files,
    find_media,
    read_rows,
    without_letters,
)
from videorft_jax.evaluation.scoring.choices import find_options, without_options

# Video-MME-v2 introduces its subtitles so.
_WORDS = "This video's subtitles are listed below:\n{lines}\n\n"
_MLVU = {"1_plotQA", "2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco",
         "7_topic_reasoning"}  # fmt: skip


def read_videomme(folder: pathlib.Path) -> Iterator[Item]:
    """Reads the questions about short, medium and long films, whose files have three suffixes."""
    for path in find_files(folder, "videomme/test-*.parquet", "test-*.parquet", "*.json"):
        for row in read_rows(path):
            options, name = without_letters(row["options"]), row["videoID"]
            names = [f"{place}/{name}{end}" for place in ("data", "videos") for end in
                     (".mp4", ".MP4", ".mkv")]  # fmt: skip
            yield Item(
                id=str(row["question_id"]),
                question=row["question"],
                kind="multiple choice",
                gold=str(row["answer"]),
                media=(find_media(folder, *names),),
                options=options,
                categories={
                    name: row.get(name, "")
                    for name in ("duration", "domain", "sub_category", "task_type")
                },
                wording=wording.videomme(row["question"], options),
                subtitles=Subtitles(f"subtitle/{name}.srt"),
            )


def read_videomme_v2(folder: pathlib.Path) -> Iterator[Item]:
    """Reads the questions in groups of four, one group a film."""
    for path in find_files(folder, "*test*.parquet", "data/*.parquet", "*.json"):
        rows = list(read_rows(path))
        levels = {_group(row): row["level"] for row in rows if row.get("level") is not None}
        seen: collections.Counter[str] = collections.Counter()
        for number, row in enumerate(rows):
            options, name = without_letters(row["options"]), str(row["video_id"])
            seen[_group(row)] += 1
            places = [f"{place}/{name}{end}" for place in ("data", "videos") for end in
                      (".mp4", ".MP4", ".mkv")]  # fmt: skip
            yield Item(
                id=str(row.get("question_id", number)),
                question=row["question"],
                kind="multiple choice",
                gold=str(row["answer"]),
                media=(find_media(folder, *places),),
                options=options,
                categories={
                    "group": _group(row),
                    "group_place": seen[_group(row)],  # from 1
                    "group_type": row["group_type"],
                    "group_structure": row.get("group_structure") or [],
                    "level": levels.get(_group(row), ""),  # only one of a group's rows has it
                },
                wording=wording.videomme_v2(row["question"], options),
                subtitles=Subtitles(f"subtitle/subtitle/{name}.jsonl", _WORDS, is_whole=True),
            )


def _group(row) -> str:
    """The four questions about one clip are a group."""
    return str(row.get("group_id", row["video_id"]))


def read_lvbench(folder: pathlib.Path) -> Iterator[Item]:
    """Reads the questions about films of up to two hours; their texts hold the options."""
    (path, *_) = find_files(folder, "video_info.meta.jsonl", "data/train-*.parquet")
    for number, row in enumerate(read_rows(path)):
        for own in row.get("qa") or [row]:
            text, options = own["question"], without_letters(own.get("options"))
            if options:
                text = wording.join(text, *wording.lettered(options, wording.IN_BRACKETS))
            else:
                options = tuple(find_options(text)[1])
            name = row.get("video_path") or f"{row['key']}.mp4"
            yield Item(
                id=str(own.get("uid", own.get("id", number))),
                question=without_options(text),
                kind="multiple choice",
                gold=str(own["answer"]),
                media=(find_media(folder, f"videos/{name}", name, f"all_videos/{name}"),),
                options=options,
                categories={"question_type": _as_list(own.get("question_type"))},
                wording=wording.lvbench(text),
            )


def _as_list(types):
    return [types] if isinstance(types, str) else list(types or [])


def read_mlvu(folder: pathlib.Path) -> Iterator[Item]:
    """The multiple-choice tasks: the development set's JSON files, or a table of either set."""
    paths = find_files(folder, "MLVU/json/*.json", "json/*.json")
    for path in paths or find_files(folder, "*/test-*.parquet", "test-*.parquet"):
        if paths and path.stem not in _MLVU:
            continue  # summaries and sub-scenes are judged, not chosen
        for number, row in enumerate(read_rows(path)):
            options = tuple(map(str, row["candidates"]))
            task = row.get("task_type") or row["question_type"]
            gold, problem = str(row["answer"]), ""
            if paths or gold not in tuple(wording.LETTERS):
                gold, problem = choose(gold, options)
            name = row.get("video_name") or row["video"]
            places = [f"MLVU/video/{path.stem}/{name}", f"video/{path.stem}/{name}"]
            if not paths:
                places = [f"videos/{name}", f"video/{name}", name]
                places += [str(found.relative_to(folder)) for found in folder.rglob(name)][:1]
            question = row["question"].split("\n(A)")[0]
            yield Item(
                id=str(row.get("question_id") or f"{path.stem}/{number}"),
                question=question,
                kind="multiple choice",
                gold=gold,
                media=(find_media(folder, *places),),
                options=options,
                categories={"task_type": task},
                wording=wording.mlvu(question, options),
                problem=problem,
            )


def read_longvideobench(folder: pathlib.Path) -> Iterator[Item]:
    """Reads the validation questions, whose films have subtitles."""
    (path, *_) = find_files(folder, "lvb_val.json", "validation*.parquet")
    for row in read_rows(path):
        options = row.get("candidates")
        if options is None:
            options = [row.get(f"option{number}", "N/A") for number in range(5)]
            options = [option for option in options if option != "N/A"]
        yield Item(
            id=str(row["id"]),
            question=row["question"],
            kind="multiple choice",
            gold=wording.LETTERS[row["correct_choice"]],
            media=(find_media(folder, f"videos/{row['video_path']}"),),
            options=tuple(options),
            categories={
                "duration_group": row["duration_group"],
                "question_category": row["question_category"],
            },
            wording=wording.longvideobench(row["question"], options),
            subtitles=_between(row),
        )


def _between(row) -> Subtitles | None:
    """The subtitles of a row of LongVideoBench, which stand between the frames."""
    if not row.get("subtitle_path"):
        return None
    begin = float(row.get("starting_timestamp_for_subtitles") or 0.0)
    duration = float(row["duration"])
    shown = {"listed": "", "is_asked": False, "begin": begin, "duration": duration}
    return Subtitles(f"subtitles/{row['subtitle_path']}", **shown)


TASKS = (
    Task("videomme", "Video-MME", 2700, ("videomme/test-*.parquet", "test-*.parquet"),
         ("Video-MME", "videomme"), "lmms-lab/Video-MME", "research only, no redistribution",
         read_videomme),
    Task("lvbench", "LVBench", 1549, ("video_info.meta.jsonl", "data/train-*.parquet"),
         ("LVBench", "lvbench"), "zai-org/LVBench; the videos from their own site",
         "CC BY-NC-SA 4.0", read_lvbench),
    Task("mlvu", "MLVU (development set)", 2175, ("MLVU/json/*.json", "json/1_plotQA.json",
         "*/test-*.parquet"), ("MLVU", "mlvu", "MVLU"), "MLVU/MVLU", "CC BY-NC-SA 4.0", read_mlvu),
    Task("longvideobench", "LongVideoBench (validation)", 1337,
         ("lvb_val.json", "validation*.parquet"), ("LongVideoBench", "longvideobench"),
         "longvideobench/LongVideoBench", "CC BY-NC-SA 4.0; gated", read_longvideobench),
    Task("videomme-v2", "Video-MME-v2", 3200, ("*test*.parquet", "data/*.parquet"),
         ("Video-MME-v2", "videomme_v2"), "MME-Benchmarks/Video-MME-v2", "see the dataset's card",
         read_videomme_v2),
)  # fmt: skip
