"""Pass rates: what is written, what a condition chooses, and in which order a loader reads it."""

import json

import numpy as np
import pytest

from videorft_jax.data.loader.buckets import Bucket, Sizes
from videorft_jax.data.loader.schedule import make_schedule
from videorft_jax.data.records.pass_rates import parse_condition, select, write_pass_rates

RATES = [0.0, 1.0, 0.5, None, 0.25, 0.75]


def write(path, rates=RATES, records="r", weights="w"):
    rows = []
    for index, rate in enumerate(rates):
        scores = [None] if rate is None else [1.0] * int(4 * rate) + [0.0] * int(4 - 4 * rate)
        for number, score in enumerate(scores):
            length = None if rate is None else 10 * index + number
            rows.append({"index": index, "problem_id": f"p{index}", "score": score,
                         "completion_tokens": length})  # fmt: skip
    return write_pass_rates(path, rows[::-1], records, weights)


def chosen(path, condition="", order="", num=6, records="r", weights="w"):
    selection = select(str(path), condition, order, num, records, weights)
    return np.flatnonzero(selection.chosen).tolist(), selection.ranks


def test_what_is_written(tmp_path):
    counts = write(tmp_path / "rates")
    assert counts == {"never": 1, "sometimes": 3, "always": 1, "no_score": 1}
    head, *rows = [json.loads(line) for line in (tmp_path / "rates").read_text().splitlines()]
    assert head == {"records": "r", "weights": "w", "num_records": 6}
    assert [row["pass_rate"] for row in rows] == RATES
    assert [row["mean_length"] for row in rows] == [1.5, 11.5, 21.5, None, 41.5, 51.5]


@pytest.mark.parametrize(
    ("condition", "wanted"),
    [
        ("", [0, 1, 2, 3, 4, 5]),
        ("0 < pass_rate < 1", [2, 4, 5]),
        ("pass_rate >= .5 and mean_length < 50", [1, 2]),
        ("not pass_rate == 0", [1, 2, 4, 5]),
        ("(pass_rate < 0.3 or pass_rate > 0.7) and not 1 == pass_rate", [0, 4, 5]),
        ("0 != pass_rate", [1, 2, 4, 5]),
    ],
)
def test_conditions(tmp_path, condition, wanted):
    write(tmp_path / "rates")
    assert chosen(tmp_path / "rates", condition)[0] == wanted


@pytest.mark.parametrize(
    "text",
    ["pass_rate", "pass_rate <", "rate < 1", "1 < 2", "pass_rate < 'a'", "pass_rate in (1,)",
     "__import__('os').system('true') < pass_rate", "pass_rate < 1; 2", "pass_rate < True",
     "(" * 5000 + "pass_rate<1" + ")" * 5000, "pass_rate = 1", "-pass_rate < 1"],
)  # fmt: skip
def test_what_is_no_condition(text):
    with pytest.raises(ValueError, match="cannot be read; compare pass_rate and mean_length"):
        parse_condition(text)


def test_files_of_something_else_are_refused(tmp_path):
    path = tmp_path / "rates"
    with pytest.raises(ValueError, match="No such file"):
        chosen(path)
    write(path)
    with pytest.raises(ValueError, match="other records than data.records"):
        chosen(path, records="others")
    with pytest.raises(ValueError, match="other weights than model.init_from"):
        chosen(path, weights="others")
    assert chosen(path, weights="")[0] == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="has 6 of 7 records"):
        chosen(path, num=7)
    with pytest.raises(ValueError, match="no record of 6 fulfils it"):
        chosen(path, "pass_rate > 1")
    for text in (
        "",
        "{}\n",
        "[1]\n",
        path.read_text()[:-9],
        '{"records": "r", "weights": "w"}\n{}\n',
    ):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(ValueError, match="no whole file of pass rates"):
            chosen(tmp_path / "bad")


def test_orders(tmp_path):
    write(tmp_path / "rates")
    assert chosen(tmp_path / "rates")[1] is None
    easy, hard = (chosen(tmp_path / "rates", order=f"{name}_first")[1] for name in ("easy", "hard"))
    assert np.argsort(easy, kind="stable").tolist() == [1, 5, 2, 4, 0, 3]
    assert np.argsort(hard, kind="stable").tolist() == [0, 4, 2, 5, 1, 3]


@pytest.mark.parametrize("packed", [False, True])
def test_a_schedule_reads_by_rank(packed):
    rng = np.random.default_rng(0)
    sizes = Sizes(*(np.full(200, n) for n in (30, 1, 1)))
    ranks = rng.integers(0, 20, 200).astype(float)
    records = np.flatnonzero(rng.random(200) < 0.7)
    buckets = (Bucket(64, 4, 4, 8),)
    made = [
        make_schedule(records, sizes, buckets, packed=packed, seed=seed, epochs=2, ranks=ranks)
        for seed in (0, 1)
    ]
    for schedule in made:
        for epoch in range(2):
            batches = [
                schedule.record[schedule.starts[k] : schedule.starts[k + 1]]
                for k in np.flatnonzero(schedule.epoch == epoch)
            ]
            assert sorted(np.concatenate(batches)) == records.tolist()
            means = [ranks[batch].mean() for batch in batches]
            assert means == sorted(means)
            read = ranks[np.concatenate(batches)]
            # Rows hold neighbours and batches follow each other, so ranks rise but for packing.
            assert (np.diff(read) >= (-1 if packed else 0)).all()
    assert made[0].record.tolist() != made[1].record.tolist()  # ties are in the seed's order
    plain = make_schedule(records, sizes, buckets, packed=packed, seed=0, epochs=2)
    assert plain.digest != made[0].digest
