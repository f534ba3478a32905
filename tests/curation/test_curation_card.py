"""The data card and the Croissant file, read by programs that are not ours."""

import collections
import json
import logging
import re

import mlcroissant
import pyarrow
import pyarrow.json
import pytest
import tensorflow_datasets as tfds
import yaml
from chat_server import ChatServer
from curation_run import ask, licence, make_pool, residue, run_here, write_config

from videorft_jax.data.records.source import RecordSource
from videorft_jax.data.records.tfds import build

SETS = {"cot": "VideoRFT-CoT.jsonl", "rl": "VideoRFT-RL.jsonl"}
TYPES = {"string": pyarrow.string(), "int64": pyarrow.int64(), "float64": pyarrow.float64(),
         "bool": pyarrow.bool_()}  # fmt: skip


def rows(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    """A finished run of 30 questions of two sources, of which some are wrong, doubled, of a
    benchmark or held out; the rows hold fields of every kind."""
    folder = tmp_path_factory.mktemp("curated")
    pool = make_pool(folder / "pool", [ask(i) for i in range(30)], clips=10)
    records = rows(folder / "pool", "pool.jsonl")
    for index, row in enumerate(records):
        row["data_source"] = ("made up", "set: two | <b>")[index % 2]
        row["problem_id"] = index if index < 29 else "last"
        row["note"] = (1, 2.5, None)[index % 3]
        row["nested"] = {"a": [index]}
    records[8] = records[18] | {"problem_id": 18}
    records.append(records[3])
    pool.write_text("".join(json.dumps(row) + "\n" for row in records))
    bench = folder / "bench.json"
    bench.write_text(json.dumps([records[5]]))

    def right(digest):
        return residue(digest, 3) > 0

    with ChatServer(right=right) as server:
        price = "price = {input = 1.0, cached = 1.0, output = 2.0}"
        config = write_config(folder / "c.toml", pool, server.url, val_fraction=0.2, endpoint=price)
        text = config.read_text()
        text = text.replace("[data]", f'[data]\nbenchmarks = [["{bench}", "{folder / "pool"}"]]')
        other = licence("set: two | <b>", name="not <free>", allows="no")
        config.write_text(f"{text}{other}{licence('not used')}")
        assert run_here(config, folder / "w")[0] == 0
        yield folder / "w", config, server


def front(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_23_the_card_names_tables_that_load_with_their_types(curated):
    folder, _, _ = curated
    card = front(folder)
    assert card["license"] == "other"
    assert card["source_datasets"] == ["made up", "set: two | <b>"]
    files = {c["config_name"]: c["data_files"] for c in card["configs"]}
    assert files == {k: [{"split": "train", "path": v}] for k, v in SETS.items()}
    for info in card["dataset_info"]:
        fields = [
            (f["name"], TYPES[f["dtype"]] if "dtype" in f else pyarrow.list_(pyarrow.string()))
            for f in info["features"]
        ]
        assert {"problem_id", "options", "process", "solution", "extra_curation_cluster"} <= {
            name for name, _ in fields
        }
        options = pyarrow.json.ParseOptions(
            pyarrow.schema(fields), unexpected_field_behavior="error"
        )
        table = pyarrow.json.read_json(folder / SETS[info["config_name"]], parse_options=options)
        assert table.num_rows == info["splits"][0]["num_examples"] > 0
        kinds = dict(fields)
        assert kinds["note"] == pyarrow.float64()
        assert kinds["nested"] == kinds["problem_id"] == pyarrow.string()
    source = RecordSource(folder / SETS["cot"])
    assert all(source[i].process for i in range(len(source)))


def test_23_every_number_of_the_card_is_that_of_the_files(curated):
    folder, _, _ = curated
    text = (folder / "README.md").read_text()
    found = {
        k: int(v.replace(",", "")) for k, v in re.findall(r"^\| (.+) \| ([\d,]+) \|$", text, re.M)
    }
    pool, think = rows(folder, "pool.jsonl"), rows(folder, "think.jsonl")
    verdicts = rows(folder, "verdicts.jsonl")
    revised, cot = rows(folder, "revise.jsonl"), rows(folder, SETS["cot"])
    ended = collections.Counter(row["ended"] for row in verdicts)
    expected = {
        "records in the pool": len(pool) + len(rows(folder, "quarantine.jsonl")),
        "quarantined (row or media)": len(rows(folder, "quarantine.jsonl")),
        "duplicates left out": sum(bool(row["dup_of"]) for row in pool),
        "known from a benchmark, left out": sum(bool(row["contaminated"]) for row in pool),
        "distinct clips": len({row["cluster"] for row in pool}),
        "held out for validation": sum(row["split"] == "val" for row in pool),
        "clips described": len(rows(folder, "describe.jsonl")),
        "questions asked": len(verdicts),
        "chains without a readable answer": sum(r["outcome"] == "unparseable" for r in think),
        "right by the strict rules": len(revised),
        "revised on the frames": len(revised),
        "came back unchanged": sum(row["kept_share"] > 0.995 for row in revised),
        "accepted": len(cot),
        "in the RL set": len(rows(folder, SETS["rl"])),
        "think: fake-think": len(think),
        "revise: fake-revise": len(revised),
        "free-form": len(cot),
        "answer": ended["answer"],
        "made up": sum(row["data_source"] == "made up" for row in cot),
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert all(expected[name] > 0 for name in ("duplicates left out", "answer", "accepted"))
    assert expected["known from a benchmark, left out"] == 1 + 2  # Two more show its picture.


def test_23_lengths_are_those_of_the_chains_and_the_cost_is_what_the_server_billed(curated):
    folder, _, server = curated
    text = (folder / "README.md").read_text()
    cot = rows(folder, SETS["cot"])
    lengths = sorted(len(row["process"].split()) for row in cot)
    own = re.search(r"^\| accepted \| (.* \| .* \| .* \| .* \| .*) \|$", text, re.MULTILINE)[1]
    assert "| words of a chain | mean | p5 | p50 | p95 | max |" in text
    mean, p5, p50, p95, most = map(float, own.replace(",", "").split(" | "))
    assert mean == pytest.approx(sum(lengths) / len(lengths), abs=0.06)
    assert lengths[0] <= p5 <= p50 <= p95 <= most == lengths[-1]
    assert p50 in lengths
    asked = re.findall(
        r"^\| (\w+) \| (\d+) \| ([\d,]+) \| 0 \| ([\d,]+) \| \$([\d.]+) \|$", text, re.M
    )
    assert [row[0] for row in asked] == ["describe", "think", "revise"]
    numbers = [[int(value.replace(",", "")) for value in row[1:4]] for row in asked]
    billed = server.billed_tokens
    assert [sum(column) for column in zip(*numbers, strict=True)] == [
        len(billed), sum(a for a, _ in billed), sum(b for _, b in billed),
    ]  # fmt: skip
    assert sum(float(row[4]) for row in asked) == pytest.approx(
        server.billed_nano(1, 2) / 1e9, abs=2e-4
    )


def test_23_the_card_says_first_what_licences_do_not_allow_and_lists_three_layers(curated):
    folder, _, _ = curated
    text = (folder / "README.md").read_text()
    body = text.split("---\n", 2)[2].split("\n# Curated chains of thought\n")[1].lstrip("\n")
    first = [line for line in body.splitlines()[:9] if line.startswith(">")]
    assert first[:3] == [
        "> The terms of the questions of set: two | <b> do not allow training on them.",
        "> The terms of the models fake-describe (describe), fake-think (think), fake-revise "
        "(revise) are not known to allow training on them.",
        "> The terms of the media of made up, set: two | <b> are not known to allow training on "
        "them.",
    ]
    site = "https://a.b/c | 2026-11-29"
    for row in (
        f"| source | made up | CC0-1.0 | yes | {site} |",
        f"| source | set: two &#124; &lt;b&gt; | not &lt;free&gt; | no | {site} |",
        "| media | made up | not given | unknown | not given | never |",
        "| generator | fake-think (think) | not given | unknown | not given | never |",
    ):
        assert row in text.splitlines()
    assert "not used" not in text
    assert (front(folder)["license"], front(folder)["license_link"]) == (
        "other", "README.md#licences-and-terms",
    )  # fmt: skip


def test_23_croissant_reads_without_an_error_and_a_second_build_is_equal(curated, tmp_path, caplog):
    folder, config, server = curated
    with caplog.at_level(logging.ERROR):
        data = mlcroissant.Dataset(jsonld=str(folder / "croissant.json"))
    assert not data.metadata.ctx.issues.errors
    for name, file in SETS.items():
        read = list(data.records(record_set=name))
        assert len(read) == len(rows(folder, file))
        for one, row in zip(read, rows(folder, file), strict=True):
            solution = one[f"{name}/solution"]
            assert (solution.decode() if isinstance(solution, bytes) else solution) == row[
                "solution"
            ]
    before = {p.name: p.read_bytes() for p in folder.iterdir() if "store" not in p.name}
    asked = len(server.log)
    assert run_here(config, folder)[0] == 0
    assert len(server.log) == asked
    assert {p.name: p.read_bytes() for p in folder.iterdir() if "store" not in p.name} == before


def test_23_tensorflow_datasets_reads_both_sets_under_the_names_of_the_paper(curated, tmp_path):
    folder, _, _ = curated
    for name, file in (("videorft_cot", SETS["cot"]), ("videorft_rl", SETS["rl"])):
        source = RecordSource(folder / file, str(folder.parent / "pool"))
        build(name, source, tmp_path, embed=False)
        builder = tfds.builder_from_directory(str(next((tmp_path / name).glob("1.*"))))
        read = builder.as_data_source(split="train")
        solutions = [row["solution"].decode() for row in read]
        assert len(solutions) == builder.info.splits["train"].num_examples
        stored = [row["solution"] for row in rows(folder, file)]
        assert [f"<answer>{text}</answer>" for text in solutions] == stored
        assert all(row["process"] for row in read) == (name == "videorft_cot")
