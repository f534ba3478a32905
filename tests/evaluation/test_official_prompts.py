"""How each of the fourteen benchmarks is asked, to the letter, in both variants."""

import json
import pathlib

import pytest
from benchmark_layouts import make_layouts, picture
from test_record_files import LETTER, NUMBER, THINK

from videorft_jax.data.records.prompts import build_messages
from videorft_jax.data.records.records import parse_row
from videorft_jax.data.records.render import render_text
from videorft_jax.evaluation.benchmarks import wording
from videorft_jax.evaluation.benchmarks.catalogue import TASKS, load_items
from videorft_jax.evaluation.benchmarks.variants import Variant, make_record, write_records

HELPFUL = "You are a helpful assistant."
CLIP = "<|vision_start|><|video_pad|><|vision_end|>"
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
BRACKETS = "(A) left\n(B) right\n(C) up\n"
DOTS = "A. left\nB. right\nC. up\n"
DIRECTLY = "Answer with the option's letter from the given choices directly."
WATCH = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail "
)
WATCH += "and movement of objects, and the action and pose of persons. Based on your observations, "
WATCH += "select the best option that accurately addresses the question.\n"
DETAIL = (
    "Carefully watch this video and pay attention to every detail. Based on your observations, "
)
DETAIL += "select the best option that accurately addresses the question."
SELECT = (
    "Select the best answer to the following multiple-choice question based on the video. Respond"
)
STEPS = (
    "Begin by explaining your reasoning process clearly. Conclude by stating the final answer using"
)
STEPS += " the following format: 'Therefore, the final answer is: "
LEARN = "You should watch and learn the video content. Then apply what you learned to answer the "
GROUND = (
    "Please find the visual event described by a sentence in the video, determining its starting "
)
GROUND += (
    "and ending times. The format should be: 'The event happens in the start time - end time'. "
)
GROUND += (
    "For example, The event 'person turn a light on' happens in the 24.3 - 30.4 seonds. Now I "
)
GROUND += "will give you the textual sentence: "
REASON = "Based on the given video, reason and answer the single-choice question. Provide your "
REASON += (
    "reasoning between the <think> and </think> tags, and then give your final answer between "
)
REASON += "the <answer> and </answer> tags. The question is: Q?. The options are: "

