"""Work directories that cannot be appended to: what is copied, when, and by which process."""

import jax
import pytest

from videorft_jax.checkpoints import bucket as mirror


@pytest.fixture
def open_mirror(tmp_path, monkeypatch):
    """open_mirror(machine, process): the mirror of one work directory on a machine of its own."""

    def open_one(machine, process=0):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
        monkeypatch.setattr(jax, "process_index", lambda: process)
        return mirror.Mirror(f"file://{tmp_path}/bucket/run")

    return open_one


def write(folder, **texts):
    for name, text in texts.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_another_machine_goes_on_with_what_was_sent(open_mirror, tmp_path):
    bucket = tmp_path / "bucket" / "run"
    first = open_mirror("a")
    first.pull()  # nothing there yet
    assert first.folder != bucket
    write(first.folder, **{"metrics.jsonl": "1\n2\n", "sizes__sizes-0.jsonl": "s"})
    first.push()
    write(first.folder, **{"metrics.jsonl": "1\n2\n3\n"})  # never sent: it is killed
    write(bucket, **{"checkpoints__00000002__manifest.json": "{}", "compiled__x": "x"})
    sent = {"metrics.jsonl": "1\n2\n", "sizes/sizes-0.jsonl": "s"}
    assert {name: text for name, text in files(bucket).items() if name in sent} == sent
    second = open_mirror("b")
    second.pull()
    assert files(second.folder) == sent
    again = open_mirror("a")
    again.pull()  # the bucket is right, also about what is newer here
    assert files(again.folder) == sent


def test_processes_send_their_own_files_and_read_all_sizes(open_mirror, tmp_path):
    own = {"quarantine-{}.jsonl": "q{}", "sizes__sizes-{}.jsonl": "s{}"}
    for process in (0, 1):
        one = open_mirror(f"machine{process}", process)
        texts = {name.format(process): text.format(process) for name, text in own.items()}
        write(one.folder, **texts, **{"metrics.jsonl": f"of {process}"})
        one.push()
    bucket = files(tmp_path / "bucket" / "run")
    assert bucket == {
        "metrics.jsonl": "of 0",
        "quarantine-0.jsonl": "q0",
        "quarantine-1.jsonl": "q1",
        "sizes/sizes-0.jsonl": "s0",
        "sizes/sizes-1.jsonl": "s1",
    }
    new = open_mirror("new", 1)
    new.pull()
    names = {"quarantine-1.jsonl", "sizes/sizes-0.jsonl", "sizes/sizes-1.jsonl"}
    assert files(new.folder).keys() == names


def test_only_what_changed_is_sent_again(open_mirror, tmp_path):
    one = open_mirror("a")
    write(one.folder, **{"metrics.jsonl": "1\n", "tensorboard__events": "e"})
    one.push()
    bucket = tmp_path / "bucket" / "run"
    before = {name: (bucket / name).stat().st_mtime_ns for name in files(bucket)}
    write(one.folder, **{"metrics.jsonl": "1\n2\n"})
    one.push()
    after = {name: (bucket / name).stat().st_mtime_ns for name in files(bucket)}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"metrics.jsonl"}
    assert before.keys() == after.keys()


def test_a_local_work_directory_is_its_own_folder(tmp_path):
    one = mirror.Mirror(str(tmp_path))
    assert one.folder == tmp_path
    write(tmp_path, **{"metrics.jsonl": "1"})
    one.pull()
    one.push()
    assert files(tmp_path) == {"metrics.jsonl": "1"}


def test_names():
    assert mirror.resolve("gs://bucket/run") == "gs://bucket/run"
    assert mirror.resolve("file:///mnt/run") == "/mnt/run"
    assert mirror.resolve("/runs/../a") == "/a"
