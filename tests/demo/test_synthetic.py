"""Synthetic clips: every answer is worked out again from the decoded pixels alone."""

import re
from collections import Counter

import av
import numpy as np
import pytest
from PIL import Image

from videorft_jax.demo.dataset import (
    make_sample,
    write_clip,
    write_image,
)
from videorft_jax.demo.glyphs import LETTERS, draw_text
from videorft_jax.demo.scenes import (
    INK,
    ORDER_QUESTIONS,
    PALETTE,
    SHAPES,
    WorldConfig,
    draw_frames,
)

WORLDS = {
    "default": WorldConfig(),
    "demo": WorldConfig(max_shapes=2, shuffle_options=False, restate=False, still_every=0),
    "order": WorldConfig(max_shapes=2, num_frames=4, still_every=0, questions=ORDER_QUESTIONS),
    "wide": WorldConfig(
        size=(140, 196),
        num_frames=12,
        fps=6,
        colours=("red", "blue", "yellow", "cyan"),
        shapes=tuple(SHAPES)[:3] + ("post",),
        shape_size=0.2,
        max_shapes=4,
        still_every=2,
        text_length=(1, 5),
    ),
}
WAYS = {(0, -1): "left", (0, 1): "right", (1, -1): "up", (1, 1): "down"}


def read_clip(path):
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


class Seen:
    """What the pixels show: per colour its kind, when it appears and where it is."""

    def __init__(self, frames, world):
        names = [*world.colours, "ink"]
        palette = [*(PALETTE[name] for name in world.colours), INK, (24, 24, 24)]
        distance = np.stack(
            [
                np.maximum(frames, colour).astype(np.int16).sum(-1, dtype=np.int16)
                - np.minimum(frames, colour).astype(np.int16).sum(-1, dtype=np.int16)
                for colour in np.array(palette, np.uint8)
            ]
        )
        nearest = np.where(distance.min(0) < 110, distance.argmin(0), len(names))
        self.masks = {name: nearest == i for i, name in enumerate(names)}
        ink = self.masks.pop("ink")
        self.ink = ink[-1] if ink[-1].sum() > 25 else None
        least = 0.12 * (world.shape_size * min(world.size)) ** 2
        self.masks = {k: m for k, m in self.masks.items() if m[-1].sum() > least}
        self.appears, self.centres, self.kinds, self.ways = {}, {}, {}, {}
        for colour, mask in self.masks.items():
            visible = mask.sum((1, 2)) > least
            self.appears[colour] = int(visible.argmax())
            assert visible[self.appears[colour] :].all()
            boxes = [self.box(frame) for frame in mask[self.appears[colour] :]]
            self.centres[colour] = np.array([((a + b) / 2, (c + d) / 2) for a, b, c, d in boxes])
            left, right, top, bottom = boxes[-1]
            ratio = (right - left) / (bottom - top)
            areas = [(b - a) * (d - c) for a, b, c, d in boxes]
            fill = np.median(mask[self.appears[colour] :].sum((1, 2)) / areas)
            flat = "square" if fill > 0.955 else "dot"
            self.kinds[colour] = "bar" if ratio > 1.5 else "post" if ratio < 0.67 else flat
            if len(frames) > 1:
                step = self.centres[colour][1] - self.centres[colour][0]
                axis = int(abs(step).argmax())
                self.ways[colour] = WAYS[axis != 0, int(np.sign(step[axis]))]

    @staticmethod
    def box(mask, least=0.25):
        # rows and columns with few pixels are the codec's frayed edges
        counts = (mask.sum(axis) for axis in (0, 1))
        columns, rows = (np.flatnonzero(n > max(1, least * n.max())) for n in counts)
        return columns[0], columns[-1] + 1, rows[0], rows[-1] + 1

    def names(self):
        """Colours in order of appearance (a still: from left to right)."""
        if not self.ways:
            return sorted(self.masks, key=lambda colour: self.centres[colour][0, 0])
        return sorted(self.masks, key=self.appears.get)

    def turns(self, colour):
        track = self.centres[colour]
        axis = int(np.ptp(track, axis=0).argmax())
        steps = np.diff(track[:, axis])
        signs = np.sign(steps[abs(steps) > 1.2])
        walls = [("left", "right"), ("top", "bottom")][axis]
        return [walls[int(s > 0)] for s, n in zip(signs[:-1], signs[1:], strict=True) if s != n]

    def closest(self):
        """Least distance in pixels between the two shapes (which are there from the start)."""
        centres = [self.centres[colour] for colour in self.masks]
        near = np.argsort(np.linalg.norm(centres[0] - centres[1], axis=1))[:3]
        a, b = ([np.argwhere(mask[frame]) for frame in near] for mask in self.masks.values())
        return min(
            np.sqrt(((p[:, None] - q[None]) ** 2).sum(-1)).min() for p, q in zip(a, b, strict=True)
        )

    def text(self, world):
        left, right, top, bottom = self.box(self.ink, 0)
        scale = world.text_scale
        assert abs(bottom - top - 7 * scale) <= 1
        num = round(((right - left) / scale + 1) / 6)
        best = ""
        for i in range(num):
            cell = self.ink[top : top + 7 * scale, left + 6 * i * scale :][:, : 5 * scale]
            scores = {}
            for letter in LETTERS:
                ink = draw_text(letter, scale)[: cell.shape[0], : cell.shape[1]]
                scores[letter] = (ink == cell).mean()
            best += max(scores, key=scores.get)
        return best


