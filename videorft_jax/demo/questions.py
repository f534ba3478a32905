"""What is asked about a synthetic scene, and how the scene is told in words.

Each kind of question is given its answer first, a value that the caller deals evenly, and draws a
scene in which that answer is true.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from videorft_jax.demo.scenes import (
    DIRECTIONS,
    GAP,
    Scene,
    Shape,
    WorldConfig,
    count_events,
    draw_scene,
)

POSITION_BINS = 8


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about a scene. `answer` is the text of an option, or the answer itself; `asked`
    and `conclusion` are the first and last sentence of the chain of thought."""

    scene: Scene
    problem: str
    answer: str
    asked: str
    conclusion: str


@dataclasses.dataclass(frozen=True)
class Kind:
    """A family of questions. `values(world)` are the answers (or answer bins) to balance; `options`
    says whether they are offered as a choice; `ask(world, rng, value, num_frames)` draws one."""

    problem_type: str
    values: Callable[[WorldConfig], list[Any]]
    ask: Callable[[WorldConfig, np.random.Generator, Any, int], Question]
    options: bool = False
    still: bool = False


def describe_events(scene: Scene) -> list[str]:
    """One sentence for each thing that happens, in order of time (a still: one sentence)."""
    if scene.is_still:
        return [f"There is {caption_scene(scene)}."]
    sentences = []
    for event in scene.events:
        name = scene.shapes[event.who].name
        if event.what == "text":
            line = f"the text {scene.caption.text} appears."
        elif event.what == "bounces":
            line = f"the {name} bounces off the {event.other} wall."
        elif event.what == "touches":
            line = f"the {name} touches the {scene.shapes[event.other].name}."
        else:
            way = f"moves {scene.shapes[event.who].direction}."
            line = f"a {name} {way}" if event.frame == 0 else f"a {name} appears and {way}"
        is_later = sentences and event.frame > 0
        sentences.append(f"Then {line}" if is_later else line[0].upper() + line[1:])
    return sentences


def caption_scene(scene: Scene) -> str:
    """What the last frame shows, such as "a red square and a blue dot"."""
    names = [f"a {shape.name}" for shape in _in_order(scene)]
    if scene.caption:
        names.append(f"the text {scene.caption.text}")
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _in_order(scene: Scene) -> list[Shape]:
    """Shapes by appearance; those of a still from left to right."""
    if not scene.is_still:
        return sorted(scene.shapes, key=lambda shape: shape.appears)
    order = np.argsort(scene.tracks[:, 0, 0])
    return [scene.shapes[i] for i in order]


def _some_shapes(
    world: WorldConfig, rng: np.random.Generator, num: int, num_frames: int, kind: str = ""
) -> list[Shape]:
    """`num` different shapes; the first is there from the start, the others appear one by one, at
    least two frames apart, in the first half. With `kind` the first is of that kind."""
    kinds = [kind] * bool(kind) + [k for k in rng.permutation(world.shapes).tolist() if k != kind]
    colours = rng.permutation(world.colours).tolist()
    latest = num_frames // 2
    free = latest - 2 * (num - 1)  # spread over the gaps
    late = np.sort(rng.integers(0, free + 1, num - 1)) if free > 0 else np.zeros(num - 1)
    appears = [0, *(int(late[i]) + 2 * (i + 1) for i in range(num - 1))]
    ways = rng.choice(list(DIRECTIONS), num).tolist()
    times = [0] * num if num_frames == 1 else appears
    return [Shape(*look) for look in zip(kinds[:num], colours[:num], ways, times, strict=True)]


def _ask_direction(world, rng, value, num_frames):
    shapes = _some_shapes(world, rng, int(rng.integers(1, 3)), num_frames)
    i = int(rng.integers(len(shapes)))
    shapes[i] = dataclasses.replace(shapes[i], direction=value)
    name = shapes[i].name
    return Question(
        draw_scene(world, rng, shapes, num_frames=num_frames),
        f"Which way does the {name} move?",
        value,
        f"I look for the way the {name} moves.",
        f"So the {name} moves {value}.",
    )


