# SPDX-License-Identifier: MIT
"""Files that are whole or not there: what is left and what is said when they cannot be written."""

import errno

import pytest

from mlffd.__main__ import main
from mlffd.files import lock, replacing, write_atomically


def write_a_part(path):
    with replacing(path) as part:
        part.write_text("ne")
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_old_content_and_names_the_file(tmp_path):
    """A write's own error names no file; seen to fail when the part stayed, and when the name was missing."""
    path = tmp_path / "labels.h5"
    write_atomically(path, "old")
    with pytest.raises(OSError, match="No space left") as caught:
        write_a_part(path)
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_is_said_of_the_file_that_was_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/my\.toml'$"):
        write_atomically(tmp_path / "file" / "my.toml", "name")
    assert main(["evaluate", "water", "none.h5", "-o", "file/errors.json"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_one_holder_of_a_lock(tmp_path):
    with lock(tmp_path / "lock") as first, lock(tmp_path / "lock") as second:
        assert (first, second) == (True, False)
    with lock(tmp_path / "lock") as third:
        assert third
