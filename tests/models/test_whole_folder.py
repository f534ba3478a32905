"""A folder that appears whole: where it is written, and that two writers never mix."""

import os

import pytest

from videorft_jax.models import hf_writer


def fill(folder):
    hf_writer.check_place(folder, 1)
    with hf_writer.whole_folder(folder) as partial:
        (partial / "a").write_text("a")


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_is_filled_where_it_leads_to(tmp_path, is_there):
    """Users link folders to larger disks; what is written beside the link would be on this one."""
    target, link = tmp_path / "disk" / "target", tmp_path / "link"
    target.parent.mkdir()
    if is_there:
        target.mkdir()
    link.symlink_to(target)
    hf_writer.check_place(link, 1)
    with hf_writer.whole_folder(link) as partial:
        assert partial.parent == target.parent
        (partial / "a").write_text("a")
    assert link.is_symlink()
    assert (target / "a").read_text() == "a"
    assert sorted(os.listdir(tmp_path)) == ["disk", "link"]
    assert os.listdir(target.parent) == ["target"]


@pytest.mark.parametrize(
    ("name", "said"), [(".", "is the current folder"), ("disk", "is where a disk is mounted")]
)
def test_what_no_folder_can_take_the_place_of_is_refused(tmp_path, monkeypatch, name, said):
    """Replacing it fails, or leaves a shell in a folder that is gone, once all is written."""
    (tmp_path / "here" / "disk").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" if name == "disk" else tmp_path / "here" / "disk")
    if name == "disk":
        monkeypatch.setattr(os.path, "ismount", lambda path: path.endswith("/disk"))
    for refuse in (hf_writer.check_new, lambda folder: hf_writer.check_place(folder, 1)):
        with pytest.raises(ValueError, match=f"{name}: {said}; name a new folder inside it"):
            refuse(name)
    fill("inside" if name == "." else "disk/inside")


def test_two_writers_of_one_folder_do_not_mix(tmp_path):
    """The second took away the folder of the first, which then put half of the second in place."""
    out = tmp_path / "out"
    with hf_writer.whole_folder(out) as partial:
        (partial / "a").write_text("a")
        for write in (fill, lambda folder: hf_writer.whole_folder(folder).__enter__()):
            with pytest.raises(ValueError, match="another export is writing there; wait for it"):
                write(out)
        (partial / "b").write_text("b")
    assert sorted(os.listdir(out)) == ["a", "b"]
    assert os.listdir(tmp_path) == ["out"]
    fill(tmp_path / "other")
