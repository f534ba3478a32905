"""The lock of a work directory on storages of all kinds."""

import errno
import fcntl
import os

import pytest

from videorft_jax.checkpoints import lock


def agree(text):
    return [text]


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_storage_without_locks_is_told_and_used(tmp_path, monkeypatch, caplog, code):
    """Lustre is mounted without locks on some clusters; no run could start there."""

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with lock.lock_workdir(str(tmp_path), agree):
        assert f"{tmp_path}: the storage knows no locks ({os.strerror(code)})" in caplog.text
    assert (tmp_path / lock.NAME).read_text() == ""


@pytest.mark.parametrize("code", [errno.EACCES, errno.EAGAIN])
def test_a_lock_that_is_held_is_an_error_by_either_name(tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    monkeypatch.setattr(lock, "_PATIENCE_S", 0.0)
    (tmp_path / lock.NAME).write_text('{"pid": 7, "host": "node", "started": "today"}')
    message = "process 7 on node, since today, is running there; stop it"
    with pytest.raises(ValueError, match=message), lock.lock_workdir(str(tmp_path), agree):
        raise AssertionError("the lock is held")
