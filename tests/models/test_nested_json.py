"""JSON that is nested without end, or none, is refused in one line wherever a folder holds it."""

import pytest

from videorft_jax.data.media.contract_file import FILE_NAME, read_contract
from videorft_jax.models.siglip.hf_folder import load_siglip
from videorft_jax.models.tensor_files import INDEX_NAME, read_folder

READERS = {INDEX_NAME: read_folder, FILE_NAME: read_contract, "config.json": load_siglip}


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe\x00", b"[1]"])
@pytest.mark.parametrize("name", READERS)
def test_no_json_is_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: ") as caught:
        READERS[name](str(tmp_path))
    assert "\n" not in str(caught.value)
