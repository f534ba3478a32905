"""Tools as users write them, good ones and bad ones."""

import time

import numpy as np

CALLS = []


def note(arguments, record, root):
    """Says what it was asked."""
    CALLS.append((arguments, record.problem_id, root))
    return f"the note is {arguments.get('word', 'nothing')}"


def still(arguments, record, root):
    """Grey frames, as many as are asked for."""
    return np.full((int(arguments["n"]), 56, 84, 3), 128, np.uint8), 2.0


def fails(arguments, record, root):
    raise SystemExit("no such thing")


def hangs(arguments, record, root):
    time.sleep(3600)


def talks(arguments, record, root):
    return "a word " * 500


def wrong(arguments, record, root):
    return {"frames": 3}


def narrow(arguments):
    return ""