def expected_answer(kind, problem, seen, world):
    """The answer (an option's text for choices) by looking; None where looking gives a range."""
    colour = next((name for name in world.colours if f" {name} " in problem), None)
    shape = next((name for name in SHAPES if f" the {name}?" in problem), None)
    order = seen.names()
    if kind == "direction":
        return seen.ways[colour]
    if kind == "count":
        return str(len(order))
    if kind == "first":
        assert seen.appears[order[1]] > seen.appears[order[0]]
        return seen.kinds[order[0]]
    if kind in ORDER_QUESTIONS:
        assert seen.appears[order[1]] > seen.appears[order[0]]
        return order[kind == "last_colour"]
    if kind == "colour":
        return next(name for name in order if seen.kinds[name] == shape)
    if kind == "bounces":
        return str(len(seen.turns(colour)))
    if kind == "touch":
        distance = seen.closest()
        assert not 4.5 < distance < 5
        return "yes" if distance < 4.5 else "no"
    if kind == "text":
        return seen.text(world)
    if kind == "describe":
        if not seen.ways:
            return " and ".join(f"a {name} {seen.kinds[name]}" for name in order)
        return ", then ".join(f"a {n} {seen.kinds[n]} moves {seen.ways[n]}" for n in order)
    return 100 * seen.centres[colour][-1, 0] / world.size[1]


@pytest.mark.parametrize("name", WORLDS)
def test_answers_follow_from_the_pixels(name, tmp_path):
    world = WORLDS[name]
    checked = Counter()
    for index in range(10 * len(world.questions)):
        sample = make_sample(world, 11, "eval", index)
        record, frames = sample.record, draw_frames(sample.scene)
        if record.data_type == "image":
            write_image(tmp_path / "a.png", frames[0])
            pixels = np.asarray(Image.open(tmp_path / "a.png"))[None]
            np.testing.assert_array_equal(pixels, frames)
        else:
            write_clip(tmp_path / "a.mp4", frames, world.fps)
            pixels = read_clip(tmp_path / "a.mp4")
            assert pixels.shape == (world.num_frames, *world.size, 3)
            assert np.abs(pixels.astype(int) - frames).mean() < 2
        seen = Seen(pixels, world)
        kind = record.data_source.removeprefix("synthetic-")
        expected = expected_answer(kind, record.problem, seen, world)
        answer = record.solution
        if record.options:
            answer = next(o[3:] for o in record.options if o.startswith(f"{answer}. "))
        if kind == "position":
            assert abs(float(answer) - expected) < 2, record
        else:
            assert answer == expected, record
        checked[kind, record.data_type] += 1

        # The chain of thought names what appears in the order in which it appears, as it looks.
        order = seen.names()
        story = record.process.removeprefix(record.process.split(".")[0]) * world.restate
        story = story or record.process
        places = [story.find(f" {n} {seen.kinds[n]}") for n in order]
        assert min(places) >= 0, (record, seen.kinds)
        if seen.ways and kind != "touch":
            assert places == sorted(places), record
            for n in order:
                assert re.search(f"{n} {seen.kinds[n]} (appears and )?moves {seen.ways[n]}", story)
        if kind == "bounces":
            assert re.findall(r"off the (\w+) wall", story) == seen.turns(order[0])
        if kind == "touch":
            assert (" touches the " in story) == (expected == "yes")
        if not (seen.ways and kind == "touch"):
            names = [f"a {n} {seen.kinds[n]}" for n in order]
            if seen.ink is not None:
                names.append(f"the text {seen.text(world)}")
            assert re.split(", | and ", sample.caption) == names
    assert {kind for kind, _ in checked} == set(world.questions)
    assert (sum(n for (_, media), n in checked.items() if media == "image") > 0) == bool(
        world.still_every
    )


@pytest.mark.parametrize(
    "change",
    [
        {"size": (111, 112)},
        {"size": (14, 14)},
        {"fps": 0},
        {"colours": ("red", "pink")},
        {"colours": ("red", "red")},
        {"shapes": ("blob", "dot")},
        {"max_shapes": 4},
        {"max_shapes": 1},
        {"num_frames": 4},
        {"shape_size": 0.5},
        {"travel": (0.5, 0.8)},
        {"questions": ()},
        {"questions": ("why",)},
        {"still_every": -1},
        {"text_length": (0, 2)},
        {"text_length": (2, 40)},
        {"letters": "aO"},
    ],
)
def test_impossible_worlds(change):
    with pytest.raises(ValueError, match=f"world: {next(iter(change))}") as info:
        WorldConfig(**change)
    assert "; " in str(info.value)


def test_crowded_world_says_so():
    world = WorldConfig(
        size=(28, 28), shape_size=0.4, travel=(0.5, 0.5), text_length=(1, 1), questions=("text",)
    )
    with pytest.raises(ValueError, match="use smaller shapes"):
        [make_sample(world, 0, "sft", i) for i in range(3)]
