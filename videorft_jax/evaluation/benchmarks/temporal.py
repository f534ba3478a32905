"""MVBench, TempCompass and Charades-STA as their releases have them."""

import pathlib
from collections.abc import Iterator

from videorft_jax.evaluation.benchmarks import wording
from videorft_jax.evaluation.benchmarks.task import (
    Item,
    Task,
    choose,
    find_files,
    find_media,
    read_rows,
)
from videorft_jax.evaluation.scoring.choices import find_options, without_options

# The folder of each task's clips in the revision "main", and in "video", whose clips are cut.
_MVBENCH = {
    "action_sequence": ("star/Charades_v1_480", "star/Charades_segment"),
    "action_prediction": ("star/Charades_v1_480", "star/Charades_segment"),
    "object_interaction": ("star/Charades_v1_480", "star/Charades_segment"),
    "action_antonym": ("ssv2_video", "ssv2_video_mp4"),
    "fine_grained_action": ("Moments_in_Time_Raw/videos",),
    "unexpected_action": ("FunQA_test/test",),
    "object_existence": ("clevrer/video_validation",),
    "moving_direction": ("clevrer/video_validation",),
    "moving_count": ("clevrer/video_validation",),
    "moving_attribute": ("clevrer/video_validation",),
    "counterfactual_inference": ("clevrer/video_validation",),
    "object_shuffle": ("perception/videos",),
    "action_count": ("perception/videos",),
    "state_change": ("perception/videos",),
    "character_order": ("perception/videos",),
    "action_localization": ("sta/sta_video", "sta/sta_video_segment"),
    "scene_transition": ("scene_qa/video",),
    "fine_grained_pose": ("nturgbd", "nturgbd_convert"),
    "egocentric_navigation": ("vlnqa",),
    "episodic_reasoning": ("tvqa/frames_fps3_hq", "tvqa/video_fps3_hq_segment"),
}
# data0613.zip, whose clips belong among those of star and clevrer, has a folder of its own.
_ROOTS = ("video/", "", "video/data0613/", "data0613/")
_FRAMES_FPS = 3.0  # rate of the frame folders of episodic_reasoning


def read_mvbench(folder: pathlib.Path) -> Iterator[Item]:
    """The 20 tasks; clips of the revision "main" are cut by their bounds, those of "video" are cut
    already."""
    for task, rows in _mvbench_tasks(folder):
        for number, row in enumerate(rows):
            options = tuple(map(str, row["candidates"]))
            gold, problem = choose(str(row["answer"]), options)
            yield Item(
                id=f"{task}/{number}",
                question=row["question"],
                kind="multiple choice",
                gold=gold,
                media=(_mvbench_clip(folder, task, row),),
                options=options,
                categories={"task": task},
                wording=wording.mvbench(row["question"], options),
                problem=problem,
            )


def _mvbench_tasks(folder):
    """(task, its rows) from a file for each task, or from the one file of the revision "video"."""
    for path in find_files(folder, "json/*.json", "test.json", "*.json"):
        if path.name == "test.json":
            yield from read_rows(path)["meta"].items()
        elif path.stem in _MVBENCH:
            yield path.stem, read_rows(path)


def _mvbench_clip(folder, task, row):
    whole, *cut = _MVBENCH[task]
    stem = row["video"].removesuffix(".webm")
    item = find_media(folder, *(f"{root}{whole}/{row['video']}" for root in _ROOTS))
    if not (folder / item["path"]).exists():
        other = [f"{root}{place}/{name}" for root in _ROOTS for place in cut
                 for name in (row["video"], f"{stem}.mp4")]  # fmt: skip
        found = next((name for name in other if (folder / name).exists()), None)
        if found:
            return {"type": "video", "path": found}
    if (folder / item["path"]).is_dir():
        item["fps"] = float(row.get("fps") or _FRAMES_FPS)
    if row.get("end") is not None:
        item |= {"start": float(row["start"]), "end": float(row["end"])}
    return item


def read_tempcompass(folder: pathlib.Path) -> Iterator[Item]:
    """Reads the four forms of questions about a clip. A caption is judged by a question that it has
    to answer."""
    for form in wording.TEMPCOMPASS_ENDINGS:
        kind = "multiple choice" if form == "multi-choice" else form
        paths = find_files(folder, f"questions/{form}.json", f"{form}/*.parquet")
        for row in (row for path in paths for row in _tempcompass_rows(path)):
            clip, dim, number = row["video_id"], row["dim"], row["number"]
            gold, options = str(row.get("mc_answer") or row["answer"]), ()
            question = row["question"]
            if kind == "multiple choice":
                question, options = without_options(question), tuple(find_options(question)[1])
            yield Item(
                id=f"{form}/{clip}/{dim}/{number}",
                question=question,
                kind=kind,
                gold=gold,
                media=(find_media(folder, f"videos/{clip}.mp4", f"{clip}.mp4"),),
                options=options,
                categories={"format": form, "dim": dim, "format, dim": f"{form}, {dim}"},
                wording=wording.tempcompass(row["question"], form),
                judged=str(row.get("mc_question") or ""),
            )


def _tempcompass_rows(path):
    """Rows of the nested JSON file {video: {dim: [row]}}, or of a flat table."""
    rows = read_rows(path)
    if not isinstance(rows, dict):
        for number, row in enumerate(rows):
            yield row | {"number": number}
        return
    for clip, dims in rows.items():
        for dim, questions in dims.items():
            for number, row in enumerate(questions):
                yield row | {"video_id": clip, "dim": dim, "number": number}


def read_charades(folder: pathlib.Path) -> Iterator[Item]:
    """Reads the sentences whose span in the film is asked for."""
    paths = find_files(folder, "data/test*.parquet", "test*.parquet", "charades*.json*")
    for path in paths:
        for number, row in enumerate(read_rows(path)):
            start, end = row["timestamp"]
            caption, name = row["caption"], str(row["video"])
            name = name if name.endswith(".mp4") else f"{name}.mp4"
            yield Item(
                id=str(number),
                question=caption,
                kind="temporal grounding",
                gold=f"[{start}, {end}]",
                media=(find_media(folder, f"videos/{name}", name, f"Charades_v1_480/{name}"),),
                wording=wording.charades(caption),
            )


TASKS = (
    Task("mvbench", "MVBench", 4000, ("json/*.json", "test.json"), ("MVBench", "mvbench"),
         "OpenGVLab/MVBench; the NTU RGB+D clips of fine_grained_pose from their owner",
         "MIT for the annotations; gated", read_mvbench),
    Task("tempcompass", "TempCompass", 7540,
         ("questions/multi-choice.json", "questions/yes_no.json", "multi-choice/*.parquet"),
         ("TempCompass", "tempcompass"), "lmms-lab/TempCompass", "CC BY-NC 4.0", read_tempcompass),
    Task("charades_sta", "Charades-STA", 3720,
         ("data/test*.parquet", "test*.parquet", "charades*.json*"),
         ("charades_sta", "Charades-STA"), "lmms-lab/charades_sta", "see the dataset's card",
         read_charades),
)  # fmt: skip
