"""Is the answer right, is the form right: the rule-based rewards of one completion.

One switch, `mode`, picks between three sets of rules, and nothing else does:
  repo    what the published code computes, case for case, bugs included
  paper   the formulas of the paper (arXiv 2505.12434)
  strict  the formulas with the known defects of the code fixed (default)
The fixes of `strict`, by their numbers in our list of the defects (5, 13: see `combine`):
  6   regression: "nan" no longer earns 1, and 0 for a true 0 does
  7   numerical: commas, units, %, currencies, fractions and LaTeX are read; 4.0 is 4
  8   multiple choice: "A.", "(A)", "a" and "A. cat" are read
  9   an empty ground truth masks the sample, it does not reward missing tags
  10  the answer stands after the reasoning; drafts inside it do not count
  11  format: outer whitespace allowed, exactly one block of each kind, neither empty
  12  free-form: words of every script are compared, not only of the Latin one
  14  every sample is scored by its own type (here in all modes; the code took the batch's first)
Two decimals, the original's test for numbers, also made 0.001 equal to 0.004: strict asks for a
relative difference below 5 % as well.
"""

import collections
import enum
import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from videorft_jax.rewards import answers, statements, units

MODES = ("repo", "paper", "strict")
MAX_TEXT = 1 << 16  # characters; a longer free-form answer or transcript is a degenerate rollout
EXACT_DECIMALS = 2
RELATIVE_TOLERANCE = 0.05


class Outcome(enum.StrEnum):
    """Says why a reward has no number. UNPARSEABLE, the completion's fault, is worth 0; FAILED, the
    record's fault (its ground truth cannot be read, or its type has no rule), masks the sample."""

    UNPARSEABLE = "unparseable"
    FAILED = "failed"


def to_float(score: float | Outcome) -> float:
    """Returns a score as a number: `unparseable` is 0, `failed` is NaN."""
    if isinstance(score, Outcome):
        return math.nan if score is Outcome.FAILED else 0.0
    return score


def check_mode(mode: str) -> None:
    """Raises ValueError for a mode that does not exist."""
    if mode not in MODES:
        raise ValueError(f"rewards: mode is {str(mode)[:40]!r}; choose one of {', '.join(MODES)}")


def score_accuracy(
    completion: str,
    solution: str,
    problem_type: str,
    options: Sequence[str] = (),
    mode: str = "strict",
) -> float | Outcome:
    """Computes the accuracy R_a of one completion, in [0, 1]; total over all strings.

    Args:
      completion: model text with its tags.
      solution: the ground truth, bare as in a record or within answer tags.
      problem_type: multiple choice, numerical, OCR, free-form or regression.
      options: the options of a multiple-choice question, labelled or not; may be empty.
      mode: see the module.

    Returns:
      A float, or UNPARSEABLE (no answer to be read), or FAILED (no ground truth to be read, or a
      type without a rule). In repo mode a type without a rule is 0, as there. In every mode a
      text beyond MAX_TEXT is not compared word by word.

    Raises:
      ValueError: unknown mode.
    """
    check_mode(mode)
    reference = answers.first_block(solution, "answer")
    reference = solution.strip() if reference is None else reference
    if mode == "strict":
        answer = answers.extract_answer(completion)
    else:
        answer = answers.first_block(completion, "answer")
        answer = "" if answer is None and mode == "repo" else answer
    return score_answer(answer, reference, problem_type, options, mode)


def find_unreadable(record, mode: str = "strict") -> tuple[str, str] | None:
    """Tells what keeps the rules of `mode` from reading a record's true answer, and a remedy; None
    where they can. Every completion of such a record would be masked, or worth 0 in repo mode."""
    kind, solution = record.problem_type, record.solution
    if kind not in RULES[mode]:
        return f"no rule for {kind!r}", f"choose one of {', '.join(RULES[mode])}"
    reference = answers.first_block(solution, "answer")
    reference = solution.strip() if reference is None else reference
    score = score_answer(reference, reference, kind, record.options or (), mode)
    if not reference or isinstance(score, Outcome) or not score > 0:
        shown = " ".join(solution.split())[:60]
        return f"{kind} with the truth {shown!r}", f"write one that mode {mode} can read"
    return None


