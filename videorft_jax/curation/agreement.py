"""Open answers against a permutation null: whether an answer is nearer to its own reference than to
the references of other questions.

A similarity of texts has no meaning as a number: all answers of one kind of question are alike. So
each group of questions (source, type, length of the reference) gives its own threshold, which 99 of
100 pairs of an answer with another question's reference stay below. Where the similarity cannot
tell the two kinds of pair apart, the group is marked and nothing is refused by it.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

QUANTILE = 0.99
LEAST_RECORDS = 30  # A group of fewer records has no threshold.
LEAST_AUC = 0.8
MOST_RECORDS = 2000  # The null is drawn from at most so many records of a group.
DIMENSIONS = 1024
LONG_WORDS = 8  # Shorter references are one group, the others are another.


@dataclasses.dataclass(frozen=True)
class Null:
    """threshold: the similarity that an answer must exceed. auc: the
    share of matched pairs that are above mismatched ones. num_records: of the group.
    All references alike give 0 for both."""

    threshold: float
    auc: float
    num_records: int

    @property
    def is_informative(self) -> bool:
        return self.num_records >= LEAST_RECORDS and self.auc >= LEAST_AUC


def embed(texts: Sequence[str]) -> np.ndarray:
    """Unit vectors of the counts of three letters in a row, float32 [n, DIMENSIONS]. The places of
    the counts are hashes, so that no list of words is needed."""
    vectors = np.zeros((len(texts), DIMENSIONS), np.float32)
    for row, text in enumerate(texts):
        plain = f"  {' '.join(text.casefold().split())}  "
        for start in range(len(plain) - 2):
            key = hashlib.blake2b(
                plain[start : start + 3].encode("utf-8", "replace"), digest_size=4
            )
            vectors[row, int.from_bytes(key.digest(), "big") % DIMENSIONS] += 1
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def name_group(source: str, problem_type: str, reference: str) -> str:
    """The group of a question."""
    length = "long" if len(reference.split()) >= LONG_WORDS else "short"
    return f"{source or 'not named'}, {problem_type}, {length}"


def measure_similarity(answer: str, reference: str) -> float:
    """Cosine of two texts, 0 to 1."""
    first, second = embed([answer, reference])
    return float(first @ second)


def fit_nulls(pairs: Iterable[tuple[str, str, str]]) -> dict[str, Null]:
    """Null by group. pairs: (group, answer, its reference) of each open question."""
    groups: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
    for group, answer, reference in pairs:
        if len(groups[group]) < MOST_RECORDS:
            groups[group].append((answer, reference))
    return {name: _fit(rows) for name, rows in sorted(groups.items())}


def _fit(rows: list[tuple[str, str]]) -> Null:
    answers, references = zip(*rows, strict=True)
    plain = np.array([" ".join(text.casefold().split()) for text in references])
    cosines = embed(answers) @ embed(references).T
    is_other = plain[:, None] != plain[None]  # Equal references are no mismatch.
    matched, mismatched = np.diag(cosines), np.sort(cosines[is_other])
    if not len(mismatched):
        return Null(0.0, 0.0, len(rows))
    below = np.searchsorted(mismatched, matched, "left")
    through = np.searchsorted(mismatched, matched, "right")
    auc = float((below + through).mean() / 2 / len(mismatched))
    threshold = float(np.quantile(mismatched, QUANTILE, method="higher"))
    return Null(round(threshold, 4), round(auc, 4), len(rows))
