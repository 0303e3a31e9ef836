# SPDX-License-Identifier: MIT
"""What something ran with."""

import hashlib

import pytest

from mlffd import environment


def test_versions():
    assert environment.installed_version("mlffd")
    assert environment.installed_version("no-such-package") is None


def test_sha256(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    assert environment.sha256_of(path) == hashlib.sha256(b"content").hexdigest()


def test_commit_is_that_of_this_checkout_or_unknown(tmp_path, monkeypatch):
    """Seen to catch the commit of a repository that a copy happens to lie in."""
    if (environment.ROOT / ".git").exists():
        assert len(environment.commit().removesuffix("-dirty")) == 12
        monkeypatch.setattr(environment, "ROOT", environment.ROOT / "mlffd")
    else:
        monkeypatch.setattr(environment, "ROOT", tmp_path)
    assert environment.commit() is None


def test_machine():
    assert environment.cpu_model()
    assert environment.load_average() >= 0.0
    assert environment.device_name("cpu") == "cpu"
    with pytest.raises((RuntimeError, AssertionError, ValueError)):
        environment.device_name("cuda:99")
