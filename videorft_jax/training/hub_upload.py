"""`videorft export --push`: sends a written folder to the Hugging Face hub."""

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id


def check_upload(repo: str) -> None:
    """Raises ValueError, one line, where nothing could be sent: a name that the hub does not take,
    or nobody who is logged in. Nothing is asked of the hub."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"--push={repo}: no name of a repository ({reason})") from None
    if "/" not in repo:
        raise ValueError(f"--push={repo}: give owner and name, as in --push=OWNER/{repo}")
    if huggingface_hub.get_token() is None:
        raise ValueError(f"--push={repo}: nobody is logged in to the hub; run hf auth login")


def upload_folder(folder: str, repo: str) -> str:
    """Sends the files to a model repository, which is made as a private one where there is none,
    and returns its address. Raises RuntimeError, one line, where the hub refuses; the folder stays
    as it is."""
    api = huggingface_hub.HfApi()
    try:
        made = api.create_repo(repo, repo_type="model", private=True, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, repo_type="model")
    except (HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        again = f"send it later by: hf upload {repo} {folder}"
        raise RuntimeError(f"{folder} is written and not pushed ({reason}); {again}") from error
    return str(made)
