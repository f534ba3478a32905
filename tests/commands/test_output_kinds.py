"""A file is not written under the name of another kind, which nothing could read afterwards."""

import pytest

from videorft_jax import cli

NAMES = {
    "convert --data=none.jsonl --out=own.parquet": ".jsonl",
    "convert --data=none.jsonl --out=own.jsonl.gz": ".jsonl",
    "convert --data=none.jsonl --out=own": ".jsonl",
    "inspect --data=none.jsonl --out=page.png": ".html",
    "report none --out=page.pdf": ".html",
    "compare one two --out=forest": ".png",
    "compare one two --out=forest.html": ".png",
}


@pytest.mark.parametrize("words", NAMES)
def test_a_name_of_another_kind_is_refused_first(words, capsys):
    assert cli.main(words.split()) == 2
    out = words.split()[-1]
    said = f"videorft {words.split()[0]}: {out}: it is written as {NAMES[words]}; name it so\n"
    assert capsys.readouterr().err == said
