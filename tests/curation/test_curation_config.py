"""Values of a config file of curation that no run can use are refused with their place, before
anything is opened or asked."""

import re

import pytest
from curation_run import ROOT, ask, make_pool, write_config

from videorft_jax import cli
from videorft_jax.curation.client import make_body
from videorft_jax.curation.config_file import read_config
from videorft_jax.curation.licences import Terms
from videorft_jax.curation.prompts import load_families, load_templates
from videorft_jax.curation.requests import Request

PRICE = "price = {{input = {}, cached = 1, output = 1}}"


@pytest.fixture
def text(tmp_path):
    return write_config(tmp_path / "c.toml", "pool.jsonl", "http://h:1/v1").read_text()


def refuse(tmp_path, text):
    """The line that a config of this text is refused with."""
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"{path}: ")) as caught:
        read_config(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_with_the_mark_that_some_editors_set_first_is_read(tmp_path, text):
    path = tmp_path / "c.toml"
    plain = read_config(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_config(path) == plain


@pytest.mark.parametrize(
    "line",
    [
        "temperature = nan", "temperature = -1", "temperature = inf", "top_p = nan", "top_p = 0",
        "top_p = 1.5", "rpm = -5", "tpm = -1", "concurrency = 0", "concurrency = 100_000_000",
        "deadline_s = inf", "deadline_s = nan", "breaker_failures = 0", "breaker_s = -1",
        "breaker_s = nan", "context = 0", "image_tokens = -5", 'revision = "a@b"', "price = 3",
        "price = {}", "price = {input = 1}", PRICE.format('"a"'), PRICE.format("true"),
        PRICE.format("nan"), PRICE.format("1e300"), PRICE.format("1, batch_factor = 'x'"),
        PRICE.format("1, as_of = 2026-01-01"), PRICE.format("1, strange = 1"), "extra_body = 3",
        "extra_body = [1]", "extra_body = {day = 2026-01-01}", "extra_body = {penalty = nan}",
        "extra_body = {messages = []}", "extra_body = {max_tokens = 9}", "extra_body = {n = 3}",
        "extra_body = {stream = true}",
    ],
)  # fmt: skip
def test_a_field_of_an_endpoint_that_no_request_can_have_is_refused(tmp_path, text, line):
    head = '[endpoints.think]\nmodel = "fake-think"\n'
    said = refuse(tmp_path, text.replace(head, f"{head}{line}\n"))
    assert "think" in said
    assert line.split(" = ")[0] in said
    assert "__init__" not in said


@pytest.mark.parametrize("value", ["3", "[3]", '"http://h:1/v1"', '["http://h:x/v1"]',
    '["http://h:99999/v1"]', '["http://[::1/v1"]', '["http://h/v1?api-version=1"]'])  # fmt: skip
def test_addresses_that_no_request_reaches_are_refused(tmp_path, text, value):
    said = refuse(tmp_path, re.sub("base_urls = .*", f"base_urls = {value}", text, count=1))
    assert "describe" in said
    assert "base_urls" in said or "no address of a server" in said


@pytest.mark.parametrize("value", ["3", '["a"]', '""'])
def test_a_model_is_named_by_a_text(tmp_path, text, value):
    assert "model" in refuse(tmp_path, text.replace('"fake-think"', value))


@pytest.mark.parametrize("value", ['["mvbench"]', '["ab"]', '[["mvbench"]]', "[3]", "[[3, 4]]"])
def test_benchmarks_are_pairs_of_texts(tmp_path, text, value):
    said = refuse(tmp_path, text.replace("[data]\n", f"[data]\nbenchmarks = {value}\n"))
    assert "benchmarks" in said
    assert "[name or record file, data root]" in said


@pytest.mark.parametrize("section", ["endpoints", "licences"])
@pytest.mark.parametrize("value", ["3", '"x"', "[{a = 1}]"])
def test_a_section_that_is_no_section_is_refused(tmp_path, text, section, value):
    kept = [part for part in re.split(r"(?m)^(?=\[)", text) if not part.startswith(f"[{section}")]
    assert section in refuse(tmp_path, f"{section} = {value}\n" + "".join(kept))


def test_an_endpoint_that_is_no_section_is_refused(tmp_path, text):
    parts = re.split(r"(?m)^(?=\[)", text)
    kept = "".join(part for part in parts if not part.startswith("[endpoints.think]"))
    head = "[endpoints.describe]"
    said = refuse(tmp_path, kept.replace(head, f"[endpoints]\nthink = 3\n{head}"))
    assert "endpoints.think is 3" in said


def test_a_models_name_is_sent_whole():
    # Vertex AI calls its models "name@day"; what stands behind the last @ is our revision.
    for model, sent in (("claude@20240229@", "claude@20240229"), ("qwen@abc", "qwen")):
        request = Request("e", "u", "think", model, "", ("t",), 9, 0.0, 1.0, 0, "t")
        assert make_body(request, [])["model"] == sent


@pytest.mark.parametrize("option", ["templates", "data_root"])
def test_a_folder_that_is_not_there_is_refused(tmp_path, capsys, option):
    pool = make_pool(tmp_path / "pool", [ask(0)])
    config = write_config(tmp_path / "c.toml", pool, "http://h:1/v1")
    config.write_text(config.read_text().replace("[data]", f'[data]\n{option} = "/nowhere/x"'))
    assert cli.main(["curate", f"--config={config}", f"--workdir={tmp_path}/w", "--dry_run"]) == 2
    (line,) = "".join(capsys.readouterr()).strip().splitlines()
    assert f"data.{option}=/nowhere/x: " in line
    assert not (tmp_path / "w" / "VideoRFT-RL.jsonl").exists()


@pytest.mark.parametrize(
    ("day", "said"),
    [
        ("2999-01-01", "a day to come"), ("20261129", "write YYYY-MM-DD"),
        ("2026-W48-7", "write YYYY-MM-DD"), ("2026-02-30", "write YYYY-MM-DD"),
        ("yesterday", "write YYYY-MM-DD"),
    ],
)  # fmt: skip
def test_a_day_on_which_nobody_can_have_read_terms_is_refused(day, said):
    assert Terms("unknown", read_on="2026-11-29").read_on == "2026-11-29"
    with pytest.raises(
        ValueError, match=f"read_on is .?{day}.?, {said}|read_on is '{day}'; {said}"
    ):
        Terms("unknown", read_on=day)


def test_that_mark_never_gets_into_a_prompt(tmp_path):
    for name in ("think.txt", "image_families.toml"):
        text = (ROOT / "videorft_jax/curation/templates" / name).read_bytes()
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text)
    assert load_templates(str(tmp_path)) == load_templates()
    assert load_families(str(tmp_path)) == load_families()


FAMILY = '[{}]\nfield = "{}"\nfocus = "What is to be seen."\n'


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("thinkk.txt", "a\n---\nb", "thinkk.txt: is no template"),
        ("image_families.toml", FAMILY.format("ocr", "texts"), "has no [general]"),
        ("image_families.toml", FAMILY.format("general", "caption"), "field 'caption'"),
        ("image_families.toml", FAMILY.format("general", "a b"), "field 'a b'"),
        ("image_families.toml", "[general]\nfield = 3\nfocus = 4\n", "field 3"),
    ],
)
def test_templates_that_nobody_would_read_are_refused(tmp_path, capsys, name, text, said):
    own = ROOT / "videorft_jax/curation/templates"
    folder = tmp_path / "templates"
    folder.mkdir()
    for path in (own / "think.txt", own / "image_families.toml"):
        (folder / path.name).write_text(path.read_text())
    config = write_config(
        tmp_path / "c.toml", make_pool(tmp_path / "pool", [ask(0)]), "http://h:1/v1"
    )
    config.write_text(config.read_text().replace("[data]", f'[data]\ntemplates = "{folder}"'))
    flags = ["curate", f"--config={config}", f"--workdir={tmp_path}/w", "--dry_run"]
    assert cli.main(flags) == 0
    capsys.readouterr()
    (folder / name).write_text(text)
    assert cli.main(flags) == 2
    (line,) = "".join(capsys.readouterr()).strip().splitlines()
    assert said in line
