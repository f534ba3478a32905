"""The words with which each benchmark's own code asks its questions, to the letter.

A function is named for its benchmark and gives the text of the user's turn, which follows the clip;
some benchmarks also have a system text of their own, or begin the answer for the model.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Wording(NamedTuple):
    """What is said around the media: the user's text, the system text ("" leaves the system turn to
    the chat format), and what the answer begins with."""

    prompt: str
    system: str = ""
    opening: str = ""


def lettered(options: Sequence[str], form: str = "{letter}. {text}") -> list[str]:
    """Writes the options with their letters, a line each."""
    pairs = zip(LETTERS, options, strict=False)
    return [form.format(letter=letter, text=text) for letter, text in pairs]


def join(*lines: str) -> str:
    """Makes a prompt of lines."""
    return "\n".join(lines)


_TIME = r"\d{1,2}:\d{2}"  # minutes and seconds
_DIRECTLY = "Answer with the option's letter from the given choices directly."
IN_BRACKETS = "({letter}) {text}"
_SELECT = (
    "Select the best answer to the following multiple-choice question based on the video. Respond "
    "with only the letter ({}) of the correct option."
)


def vsibench(question: str, options: Sequence[str]) -> Wording:
    """Questions without options ask for a number."""
    head = ("These are frames of a video.", question)
    if not options:
        return Wording(join(*head, "Please answer the question using a single word or phrase."))
    return Wording(join(*head, "Options:", *lettered(options), _DIRECTLY))


def videommmu(question: str, options: Sequence[str], track: str) -> Wording:
    """The track Adaptation asks about a picture that follows the clip, and the others do not."""
    text = join(question, *lettered(options))
    if track != "Adaptation" and not options:
        text += "\n"  # The original joins no options, too.
    if track != "Adaptation":
        return Wording(f"{text}\nPlease ignore the Quiz question in last frame of the video.")
    kind = "multi-choice" if options else "open-ended"
    return Wording(
        "You should watch and learn the video content. Then apply what you learned to answer the "
        f"following {kind} question. The image for this question is at the end of the video.\n"
        f"{text}"
    )


def mmvu(question: str, options: Sequence[str]) -> Wording:
    """MMVU asks to reason step by step; its prompt has a line break inside its last sentence."""
    if options:
        return Wording(
            f"\nQuestion: {question}\n{join(*lettered(options, '{letter}: {text}'))}\n\n"
            "Answer the given multiple-choice question step by step. Begin by explaining your "
            "reasoning process clearly. Conclude by stating the final answer using the following "
            "format: 'Therefore, the final answer is: $LETTER' (without quotes), where $LETTER is "
            "one of the options. Think step by\nstep before answering."
        )
    return Wording(
        f"\nQuestion: {question}\n\nAnswer the given question step by step. Begin by explaining "
        "your reasoning process clearly. Conclude by stating the final answer using the following "
        "format: 'Therefore, the final answer is: 'Answer: $ANSWER' (without quotes), where "
        "$ANSWER is the final answer of the question. Think step by step\nbefore answering."
    )


def mvbench(question: str, options: Sequence[str]) -> Wording:
    """The prompt has a system text, and opens the answer."""
    return Wording(
        join(f"Question: {question}", "Options:", *lettered(options, IN_BRACKETS),
             "Only give the best option."),
        "Carefully watch the video and pay attention to the cause and sequence of events, the "
        "detail and movement of objects, and the action and pose of persons. Based on your "
        "observations, select the best option that accurately addresses the question.\n",
        "Best option:(",
    )  # fmt: skip


TEMPCOMPASS_ENDINGS = {
    "multi-choice": "\nPlease directly give the best option:",
    "yes_no": "\nPlease answer yes or no:",
    "caption_matching": "\nPlease directly give the best option:",
    "captioning": "",
}


def tempcompass(question: str, form: str) -> Wording:
    """The end of the prompt depends on the form of the question, and captioning has none."""
    return Wording(f"{question}{TEMPCOMPASS_ENDINGS[form]}")


def charades(caption: str) -> Wording:
    """The prompt is that of lmms-eval, with its slip in the word seconds."""
    return Wording(
        "Please find the visual event described by a sentence in the video, determining its "
        "starting and ending times. The format should be: 'The event happens in the start time - "
        "end time'. For example, The event 'person turn a light on' happens in the 24.3 - 30.4 "
        f"seonds. Now I will give you the textual sentence: {caption}. Please return its start "
        "time and end time."
    )


def videomme(question: str, options: Sequence[str]) -> Wording:
    """The prompt is that of the benchmark's page, without its part for subtitles."""
    head = _SELECT.format("A, B, C, or D")
    return Wording(join(head, question, *lettered(options), "The best answer is:"))


def videomme_v2(question: str, options: Sequence[str]) -> Wording:
    """The instruction follows the options here, other than in Video-MME."""
    end = _SELECT.format("A, B, C, D, E, F, G, or H")
    return Wording(join(f"Question: {question}", *lettered(options), end))


def lvbench(question: str) -> Wording:
    """The question holds its options, so that they are not listed again."""
    return Wording(f"{question}\nAnswer the question with the option letter")


def mlvu(question: str, options: Sequence[str]) -> Wording:
    """The prompt has a system text, and opens the answer."""
    return Wording(
        join(f"Question: {question}", "Options:", *lettered(options, IN_BRACKETS),
             "Only give the best option."),
        "Carefully watch this video and pay attention to every detail. Based on your observations, "
        "select the best option that accurately addresses the question.",
        "Best Option: (",
    )  # fmt: skip


def longvideobench(question: str, options: Sequence[str]) -> Wording:
    """The text follows the clip and its subtitles."""
    return Wording(join(f"Question: {question}", *lettered(options), _DIRECTLY))


def video_holmes(question: str, options: Sequence[str]) -> Wording:
    """The prompt asks for reasoning in tags, and lists the options in one line."""
    listed = ", ".join(lettered(options, "{letter}: {text}"))
    return Wording(
        "Based on the given video, reason and answer the single-choice question. Provide your "
        "reasoning between the <think> and </think> tags, and then give your final answer between "
        f"the <answer> and </answer> tags. The question is: {question}. The options are: {listed}. "
        "Your answer:"
    )


def scivideobench(question: str, options: Sequence[str]) -> Wording:
    """A blank line stands between the options and the instruction. Times of the question are asked
    for as frames, of which the original counts one a second whatever is shown."""
    question = re.sub(
        rf"({_TIME})\s*[-–]\s*({_TIME})",
        lambda m: f"frame {_seconds(m[1])} to frame {_seconds(m[2])}",
        question,
    )
    question = re.sub(
        rf"(?<!frame )({_TIME})(?!\s*[-–])", lambda m: f"frame {_seconds(m[1])}", question
    )
    return Wording(join(question, *lettered(options), "", _DIRECTLY))


def _seconds(time: str) -> int:
    minutes, seconds = map(int, time.split(":"))
    return 60 * minutes + seconds


def videomathqa(question: str, options: Sequence[str]) -> Wording:
    """The prompt is that of the questions with five options."""
    head = (
        "Select the best answer to the following multiple-choice question based on the video. "
        "Respond with the letter (A, B, C, D or E) of the correct option."
    )
    return Wording(join(head, question, *lettered(options), "The best answer is:"))