def score_answer(
    answer: str | None,
    reference: str,
    problem_type: str,
    options: Sequence[str] = (),
    mode: str = "strict",
) -> float | Outcome:
    """`score_accuracy` of texts already taken out of their tags; answer None: there was none."""
    rule = RULES[mode].get(problem_type)
    if mode == "repo":
        return rule(answer or "", reference, ()) if rule else 0.0
    if rule is None or not reference:
        return Outcome.FAILED
    score = rule(answer or "", reference, options)
    # a ground truth that cannot be read fails the whole group, also where no answer was given
    return Outcome.UNPARSEABLE if answer is None and score is not Outcome.FAILED else score


def score_format(completion: str, mode: str = "strict") -> float:
    """Gives R_f, 1 for a think block then an answer block and nothing else, 0 otherwise.

    repo and paper accept what the original's full match accepts; strict fixes defect 11.
    """
    check_mode(mode)
    if mode == "strict":
        return float(answers.is_one_think_one_answer(completion))
    return float(answers.is_think_then_answer(completion))


def _equal_strings(answer: str, reference: str, options: Sequence[str]) -> float:
    return float(answer == reference)


def _equal_letters(answer: str, reference: str, options: Sequence[str]) -> float | Outcome:
    truth = statements.read_letter(reference, options)
    if truth is None:
        wanted, chosen = statements.read_choice(reference), statements.read_choice(answer)
        if wanted is None:
            return Outcome.FAILED
        return Outcome.UNPARSEABLE if chosen is None else float(chosen == wanted)
    letter = statements.read_letter(answer, options)
    return Outcome.UNPARSEABLE if letter is None else float(letter == truth)


def _plain_float(text: str) -> float | None:
    """Reads the original's number: commas dropped, then Python's own rules ("nan", "1_2", "٣")."""
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def _repo_numerical(answer: str, reference: str, options: Sequence[str]) -> float | Outcome:
    has_mark = ["." in text or "," in text for text in (answer, reference)]
    if has_mark[0] != has_mark[1]:
        return 0.0
    number, truth = _plain_float(answer), _plain_float(reference)
    if number is None or truth is None:
        return Outcome.UNPARSEABLE
    return float(round(number, EXACT_DECIMALS) == round(truth, EXACT_DECIMALS))


def _paper_numerical(answer: str, reference: str, options: Sequence[str]) -> float | Outcome:
    number, truth = _plain_float(answer), _plain_float(reference)
    if truth is None or not math.isfinite(truth):
        return Outcome.FAILED
    if number is None or not math.isfinite(number):
        return Outcome.UNPARSEABLE
    return float(number == truth)


def _strict_numerical(answer: str, reference: str, options: Sequence[str]) -> float | Outcome:
    truth = statements.read_number(reference)
    if truth is None:
        return _equal_notation(answer, reference)
    number = statements.read_number(answer)
    if number is None:
        return Outcome.UNPARSEABLE
    values = units.readings(number.value, number.unit, truth.unit)
    return float(any(_close(value, truth.value) for value in values))


def _equal_notation(answer: str, reference: str) -> float | Outcome:
    """A truth with digits that is no number, such as "1:23", is compared as it is written."""
    if not any(char.isdecimal() for char in reference):
        return Outcome.FAILED
    return float(answers.plain_notation(answer) == answers.plain_notation(reference))


def _close(number: float, truth: float) -> bool:
    """Equal to two decimals, and within 5 % so that small values are told apart."""
    if number == truth:
        return True
    difference = abs(number - truth)
    decimals = 0.5 * 10**-EXACT_DECIMALS * (1 + 1e-9)
    return difference <= min(decimals, RELATIVE_TOLERANCE * abs(truth))


