"""The page in a real browser: what it shows, filters, sorts, compares and links, at any size."""

import json
import pathlib

import numpy as np
import pytest
from browser import run_in_page, take_picture
from PIL import Image
from written_runs import HOSTILE, grpo_row, write_grpo, write_many

from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.media.video import read_video
from videorft_jax.data.records.source import RecordSource
from videorft_jax.demo.dataset import write_dataset
from videorft_jax.demo.scenes import WorldConfig
from videorft_jax.reporting.report import ReportOptions, write_report

KEYS = "return all('.group h3 a').map((link) => link.textContent);"


def grpo_rows(num_steps=3):
    """Four groups a step of four completions; group 5 is spread most, group 2 truncated."""
    rows = []
    for step in range(1, num_steps + 1):
        for number in range(4 * step - 4, 4 * step):
            for rollout in range(4):
                row = grpo_row(step, number, rollout)
                if number == 5:
                    row["total"] *= 4
                if number == 2:
                    row["stopped"] = False
                rows.append(row)
    return rows


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_report([write_grpo(folder / "run", grpo_rows())], folder / "run.html", ReportOptions())
    return folder / "run.html"


def test_shows_every_completion_with_its_numbers(page):
    script = """
    const card = $('.group');
    return {
      texts: [...card.querySelectorAll('.answer > pre')].map((pre) => pre.textContent),
      folded: [...card.querySelectorAll('details > pre')].map((each) => each.textContent),
      open: card.querySelectorAll('details[open]').length,
      numbers: card.querySelector('.answer .numbers').textContent,
      flags: [...card.querySelectorAll('.flag')].map((flag) => flag.textContent),
      panels: all('figcaption').map((each) => each.textContent),
      count: $('#count').textContent,
    };"""  # fmt: skip
    found = run_in_page(page, script)
    answers = ["<answer>A</answer>", "<answer>B</answer>"] * 2
    assert found["texts"] == answers
    assert found["folded"] == [f"<think>frame {r} of 0</think>" for r in range(4)]
    assert found["open"] == 0
    assert "accuracy 1" in found["numbers"]
    assert "advantage 1" in found["numbers"]
    assert found["flags"] == ["gated", "gated"]  # completions 1 and 3 are wrong but alike
    assert {"Loss", "Rewards", "Entropy", "Goodput in tokens a second"} <= set(found["panels"])
    assert found["count"] == "12 of 12 groups"


def test_says_why_nothing_was_learnt_and_what_was_not_drawn(tmp_path):
    rows = [
        grpo_row(1, 0, 0, not_trained="its group found no place"),
        grpo_row(1, 0, 2, not_trained="", given=True),
    ]
    folder = write_grpo(tmp_path / "run", rows)
    write_report([folder], tmp_path / "run.html", ReportOptions())
    script = "return all('.answer').map((one) => one.querySelector('.flag').textContent);"
    found = run_in_page(tmp_path / "run.html", script)
    assert found == ["not trained on: its group found no place", "given, not drawn"]


