"""Small benchmarks in the layouts of their releases, made-up questions over clips of noise."""

import io
import json
import pathlib

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from videorft_jax.demo.dataset import write_clip

OPTIONS = ["left", "right", "up"]
CUES = """1
00:00:00,100 --> 00:00:00,600
<font color="white">First</font>
line

2
00:00:50,000 --> 00:00:59,000
Never shown
"""


def make_layouts(root: pathlib.Path) -> dict[str, int]:
    """Writes every benchmark below `root`; the number of questions of each."""
    counts = {}
    for make in (_vsibench, _videommmu, _mmvu, _mvbench, _tempcompass, _videomme, _lvbench, _mlvu,
                 _longvideobench, _holmes, _sci, _maths, _charades, _videomme_v2):  # fmt: skip
        name, count = make(root)
        counts[name] = count
    return counts


def clip(path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = np.random.default_rng(len(path.name)).integers(0, 255, (8, 56, 56, 3), np.uint8)
    # A file's name says nothing of its content: .webm names hold MP4 in some releases.
    write_clip(path.with_suffix(".mp4.tmp.mp4"), frames, 8)
    path.with_suffix(".mp4.tmp.mp4").rename(path)


def picture() -> bytes:
    target = io.BytesIO()
    Image.fromarray(np.full((56, 56, 3), 90, np.uint8)).save(target, "png")
    return target.getvalue()


def table(path: pathlib.Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def text(path: pathlib.Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def _vsibench(root):
    folder = root / "VSI-Bench"
    types = ("object_counting", "object_rel_direction_easy", "route_planning")
    rows = [
        {"id": i, "dataset": "scannet", "scene_name": f"scene{i}", "question_type": kind,
         "question": f"Question {i}?", "ground_truth": "4" if i == 0 else "A",
         "options": None if i == 0 else ["A. left", "B. right"]}
        for i, kind in enumerate(types)
    ]  # fmt: skip
    text(folder / "test.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for i in range(len(rows)):
        clip(folder / f"scannet/scene{i}.mp4")
    return "vsibench", len(rows)


def _videommmu(root):
    folder = root / "VideoMMMU"
    for track in ("Perception", "Comprehension", "Adaptation"):
        row = {"id": "validation_Art_1", "question": "Q?", "options": OPTIONS, "answer": "B"}
        open_row = {"id": "dev_Math_2", "question": "How many?", "options": [], "answer": "7"}
        rows = [own | {"question_type": "multiple-choice"} for own in (row, open_row)]
        if track == "Adaptation":
            rows[0] |= {"question": "<image 1> Q?", "image": {"bytes": picture(), "path": "1.png"}}
        table(folder / track / "test-00000-of-00001.parquet", rows)
    clip(folder / "Art/validation_Art_1.mp4")
    clip(folder / "Science/dev_Math_2.mp4")
    return "videommmu", 6


def _mmvu(root):
    url = "https://example.org/resolve/main/videos/Art/1.mp4"
    choices = dict(zip("ABCDE", [*OPTIONS, "down", "back"], strict=True))
    rows = [
        {"id": "validation_0", "video": url, "question_type": "multiple-choice", "question": "Q?",
         "metadata": {"subject": "Art"}, "choices": choices, "answer": "C"},
        {"id": "validation_1", "video": url, "question_type": "open-ended", "question": "What?",
         "metadata": {"subject": "Art"}, "choices": dict.fromkeys("ABCDE", ""), "answer": "zoom"},
    ]  # fmt: skip
    text(root / "MMVU/validation.json", rows)
    clip(root / "MMVU/videos/Art/1.mp4")
    return "mmvu", 2


def _mvbench(root):
    folder = root / "MVBench"

    def add(task, name, **fields):
        row = {"video": name, "question": "Q?", "candidates": OPTIONS, "answer": "right"} | fields
        text(folder / f"json/{task}.json", [row])

    add("action_sequence", "A.mp4", start=0.2, end=0.8)
    clip(folder / "video/star/Charades_v1_480/A.mp4")
    add("action_antonym", "1.webm")
    clip(folder / "video/ssv2_video/1.webm")
    add("fine_grained_pose", "S001_rgb.avi")  # may not be redistributed
    add("episodic_reasoning", "castle", start=0.0, end=2.0, fps=3)
    for number in range(1, 7):
        path = folder / f"video/tvqa/frames_fps3_hq/castle/{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((56, 56, 3), 30 * number, np.uint8)).save(path)
    add("moving_count", "2.mp4", candidates=["1"], answer="one")  # the gold is no candidate
    clip(folder / "video/clevrer/video_validation/2.mp4")
    return "mvbench", 5


def _tempcompass(root):
    folder = root / "TempCompass"
    asked = {
        "multi-choice": ("Which?\nA. left\nB. right", "B. right"),
        "yes_no": ("Is it?", "yes"),
        "caption_matching": ("Which?\nCaption A: up.\nCaption B: down.", "Caption A: up."),
        "captioning": ("Describe it.", "A. up"),
    }
    for form, (question, answer) in asked.items():
        row = {"question": question, "answer": answer}
        if form == "captioning":
            row |= {"mc_question": "Which?\nA. up\nB. down", "mc_answer": "A. up"}
        rows = {"7": {"speed": [row]}}
        text(folder / f"questions/{form}.json", rows)
    clip(folder / "videos/7.mp4")
    return "tempcompass", 4


def _videomme(root):
    row = {"video_id": "001", "duration": "short", "domain": "Art", "sub_category": "Dance",
           "videoID": "abc", "question_id": "001-1", "task_type": "OCR", "question": "Q?",
           "options": ["A. left.", "B. right."], "answer": "B"}  # fmt: skip
    rows = [row, row | {"videoID": "def", "question_id": "002-1"}]
    table(root / "Video-MME/videomme/test-00000-of-00001.parquet", rows)
    clip(root / "Video-MME/data/abc.MP4")
    clip(root / "Video-MME/data/def.mkv")
    text(root / "Video-MME/subtitle/abc.srt", CUES)
    return "videomme", 2


def _lvbench(root):
    qa = {"question": "Q?\n(A) left\n(B) right", "answer": "A", "question_type": ["reasoning"]}
    line = {"key": "k", "type": "tv", "qa": [qa | {"uid": "0"}, qa | {"uid": "1"}]}
    text(root / "LVBench/video_info.meta.jsonl", json.dumps(line) + "\n")
    clip(root / "LVBench/videos/k.mp4")
    return "lvbench", 2


def _mlvu(root):
    for folder, task in (("1_plotQA", "plotQA"), ("2_needle", "findNeedle"), ("9_summary", "sum")):
        row = {"video": "v.mp4", "duration": 3, "question": "Q?", "candidates": OPTIONS,
               "answer": "up", "question_type": task}  # fmt: skip
        text(root / f"MLVU/MLVU/json/{folder}.json", [row])
        clip(root / f"MLVU/MLVU/video/{folder}/v.mp4")
    return "mlvu", 2


def _longvideobench(root):
    row = {"id": "a_0", "question": "Q?", "candidates": OPTIONS, "correct_choice": 1,
           "video_path": "a.mp4", "question_category": "S2E", "duration_group": 15,
           "duration": 1.0, "subtitle_path": "a_en.json",
           "starting_timestamp_for_subtitles": 20}  # fmt: skip
    text(root / "LongVideoBench/lvb_val.json", [row])
    lines = [{"start": "00:00:20.100", "end": "00:00:20.300", "line": "early"},
             {"timestamp": [20.5, None], "text": "late"},
             {"timestamp": [1.0, 3.0], "text": "of another part"}]  # fmt: skip
    text(root / "LongVideoBench/subtitles/a_en.json", lines)
    clip(root / "LongVideoBench/videos/a.mp4")
    return "longvideobench", 1


def _holmes(root):
    row = {"video ID": "h", "Question ID": 1, "Question": "Q?", "Question Type": "SR",
           "Options": dict(zip("ABC", OPTIONS, strict=True)), "Answer": "A"}  # fmt: skip
    text(root / "Video-Holmes/test_Video-Holmes.json", [row])
    clip(root / "Video-Holmes/videos/h.mp4")
    return "video-holmes", 1


def _sci(root):
    row = {"video_id": "5", "question": "Q?", "options": dict(zip("ABC", OPTIONS, strict=True)),
           "answer": "C", "question_type": "conceptual", "category": "Biology"}  # fmt: skip
    text(root / "SciVideoBench/scivideobench_1k.jsonl", json.dumps(row) + "\n")
    clip(root / "SciVideoBench/jove_5.mp4")
    return "scivideobench", 1


def _maths(root):
    row = {"question_id": "1", "videoID": "m", "question": "Q?", "options": OPTIONS, "answer": "A",
           "category": "Chart", "length": "short"}  # fmt: skip
    table(root / "VideoMathQA/mcq/test-00000-of-00001.parquet", [row])
    clip(root / "VideoMathQA/videos/m.mp4")
    return "videomathqa", 1


def _charades(root):
    row = {"video": "c.mp4", "caption": "a person runs", "timestamp": [0.0, 1.0]}
    table(root / "charades_sta/data/test-00000-of-00001.parquet", [row])
    clip(root / "charades_sta/Charades_v1_480/c.mp4")
    return "charades_sta", 1


def _videomme_v2(root):
    rows = [
        {"question_id": f"001-{i}", "video_id": "001", "group_type": "relevance",
         "group_structure": "[1, 2, 3, 4]", "question": "Q?", "answer": "A",
         "options": "A. left\nB. right", "level": "1" if i == 4 else None}
        for i in range(1, 5)
    ]  # fmt: skip
    words = [{"text": word, "start_time": 0.1, "end_time": 0.2} for word in ("two", "words")]
    lines = "".join(json.dumps(word) + "\n" for word in words)
    text(root / "Video-MME-v2/subtitle/subtitle/001.jsonl", lines)
    table(root / "Video-MME-v2/data/test-00000-of-00001.parquet", rows)
    clip(root / "Video-MME-v2/data/001.mp4")
    return "videomme-v2", 4
