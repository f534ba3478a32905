"""Synthetic scenes: coloured shapes that appear, move, bounce and touch, and text on screen.

A scene is drawn by fixing what its question is about (how
many shapes, their looks, who comes first, which way they go) and then re-drawing only start
positions and speeds until nothing overlaps. Rejection therefore never skews an answer.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from videorft_jax.demo.glyphs import GLYPH_GAP, GLYPH_HEIGHT, GLYPH_WIDTH, LETTERS, draw_text

PALETTE = {
    "red": (220, 40, 40),
    "green": (40, 190, 70),
    "blue": (50, 90, 235),
    "yellow": (235, 215, 50),
    "purple": (165, 60, 200),
    "orange": (245, 140, 30),
    "cyan": (60, 210, 220),
}
BACKGROUND = (24, 24, 24)
INK = (240, 240, 240)
# Width and height of each shape, in parts of the side of a square.
SHAPES = {
    "square": (1.0, 1.0),
    "dot": (0.72, 0.72),
    "bar": (1.0, 0.46),
    "post": (0.46, 1.0),
    "ring": (1.0, 1.0),
    "cross": (1.0, 1.0),
}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
GAP = 3  # pixels kept free between any two things, so that colours do not bleed into each other
MAX_TRIES = 20_000
QUESTIONS = (
    "direction",
    "count",
    "text",
    "describe",
    "position",
    "first",
    "colour",
    "bounces",
    "touch",
)
ORDER_QUESTIONS = ("first_colour", "last_colour")  # The default mixture has none of them.


@dataclasses.dataclass(frozen=True)
class WorldConfig:
    """What the synthetic world looks like and which questions are asked of it.

    size: (height, width) in pixels, even; multiples of 28 need no resize.
    num_frames, fps: length of a clip and its frame rate.
    colours, shapes: names from PALETTE and SHAPES; a scene never repeats either.
    shape_size: side of a shape in parts of the shorter frame side.
    travel: range of the way a shape goes in a whole clip, same unit; speed = travel / (frames - 1).
    max_shapes: most shapes in one scene (the count question draws 1..max_shapes evenly).
    questions: kinds asked in turn; repeat a name to give it more weight.
    shuffle_options: letters are dealt anew for each question; else options keep one order.
    still_every: every n-th question that a still image can ask is a PNG; 0 for none.
    text_length: fewest and most letters on screen; letters: which ones.
    restate: the chain of thought opens with a sentence that says what is asked.
    background: its colour, RGB.

    Raises:
      ValueError: a value that no scene can be drawn from.
    """

    size: tuple[int, int] = (112, 112)
    num_frames: int = 8
    fps: int = 4
    colours: tuple[str, ...] = ("red", "green", "blue", "yellow")
    shapes: tuple[str, ...] = ("square", "dot", "bar")
    shape_size: float = 0.22
    travel: tuple[float, float] = (0.5, 0.65)
    max_shapes: int = 3
    questions: tuple[str, ...] = QUESTIONS
    shuffle_options: bool = True
    still_every: int = 4
    text_length: tuple[int, int] = (2, 4)
    letters: str = LETTERS
    restate: bool = True
    background: tuple[int, int, int] = BACKGROUND

    def __post_init__(self):
        height, width = self.size
        known = QUESTIONS + ORDER_QUESTIONS
        checks = (
            (height % 2 == 0 and width % 2 == 0, "size", "use even numbers, H.264 needs them"),
            (min(self.size) >= 28, "size", "use at least 28"),
            (self.fps >= 1, "fps", "use at least 1"),
            (set(self.colours) <= set(PALETTE), "colours", f"use {', '.join(PALETTE)}"),
            (set(self.shapes) <= set(SHAPES), "shapes", f"use {', '.join(SHAPES)}"),
            (
                len(set(self.colours)) == len(self.colours) > 1,
                "colours",
                "use 2 or more, once each",
            ),
            (len(set(self.shapes)) == len(self.shapes) > 1, "shapes", "use 2 or more, once each"),
            (
                2 <= self.max_shapes <= min(len(self.colours), len(self.shapes)),
                "max_shapes",
                "use 2 or more, at most as many as there are colours and shapes",
            ),
            (
                self.num_frames >= 4 * (self.max_shapes - 1),
                "num_frames",
                "use 4 or more per shape after the first",
            ),
            (self.side >= 8 and self.shape_size <= 0.4, "shape_size", "use 8 pixels to 0.4"),
            (0 < self.travel[0] <= self.travel[1] <= 0.9 - self.shape_size, "travel", "use less"),
            (self.questions, "questions", "name at least one"),
            (set(self.questions) <= set(known), "questions", f"use {', '.join(known)}"),
            (self.still_every >= 0, "still_every", "use 0 or more"),
            (1 <= self.text_length[0] <= self.text_length[1], "text_length", "use 1 <= a <= b"),
            (self.text_scale >= 1, "text_length", "use fewer letters or a wider frame"),
            (self.letters and set(self.letters) <= set(LETTERS), "letters", f"use {LETTERS}"),
        )
        for good, field, remedy in checks:
            if not good:
                raise ValueError(f"world: {field}: {getattr(self, field)!r}; {remedy}")

    @property
    def side(self) -> float:
        """Side of a shape, pixels."""
        return self.shape_size * min(self.size)

    @property
    def text_scale(self) -> int:
        """Pixels per dot of the font: the longest text takes up to 65 % of the width."""
        return int(0.65 * self.size[1] / (self.text_length[1] * (GLYPH_WIDTH + GLYPH_GAP)))


@dataclasses.dataclass(frozen=True)
class Shape:
    """kind and colour by name, the way it goes, and the frame in which it appears."""

    kind: str
    colour: str
    direction: str
    appears: int

    @property
    def name(self) -> str:
        return f"{self.colour} {self.kind}"


@dataclasses.dataclass(frozen=True)
class Caption:
    """Text on screen: its top left corner in pixels and the frame in which it appears."""

    text: str
    left: int
    top: int
    appears: int


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that happens in `frame`: a shape appears, bounces off a wall, or touches another;
    text appears (who -1)."""

    frame: int
    what: str
    who: int
    other: str | int = ""


