"""Fault 10: export onto a disk that cannot be written or is full ended in a trace."""

import shutil
import subprocess
import sys

import pytest


def export(hour, out, *, before=""):
    """(exit code, what it said) of an export that a shell starts after other commands."""
    command = f"{before} exec {sys.executable} -P -m videorft_jax.cli export"
    done = subprocess.run(
        ["bash", "-c", f"{command} --checkpoint=runs/sft --out={out}"],
        cwd=hour.folder, env=hour.environment(), capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def size(hour):
    """Bytes of the largest file of an export."""
    hour.sft()
    return max(path.stat().st_size for path in (hour.folder / "model").iterdir())


def test_a_disk_that_fills_while_it_is_written(hour, tmp_path, size):
    """No file may grow beyond half of the weights: the write fails as on a full disk."""
    code, text = export(hour, tmp_path / "hf", before=f"ulimit -f {size // 2048};")
    assert code == 1, text
    assert "hf: could not be written (File too large) and is not kept" in text.splitlines()[-1]
    assert "Traceback" not in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["read-only", "full"])
def test_a_disk_that_is_read_only_or_full(hour, tmp_path, size, kind):
    disk = tmp_path / "disk"
    disk.mkdir()
    flags = "ro" if kind == "read-only" else "size=256k"
    mount = ["mount", "-t", "tmpfs", "-o", flags, "none", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a file system; the other tests show the kind without")
    try:
        code, text = export(hour, disk / "hf")
        left = list(disk.iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert code == 2, text
    assert f"{disk}/hf: " in text.splitlines()[-1]
    assert ("Read-only file system" if kind == "read-only" else "GiB free, ") in text
    assert "Traceback" not in text
    assert not left