def _repo_regression(answer: str, reference: str, options: Sequence[str]) -> float | Outcome:
    number, truth = _plain_float(answer), _plain_float(reference)
    if number is None or truth is None:
        return Outcome.UNPARSEABLE
    error = (abs(number - truth) + 1e-9) / (abs(truth) + 1e-9)
    return 1.0 - min(1.0, max(0.0, error))  # max(0.0, nan) is 0.0: defect 6, "nan" earns 1


def _paper_regression(answer: str, reference: str, options: Sequence[str]) -> float | Outcome:
    number, truth = _plain_float(answer), _plain_float(reference)
    if truth is None or not math.isfinite(truth):
        return Outcome.FAILED
    if number is None or not math.isfinite(number):
        return Outcome.UNPARSEABLE
    return _relative_score(number, truth)


def _strict_regression(answer: str, reference: str, options: Sequence[str]) -> float | Outcome:
    truth = statements.read_number(reference)
    if truth is None:
        return Outcome.FAILED
    number = statements.read_number(answer)
    if number is None:
        return Outcome.UNPARSEABLE
    values = units.readings(number.value, number.unit, truth.unit)
    return max((_relative_score(value, truth.value) for value in values), default=0.0)


def _relative_score(number: float, truth: float) -> float:
    """1 - |y - g| / |g|, not below 0; for g = 0 only 0 is right."""
    if truth == 0:
        return float(number == 0)
    return 1.0 - min(1.0, abs(number - truth) / abs(truth))


def mean_relative_accuracy(number: float, truth: float, boundary: str = "official") -> float:
    """MRA: the share of the ten thresholds .50, .55 ... .95 that the relative error stays within.

    VSI-Bench evaluates regression with it. `official` is its own rule (error <= 1 - threshold);
    `videorft` is the original's evaluation script: strictly below, float32, |g| + 1e-8. They
    differ by up to 0.1 on the boundaries. Where the official code divides by zero or by a negative
    truth, |g| is used, and for g = 0 only 0 is right. A number that is not finite scores 0.

    Raises:
      ValueError: unknown boundary, or a truth that is not finite.
    """
    if boundary not in ("official", "videorft"):
        raise ValueError(f"rewards: boundary is {boundary!r}; choose official or videorft")
    if not math.isfinite(truth):
        raise ValueError(f"rewards: the true number is {truth}; give a finite one")
    if not math.isfinite(number):
        return 0.0
    if boundary == "official":
        if truth == 0:
            return float(number == 0)
        error = abs(number - truth) / abs(truth)
        return float(np.mean(error <= 1 - np.linspace(0.5, 0.95, 10)))
    with np.errstate(over="ignore", invalid="ignore"):
        single, goal = np.float32(number), np.float32(truth)
        errors = np.abs(single - goal) / (np.abs(goal) + np.float32(1e-8))
    thresholds = (0.5 + 0.05 * np.arange(10)).astype(np.float32)
    return float(np.mean(errors < 1 - thresholds))


def word_error_rate(answer: Sequence[str], reference: Sequence[str]) -> float:
    """Computes the Levenshtein distance over words / max(1, reference words); can exceed 1."""
    size = len(reference)
    if len(answer) >= 2 * max(1, size):
        return (len(answer) - size) / max(1, size)  # a lower bound, at least 1: worth nothing
    ids = {word: i for i, word in enumerate(dict.fromkeys(reference))}
    truth = np.array([ids[word] for word in reference], np.int64)
    steps = np.arange(size + 1)
    row = steps.copy()
    for count, word in enumerate(answer, 1):
        best = np.empty_like(row)
        best[0] = count
        best[1:] = np.minimum(row[1:] + 1, row[:-1] + (truth != ids.get(word, -1)))
        # a cell may also follow its left neighbour at cost 1: a running minimum of best - steps
        row = np.minimum.accumulate(best - steps) + steps
    return float(row[-1]) / max(1, size)


def _strict_ocr(answer: str, reference: str, options: Sequence[str]) -> float | Outcome:
    """Scores words without punctuation around them, in one width of letters, by their errors."""
    if max(len(answer), len(reference)) > MAX_TEXT:
        return Outcome.FAILED if len(reference) > MAX_TEXT else Outcome.UNPARSEABLE
    words = [answers.split_read_words(text) for text in (answer, reference)]
    return max(0.0, 1.0 - word_error_rate(*words))


