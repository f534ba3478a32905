"""Models that are named as on the hub or by a URL: what is read, and what is said otherwise."""

import json
import logging

import hub_cache
import huggingface_hub
import pytest

import videorft_jax as vr
from videorft_jax.checkpoints.bucket import Mirror
from videorft_jax.models.sources import find_cached, find_folder, find_missing, is_hub_name
from videorft_jax.training.restore import find_checkpoint

NAME = "Qwen/Qwen2.5-VL-7B-Instruct"
SHARDS = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
INDEX = {"weight_map": dict(zip("ab", SHARDS, strict=True))}


@pytest.fixture
def model(tmp_path):
    """A folder with the names of a model's files; nobody reads what stands in them here."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", *INDEX["weight_map"].values()):
        (folder / name).write_text(name)
    (folder / "model.safetensors.index.json").write_text(json.dumps(INDEX))
    return folder


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a download at a surprise")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)


def test_a_cached_name_is_found_without_the_network(tmp_path, model, monkeypatch, no_network):
    snapshot = hub_cache.put(tmp_path / "hub", NAME, model, monkeypatch)
    for name in (NAME, f"{NAME}@main", f"{NAME}@{hub_cache.COMMIT}"):
        assert find_folder(name) == find_cached(name) == str(snapshot)
        assert find_folder(name, download=True) == str(snapshot)  # There is nothing to fetch.


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("Qwen/Other", "hf download Qwen/Other"),
        (f"{NAME}@v9", f"hf download {NAME} --revision v9"),
    ],
)
def test_what_is_not_cached_is_named_with_the_command(
    tmp_path, model, monkeypatch, no_network, name, command
):
    hub_cache.put(tmp_path / "hub", NAME, model, monkeypatch)
    assert find_cached(name) is None
    with pytest.raises(ValueError, match="not in the cache") as caught:
        find_folder(name)
    assert str(caught.value).endswith(f"fetch it by: {command}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "lost", ["tokenizer.json", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
)
def test_a_snapshot_that_lacks_a_file_is_refused(tmp_path, model, monkeypatch, no_network, lost):
    snapshot = hub_cache.put(tmp_path / "hub", NAME, model, monkeypatch)
    (snapshot / lost).unlink()
    assert find_cached(NAME) is None
    wanted = lost.replace(".index.json", "")  # Without an index one file is looked for.
    assert find_missing(snapshot) == wanted
    with pytest.raises(ValueError, match=f"lacks {wanted}; .* hf download {NAME}$"):
        find_folder(NAME)


def test_a_download_that_is_allowed_completes_the_cache(tmp_path, model, monkeypatch):
    snapshot = hub_cache.put(tmp_path / "hub", NAME, model, monkeypatch)
    (snapshot / "tokenizer.json").unlink()
    asked = []

    def fetch(repository, revision, allow_patterns):
        asked.append((repository, revision))
        assert "*.bin" not in allow_patterns
        (snapshot / "tokenizer.json").write_text("{}")
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert find_folder(NAME, download=True) == str(snapshot)
    assert asked == [(NAME, None)]


def test_a_download_that_fails_is_one_line(tmp_path, monkeypatch):
    """The library itself is asked, with its network switched off."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=f"cannot be fetched .*hf download {NAME}$") as caught:
        find_folder(NAME, download=True)
    assert "\n" not in str(caught.value)


def test_a_folder_goes_before_the_hub(tmp_path, model, monkeypatch, no_network):
    hub_cache.put(tmp_path / "hub", NAME, model, monkeypatch)
    (tmp_path / NAME).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_folder(NAME) == NAME
    for path in (str(model), "runs/a/b", "./a/b", "/a/b", "model"):
        assert not is_hub_name(path)
        assert find_folder(path) == path


def test_a_bucket_is_copied_once(tmp_path, model, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bucket = hub_cache.make_bucket(monkeypatch)
    for path in (*model.iterdir(), model / "pytorch_model.bin"):
        path.touch()
        bucket.pipe(f"gs://bucket/qwen/{path.name}", path.read_bytes())
    with caplog.at_level(logging.INFO):
        folder = find_folder("gs://bucket/qwen/")
    names = {path.name for path in model.iterdir()} - {"pytorch_model.bin"}
    assert sorted(bucket.opened) == sorted(names)  # Pickles stay where they are.
    for name in names:
        assert (tmp_path / "cache/videorft/models/gs/bucket/qwen" / name).read_bytes() == (
            (model / name).read_bytes()
        )
    assert "copied to" in caplog.text
    bucket.opened.clear()
    assert find_folder("gs://bucket/qwen") == folder
    assert bucket.opened == []
    bucket.pipe("gs://bucket/qwen/config.json", b"changed")
    bucket.rm("gs://bucket/qwen/model-00002-of-00002.safetensors")
    assert find_folder("gs://bucket/qwen") == folder
    assert bucket.opened == ["config.json"]
    assert find_missing(folder) == "model-00002-of-00002.safetensors"


@pytest.mark.parametrize("url", ["gs://bucket/none", "nowhere://bucket/x"])
def test_a_url_that_cannot_be_read_is_one_line(tmp_path, monkeypatch, url):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    hub_cache.make_bucket(monkeypatch)
    with pytest.raises(ValueError, match=url) as caught:
        find_folder(url)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


class NetworkError(Exception):
    """What the network layer of a storage raises: no OSError, and of several lines."""


def refuse(*arguments, **options):
    raise NetworkError("no route\nto the host")


@pytest.mark.parametrize("read", [find_folder, vr.load, find_checkpoint, Mirror])
@pytest.mark.parametrize(
    ("url", "remedy"),
    [("gs://bucket/x", "check it and its rights"), ("hf://Qwen/X", "name .* the hub as Qwen/X,")],
)
def test_a_storage_without_a_network_is_one_line(monkeypatch, read, url, remedy):
    hub_cache.make_bucket(monkeypatch)
    for storage in (hub_cache.MemoryBucket, huggingface_hub.HfFileSystem):
        for name in ("info", "ls", "exists", "isdir", "isfile", "glob", "find"):
            monkeypatch.setattr(storage, name, refuse)
    if read is Mirror:  # A run does not work in a model of the hub.
        remedy = "check it and its rights"
    with pytest.raises(
        ValueError, match=rf"{url}: cannot be read \(no route to the host\); {remedy}"
    ):
        read(url)


def test_a_copy_that_breaks_off_is_one_line_and_goes_on(tmp_path, model, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bucket = hub_cache.make_bucket(monkeypatch)
    for path in model.iterdir():
        bucket.pipe(f"gs://bucket/qwen/{path.name}", path.read_bytes())
    with monkeypatch.context() as broken:
        broken.setattr(hub_cache.MemoryBucket, "open", refuse)
        with pytest.raises(ValueError, match=r"cannot be copied to .*no route to the host\); mend"):
            find_folder("gs://bucket/qwen")
    folder = find_folder("gs://bucket/qwen")
    assert not find_missing(folder)
    (tmp_path / "cache/videorft/models/gs/bucket/qwen/copied.json").write_text('{"config')
    bucket.opened.clear()
    assert find_folder("gs://bucket/qwen") == folder  # A kill had cut the list of what is there.
    assert sorted(bucket.opened) == sorted(path.name for path in model.iterdir())
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="cannot be copied to .*Not a directory"):
        find_folder("gs://bucket/qwen")
