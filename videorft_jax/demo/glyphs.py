"""A 5x7 bitmap font for text on synthetic frames: the same pixels on every machine, no font file.

A glyph is seven rows of five bits, from top to bottom. Letters that look alike at this size, such
as I and 1 or O and 0, are left out, so that an answer never depends on them.
"""

import numpy as np

GLYPH_HEIGHT, GLYPH_WIDTH, GLYPH_GAP = 7, 5, 1
_ROWS = {
    "A": "01110 10001 10001 11111 10001 10001 10001",
    "B": "11110 10001 10001 11110 10001 10001 11110",
    "C": "01111 10000 10000 10000 10000 10000 01111",
    "D": "11110 10001 10001 10001 10001 10001 11110",
    "E": "11111 10000 10000 11110 10000 10000 11111",
    "F": "11111 10000 10000 11110 10000 10000 10000",
    "G": "01111 10000 10000 10011 10001 10001 01111",
    "H": "10001 10001 10001 11111 10001 10001 10001",
    "J": "00111 00010 00010 00010 00010 10010 01100",
    "K": "10001 10010 10100 11000 10100 10010 10001",
    "L": "10000 10000 10000 10000 10000 10000 11111",
    "M": "10001 11011 10101 10101 10001 10001 10001",
    "N": "10001 11001 11001 10101 10011 10011 10001",
    "P": "11110 10001 10001 11110 10000 10000 10000",
    "R": "11110 10001 10001 11110 10100 10010 10001",
    "S": "01111 10000 10000 01110 00001 00001 11110",
    "T": "11111 00100 00100 00100 00100 00100 00100",
    "U": "10001 10001 10001 10001 10001 10001 01110",
    "V": "10001 10001 10001 10001 01010 01010 00100",
    "W": "10001 10001 10001 10101 10101 11011 10001",
    "X": "10001 01010 01010 00100 01010 01010 10001",
    "Y": "10001 01010 01010 00100 00100 00100 00100",
    "Z": "11111 00001 00010 00100 01000 10000 11111",
    "2": "01110 10001 00001 00110 01000 10000 11111",
    "3": "11110 00001 00001 01110 00001 00001 11110",
    "4": "00010 00110 01010 10010 11111 00010 00010",
    "5": "11111 10000 11110 00001 00001 10001 01110",
    "6": "00110 01000 10000 11110 10001 10001 01110",
    "7": "11111 00001 00010 00010 00100 00100 00100",
    "8": "01110 10001 10001 01110 10001 10001 01110",
    "9": "01110 10001 10001 01111 00001 00010 01100",
}
LETTERS = "".join(_ROWS)


def draw_text(text: str, scale: int) -> np.ndarray:
    """bool [7*scale, (6*len(text)-1)*scale]: True where the ink is.

    Raises:
      ValueError: empty text, or a letter that the font does not have.
    """
    unknown = sorted(set(text) - set(LETTERS))
    if unknown or not text:
        raise ValueError(f"text {text!r}: letters not in the font; use only {LETTERS}")
    ink = np.zeros((GLYPH_HEIGHT, (GLYPH_WIDTH + GLYPH_GAP) * len(text) - GLYPH_GAP), bool)
    for i, letter in enumerate(text):
        left = i * (GLYPH_WIDTH + GLYPH_GAP)
        rows = [[bit == "1" for bit in row] for row in _ROWS[letter].split()]
        ink[:, left : left + GLYPH_WIDTH] = rows
    return ink.repeat(scale, 0).repeat(scale, 1)