def _ocr(answer: str, reference: str, options: Sequence[str]) -> float | Outcome:
    if max(len(answer), len(reference)) > MAX_TEXT:
        return Outcome.FAILED if len(reference) > MAX_TEXT else Outcome.UNPARSEABLE
    return max(0.0, 1.0 - word_error_rate(answer.split(), reference.split()))


@lru_cache(1)
def _rouge_tokenizer():
    from rouge_score.tokenizers import DefaultTokenizer  # This takes a second: it loads nltk.

    return DefaultTokenizer(use_stemmer=True)


def _stem(word: str) -> str:
    stem = _rouge_tokenizer().tokenize(word) if word.isascii() else None
    return stem[0] if stem else word


def mean_rouge(answer: Sequence[str], reference: Sequence[str]) -> float:
    """Returns the mean F1 of ROUGE-1, -2 and -L over words, in [0, 1], as rouge-score does.

    The longest common subsequence is found with one big-integer step a word (Hyyrö 2004) where
    rouge-score fills a Python table.
    """
    scores = []
    for n in (1, 2):
        grams = [
            collections.Counter(zip(*(words[i:] for i in range(n)), strict=False))
            for words in (answer, reference)
        ]
        scores.append(_f1((grams[0] & grams[1]).total(), *(gram.total() for gram in grams)))
    scores.append(_f1(_common_length(answer, reference), len(answer), len(reference)))
    return sum(scores) / 3


def _f1(common: int, num_answer: int, num_reference: int) -> float:
    precision, recall = common / max(num_answer, 1), common / max(num_reference, 1)
    return 2 * precision * recall / (precision + recall) if common else 0.0


def _common_length(answer: Sequence[str], reference: Sequence[str]) -> int:
    """Returns the length of the longest common subsequence."""
    places: dict[str, int] = collections.defaultdict(int)
    for i, word in enumerate(reference):
        places[word] |= 1 << i
    full = (1 << len(reference)) - 1
    state = full  # a cleared bit i: the best subsequence grows at word i
    for word in answer:
        matches = state & places.get(word, 0)
        state = ((state + matches) | (state - matches)) & full
    return len(reference) - state.bit_count()


def _free_form(words: Callable[[str], list[str]], is_strict: bool = False) -> Callable:
    def rule(answer: str, reference: str, options: Sequence[str]) -> float | Outcome:
        if max(len(answer), len(reference)) > MAX_TEXT:
            return Outcome.FAILED if len(reference) > MAX_TEXT else Outcome.UNPARSEABLE
        plain = [" ".join(text.split()).casefold() for text in (answer, reference)]
        if is_strict and plain[0] == plain[1]:
            return 1.0  # ROUGE-2 of a single word is 0.
        return min(1.0, max(0.0, mean_rouge(words(answer), words(reference))))

    return rule


def _latin_words(text: str) -> list[str]:
    return _rouge_tokenizer().tokenize(text)


def _all_words(text: str) -> list[str]:
    # punctuation alone ("?", "+") is compared as it stands: no reference is without words
    return [_stem(word) for word in answers.split_words(text)] or text.split()


RULES: dict[str, dict[str, Callable[[str, str, Sequence[str]], float | Outcome]]] = {
    "repo": {
        "multiple choice": _equal_strings,
        "numerical": _repo_numerical,
        "OCR": _ocr,
        "free-form": _free_form(_latin_words),
        "regression": _repo_regression,
    },
    "paper": {
        "multiple choice": _equal_strings,
        "numerical": _paper_numerical,
        "OCR": _ocr,
        "free-form": _free_form(_latin_words),
        "regression": _paper_regression,
    },
    "strict": {
        "multiple choice": _equal_letters,
        "numerical": _strict_numerical,
        "OCR": _strict_ocr,
        "free-form": _free_form(_all_words, is_strict=True),
        "regression": _strict_regression,
    },
}
