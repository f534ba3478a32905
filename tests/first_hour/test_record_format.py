"""Fault 16: a schema error says where the format is described, and the description holds."""

import json
import re

from tiny_run import ROOT

from videorft_jax.data.records.records import PROBLEM_TYPES, find_errors, parse_row

PAGE = "docs/how_to/record_format.md"


def test_every_row_of_the_page_is_accepted():
    rows = re.findall(r"^\{.*\}$", (ROOT / PAGE).read_text(), flags=re.MULTILINE)
    records = [parse_row(json.loads(row)) for row in rows]
    assert sorted(record.problem_type for record in records) == sorted(PROBLEM_TYPES)


def test_every_schema_error_names_the_page(hour, tmp_path):
    errors = [*find_errors({}), *find_errors([]), *find_errors({"path": 7, "options": "A"})]
    assert len(errors) > 6
    assert all(PAGE in str(error) for error in errors)
    (tmp_path / "bad.jsonl").write_text('{"problem": "Why?"}\n')
    text = hour.run("validate", "--data", "bad.jsonl", cwd=tmp_path, code=1)
    assert PAGE in text