# (benchmark, item) -> (system, user's text behind the clip, opening of the answer)
OFFICIAL = {
    ("vsibench", "0"): (HELPFUL, "These are frames of a video.\nQuestion 0?\nPlease answer the "
                        "question using a single word or phrase.", ""),
    ("vsibench", "1"): (HELPFUL, "These are frames of a video.\nQuestion 1?\nOptions:\nA. left\n"
                        f"B. right\n{DIRECTLY}", ""),
    ("videommmu", "Perception/validation_Art_1"): (
        HELPFUL, f"Q?\n{DOTS}Please ignore the Quiz question in last frame of the video.", ""),
    ("videommmu", "Perception/dev_Math_2"): (
        HELPFUL, "How many?\n\nPlease ignore the Quiz question in last frame of the video.", ""),
    ("videommmu", "Adaptation/validation_Art_1"): (
        HELPFUL, f"{IMAGE}{LEARN}following multi-choice question. The image for this question is "
        "at the end of the video.\n<image 1> Q?\nA. left\nB. right\nC. up", ""),
    ("videommmu", "Adaptation/dev_Math_2"): (
        HELPFUL, f"{LEARN}following open-ended question. The image for this question is at the "
        "end of the video.\nHow many?", ""),
    ("mmvu", "validation_0"): (
        HELPFUL, "\nQuestion: Q?\nA: left\nB: right\nC: up\nD: down\nE: back\n\nAnswer the given "
        f"multiple-choice question step by step. {STEPS}$LETTER' (without quotes), where $LETTER "
        "is one of the options. Think step by\nstep before answering.", ""),
    ("mmvu", "validation_1"): (
        HELPFUL, f"\nQuestion: What?\n\nAnswer the given question step by step. {STEPS}'Answer: "
        "$ANSWER' (without quotes), where $ANSWER is the final answer of the question. Think step "
        "by step\nbefore answering.", ""),
    ("mvbench", "action_sequence/0"): (
        WATCH, f"Question: Q?\nOptions:\n{BRACKETS}Only give the best option.", "Best option:("),
    ("tempcompass", "multi-choice/7/speed/0"): (
        HELPFUL, "Which?\nA. left\nB. right\nPlease directly give the best option:", ""),
    ("tempcompass", "yes_no/7/speed/0"): (HELPFUL, "Is it?\nPlease answer yes or no:", ""),
    ("tempcompass", "captioning/7/speed/0"): (HELPFUL, "Describe it.", ""),
    ("tempcompass", "caption_matching/7/speed/0"): (
        HELPFUL, "Which?\nCaption A: up.\nCaption B: down.\nPlease directly give the best option:",
        ""),
    ("charades_sta", "0"): (
        HELPFUL, f"{GROUND}a person runs. Please return its start time and end time.", ""),
    ("videomme", "001-1"): (
        HELPFUL, f"{SELECT} with only the letter (A, B, C, or D) of the correct option.\nQ?\n"
        "A. left.\nB. right.\nThe best answer is:", ""),
    ("videomme-v2", "001-1"): (
        HELPFUL, f"Question: Q?\nA. left\nB. right\n{SELECT} with only the letter (A, B, C, D, E, "
        "F, G, or H) of the correct option.", ""),
    ("lvbench", "0"): (
        HELPFUL, "Q?\n(A) left\n(B) right\nAnswer the question with the option letter", ""),
    ("mlvu", "1_plotQA/0"): (
        DETAIL, f"Question: Q?\nOptions:\n{BRACKETS}Only give the best option.", "Best Option: ("),
    ("longvideobench", "a_0"): (HELPFUL, f"Question: Q?\n{DOTS}{DIRECTLY}", ""),
    ("video-holmes", "1"): (HELPFUL, f"{REASON}A: left, B: right, C: up. Your answer:", ""),
    ("scivideobench", "0"): (HELPFUL, f"Q?\n{DOTS}\n{DIRECTLY}", ""),
    ("videomathqa", "1"): (
        HELPFUL, f"{SELECT} with the letter (A, B, C, D or E) of the correct option.\nQ?\n{DOTS}"
        "The best answer is:", ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """All items of the fourteen layouts: (benchmark, id) -> (item, folder)."""
    root, found = tmp_path_factory.mktemp("benchmarks"), {}
    make_layouts(root)
    for name, task in TASKS.items():
        folder, items = load_items(task, root)
        found |= {(name, item.id): (item, folder) for item in items}
    return found


def prompt_of(row):
    record = parse_row(row)
    return render_text(build_messages(record), opening=record.opening)


def test_official_prompts(asked):
    assert {name for name, _ in OFFICIAL} == TASKS.keys()
    for (name, item_id), (system, text, opening) in OFFICIAL.items():
        item, folder = asked[name, item_id]
        row = make_record(item, name, Variant("official"), folder, "pictures")
        assert prompt_of(row) == (
            f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{CLIP}{text}<|im_end|>\n"
            f"<|im_start|>assistant\n{opening}"
        ), (name, item_id)


def test_the_papers_prompts(asked):
    """Whole clips, the default system turn, and the words of the paper's script."""
    head = f"<|im_start|>system\n{HELPFUL}<|im_end|>\n<|im_start|>user\n{CLIP}"
    words = {"multiple choice": LETTER, "regression": NUMBER}
    other = " Please provide your text answer within the <answer> </answer> tags."
    for (name, item_id), (item, folder) in asked.items():
        row = make_record(item, name, Variant("as_paper"), folder)
        options = "".join(f"{x}. {text}\n" for x, text in zip("ABCDE", item.options, strict=False))
        problem = f"{item.question}\n{options}" if item.kind == "multiple choice" else item.question
        end = f"{words.get(item.kind, other)}<|im_end|>\n<|im_start|>assistant\n"
        assert prompt_of(row) == f"{head}{problem}\n{THINK}{end}", (name, item_id)
        assert not {"start", "end", "lines"} & set(row["media"][0])
        assert len(row["media"]) == 1


def test_scivideobench_asks_for_frames():
    """What its own `convert_time_to_frames_in_question` makes of these, however long a clip is."""
    asked = {
        "What is done from 06:15–06:36?": "What is done from frame 375 to frame 396?",
        "At 6:15 - 6:36 and at 10:00.": "At frame 375 to frame 396 and at frame 600.",
        "Why does it stop at 00:07?": "Why does it stop at frame 7?",
        "At frame 12 the ratio is 1:10": "At frame 12 the ratio is frame 70",
        "A ratio of 1:2": "A ratio of 1:2",
    }
    for question, converted in asked.items():
        assert wording.scivideobench(question, ["up"]).prompt.split("\n")[0] == converted


def test_options_are_shown_once(asked):
    """The questions of LVBench and TempCompass hold options, which the paper's prompt lists."""
    letters = "Please provide only the single option letter (e.g., A, B, C, D, etc.) within the "
    for key, start in (
        (("lvbench", "0"), "Q?"),
        (("tempcompass", "multi-choice/7/speed/0"), "Which?"),
    ):
        item, folder = asked[key]
        row = make_record(item, key[0], Variant("as_paper", think=False), folder)
        text = prompt_of(row).split(CLIP)[1].split("<|im_end|>")[0]
        assert text == f"{start}\nA. left\nB. right\n\n{letters}<answer> </answer> tags."


def test_options_of_lvbench_that_stand_apart_are_asked_about(tmp_path):
    """Other copies have the options in a field of their own."""
    own = {"uid": "0", "question": "Q?", "options": ["left", "right"], "answer": "A"}
    line = {"key": "k", "qa": [own | {"question_type": ["reasoning"]}]}
    (tmp_path / "video_info.meta.jsonl").write_text(json.dumps(line) + "\n")
    _, (item,) = load_items(TASKS["lvbench"], tmp_path)
    assert (item.question, item.options) == ("Q?", ("left", "right"))
    assert item.wording.prompt.startswith("Q?\n(A) left\n(B) right\nAnswer the question with")


def test_official_media_are_cut_and_have_their_lines(asked, tmp_path):
    media = {
        key: make_record(item, key[0], Variant("official"), folder, "p")["media"]
        for key, (item, folder) in asked.items()
    }
    cut = media["mvbench", "action_sequence/0"][0]
    assert (cut["start"], cut["end"]) == (0.2, 0.8)
    assert media["mvbench", "episodic_reasoning/0"][0]["fps"] == 3.0
    (clip,) = media["longvideobench", "a_0"]
    lines = [(pytest.approx(a), pytest.approx(b), text) for a, b, text in clip["lines"]]
    assert lines == [(0.1, 0.3, "early"), (0.5, 1.0, "late"), (-19.0, -17.0, "of another part")]
    assert "listed" not in clip
    (clip,) = media["videomme", "001-1"]
    assert "lines" not in clip
    item, folder = asked["videommmu", "Adaptation/validation_Art_1"]
    write_records(tmp_path / "records.jsonl", [item], "videommmu", Variant("official"), folder)
    row = json.loads((tmp_path / "records.jsonl").read_text())
    assert [part["type"] for part in row["media"]] == ["video", "image"]
    assert pathlib.Path(row["media"][1]["path"]).read_bytes() == picture()


def test_subtitles_where_they_are_asked_for(asked):
    variant = Variant("official", with_subtitles=True)
    item, folder = asked["videomme", "001-1"]
    (clip,) = make_record(item, "videomme", variant, folder)["media"]
    assert clip["lines"] == [[0.1, 0.6, "First line"], [50.0, 59.0, "Never shown"]]
    assert clip["listed"] == "This video's subtitles are listed below:\n{lines}\n"
    item, folder = asked["videomme", "002-1"]  # no file
    assert "lines" not in make_record(item, "videomme", variant, folder)["media"][0]
    item, folder = asked["videomme-v2", "001-1"]
    prompt = make_record(item, "videomme-v2", variant, folder)["messages"][0]["content"]
    head = "This video's subtitles are listed below:\ntwo words\n\nQuestion: Q?\n"
    assert prompt.startswith(head)
    item, folder = asked["longvideobench", "a_0"]
    assert make_record(item, "lvb", variant, folder)["media"][0]["lines"]
