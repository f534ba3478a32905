"""One record as the model sees it: frames after resizing, tokens, targets and positions."""

import base64
import dataclasses
import html
import io
import itertools

import numpy as np
from PIL import Image

from videorft_jax.data.batch.layout import Sample
from videorft_jax.data.loader.load_sample import Load, lay_out
from videorft_jax.data.loader.measure import Measurer
from videorft_jax.data.media.clip import Clip
from videorft_jax.data.records.quarantine import Failure
from videorft_jax.data.records.records import Record

THUMB = 200  # pixels of a shown frame's longer side
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1120px; padding: 0 1rem;
  color: #1c2430; background: #fff }
h1 { font-size: 1.3rem } h2 { font-size: 1.05rem; margin-top: 1.6rem }
table { border-collapse: collapse } td { padding: .1rem .8rem .1rem 0; vertical-align: top }
td:first-child, .faint, figcaption { color: #5a6675 }
.strip { display: flex; flex-wrap: wrap; gap: 8px } figure { margin: 0 }
figure img { display: block; border-radius: 4px } figcaption { font-size: 12px }
.tokens { font: 13px/2 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere }
.tokens span { border-radius: 3px; padding: 1px 0; border: 1px solid #d8dee6 }
.tokens .control { background: #e4e8ee; color: #475364 }
.tokens .target { background: #cdeccf; border-color: #7fbf86 }
.tokens .visual { background: #d5e3fb; border-color: #86a9e6; padding: 1px 6px }
"""


@dataclasses.dataclass(frozen=True)
class Piece:
    """A token, or all tokens of one clip or stretch of it: its place among the tokens, its text,
    control, text or visual, whether it is learnt, and the time, height and width ids of its first
    and last token."""

    start: int
    stop: int
    text: str
    kind: str
    is_target: bool
    first: tuple[int, int, int]
    last: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What there is to see of a record."""

    where: str
    record: Record
    clips: list[Clip]
    sample: Sample
    pieces: list[Piece]


def inspect_record(measurer: Measurer, index: int) -> Inspection:
    """Reads and lays out one record as the loader does.

    Raises ValueError, one line with the remedy, when the record or its media are bad.
    """
    where = measurer.source.where(index)
    found = Load(measurer, np.zeros((0, 3), np.int64), {}, None).read(index)
    if isinstance(found, Failure):
        detail = found.detail.removesuffix(f"; {found.remedy}")
        raise ValueError(f"{where}: {found.path}: {found.reason}: {detail}; {found.remedy}")
    record, clips = found
    sample = lay_out(measurer, record, clips)
    return Inspection(where, record, clips, sample, cut_pieces(sample, measurer.tokenizer))


def cut_pieces(sample: Sample, tokenizer) -> list[Piece]:
    """The tokens of a sample, visual ones that follow each other as one piece."""
    is_visual = sample.visual_slot[0] >= 0
    control, pieces, start = set(tokenizer.all_special_ids), [], 0
    control |= set(tokenizer.added_tokens_decoder)
    for visual, run in itertools.groupby(is_visual.tolist()):
        stop = start + len(list(run))
        for first, last in (
            [(start, stop)]
            if visual
            else zip(range(start, stop), range(start + 1, stop + 1), strict=True)
        ):
            ids = sample.tokens[first:last].tolist()
            kind = "visual" if visual else "control" if ids[0] in control else "text"
            edges = [tuple(map(int, sample.positions[:, at])) for at in (first, last - 1)]
            text = tokenizer.decode(ids)
            if visual:
                low, high = (edge[0] for edge in edges)
                text = f"{len(ids)} visual tokens, time {low} to {high}"
            target = bool(sample.loss_mask[first])
            pieces.append(Piece(first, last, text, kind, target, *edges))
        start = stop
    return pieces


def draw_page(found: Inspection, note: str = "") -> str:
    """The inspection as one HTML page without anything outside it."""
    record, sample = found.record, found.sample
    facts = {
        "tokens": f"{len(sample.tokens)}, of which {int(sample.loss_mask.sum())} are learnt and"
        f" {int((sample.visual_slot[0] >= 0).sum())} are visual",
        "frame pairs": f"{sample.num_pairs}, windows of each: {sample.num_windows}",
        "problem type": record.problem_type,
        "answer": record.solution,
    }
    rows = "".join(f"<tr><td>{k}</td><td>{html.escape(str(v))}</td></tr>" for k, v in facts.items())
    strips = "".join(
        _strip(number, item.name, clip)
        for number, (item, clip) in enumerate(zip(record.media, found.clips, strict=True))
    )
    tokens = "".join(map(_span, found.pieces))
    title = html.escape(f"{found.where}: {record.problem_id}")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style><h1>{title}</h1><table>{rows}</table>{strips}"
        f"<h2>Tokens</h2><p class=faint>Green is learnt, grey are control tokens, blue stands for"
        f" the tokens of a clip. Point at a token for its number and its time, height and width"
        f" positions. {html.escape(note)}</p><div class=tokens>{tokens}</div>"
    )


def _strip(number: int, name: str, clip: Clip) -> str:
    height, width = clip.planes[0][0].shape
    figures = "".join(
        f'<figure><img src="{_encode(frame)}" alt="frame {index}">'
        f"<figcaption>{seconds:.2f} s, frame {index}</figcaption></figure>"
        for frame, seconds, index in zip(clip.frames, clip.timestamps, clip.indices, strict=True)
    )
    source = f"{clip.source_size[1]}x{clip.source_size[0]}"
    what = f"{len(clip.planes)} frames of {width}x{height}, from {source}, {clip.fps:.3g} a second"
    return f"<h2>{number + 1}. {html.escape(name)}</h2><p class=faint>{what}</p>" + (
        f"<div class=strip>{figures}</div>"
    )


def _encode(frame: np.ndarray) -> str:
    image = Image.fromarray(frame)
    image.thumbnail((THUMB, THUMB))
    target = io.BytesIO()
    image.save(target, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(target.getvalue()).decode()


def _span(piece: Piece) -> str:
    kind = "target" if piece.is_target else piece.kind
    place = f"token {piece.start}"
    ids = "time {} height {} width {}".format(*piece.first)
    if piece.stop - piece.start > 1:
        place = f"tokens {piece.start} to {piece.stop - 1}"
        ids += " to time {} height {} width {}".format(*piece.last)
    text = html.escape(piece.text).replace("\n", "\u21b5\n")
    return f'<span class={kind} title="{place}: {ids}">{text}</span>'