def test_an_answer_without_a_score_is_neither_right_nor_wrong(tmp_path):
    """As where the truth of its record cannot be read."""
    run = tmp_path / "run"
    run.mkdir()
    row = {
        "index": 0, "problem_id": 5, "problem_type": "OCR", "problem": "read it", "path": "a.mp4",
        "solution": "AB", "completion": "AB", "answer": "AB", "reason": "", "completion_tokens": 2,
        "stopped": True,
    }  # fmt: skip
    scores = ((1.0, "scored"), (0.0, "scored"), (None, "failed"))
    rows = [
        row | {"rollout": number, "score": score, "outcome": outcome}
        for number, (score, outcome) in enumerate(scores)
    ]
    (run / "completions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    (run / "results.json").write_text(json.dumps({"settings": {}, "results": {"accuracy": 0.5}}))
    write_report([run], tmp_path / "run.html", ReportOptions())
    found = run_in_page(tmp_path / "run.html", "return all('.answer').map((one) => one.className);")
    assert [name.split() for name in found] == [["answer", "up"], ["answer", "down"], ["answer"]]


def test_a_first_run_without_groups_says_whose_there_are(tmp_path):
    """SFT, whose page has curves alone, beside the GRPO that followed."""
    second = write_grpo(tmp_path / "grpo", grpo_rows())
    first = tmp_path / "sft"
    first.mkdir()
    (first / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    write_report([first, second], tmp_path / "run.html", ReportOptions())
    found = run_in_page(tmp_path / "run.html", "return $('#count').textContent;")
    assert found == "sft has no groups; name grpo first to see those that it has."


def test_filters_and_sorts(page):
    script = """
    const keys = () => all('.group h3 a').map((link) => link.textContent);
    const change = async (selector, value, event, count) => {
      $(selector).value = value;
      $(selector).dispatchEvent(new Event(event));
      await until(() => $('#count').textContent === `${count} of 12 groups`);
      return keys();
    };
    const found = {};
    found.step = await change('#step', 2, 'input', 4);
    found.shown = $('#step-shown').textContent;
    found.type = await change('#type', 'numerical', 'change', 2);
    $('#clear').click();
    await until(() => $('#count').textContent.startsWith('12'));
    found.words = await change('#find', 'number 7', 'input', 1);
    $('#clear').click();
    await until(() => $('#count').textContent.startsWith('12'));
    $('#flags input[value=truncated]').click();
    await until(() => $('#count').textContent.startsWith('1 '));
    found.truncated = keys();
    $('#clear').click();
    await until(() => $('#count').textContent.startsWith('12'));
    $('#sort').value = 'spread';
    $('#sort').dispatchEvent(new Event('change'));
    await until(() => keys()[0] !== '1/0');
    found.spread = keys()[0];
    found.hash = location.hash;
    return found;"""
    found = run_in_page(page, script)
    assert found["step"] == [f"2/{number}" for number in range(4, 8)]
    assert found["shown"] == "2"
    assert found["type"] == ["2/5", "2/7"]
    assert found["words"] == ["2/7"]
    assert found["truncated"] == ["1/2"]
    assert found["spread"] == "2/5"
    assert found["hash"] == "#sort=spread"


def test_a_link_shows_one_group(page):
    assert run_in_page(page, KEYS, "group=3%2F9") == ["3/9"]
    click = "all('.group h3 a')[4].click(); await until(() => all('.group').length === 1);" + KEYS
    assert run_in_page(page, click) == ["2/4"]


def test_two_runs_stand_side_by_side(tmp_path):
    first = write_grpo(tmp_path / "first", grpo_rows())
    better = [
        row | {"completion": "<answer>better</answer>", "total": 9.0}
        for row in grpo_rows()
        if row["problem_id"] == 6
    ]
    second = write_grpo(tmp_path / "second", better)
    write_report([first, second], tmp_path / "both.html", ReportOptions())
    script = """
    const [left, right] = [...$('.sides').children];
    return {
      labels: all('.sides h4').slice(0, 2).map((each) => each.textContent),
      right: right.querySelector('pre').textContent,
      left: left.querySelectorAll('pre').length,
      missing: all('.sides .note').length,
      first: $('.group h3 a').textContent,
      dashed: all('polyline.second').length > 0,
    };"""
    found = run_in_page(tmp_path / "both.html", script, "sort=change")
    assert found["first"] == "2/6"
    assert found["labels"] == ["first, step 2", "second, step 2"]
    assert found["right"] == "<answer>better</answer>"
    assert found["left"] == 8  # a reasoning and an answer of each of four
    assert found["missing"] == 11
    assert found["dashed"]


def test_markup_in_what_is_shown_stays_text(tmp_path):
    """In question, path, completion, type, solution, id and the name of a metric."""
    hostile = {
        "problem": HOSTILE, "problem_type": HOSTILE, "solution": HOSTILE, "completion": HOSTILE,
        "problem_id": HOSTILE, "rewards": {HOSTILE: 1.0},
    }  # fmt: skip
    folder = tmp_path / "<b>run"
    run = write_grpo(folder, [grpo_row(1, 0, r, **hostile) for r in range(2)], records=HOSTILE)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "rewards/' + HOSTILE.replace("/", "|") + '/mean": 1.0}\n')
    write_report([run], tmp_path / "page.html", ReportOptions())
    script = """
    const bold = all('b').filter((each) => each.textContent === 'bold').length;
    return { title: document.title, bold,
             question: $('.question').textContent, answer: $('.answer pre').textContent };"""
    found = run_in_page(tmp_path / "page.html", script)
    assert found == {
        "title": "<b>run - videorft report", "bold": 0, "question": HOSTILE, "answer": HOSTILE,
    }  # fmt: skip


def write_evaluation(folder):
    """Two questions of two types, the first with a word of 300 letters, wrong and cut off."""
    folder.mkdir()
    rows = [
        {
            "index": i, "rollout": 0, "problem_id": i, "problem_type": kind, "problem": question,
            "path": f"{i}.mp4", "solution": "AB", "completion": "w" * 300 if i == 0 else "AB",
            "answer": "AB", "score": float(i), "outcome": "scored", "reason": "",
            "completion_tokens": 2, "stopped": i == 1,
        }
        for i, (kind, question) in enumerate((("OCR", "q" * 300), ("numerical", HOSTILE)))
    ]  # fmt: skip
    (folder / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = {"num_records": 2, "unparseable": 0, "truncated": 1}
    results = {"accuracy": 0.5, "low": 0.012, "high": 0.987} | counts
    results["by_type"] = {"OCR": results | {"accuracy": 0.0}}
    settings = {"media": MediaContract.train().to_dict() | {"digest": "0"}}
    (folder / "results.json").write_text(json.dumps({"settings": settings, "results": results}))
    return folder


def test_an_evaluation_has_its_page(tmp_path):
    write_report([write_evaluation(tmp_path / "run")], tmp_path / "page.html", ReportOptions())
    script = """
    const cells = (row) => [...row.children].map((cell) => cell.textContent);
    const found = { table: all('table tr').map(cells),
                    questions: all('.question').map((each) => each.textContent),
                    panels: all('figure').length };
    $('#flags input[value=truncated]').click();
    await until(() => $('#count').textContent.startsWith('1 of 2'));
    found.truncated = all('.answer pre').map((each) => each.textContent.length);
    return found;"""
    found = run_in_page(tmp_path / "page.html", script)
    assert found["table"][1][:4] == ["all", "0.5", "0.012", "0.987"]
    assert found["table"][2][:2] == ["OCR", "0"]
    assert found["questions"] == ["q" * 300, HOSTILE]
    assert found["truncated"] == [300]
    assert found["panels"] == 0


def test_nothing_is_wider_than_a_telephone(page, tmp_path):
    """Tables and strips of frames scroll in themselves; the page does not."""
    write_report([write_evaluation(tmp_path / "run")], tmp_path / "page.html", ReportOptions())
    script = """
    const text = await (await fetch(location.pathname)).text();
    const frame = document.createElement('iframe');
    frame.style.cssText = 'width: 390px; height: 3000px; border: 0';
    const alone = text.slice(0, text.lastIndexOf('<scr' + 'ipt>'));
    frame.src = URL.createObjectURL(new Blob([alone], { type: 'text/html' }));
    document.body.append(frame);
    await until(() => frame.contentDocument?.body?.dataset.ready === 'yes');
    const root = frame.contentDocument.documentElement;
    return [frame.contentDocument.querySelectorAll('.group').length, root.scrollWidth];"""
    assert run_in_page(page, script) == [12, 390]
    assert run_in_page(tmp_path / "page.html", script) == [2, 390]


def test_frames_are_those_of_the_clip(tmp_path):
    world = WorldConfig(size=(56, 84), still_every=0)
    files = write_dataset(tmp_path / "clips", 1, 4, 1, world=world)
    source = RecordSource(files["rl"])
    rows = [
        grpo_row(1, source[i].problem_id, r, problem=source[i].problem)
        for i in range(4)
        for r in range(2)
    ]
    (tmp_path / "clips" / source[3].path).write_bytes(b"no video")
    lines = [json.loads(line) for line in pathlib.Path(files["rl"]).read_text().splitlines()]
    whole = {"type": "video", "path": source[0].path}
    lines[2]["media"] = [whole, whole | {"start": 0.5, "end": 1.0}]  # two clips, one twice
    pathlib.Path(files["rl"]).write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = write_grpo(tmp_path / "run", rows, records=files["rl"])
    (read,) = write_report([run], tmp_path / "page.html", ReportOptions())
    assert read.notes == ["1 of 4 clips are shown without frames."]
    script = """
    const strips = all('.film img');
    await until(() => strips.length === 4 && strips.every((each) => each.naturalWidth));
    return { sizes: all('.film img').map((each) => [each.naturalWidth, each.naturalHeight]),
             times: [...$('.film').querySelectorAll('span')].map((each) => each.textContent),
             missing: all('.film .note').map((each) => each.textContent) };"""
    found = run_in_page(tmp_path / "page.html", script)
    clip = read_video(str(tmp_path / "clips" / source[0].path), MediaContract.train())
    part = read_video(str(tmp_path / "clips" / source[0].path), MediaContract.train(), 0.5, 1.0)
    count, height, width, _ = clip.frames.shape
    assert len(part.frames) < count <= 8
    sizes = [[number * round(96 * width / height), 96] for number in (count, len(part.frames))]
    assert found["sizes"] == [sizes[0], sizes[0], sizes[0], sizes[1]]
    assert found["times"] == [f"{second:.2f} s" for second in clip.timestamps]
    assert len(found["missing"]) == 1
    assert "000003.mp4" in found["missing"][0]


def test_light_and_dark(page, tmp_path):
    means = []
    for dark in (False, True):
        take_picture(page, tmp_path / "picture.png", size=(800, 600), dark=dark)
        pixels = np.asarray(Image.open(tmp_path / "picture.png").convert("L"))
        means.append(pixels.mean())
        assert pixels.std() > 10  # something is drawn
    assert means[0] > 200
    assert means[1] < 60


def test_ten_thousand_groups_can_be_sorted(tmp_path):
    """How soon they are drawn is measured by benchmarks/report_page.py."""
    write_report([write_many(tmp_path / "run", 10_000, 8)], tmp_path / "page.html", ReportOptions())
    script = """
    $('#sort').value = 'spread';
    $('#sort').dispatchEvent(new Event('change'));
    await until(() => location.hash === '#sort=spread' && $('.group h3 a').textContent !== '1/0');
    return { count: $('#count').textContent, shown: all('.group').length };"""
    found = run_in_page(tmp_path / "page.html", script)
    assert found == {"count": "10,000 of 10,000 groups", "shown": 20}
