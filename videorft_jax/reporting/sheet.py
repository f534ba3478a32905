"""A sheet of frames: what a model saw of clips and images, with the second of each frame."""

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_LONGEST = 224  # pixels of a shown frame's longer side
_COLUMNS, _GAP, _LINE = 4, 8, 20  # frames of a row, pixels between them, height of a line of text
_PAPER, _INK, _FAINT = "#ffffff", "#1c2430", "#5a6675"


def draw_sheet(media: Sequence[tuple[str, np.ndarray, Sequence[float]]]) -> bytes:
    """A PNG with the frames of each item in rows of four, under the item's name.

    media: (name, uint8 [n, h, w, 3], the seconds [n] of the frames within their clip; an empty
    sequence for an image, whose frame has no time). Large frames are shrunk to 224 pixels; small
    ones are enlarged by whole factors, so that their pixels stay as the model saw them.
    """
    items = [_rows_of(*item) for item in media]
    rows = [row for _, own, _ in items for row in own]
    width = _GAP + max(sum(frame.width + _GAP for frame in row) for row in rows)
    height = _GAP + _LINE * len(items) + sum(row[0].height + _LINE + _GAP for row in rows)
    width = max(width, 2 * _LONGEST)
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    top = _GAP
    for title, own, labels in items:
        draw.text((_GAP, top), title, _INK, font)
        top, number = top + _LINE, 0
        for row in own:
            left = _GAP
            for frame in row:
                sheet.paste(frame, (left, top))
                draw.text((left, top + frame.height + 2), labels[number], _FAINT, font)
                left, number = left + frame.width + _GAP, number + 1
            top += row[0].height + _LINE + _GAP
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _rows_of(name, frames, times):
    """(the line above an item, its frames in rows, the labels of the frames)."""
    count, height, width, _ = frames.shape
    what = f"{count} frames" if len(times) else "image"
    title = f"{_shorten(name)}: {what} of {width} x {height} pixels"
    labels = [f"{second:.2f} s" for second in times] or [""]
    shown = [_resize(frame) for frame in frames]
    rows = [shown[start : start + _COLUMNS] for start in range(0, count, _COLUMNS)]
    return title, rows, labels


def _resize(frame):
    longest = max(frame.shape[:2])
    scale = _LONGEST / longest if longest > _LONGEST else math.floor(_LONGEST / longest)
    size = [max(1, round(side * scale)) for side in (frame.shape[1], frame.shape[0])]
    kind = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    return Image.fromarray(frame).resize(size, kind)


def _shorten(name, most=48):
    """The end of a long name, which tells files of one folder apart."""
    return name if len(name) <= most else f"...{name[3 - most :]}"
