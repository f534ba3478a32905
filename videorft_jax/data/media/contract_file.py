"""The media contract of a model's folder, so that it is asked about clips as it was trained."""

import json
import pathlib

from videorft_jax.data.media.contract import MediaContract

FILE_NAME = "media_contract.json"


def read_contract(folder) -> MediaContract | None:
    """The contract that an export wrote into `folder`; None where there is none. Raises ValueError,
    one line, for a damaged file."""
    path = pathlib.Path(folder) / FILE_NAME
    if not path.is_file():
        return None
    try:
        return MediaContract.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: damaged ({error}); export again, or delete it") from None


def write_contract(folder, contract: MediaContract) -> None:
    """Writes the contract into a folder that exists, for `read_contract`."""
    path = pathlib.Path(folder) / FILE_NAME
    path.write_text(json.dumps(contract.to_dict(), indent=2) + "\n", encoding="utf-8")
