"""Open answers and a judge behind OpenAI's protocol: kept verdicts, and failures that stay open."""

import contextlib
import http.server
import json
import pathlib
import signal
import subprocess
import sys
import threading

import pytest
from test_score_and_compare import write_run

from videorft_jax import cli
from videorft_jax.evaluation.judge import JudgeOptions, judge_rows
from videorft_jax.evaluation.outputs import read_outputs, rescore
from videorft_jax.evaluation.scoreboard import tabulate

OUTPUTS = ["a dolly zoom", "a shot called vertigo", "panning", "", "a slow pan"]


@contextlib.contextmanager
def serve(reply):
    """An endpoint that says `reply(prompt)`: a text, a status, or None to hang up."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, self.headers.get("Authorization"), body))
            said = reply(body["messages"][0]["content"])
            if said is None:
                return
            status, content = (said, "") if isinstance(said, int) else (200, said)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [{"message": {"content": content}}]}).encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def run(tmp_path):
    """Five open-ended answers to a question whose gold is "Dolly Zoom"."""
    folder = write_run(tmp_path / "run", OUTPUTS)
    path = tmp_path / "run/toy/records.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row |= {"question_type": "open-ended", "solution": "Dolly Zoom", "choices": []}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def judged(folder, url, tmp_path, **settings):
    rows = rescore(read_outputs(folder), "robust")
    options = JudgeOptions(url, "grader", "secret", num_tries=1, **settings)
    return judge_rows(rows, options, tmp_path / "judged.jsonl")


def test_the_judge_reads_what_words_do_not_settle(run, tmp_path):
    with serve(lambda prompt: "Yes." if "vertigo" in prompt else "no") as (url, asked):
        rows = judged(run, url, tmp_path)
        assert [row["score"] for row in rows] == [1.0, 1.0, 0.0, 0.0, 0.0]
        outcomes = ["scored", "judged", "judged", "unparsed", "judged"]
        assert [row["outcome"] for row in rows] == outcomes
        assert len(asked) == 3
        path, key, body = asked[0]
        assert (path, key, body["model"]) == ("/v1/chat/completions", "Bearer secret", "grader")
        assert "Reference: Dolly Zoom" in body["messages"][0]["content"]
        assert judged(run, url, tmp_path) == rows
        assert len(asked) == 3  # all verdicts were kept
    assert "secret" not in (tmp_path / "judged.jsonl").read_text()
    table = tabulate(rows, "robust")["toy"]
    assert (table["judged"], table["open"], table["score"]) == (3, 0, 2 / 5)


@pytest.mark.parametrize("reply", [500, 401, None, "who knows", "", "Maybe; hard to say."])
def test_a_judge_that_fails_leaves_its_items_open(run, tmp_path, reply):
    with serve(lambda prompt: reply) as (url, asked):
        rows = judged(run, url, tmp_path)
    assert [row["score"] for row in rows] == [1.0, None, None, 0.0, None]
    assert [row["outcome"] for row in rows][1] == "open"
    table = tabulate(rows, "robust")["toy"]
    assert (table["open"], table["judged"], table["all_rows"]) == (3, 0, 1 / 5)
    with serve(lambda prompt: "no") as (url, asked):  # and is asked again
        assert [row["score"] for row in judged(run, url, tmp_path)] == [1.0, 0.0, 0.0, 0.0, 0.0]
        assert len(asked) == 3


def test_a_judge_that_is_late_leaves_its_items_open(run, tmp_path):
    released = threading.Event()
    with serve(lambda prompt: released.wait() and None) as (url, _):
        rows = judged(run, url, tmp_path, timeout_s=0.2)
        released.set()
    assert [row["outcome"] for row in rows].count("open") == 3


def test_a_judge_that_is_not_there_is_given_up(tmp_path, caplog):
    folder = write_run(tmp_path / "run", [f"caption {i}" for i in range(40)])
    rows = [row | {"outcome": "open", "score": None} for row in read_outputs(folder)]
    options = JudgeOptions("http://127.0.0.1:9/v1", "grader", num_tries=1, num_threads=1)
    found = judge_rows(rows, options, tmp_path / "judged.jsonl")
    assert {row["outcome"] for row in found} == {"open"}
    assert "8 failures in a row; it is not asked again" in caplog.text


def test_captions_are_judged_by_the_question_about_them(tmp_path):
    """The judge reads the caption and chooses an option; the gold one makes the caption right."""
    asked_about = "Which?\nA. up\nB. down"
    row = {"benchmark": "tempcompass", "id": "1", "question_type": "captioning", "gold": "A. up",
           "options": [], "question": "Describe it.", "judged": asked_about, "reason": "",
           "score": None, "outcome": "open", "finite": True, "stopped": True}  # fmt: skip
    outputs = ["it goes up", "it goes down", "it goes on"]
    rows = [row | {"output": output} for output in outputs]
    says = {"up": "A", "down": "(B) down", "on": "neither"}

    def reply(prompt):
        assert asked_about in prompt
        return says[prompt.split("it goes ")[1].split("\n")[0]]

    with serve(reply) as (url, _):
        options = JudgeOptions(url, "grader", num_tries=1)
        found = judge_rows(rows, options, tmp_path / "judged.jsonl")
    assert [own["score"] for own in found] == [1.0, 0.0, None]
    assert len((tmp_path / "judged.jsonl").read_text().splitlines()) == 2


def test_what_another_tool_calls_wrong_stays_wrong(run, capsys):
    """Open answers of Video-MMMU are scored by rules there, and those of MMVU by a judge."""
    path = pathlib.Path(run, "toy/records.jsonl")
    text = path.read_text()
    counts = {}
    for name in ("videommmu", "mmvu"):
        path.write_text(text.replace('"toy"', f'"{name}"'))
        with serve(lambda prompt: "yes") as (url, asked):
            command = ["score", run, "--scorer=official", f"--judge={url}", "--judge_model=g"]
            assert cli.main([*command, "--json"]) == 0
        (table,) = json.loads(capsys.readouterr().out).values()
        counts[name] = len(asked), table["judged"], table["score"]
    assert counts == {"videommmu": (0, 0, 1 / 5), "mmvu": (4, 4, 4 / 5)}
    command = ["score", run, "--scorer=videorft", "--judge=http://localhost:9", "--judge_model=g"]
    assert cli.main(command) == 2
    assert "judge: --scorer=videorft leaves nothing to one" in capsys.readouterr().err


def test_an_interrupt_waits_for_no_judge(run):
    """The judge has the question and says nothing; its requests would take six minutes to fail."""
    is_asked, released = threading.Event(), threading.Event()

    def reply(_):
        is_asked.set()
        released.wait()

    command = [sys.executable, "-m", "videorft_jax.cli", "score", run, "--judge_model=grader"]
    with serve(reply) as (url, _):
        process = subprocess.Popen(
            [*command, f"--judge={url}"], stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        try:
            assert is_asked.wait(300)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=100)
        finally:
            process.kill()
            released.set()
    assert process.returncode == 130
    assert "interrupted; the same command goes on" in said


def test_the_command_asks_the_judge(run, monkeypatch, capsys):
    monkeypatch.setenv("JUDGE_API_KEY", "from the environment")
    with serve(lambda prompt: "yes") as (url, asked):
        assert cli.main(["score", run, f"--judge={url}", "--judge_model=grader"]) == 0
    assert asked[0][1] == "Bearer from the environment"
    assert "3 judged" in capsys.readouterr().out
    assert cli.main(["score", run, f"--judge={url}"]) == 2
    assert "judge: no model; give --judge_model" in capsys.readouterr().err
    assert cli.main(["score", run, "--judge=localhost:8000", "--judge_model=x"]) == 2
    assert "give one that begins with http(s)://" in capsys.readouterr().err
