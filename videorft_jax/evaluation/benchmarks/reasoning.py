"""VSI-Bench, Video-MMMU, MMVU, Video-Holmes, SciVideoBench and VideoMathQA as their releases have
them."""

import pathlib
from collections.abc import Iterator

from videorft_jax.evaluation.benchmarks.task import (
    Item,
    Task,
    find_files,
    find_media,
    join,
    lettered,
    read_rows,
    without_letters,
)

_NUMERIC = (
    "object_counting", "object_abs_distance", "object_size_estimation", "room_size_estimation",
)  # fmt: skip
_DISCIPLINES = ("Art", "Business", "Engineering", "Humanities", "Medicine", "Science")
TRACKS = ("Perception", "Comprehension", "Adaptation")
_OPTION_LETTER = "Answer with the option's letter from the given choices directly."


def read_vsibench(folder: pathlib.Path) -> Iterator[Item]:
    (path, *_) = find_files(folder, "test.jsonl", "test-*.parquet")
    for row in read_rows(path):
        options = without_letters(row.get("options"))
        head = ("These are frames of a video.", row["question"])
        end = ("Options:", *lettered(options), _OPTION_LETTER)
        if not options:
            end = ("Please answer the question using a single word or phrase.",)
        yield Item(
            id=str(row["id"]),
            question=row["question"],
            kind="regression" if row["question_type"] in _NUMERIC else "multiple choice",
            gold=str(row["ground_truth"]),
            media=(find_media(folder, f"{row['dataset']}/{row['scene_name']}.mp4"),),
            options=options,
            categories={"question_type": row["question_type"], "dataset": row["dataset"]},
            prompt=join(*head, *end),
        )


def read_videommmu(folder: pathlib.Path) -> Iterator[Item]:
    for path in find_files(folder, "*/test-*.parquet"):
        track = path.parent.name
        for row in read_rows(path):
            options = without_letters(row.get("options"))
            text = join(row["question"], *lettered(options))
            if track == "Adaptation":
                kind = "multi-choice" if options else "open-ended"
                prompt = (
                    "You should watch and learn the video content. Then apply what you learned to "
                    f"answer the following {kind} question. The image for this question is at the "
                    f"end of the video.\n{text}"
                )
            else:
                prompt = f"{text}\nPlease ignore the Quiz question in last frame of the video."
            names = [f"{name}/{row['id']}.mp4" for name in _DISCIPLINES]
            yield Item(
                id=f"{track}/{row['id']}",
                question=row["question"],
                kind="multiple choice" if options else "open-ended",
                gold=str(row["answer"]),
                media=(find_media(folder, *names),),
                options=options,
                categories={"track": track, "subject": "_".join(row["id"].split("_")[1:-1])},
                prompt=prompt,
            )


def read_mmvu(folder: pathlib.Path) -> Iterator[Item]:
    (path, *_) = find_files(folder, "validation.json", "validation*.parquet")
    for row in read_rows(path):
        is_choice = row["question_type"] == "multiple-choice"
        choices = row["choices"] if is_choice else {}
        options = tuple(str(choices[letter]) for letter in sorted(choices))
        url = row.get("video_path") or row["video"]
        place = "videos/" + url.split("videos/", 1)[-1]
        yield Item(
            id=str(row["id"]),
            question=row["question"],
            kind="multiple choice" if is_choice else "open-ended",
            gold=str(row["answer"]),
            media=(find_media(folder, place, place.removeprefix("videos/")),),
            options=options,
            categories={"subject": row.get("metadata", {}).get("subject") or place.split("/")[1]},
            prompt=join(
                f"Question: {row['question']}", *lettered(options, "{letter}: {text}"),
                "Visual Information: processed video",
            ),
        )  # fmt: skip


def read_video_holmes(folder: pathlib.Path) -> Iterator[Item]:
    (path, *_) = find_files(folder, "test_Video-Holmes.json")
    for number, row in enumerate(read_rows(path)):
        options = tuple(str(row["Options"][letter]) for letter in sorted(row["Options"]))
        name = str(row.get("video ID") or row.get("video_id") or row.get("video"))
        yield Item(
            id=str(row.get("Question ID", number)),
            question=row["Question"],
            kind="multiple choice",
            gold=str(row["Answer"]),
            media=(find_media(folder, f"videos/{name}.mp4", f"{name}.mp4", f"videos/{name}"),),
            options=options,
            categories={"question_type": row["Question Type"]},
            prompt=join(row["Question"], *lettered(options), _OPTION_LETTER),
        )


def read_scivideobench(folder: pathlib.Path) -> Iterator[Item]:
    for path in find_files(folder, "*.json", "*.jsonl", "data/*.parquet", "*.parquet"):
        for number, row in enumerate(read_rows(path)):
            options = row["options"]
            if isinstance(options, dict):
                options = [options[letter] for letter in sorted(options) if options[letter]]
            options = without_letters(options)
            name = f"jove_{row['video_id']}.mp4"
            yield Item(
                id=str(row.get("question_id", number)),
                question=row["question"],
                kind="multiple choice",
                gold=str(row["answer"]),
                media=(find_media(folder, f"videos/{name}", name),),
                options=options,
                categories={"question_type": row.get("question_type", "")},
                prompt=join(row["question"], *lettered(options), _OPTION_LETTER),
            )


def read_videomathqa(folder: pathlib.Path) -> Iterator[Item]:
    for path in find_files(folder, "mcq/*.parquet", "*mcq*.json", "*mcq*.parquet", "test*.parquet"):
        for number, row in enumerate(read_rows(path)):
            options = without_letters(row["options"])
            name = str(row.get("videoID") or row.get("video_id") or row.get("video"))
            yield Item(
                id=str(row.get("question_id", number)),
                question=row["question"],
                kind="multiple choice",
                gold=str(row["answer"]),
                media=(find_media(folder, f"videos/{name}.mp4", f"{name}.mp4", f"videos/{name}"),),
                options=options,
                categories={"question_type": row.get("category", "")},
                prompt=join(row["question"], *lettered(options), _OPTION_LETTER),
            )


TASKS = (
    Task("vsibench", "VSI-Bench", 5130, ("test.jsonl", "test-*.parquet"),
         ("VSI-Bench", "vsibench"), "nyu-visionx/VSI-Bench",
         "Apache-2.0; the scans have terms of their own", read_vsibench),
    Task("videommmu", "Video-MMMU", 900, ("*/test-*.parquet",), ("VideoMMMU", "videommmu"),
         "lmms-lab/VideoMMMU", "MIT; the videos are their owners'", read_videommmu),
    Task("mmvu", "MMVU (validation)", 1000, ("validation.json", "validation*.parquet"),
         ("MMVU", "mmvu"), "yale-nlp/MMVU", "see the dataset's card", read_mmvu),
    Task("video-holmes", "Video-Holmes", 1837, ("test_Video-Holmes.json",),
         ("Video-Holmes", "video_holmes"), "TencentARC/Video-Holmes", "see the dataset's card",
         read_video_holmes),
    Task("scivideobench", "SciVideoBench", 1000, ("scivideobench*.json*", "data/*.parquet"),
         ("SciVideoBench", "scivideobench"), "groundmore/scivideobench", "see the dataset's card",
         read_scivideobench),
    Task("videomathqa", "VideoMathQA", 420, ("mcq/*.parquet", "*mcq*.json", "*mcq*.parquet"),
         ("VideoMathQA", "videomathqa"), "MBZUAI/VideoMathQA", "see the dataset's card",
         read_videomathqa),
)  # fmt: skip
