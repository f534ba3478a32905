"""The page of samples in a real browser: what it shows, filters, labels, and never runs."""

import base64
import hashlib
import json
import re

import pytest
from browser import run_in_page
from chat_server import ChatServer
from curation_run import ask, licence, make_pool, write_config

from videorft_jax.curation.config_file import read_config
from videorft_jax.curation.run import Curation

HOSTILE = (
    "<img src=http://127.0.0.1:9/x onerror=window.hacked=1></script></pre></details>"
    "<script>window.hacked=1</script><b>bold</b>\"'&amp;"
)


class HostileServer(ChatServer):
    def _describe(self, data, digest, text):
        body = json.loads(super()._describe(data, digest, text))
        return json.dumps(body | {"caption": HOSTILE})


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    pool = make_pool(folder / "pool", [f"{ask(i)} {HOSTILE}" for i in range(12)])
    rows = [json.loads(line) for line in pool.read_text().splitlines()]
    for index, row in enumerate(rows):
        row["data_source"] = ("one", HOSTILE)[index % 2]
        row["options"] = [f"A. {HOSTILE}", "B. b"]
        row["solution"] = f"<answer>blue ball {index}</answer>"
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with HostileServer() as server:
        server.think_text = f"I watch the ball roll carefully over the floor. {HOSTILE}"
        config = write_config(folder / "c.toml", pool, server.url, stages="least_words = 1")
        config.write_text(config.read_text() + licence("one") + licence(HOSTILE))
        options = read_config(config)
        with Curation(options, str(folder / "w")) as curation:
            result = curation.run(sample=6)
        assert result.exit_code == 0
        assert server.count("think") == 6
    return folder / "w" / "sample.html"


def without_policy(page, tmp_path):
    """The page as a browser without a content policy would run it, which is harder on it."""
    text, number = re.subn(r"<meta http-equiv[^>]*>", "", page.read_text())
    assert number == 1
    path = tmp_path / "page.html"
    path.write_text(text)
    return path


def test_24_no_text_of_data_is_markup_and_no_request_leaves(page, tmp_path):
    script = """
    await new Promise((resume) => setTimeout(resume, 50));
    return {
      hacked: window.hacked ?? null,
      bold: all('b').length, scripts: document.scripts.length,
      loaded: performance.getEntriesByType('resource').map((each) => each.name)
        .filter((name) => !name.endsWith('/favicon.ico')),
      questions: all('.card h2').map((each) => each.textContent),
      description: JSON.parse($('.description pre').textContent).caption,
      options: $('.card td').textContent,
      chain: $('.chain pre').textContent,
      frames: all('.frames img').filter((each) => each.complete && each.naturalWidth).length,
    };"""
    found = run_in_page(without_policy(page, tmp_path), script)
    assert found["hacked"] is None
    assert (found["bold"], found["scripts"], found["loaded"]) == (0, 2, [])  # ours and the test's
    assert len(found["questions"]) == found["frames"] == 6
    assert all(question.endswith(HOSTILE) for question in found["questions"])
    assert found["description"] == HOSTILE
    assert HOSTILE in found["options"]
    assert HOSTILE in found["chain"]


def test_24_filters_and_labels_work(page, tmp_path):
    script = """
    const before = $('#count').textContent;
    const names = [...$('#ended').options].map((each) => each.value);
    $('#ended').value = names[1];
    $('#ended').dispatchEvent(new Event('change'));
    const shown = $('#count').textContent;
    const visible = all('.card').filter((card) => card.offsetParent !== null).length;
    $('.card input[value="wrong step"]').click();
    $('.card .remark').value = 'a "quoted" remark';
    return { before, names, shown, visible, labels: makeLabels(),
             record: $('.card').dataset.record, labelled: $('#labelled').textContent };"""
    found = run_in_page(without_policy(page, tmp_path), script)
    assert found["before"] == "6 of 6 records"
    number = int(found["shown"].split()[0])
    assert number == found["visible"] > 0
    (label,) = map(json.loads, found["labels"].splitlines())
    assert label == {
        "record": found["record"], "ended": label["ended"], "label": "wrong step",
        "remark": 'a "quoted" remark',
    }  # fmt: skip
    assert found["labelled"] == "1 labelled"


def test_24_the_policy_allows_the_page_s_own_script_alone(page):
    text = page.read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert f"script-src 'sha256-{digest}';" in policy
    assert not re.search(r"""(src|href)=["']?(?!data:)""", re.sub(r"&[^;]+;", "", script))