def _ask_first(world, rng, value, num_frames):
    shapes = _some_shapes(world, rng, 2, num_frames, kind=value)
    return Question(
        draw_scene(world, rng, shapes, num_frames=num_frames),
        "Which shape appears first?",
        value,
        "I look for the shape that appears first.",
        f"So the {value} appears first.",
    )


def _ask_order(world, rng, value, num_frames, which):
    shapes = _some_shapes(world, rng, 2, num_frames)
    i = ("first", "last").index(which)
    old = shapes[i].colour  # goes to the other shape where that one has the colour asked for
    shapes = [dataclasses.replace(s, colour=old) if s.colour == value else s for s in shapes]
    shapes[i] = dataclasses.replace(shapes[i], colour=value)
    return Question(
        draw_scene(world, rng, shapes, num_frames=num_frames),
        f"What colour is the {which} shape?",
        value,
        f"I look for the colour of the {which} shape.",
        f"So the {which} shape is {value}.",
    )


def _ask_colour(world, rng, value, num_frames):
    shapes = _some_shapes(world, rng, int(rng.integers(1, 3)), num_frames)
    i = int(rng.integers(len(shapes)))
    for j, shape in enumerate(shapes):  # give the colour to shape i, its old one to whoever had it
        if j != i and shape.colour == value:
            shapes[j] = dataclasses.replace(shape, colour=shapes[i].colour)
    shapes[i] = dataclasses.replace(shapes[i], colour=value)
    return Question(
        draw_scene(world, rng, shapes, num_frames=num_frames),
        f"What colour is the {shapes[i].kind}?",
        value,
        f"I look for the colour of the {shapes[i].kind}.",
        f"So the {shapes[i].kind} is {value}.",
    )


def _ask_touch(world, rng, value, num_frames):
    first, second = _some_shapes(world, rng, 2, num_frames)
    ways = [("left", "right"), ("right", "left"), ("up", "down"), ("down", "up")]
    ways = ways[int(rng.integers(4))]
    shapes = [
        dataclasses.replace(shape, direction=way, appears=0)
        for shape, way in zip((first, second), ways, strict=True)
    ]

    def accept(scene: Scene) -> bool:
        axis = 0 if DIRECTIONS[ways[0]][0] else 1
        apart = scene.tracks[0, 0] - scene.tracks[1, 0]
        if apart[axis] * DIRECTIONS[ways[0]][axis] > 0:
            return False  # they come towards each other in both cases
        # Face to face when they touch, so that round shapes really do.
        aside = abs(apart[1 - axis]) > world.side / 4
        return count_events(scene, "touches") == (value == "yes") and aside == (value == "no")

    names = f"the {first.name} and the {second.name}"
    return Question(
        draw_scene(
            world,
            rng,
            shapes,
            num_frames=num_frames,
            touches=True,
            gap=max(GAP, world.side / 4),  # a miss is a clear miss
            accept=accept,
        ),
        f"Do {names} touch?",
        value,
        f"I look whether {names} touch.",
        f"So they {'touch' if value == 'yes' else 'do not touch'}.",
    )


def _ask_count(world, rng, value, num_frames):
    shapes = _some_shapes(world, rng, value, num_frames)
    place = "image" if num_frames == 1 else "video"
    return Question(
        draw_scene(world, rng, shapes, num_frames=num_frames),
        f"How many shapes are in the {place}?",
        str(value),
        "I count the shapes.",
        f"So the number of shapes is {value}.",
    )


def _num_turns(scene: Scene) -> int:
    """How often the first shape is seen to turn: a bounce within the last step would not show, and
    neither would a step back of less than two pixels."""
    steps = np.diff(scene.tracks[0], axis=0).sum(1)
    ways = np.sign(steps[abs(steps) >= 2])
    return int((ways[1:] != ways[:-1]).sum())


