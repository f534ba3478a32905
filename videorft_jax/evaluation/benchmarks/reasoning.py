"""VSI-Bench, Video-MMMU, MMVU, Video-Holmes, SciVideoBench and VideoMathQA as their releases have
them."""

import pathlib
from collections.abc import Iterator

from videorft_jax.evaluation.benchmarks import wording
from videorft_jax.evaluation.benchmarks.subtitles import LISTED, Subtitles
from videorft_jax.evaluation.benchmarks.task import (
    Item,
    Task,
    find_files,
    find_media,
    read_rows,
    without_letters,
)

_NUMERIC = (
    "object_counting", "object_abs_distance", "object_size_estimation", "room_size_estimation",
)  # fmt: skip
_DISCIPLINES = ("Art", "Business", "Engineering", "Humanities", "Medicine", "Science")
_AREAS = {
    "Science": "Biology Chemistry Modern_Physics Astronomy Geography Materials_Science "
    "Neurobiology Electromagnetism Thermodynamics Mechanics",
    "Engineering": "Civil_Engineering Electrical_Engineering Mechanical_Engineering "
    "Biomedical_Engineering Electronics_and_Communication Computer_Science",
    "Healthcare": "Clinical_Medicine Basic_Medicine Preventive_Medicine Pharmacy Dentistry",
    "Humanities & Social Science": "Art Literature History Law Economics Management",
}
MMVU_AREAS = {subject: area for area, own in _AREAS.items() for subject in own.split()}


def read_vsibench(folder: pathlib.Path) -> Iterator[Item]:
    """Reads the ten types of questions; four of them ask for a number."""
    (path, *_) = find_files(folder, "test.jsonl", "test-*.parquet")
    for row in read_rows(path):
        options = without_letters(row.get("options"))
        yield Item(
            id=str(row["id"]),
            question=row["question"],
            kind="regression" if row["question_type"] in _NUMERIC else "multiple choice",
            gold=str(row["ground_truth"]),
            media=(find_media(folder, f"{row['dataset']}/{row['scene_name']}.mp4"),),
            options=options,
            categories={"question_type": row["question_type"], "dataset": row["dataset"]},
            wording=wording.vsibench(row["question"], options),
        )


def read_videommmu(folder: pathlib.Path) -> Iterator[Item]:
    """Reads the three tracks; of Adaptation each question has a picture of its own."""
    for path in find_files(folder, "*/test-*.parquet"):
        track = path.parent.name
        for row in read_rows(path):
            options = without_letters(row.get("options"))
            names = [f"{name}/{row['id']}.mp4" for name in _DISCIPLINES]
            yield Item(
                id=f"{track}/{row['id']}",
                question=row["question"],
                kind="multiple choice" if options else "open-ended",
                gold=str(row["answer"]),
                media=(find_media(folder, *names),),
                options=options,
                categories={"track": track, "subject": "_".join(row["id"].split("_")[1:-1])},
                wording=wording.videommmu(row["question"], options, track),
                picture=(row.get("image") or {}).get("bytes") or b"",
            )


def read_mmvu(folder: pathlib.Path) -> Iterator[Item]:
    """Reads multiple-choice and open-ended questions, whose clips are named by a URL."""
    (path, *_) = find_files(folder, "validation.json", "validation*.parquet")
    for row in read_rows(path):
        is_choice = row["question_type"] == "multiple-choice"
        choices = row["choices"] if is_choice else {}
        options = tuple(str(choices[letter]) for letter in sorted(choices))
        url = row.get("video_path") or row["video"]
        place = "videos/" + url.split("videos/", 1)[-1]
        subject = (row.get("metadata") or {}).get("subject") or place.split("/")[1]
        yield Item(
            id=str(row["id"]),
            question=row["question"],
            kind="multiple choice" if is_choice else "open-ended",
            gold=str(row["answer"]),
            media=(find_media(folder, place, place.removeprefix("videos/")),),
            options=options,
            categories={
                "subject": subject,
                "area": MMVU_AREAS.get(subject.replace(" ", "_"), "other"),
            },
            wording=wording.mmvu(row["question"], options),
        )


def read_video_holmes(folder: pathlib.Path) -> Iterator[Item]:
    """Reads the questions about suspense films, which have six options."""
    (path, *_) = find_files(folder, "test_Video-Holmes.json")
    for number, row in enumerate(read_rows(path)):
        options = tuple(str(row["Options"][letter]) for letter in sorted(row["Options"]))
        name = str(row.get("video ID") or row.get("video_id") or row.get("video"))
        yield Item(
            id=str(row.get("Question ID", number)),
            question=row["Question"],
            kind="multiple choice",
            gold=str(row["Answer"]),
            media=(find_media(folder, *_named(name, "videos", "videos_cropped", "")),),
            options=options,
            categories={"question_type": row["Question Type"]},
            wording=wording.video_holmes(row["Question"], options),
        )


def read_scivideobench(folder: pathlib.Path) -> Iterator[Item]:
    """Reads the questions about scientific experiments, which have ten options."""
    for path in find_files(folder, "scivideobench*.json*", "data/*.parquet"):
        for number, row in enumerate(read_rows(path)):
            options = row["options"]
            if isinstance(options, dict):
                options = [options[letter] for letter in sorted(options) if options[letter]]
            options = without_letters(options)
            name = f"jove_{row['video_id']}"
            yield Item(
                id=str(row.get("question_id", number)),
                question=row["question"],
                kind="multiple choice",
                gold=str(row["answer"]),
                media=(find_media(folder, *_named(name, "", "videos")),),
                options=options,
                categories={key: row[key] for key in ("question_type", "category") if row.get(key)},
                wording=wording.scivideobench(row["question"], options),
            )


def read_videomathqa(folder: pathlib.Path) -> Iterator[Item]:
    """Reads the questions with five options about mathematics in videos."""
    for path in find_files(folder, "mcq/*.parquet", "*mcq*.json", "*mcq*.parquet", "test*.parquet"):
        for number, row in enumerate(read_rows(path)):
            options = without_letters(row["options"])
            name = str(row.get("videoID") or row.get("video_id") or row.get("video"))
            yield Item(
                id=str(row.get("question_id", number)),
                question=row["question"],
                kind="multiple choice",
                gold=str(row["answer"]),
                media=(find_media(folder, *_named(name, "videos", "")),),
                options=options,
                categories={
                    "question_type": row.get("category", ""),
                    "length": row.get("length", ""),
                },
                wording=wording.videomathqa(row["question"], options),
                subtitles=Subtitles(
                    f"subtitles/{name}.srt",
                    LISTED.replace(":", ": "),
                    subject="the video and the subtitles",
                ),
            )


def _named(name: str, *places: str) -> list[str]:
    """The files that a clip of that name may be in folders, by the suffixes of releases."""
    stems = [f"{place}/{name}" if place else name for place in places]
    return [f"{stem}{end}" for stem in stems for end in (".mp4", ".MP4", ".mkv", ".webm", "")]


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
