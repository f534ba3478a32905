"""The system turn that a model was trained with, so that it is asked as it was trained."""

import pathlib

from videorft_jax.data.records.prompts import PromptTemplate

FILE_NAME = "system_prompt.txt"


def find_system(source, template: PromptTemplate) -> str:
    """The system turn of the first record of `source` that can be read: the template's, or of a
    record that is a chat its own. "" where the chat format's own stands there."""
    for index in range(len(source)):
        try:
            turns = source[index].turns
        except ValueError:
            continue  # The loader has counted and named it.
        if not turns:
            return template.system
        role, text = turns[0]
        return text if role == "system" else ""
    return ""


def read_system(folder) -> str:
    """The system turn that an export wrote into `folder`; "" where there is none. Raises
    ValueError, one line, for a file that holds no text."""
    path = pathlib.Path(folder) / FILE_NAME
    if not path.is_file():
        return ""
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: no text ({error}); export again, or delete it") from None
