"""Names as other systems write them: each is read, or refused with what it is and a remedy."""

import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from videorft_jax.data.media.contract import Limits, MediaContract, MediaError
from videorft_jax.data.media.files import resolve
from videorft_jax.data.media.load import load_media
from videorft_jax.data.media.probe import probe_media

TRAIN = MediaContract.train()
COLOUR = (9, 200, 9)


def draw(path, colour=COLOUR):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (56, 56), colour).save(path, "PNG")


def is_read(name, root, limits=Limits()):  # noqa: B008, frozen
    """Whether it is the picture that was drawn; the probe has to say the same."""
    found = load_media(name, root, TRAIN, kind="image", limits=limits)
    looked = probe_media(name, root, TRAIN, kind="image", limits=limits)
    if isinstance(found, MediaError):
        assert found.reason == looked.reason
        return False
    assert not looked.reason
    return bool(np.all(found.frames == COLOUR))


NAMES = ["é/Ünï.png", "plain/å.png", "한글/ö b.png"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("forms", ["NFC NFC", "NFC NFD", "NFD NFC", "NFD NFD"])
def test_names_may_be_composed_otherwise(name, forms, tmp_path):
    """macOS decomposes names, and a copy may have composed the folder and not the file."""
    parts = zip(name.split("/"), forms.split(), strict=True)
    draw(tmp_path / "/".join(unicodedata.normalize(form, part) for part, form in parts))
    for form in ("NFC", "NFD"):
        assert is_read(unicodedata.normalize(form, name), tmp_path)
        whole = os.path.join(tmp_path, unicodedata.normalize(form, name))
        assert resolve(whole, None, Limits()) == resolve(name, tmp_path, Limits())
    assert not is_read(name.replace(".png", ".jpg"), tmp_path)


def test_a_name_that_is_written_exactly_comes_first(tmp_path):
    draw(tmp_path / unicodedata.normalize("NFD", "é.png"), (1, 2, 3))
    draw(tmp_path / unicodedata.normalize("NFC", "é.png"))
    assert is_read(unicodedata.normalize("NFC", "é.png"), tmp_path)
    assert not is_read(unicodedata.normalize("NFD", "é.png"), tmp_path)


@pytest.mark.parametrize("name", ["clip: part 2.png", "10:30:00.png", "file:a.png", "a,b|c%20.png"])
def test_colons_are_letters_where_the_file_is_there(name, tmp_path):
    draw(tmp_path / name)
    assert is_read(name, tmp_path)


def test_windows_names(tmp_path):
    """A relative one is read, one with a drive is refused as what it is."""
    draw(tmp_path / "clips" / "größe.png")
    assert is_read("clips\\größe.png", tmp_path)
    assert is_read(unicodedata.normalize("NFD", "clips\\größe.png"), tmp_path)
    for name in ("C:\\clips\\a.png", "d:/clips/a.png"):
        found = load_media(name, tmp_path, TRAIN, kind="image")
        assert "missing: a Windows path" in str(found)
        assert str(found).endswith("check the path and the data root")
    found = load_media("..\\secret.png", tmp_path, TRAIN, kind="image")
    assert found.reason == "outside_root"


def test_the_cache_of_a_hub_is_read_where_it_is_allowed(tmp_path):
    """snapshots/REVISION/a.png is a link to ../../blobs/DIGEST, as huggingface_hub lays it out."""
    draw(tmp_path / "hub" / "blobs" / "0123abcd")
    draw(tmp_path / "hub" / "secret.png")
    root = tmp_path / "hub" / "snapshots" / "revision"
    (root / "clips").mkdir(parents=True)
    (root / "a.png").symlink_to("../../blobs/0123abcd")
    (root / "clips" / "b.png").symlink_to("../../../blobs/0123abcd")
    (root / "out.png").symlink_to("../../secret.png")
    allowed = Limits(roots=(str(tmp_path / "hub" / "blobs"),))
    for name in ("a.png", "clips/b.png"):
        assert is_read(name, root, allowed)
        refused = load_media(name, root, TRAIN, kind="image")
        assert refused.reason == "outside_root"
        assert "name that folder in limits.roots" in str(refused)
    assert not is_read("out.png", root, allowed)
    assert is_read("snapshots/revision/a.png", tmp_path / "hub")
