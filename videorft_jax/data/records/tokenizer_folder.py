"""The tokenizer of a folder, or one line that says why it cannot be read."""

import os
from typing import Any


def load_tokenizer(folder: str | os.PathLike, kind: str = "AutoTokenizer") -> Any:
    """The tokenizer of a folder, by a class of transformers. Nothing is fetched.

    Raises ValueError, one line, where there is none or it cannot be read, such as one that a later
    version of the library wrote.
    """
    import transformers  # It loads slowly, and some callers need no tokenizer.

    try:
        return getattr(transformers, kind).from_pretrained(folder, local_files_only=True)
    except Exception as error:  # The library of tokenizers raises no narrower class.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"{folder}: no tokenizer can be read there ({reason}); copy its files again, or save "
            "it with the transformers that is installed here"
        ) from None