def _ask_bounces(world, rng, value, num_frames):
    shapes = _some_shapes(world, rng, 1, num_frames)
    # As many walls as wanted are in reach on a way of 0 to 2 times the free length.
    travel = (max(0.3, 0.8 * (value - 0.5)), 0.8 * (value + 0.8))
    return Question(
        draw_scene(
            world,
            rng,
            shapes,
            num_frames=num_frames,
            travel=travel,
            accept=lambda scene: count_events(scene, "bounces") == value == _num_turns(scene),
        ),
        f"How many times does the {shapes[0].name} bounce off a wall?",
        str(value),
        f"I count the times the {shapes[0].name} bounces.",
        f"So the number of bounces is {value}.",
    )


def _ask_text(world, rng, value, num_frames):
    text = "".join(rng.choice(list(world.letters), value).tolist())
    shapes = _some_shapes(world, rng, 1, num_frames)
    return Question(
        draw_scene(world, rng, shapes, num_frames=num_frames, text=text),
        "What does the text say?",
        text,
        "I look for the text.",
        f"So the text says {text}.",
    )


def _ask_describe(world, rng, value, num_frames):
    shapes = _some_shapes(world, rng, value, num_frames)
    scene = draw_scene(world, rng, shapes, num_frames=num_frames)
    moves = ", then ".join(f"a {shape.name} moves {shape.direction}" for shape in shapes)
    answer = caption_scene(scene) if scene.is_still else moves
    return Question(
        scene,
        "What is in the image?" if scene.is_still else "What happens in the video?",
        answer,
        "I say what I see.",
        "That is all.",
    )


def _ask_position(world, rng, value, num_frames):
    shapes = _some_shapes(world, rng, int(rng.integers(1, 3)), num_frames)
    i = int(rng.integers(len(shapes)))
    low, high = value
    # It must be able to come from where it would have started: the farthest way fits in the frame.
    way = 100 * world.travel[0] * min(world.size) / world.size[1]
    edge = _position_bins(world)[0][0]
    ways = ["up", "down"] + ["right"] * (low - way > edge) + ["left"] * (high + way < 100 - edge)
    shapes[i] = dataclasses.replace(shapes[i], direction=str(rng.choice(ways)))

    def percent(scene: Scene) -> int:
        return round(100 * scene.tracks[i, -1, 0] / world.size[1])

    def accept(scene: Scene) -> bool:
        return low <= percent(scene) < high

    scene = draw_scene(world, rng, shapes, num_frames=num_frames, accept=accept)
    name, answer = shapes[i].name, str(percent(scene))
    when = "" if scene.is_still else " at the end"
    return Question(
        scene,
        f"How far is the {name} from the left edge{when}, in percent of the width?",
        answer,
        f"I look where the {name} is{when}.",
        f"So the {name} is {answer} percent from the left.",
    )


def _position_bins(world: WorldConfig) -> list[tuple[float, float]]:
    edge = 100 * world.side / 2 / world.size[1] + 1
    edges = np.linspace(edge, 100 - edge, POSITION_BINS + 1)
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


KINDS: dict[str, Kind] = {
    "direction": Kind("multiple choice", lambda world: list(DIRECTIONS), _ask_direction, True),
    "first": Kind("multiple choice", lambda world: list(world.shapes), _ask_first, True),
    "first_colour": Kind(
        "multiple choice",
        lambda world: list(world.colours),
        functools.partial(_ask_order, which="first"),
        True,
    ),
    "last_colour": Kind(
        "multiple choice",
        lambda world: list(world.colours),
        functools.partial(_ask_order, which="last"),
        True,
    ),
    "colour": Kind("multiple choice", lambda world: list(world.colours), _ask_colour, True, True),
    "touch": Kind("multiple choice", lambda world: ["yes", "no"], _ask_touch, True),
    "count": Kind(
        "numerical", lambda world: list(range(1, world.max_shapes + 1)), _ask_count, still=True
    ),
    "bounces": Kind("numerical", lambda world: [0, 1, 2], _ask_bounces),
    "text": Kind(
        "OCR",
        lambda world: list(range(world.text_length[0], world.text_length[1] + 1)),
        _ask_text,
        still=True,
    ),
    "describe": Kind("free-form", lambda world: [1, 2], _ask_describe, still=True),
    "position": Kind("regression", _position_bins, _ask_position, still=True),
}
