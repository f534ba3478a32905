"""Draws docs/pictures/way_of_a_video.svg: the way of a video through SFT and GRPO.

python docs/pictures/way_of_a_video.py
"""

import html
import pathlib

WIDTH, HEIGHT = 960, 470
STYLE = """
  text { font: 14px system-ui, sans-serif; fill: #1f2933; }
  .name { font-weight: 600; } .small { font-size: 12px; fill: #52606d; }
  .room { fill: #ffffff; stroke: #9aa5b1; } .device { fill: #e3f1ff; stroke: #2f80ed; }
  .stage { fill: none; stroke: #9aa5b1; stroke-dasharray: 5 5; }
  .arrow { fill: none; stroke: #52606d; stroke-width: 1.6; marker-end: url(#tip); }
  #tip path { fill: #52606d; } .frame { stroke: #ffffff; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f4f8; } .small { fill: #bcccdc; }
    .room { fill: #243b53; stroke: #829ab1; } .device { fill: #0b3b6f; stroke: #63a4ff; }
    .arrow { stroke: #bcccdc; } #tip path { fill: #bcccdc; } .frame { stroke: #102a43; }
  }
"""
BOX = (176, 62)
# name, what it does, left, top, whether it is a compiled program on the device
BOXES = (
    ("records + clips", "questions about videos", 16, 56, False),
    ("loader", "decode, sample, pack", 236, 56, False),
    ("SFT", "learn chains of thought", 490, 56, True),
    ("checkpoint", "or a Hugging Face folder", 768, 56, False),
    ("rollout", "clip and prompt once,|then R completions", 236, 216, True),
    ("rewards", "answer, form, and SigLIP:|does it fit the pixels?", 490, 216, True),
    ("advantages", "better or worse than|the rest of its group", 744, 216, True),
    ("update", "a group in one row:|clip and prompt once", 490, 360, True),
)


def box(name: str, text: str, left: int, top: int, is_program: bool) -> str:
    """One box with its name and at most two lines of text."""
    width, height = BOX
    lines = text.split("|")
    size = height + 16 * (len(lines) - 1)
    kind, middle = "device" if is_program else "room", left + width // 2
    parts = [
        f'<rect class="{kind}" x="{left}" y="{top}" width="{width}" height="{size}" rx="8"/>',
        f'<text class="name" x="{middle}" y="{top + 26}" text-anchor="middle">{name}</text>',
    ]
    for number, line in enumerate(lines):
        y = top + 46 + 16 * number
        line = html.escape(line)
        parts.append(f'<text class="small" x="{middle}" y="{y}" text-anchor="middle">{line}</text>')
    return "\n".join(parts)


def arrow(path: str, label: str = "", x: int = 0, y: int = 0) -> str:
    """A line with a head, and its label."""
    drawn = f'<path class="arrow" d="{path}"/>'
    return drawn + (f'\n<text class="small" x="{x}" y="{y}">{label}</text>' if label else "")


def film(left: int, top: int) -> str:
    """A strip of frames in which a ball moves: what the records point to."""
    parts = []
    for number, (x, y) in enumerate(((7, 18), (17, 9), (27, 18))):
        at = left + 42 * number
        frame = f'<rect class="frame" x="{at}" y="{top}" width="40" height="28" fill="#334e68"/>'
        parts += [frame, f'<circle cx="{at + x}" cy="{top + y}" r="5" fill="#f7c948"/>']
    return "\n".join(parts)


def draw() -> str:
    """The whole picture as SVG text."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="The way of a video through SFT and GRPO">',
        f"<style>{STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 L10 5 L0 10 z"/></marker></defs>',
        '<text class="name" x="236" y="34">Stage one: supervised fine-tuning (SFT)</text>',
        '<rect class="stage" x="212" y="158" width="732" height="298" rx="10"/>',
        '<text class="name" x="356" y="186">'
        "Stage two: reinforced fine-tuning, one step of GRPO</text>",
        film(42, 134),
        *(box(*entry) for entry in BOXES),
        arrow("M192 87 H231"),
        arrow("M412 87 H485", "batches", 424, 78),
        arrow("M666 87 H763", "weights", 690, 78),
        arrow("M324 118 V211", "questions", 254, 148),
        arrow("M578 118 V154", "start of stage two", 586, 146),
        arrow("M412 255 H485"),
        arrow("M666 255 H739"),
        arrow("M832 294 V390 H671", "what becomes likelier", 690, 384),
        arrow("M490 390 H324 V299", "new weights", 340, 384),
        arrow("M578 438 V448 H932 V123", "trained weights", 800, 442),
        '<rect class="device" x="20" y="404" width="14" height="14" rx="3"/>',
        '<text class="small" x="42" y="416">compiled XLA program</text>',
        '<rect class="room" x="20" y="428" width="14" height="14" rx="3"/>',
        '<text class="small" x="42" y="440">host</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    pathlib.Path(__file__).with_suffix(".svg").write_text(draw())
