"""Rules on the text of chains: leaks on a labelled set, conclusions, what a revision kept."""

import dataclasses

import pytest

from videorft_jax.curation import leaks
from videorft_jax.data.records.records import Record

RECORD = Record("1", "What does the man do?", "video", "free-form", (), "", "he sits", "a.mp4")
LEAKING = """
The caption says that a man walks in.
According to the description, she waves.
The video description mentions a red car.
As described, the ball falls.
The scene is described as a kitchen.
According to the notes, he leaves.
The notes mention two dogs.
The metadata shows a park.
The key elements are a cup and a table.
The JSON lists three frames.
The provided text tells of a dog.
The given information suggests rain.
Based on the frames provided, he sits.
A bird is there [Uncertain].
At 00:00:12 the door opens.
The man enters at 0:05 and leaves.
He falls at 12 s.
She turns around at about 3.5 seconds.
From 2 seconds on, it rains.
The timestamp shows the start.
At second 7 he jumps.
In frame 7 the cup is gone.
Frame #3 shows a dog.
The first frame shows a street.
In the next frame he is gone.
The last frame makes it plain.
The bounding box covers the left half.
Its coordinates are in the corner.
The cat is at [10, 20, 30, 40].
It lies at (0.1, 0.2, 0.5, 0.9) in the picture.
Object 3 is the ball.
I simulate watching the video.
As instructed, I go on.
The instructions ask for the end.
The notable_features show a sign.
Each frame caption speaks of snow.
The captions list a horse.
The image description shows a tower.
These frames listed show a cat.
Listed frames show the same.
""".strip().splitlines()
INNOCENT = """
There is a caption on the sign above the shop.
The caption under the painting is in French.
The caption reads Welcome to everybody.
He gave no sign of fear.
She is beyond words when she sees it.
The frame of the door is green.
The first frame of the bicycle is bent.
A window frame hangs loose.
The bed frame is made of wood.
He picks up three boxes from the floor.
The bound book lies on a box.
Ten seconds later he has gone.
She waits for two seconds before she jumps.
At 30 seconds long it is a short dance.
The first man is taller than the second.
The next person takes the cup.
At first the street is empty.
Towards the end two cars pass.
He scores three points.
The team leads by 4 to 2.
She writes a note and folds it.
The notes of the song rise.
A note on the door is torn.
He provided a chair for her.
The given name is on the badge.
An uncertain smile crosses her face.
The man steps on the first step.
Step by step he climbs.
An instruction manual lies open.
The teacher instructs the class.
The object is thrown away.
An object rolls under the table.
He coordinates the dancers with his hands.
The key turns in the lock.
The elements are rough, with rain and wind.
Her time is better than his.
The clock stands on the shelf.
He stamps the letter twice.
Data cables hang from the wall.
A schematic drawing lies there.
""".strip().splitlines()


def test_13_leak_rules_on_labelled_sentences():
    missed = [text for text in LEAKING if not leaks.find_leaks(text, RECORD)]
    wrong = [text for text in INNOCENT if leaks.find_leaks(text, RECORD)]
    assert len(missed) <= 0.05 * len(LEAKING), missed
    assert len(wrong) <= 0.05 * len(INNOCENT), wrong


def test_13_what_the_question_speaks_of_is_allowed():
    record = dataclasses.replace(RECORD, problem="What happens at 12:30 on the clock?")
    assert not leaks.find_leaks("The hands stand at 12:30 as he comes in.", record)
    assert leaks.find_leaks("The hands stand at 12:30 as he comes in.", RECORD)
    assert leaks.find_leaks("Here is the revised reasoning: he sits.", RECORD) == {
        "revision": "revised reasoning"
    }


def test_conclusion_names_another_option():
    record = dataclasses.replace(RECORD, problem_type="multiple choice", solution="B")
    assert leaks.other_conclusion("All fits, so the answer is C.", record) == "C"
    assert leaks.other_conclusion("Not C at first; so the answer is B.", record) == ""
    assert leaks.other_conclusion("He sits down.", record) == ""


@pytest.mark.parametrize(
    ("before", "after", "share"),
    [("a b c d", "a b c d", 1.0), ("a b c d", "a x c d", 0.75), ("a b", "x y z", 0.0)],
)
def test_kept_share_is_the_longest_common_subsequence(before, after, share):
    assert leaks.kept_share(before, after) == share
