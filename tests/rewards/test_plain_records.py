"""Plain dicts where rewards want records: rows of any format, or one line that says why not."""

import numpy as np
import pytest

from videorft_jax.data.records.plain import as_record
from videorft_jax.rewards import combine

CHOICE = {
    "problem_type": "multiple choice",
    "solution": "<answer>B</answer>",
    "options": ["A. red", "B. blue"],
}


def complete(answer):
    return f"<think>t</think><answer>{answer}</answer>"


def reward_level(prompts, completions, level, **kwargs):
    return [level[0] for _ in completions]


@pytest.mark.parametrize(
    "row",
    [
        CHOICE,
        CHOICE | {"problem": "Which?", "path": "a.mp4", "data_type": "video", "problem_id": 5},
        CHOICE | {"media": [{"type": "image", "path": "a.png"}], "problem": "Which?"},
        CHOICE | {"conversations": [{"from": "human", "value": "Which?"},
                                    {"from": "gpt", "value": "B"}], "image": "a.png"},
        CHOICE | {"messages": [{"role": "user", "content": "Which?"},
                               {"role": "assistant", "content": "B"}]},
        CHOICE | {"prompt": "Which?", "images": ["a.png"]},
    ],
)  # fmt: skip
def test_plain_dicts_are_records(row):
    assert as_record(row).problem == ("" if row is CHOICE else "Which?")
    texts = [complete("B"), complete("A"), "B"]
    found = combine.score([texts], [row])
    np.testing.assert_array_equal(found["accuracy"], [[1, 0, 0]])
    np.testing.assert_array_equal(found["format"], [[1, 1, 0]])
    name = f"{__name__}:reward_level"
    again = combine.score([texts], [row | {"level": 0.25}], rewards=("accuracy", name))
    np.testing.assert_array_equal(again[name], [[0.25, 0.25, 0.25]])
    combine.Rewards(combine.RewardConfig(((name, 1.0),))).check_record(row | {"level": 1})
    with pytest.raises(ValueError, match="needs level, which is no field of the records"):
        combine.Rewards(combine.RewardConfig(((name, 1.0),))).check_record(row)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"solution": "C"}, "record 1: solution: bad value: C; write one letter of A to B"),
        ({"problem_type": "poem"}, "record 1: problem_type: bad value: poem; write one of"),
        ({"messages": [], "prompt": "a"}, "record 1: .*fits the formats messages and trl; choose"),
        ({"path": 3, "data_type": "video"}, "record 1: path: bad type"),
    ],
)
def test_bad_dicts_are_one_line(change, said):
    with pytest.raises(ValueError, match=said) as caught:
        combine.score([complete("B")] * 2, [CHOICE, CHOICE | change])
    assert "\n" not in str(caught.value)
