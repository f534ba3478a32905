"""The page of `videorft inspect` by its structure: frames, tokens, targets, positions."""

import html.parser
import json

import pytest
from clips import encode
from PIL import Image
from test_chats import CHAT

from videorft_jax.commands import inspect


class Page(html.parser.HTMLParser):
    """Figures with their captions, and (class, title, text) of each token."""

    def __init__(self, text):
        super().__init__()
        self.captions, self.tokens, self.images, self._open = [], [], 0, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.images += tag == "img" and given["src"].startswith("data:image/jpeg;base64,")
        if tag in ("span", "figcaption"):
            self._open = [tag, given.get("class"), given.get("title"), ""]

    def handle_data(self, data):
        if self._open:
            self._open[3] += data

    def handle_endtag(self, tag):
        if self._open and tag == self._open[0]:
            place = self.captions if tag == "figcaption" else self.tokens
            place.append(self._open[3] if tag == "figcaption" else tuple(self._open[1:]))
            self._open = []


@pytest.fixture
def chat(tmp_path):
    (tmp_path / "a.mp4").write_bytes(encode(num=50, size=(96, 64)))
    Image.new("RGB", (80, 60), (9, 200, 9)).save(tmp_path / "b.png")
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps(CHAT) + "\n" + json.dumps({"problem_id": 1}) + "\n")
    return path


def draw(path, *flags):
    out = path.parent / "page.html"
    assert inspect.main(["--data", str(path), "--out", str(out), *flags]) == 0
    return Page(out.read_text())


def test_a_chat_of_three_items(chat):
    page = draw(chat)
    clip = ["0.00 s, frame 0", "0.12 s, frame 3", "1.96 s, frame 49"]
    assert page.images == len(page.captions) == 16 + 1 + 16
    assert [page.captions[i] for i in (0, 1, 15)] == clip
    assert page.captions[17] == "0.52 s, frame 13"  # the same file from half a second on
    visual = [text for kind, _, text in page.tokens if kind == "visual"]
    assert [text.split(" visual")[0] for text in visual] == ["1120", "6", "1120"]
    words = {kind: "".join(t for k, _, t in page.tokens if k == kind)
             for kind in ("target", "control")}  # fmt: skip
    newline = "\u21b5\n"
    assert words["target"] == (
        f"A red ball.<|im_end|><think>It stops.</think>{newline}<answer>nothing</answer><|im_end|>"
    )
    assert words["control"].count("<|vision_start|>") == 3
    whole = "".join(text for _, _, text in page.tokens)
    assert whole.startswith(f"<|im_start|>system{newline}You are brief.<|im_end|>")
    assert page.tokens[0][1] == "token 0: time 0 height 0 width 0"
    first = next(title for kind, title, _ in page.tokens if kind == "visual")
    start = int(first.split()[1])
    assert first.startswith(f"tokens {start} to {start + 1119}: time {start} height {start} width")


def test_a_prompt_has_no_targets(chat):
    page = draw(chat, "--mode", "grpo")
    assert {kind for kind, _, _ in page.tokens} == {"text", "control", "visual"}
    assert "".join(text for _, _, text in page.tokens).endswith("assistant\u21b5\n")


def test_bad_rows_are_one_line(chat):
    with pytest.raises(ValueError, match=r"--index 7: .* has rows 0 to 1"):
        inspect.main(["--data", str(chat), "--index", "7"])
    with pytest.raises(ValueError, match="row 1: problem: bad missing"):
        inspect.main(["--data", str(chat), "--index", "1"])
    (chat.parent / "b.png").unlink()
    with pytest.raises(ValueError, match=r"row 0: b.png: missing: .*; check the path") as caught:
        inspect.main(["--data", str(chat)])
    assert "\n" not in str(caught.value)
