"""Rewards as users write them, for random models whose answers are never right."""


def count_letters(prompts, completions, **kwargs):
    """Differs from completion to completion, as little as a letter."""
    return [len(set(text)) / 10 for text in completions]


def only_for_even(prompts, completions, problem_id, **kwargs):
    """One value for all completions of a question with an odd number: nothing to learn there."""
    return [
        len(set(text)) / 10 * (int(str(number).split("-")[-1]) % 2 == 0)
        for text, number in zip(completions, problem_id, strict=True)
    ]


def break_for_even(prompts, completions, problem_id, **kwargs):
    if int(str(problem_id[0]).split("-")[-1]) % 2 == 0:
        raise RuntimeError("no reward today")
    return [len(set(text)) / 10 for text in completions]
