"""The page of samples: what became of a few records, to be read and judged by a person.

No text of records or of models is ever part of the markup: the template escapes what it writes,
and the page allows no script but its own and no request.
"""

import base64
import difflib
import hashlib
import heapq
import io
import os
import pathlib
from collections.abc import Iterable, Mapping

import jinja2
import numpy as np
from PIL import Image

from videorft_jax.curation.agreement import Null
from videorft_jax.curation.frames import Frames
from videorft_jax.curation.open_answers import hold_against_null
from videorft_jax.curation.pipeline import Outcome, Pipeline
from videorft_jax.curation.pool import Entry
from videorft_jax.curation.running import Missing, replay
from videorft_jax.data.media.contract import MediaError

FILE = "sample.html"
HEIGHT = 120  # pixels of a frame
MOST_FRAMES = 8
_FOLDER = pathlib.Path(__file__).parent / "templates"


def choose_sample(pool: Iterable[Entry | ValueError], number: int) -> np.ndarray:
    """Rows of `number` records that are asked about: in turn of each source and type, chosen by
    their digests, so that a later call chooses the same. int64 [at most number]."""
    groups: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for entry in pool:
        if isinstance(entry, Entry) and entry.is_used:
            heap = groups.setdefault((entry.record.data_source, entry.record.problem_type), [])
            heapq.heappush(heap, (-int(entry.name[:15], 16), entry.index))
            if len(heap) > number:
                heapq.heappop(heap)
    ordered = [sorted(groups[key], reverse=True) for key in sorted(groups)]
    turns = max(map(len, ordered), default=0)
    rows = [own[i][1] for i in range(turns) for own in ordered if i < len(own)]
    return np.sort(np.array(rows[:number], np.int64))


def write_sample(
    path: pathlib.Path, pipeline: Pipeline, entries: Iterable[Entry],
    nulls: Mapping[str, Null], note: str,
) -> None:  # fmt: skip
    """Writes the page of some records from the store. nulls: of `read_nulls`. note: a line on the
    cost for the head of the page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined
    )
    script = (_FOLDER / "sample_page.js").read_text(encoding="utf-8")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    cards = [_card(entry, pipeline, nulls) for entry in entries]
    text = environment.get_template("sample_page.html").render(
        cards=cards, note=note, script=script, allowed=allowed,
        ends=sorted({card["ended"] for card in cards}),
    )  # fmt: skip
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8", errors="replace")
    os.replace(partial, path)


def _card(entry: Entry, pipeline: Pipeline, nulls: Mapping[str, Null]) -> dict:
    """What the page shows of one record."""
    try:
        out = replay(pipeline.curate(entry), pipeline.store.find)
        hold_against_null(out, entry, nulls)
    except Missing:
        out = Outcome(ended="not finished")
    own = out.revise["attempt"] if out.revise else 0
    before = out.think[own]["cot0"] if out.think else ""
    record = entry.record
    return {
        "name": entry.name, "record": record, "ended": out.ended, "reason": out.reason,
        "frames": _frames(entry, pipeline), "think": out.think, "before": before,
        "description": out.describe["description"] if out.describe else None,
        "changes": _compare(before, out.revise["cot"]) if out.revise else [],
        "checks": out.checks, "requests": _requests(out),
    }  # fmt: skip


def _requests(out: Outcome) -> list[str]:
    keys = list(out.describe["requests"]) if out.describe else []
    keys += [row["request"] for row in out.think]
    return keys + ([out.revise["request"]] if out.revise else [])


def _frames(entry: Entry, pipeline: Pipeline) -> list[tuple[float, str]]:
    """(seconds, JPEG in base64) of some frames; none for a clip that cannot be read."""
    options = pipeline.options
    try:
        frames = Frames(entry, pipeline.root, options.contract, pipeline.store, options.isolate)
    except MediaError:
        return []
    count = len(frames)
    chosen = np.unique(np.linspace(0, count - 1, min(count, MOST_FRAMES)).round().astype(int))
    images = frames.loader(0, count)()
    return [(frames.times[i], _shrink(images[i])) for i in chosen]


def _shrink(jpeg: bytes) -> str:
    image = Image.open(io.BytesIO(jpeg))
    image.thumbnail((4 * HEIGHT, HEIGHT))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=70)
    return base64.b64encode(file.getvalue()).decode()


def _compare(before: str, after: str) -> list[tuple[str, str]]:
    """Pieces of two chains in order: ("same", "gone" or "new", words)."""
    a, b = before.split(), after.split()
    pieces = []
    for tag, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag == "equal":
            pieces.append(("same", " ".join(a[i:j])))
            continue
        changed = (("gone", a[i:j]), ("new", b[k:m]))
        pieces += [(kind, " ".join(own)) for kind, own in changed if own]
    return pieces