@dataclasses.dataclass(frozen=True)
class Scene:
    """A scene, fully determined. tracks: float [shapes, frames, 2], centres (x, y) in pixels."""

    world: WorldConfig
    shapes: tuple[Shape, ...]
    caption: Caption | None
    tracks: np.ndarray
    events: tuple[Event, ...]

    @property
    def is_still(self) -> bool:
        return self.tracks.shape[1] == 1


def draw_scene(
    world: WorldConfig,
    rng: np.random.Generator,
    shapes: Sequence[Shape],
    *,
    num_frames: int,
    text: str = "",
    travel: tuple[float, float] | None = None,
    touches: bool = False,
    gap: float = GAP,
    accept: Callable[[Scene], bool] | None = None,
) -> Scene:
    """Draws start positions and speeds until nothing overlaps and `accept` holds. `travel` replaces
    the world's and lets shapes run into walls; otherwise their way fits in the frame. `touches`
    lets shapes meet head-on and turn back; otherwise `gap` pixels stay free between them.

    Raises:
      ValueError: no such scene found; the world is too crowded.
    """
    height, width = world.size
    unit = min(world.size) / max(num_frames - 1, 1)
    appears = int(rng.integers(0, num_frames // 2 + 1)) if text else 0
    for _ in range(MAX_TRIES):
        caption = None
        if text:
            ink_width = (len(text) * (GLYPH_WIDTH + GLYPH_GAP) - GLYPH_GAP) * world.text_scale
            left = int(rng.integers(GAP, width - GAP - ink_width + 1))
            top = int(rng.integers(GAP, height - GAP - GLYPH_HEIGHT * world.text_scale + 1))
            caption = Caption(text, left, top, appears)
        speeds = (rng.uniform(*(travel or world.travel), len(shapes)) * unit).tolist()
        starts = [
            _draw_start(
                world, rng, shape, 0 if travel else speed * (num_frames - 1 - shape.appears)
            )
            for shape, speed in zip(shapes, speeds, strict=True)
        ]
        result = _simulate(world, shapes, starts, speeds, num_frames, touches, gap)
        if result is None:
            continue
        tracks, events = result
        if caption and _hits_text(world, shapes, tracks, caption):
            continue
        if caption:
            events.append(Event(appears, "text", -1))
        events.sort(key=lambda event: event.frame)
        scene = Scene(world, tuple(shapes), caption, tracks, tuple(events))
        if accept is None or accept(scene):
            return scene
    raise ValueError(
        f"world: no room for {len(shapes)} shapes of {world.side:.0f} pixels in {width}x{height};"
        " use smaller shapes, less travel or larger frames"
    )


def _draw_start(world, rng, shape, way) -> list[float]:
    """Centre [x, y] from which the shape can go `way` pixels in its direction inside the frame."""
    start = []
    half = _half_size(world, shape)
    for axis, limit in enumerate((world.size[1], world.size[0])):
        step = DIRECTIONS[shape.direction][axis] * way
        low, high = half[axis] - min(step, 0), limit - half[axis] - max(step, 0)
        start.append(float(rng.uniform(low, high)))
    return start


def count_events(scene: Scene, *kinds: str) -> int:
    """How many events of these kinds happen."""
    return sum(event.what in kinds for event in scene.events)


def _half_size(world: WorldConfig, shape: Shape) -> tuple[float, float]:
    width, height = SHAPES[shape.kind]
    return width * world.side / 2, height * world.side / 2


def _simulate(world, shapes, starts, speeds, num_frames, touches, gap):
    """(tracks, events), or None when two shapes overlap. Plain floats: faster than tiny arrays."""
    limits = (world.size[1], world.size[0])
    half = [_half_size(world, shape) for shape in shapes]
    steps = [
        [axis * speed for axis in DIRECTIONS[shape.direction]]
        for shape, speed in zip(shapes, speeds, strict=True)
    ]
    now = [list(start) for start in starts]
    tracks = np.zeros((len(shapes), num_frames, 2))
    events = []
    for frame in range(num_frames):
        seen = [i for i, shape in enumerate(shapes) if shape.appears <= frame]
        moving = [i for i in seen if shapes[i].appears < frame]
        for i, j in [(i, j) for i in moving for j in moving if i < j] if touches else ():
            axis = 0 if steps[i][0] else 1
            way = now[j][axis] - now[i][axis]
            space = abs(way) - half[i][axis] - half[j][axis]
            near = abs(now[i][1 - axis] - now[j][1 - axis]) < half[i][1 - axis] + half[j][1 - axis]
            closing = (steps[i][axis] - steps[j][axis]) * (1 if way > 0 else -1)
            if near and closing > space >= 0 and not steps[j][1 - axis]:
                # They meet within this step: they stop where they touch and turn back.
                for k in (i, j):
                    now[k][axis] += steps[k][axis] * space / closing
                    steps[k][axis] *= -1
                moving = [k for k in moving if k not in (i, j)]
                events.append(Event(frame, "touches", i, j))
        for i in moving:
            for axis in (0, 1):
                now[i][axis] += steps[i][axis]
                low, high = half[i][axis], limits[axis] - half[i][axis]
                if not low <= now[i][axis] <= high:
                    name = (("left", "top"), ("right", "bottom"))[bool(now[i][axis] > high)][axis]
                    now[i][axis] = 2 * (high if now[i][axis] > high else low) - now[i][axis]
                    steps[i][axis] *= -1
                    events.append(Event(frame, "bounces", i, name))
        met = {(e.who, e.other) for e in events if e.frame == frame and e.what == "touches"}
        for i in seen:
            tracks[i, frame] = now[i]
            if shapes[i].appears == frame:
                events.append(Event(frame, "appears", i))
            for j in seen:
                if i < j and (i, j) not in met:
                    free = [abs(now[i][a] - now[j][a]) - half[i][a] - half[j][a] for a in (0, 1)]
                    if max(free) < gap:
                        return None
    return tracks, events


def _hits_text(world, shapes, tracks, caption) -> bool:
    height, width = draw_text(caption.text, world.text_scale).shape
    for shape, track in zip(shapes, tracks, strict=True):
        x, y = (track - (caption.left + width / 2, caption.top + height / 2)).T
        half = _half_size(world, shape)
        near = (abs(x) < half[0] + width / 2 + GAP) & (abs(y) < half[1] + height / 2 + GAP)
        if near[shape.appears :].any():
            return True
    return False


def _ink(kind: str, x: np.ndarray, y: np.ndarray, half: tuple[float, float]) -> np.ndarray:
    """bool [h, w] from the distances x [1, w] and y [h, 1] of pixel centres to the shape's."""
    if kind in ("dot", "ring"):
        distance = np.hypot(x, y)
        return (distance < half[0]) & (distance > (0.55 * half[0] if kind == "ring" else -1))
    inside = (x < half[0]) & (y < half[1])
    if kind == "cross":
        inside &= (x < half[0] / 3) | (y < half[1] / 3)
    return inside


def draw_frames(scene: Scene) -> np.ndarray:
    """uint8 [frames, height, width, 3], RGB."""
    world = scene.world
    height, width = world.size
    num_frames = scene.tracks.shape[1]
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    frames[:] = world.background
    for shape, track in zip(scene.shapes, scene.tracks, strict=True):
        half = _half_size(world, shape)
        for frame in range(shape.appears, num_frames):
            left, top = (max(0, int(track[frame, a] - half[a])) for a in (0, 1))
            right, bottom = (int(track[frame, a] + half[a]) + 1 for a in (0, 1))
            window = frames[frame, top:bottom, left:right]
            x = abs(np.arange(left, left + window.shape[1]) + 0.5 - track[frame, 0])[None]
            y = abs(np.arange(top, top + window.shape[0]) + 0.5 - track[frame, 1])[:, None]
            window[_ink(shape.kind, x, y, half)] = PALETTE[shape.colour]
    if scene.caption:
        ink = draw_text(scene.caption.text, world.text_scale)
        top, left = scene.caption.top, scene.caption.left
        window = frames[
            scene.caption.appears :, top : top + ink.shape[0], left : left + ink.shape[1]
        ]
        window[:, ink] = INK
    return frames
