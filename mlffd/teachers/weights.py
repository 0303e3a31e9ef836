# SPDX-License-Identifier: MIT
"""Weights from a local file, for machines that cannot download them."""

import hashlib
from pathlib import Path

from mlffd.errors import TeacherError

WEIGHTS_SETTING = {"weights": "local file with the weights, instead of the download"}


def local_weights(weights: str | None, directory: Path | str) -> tuple[str | None, dict]:
    """(absolute path, what the settings of a label file say of it); (None, {}) if none is given.

    A relative path is meant from the config's ``directory``, else from here.

    Raises:
        TeacherError: there is no such file.
    """
    if weights is None:
        return None, {}
    path = Path(directory) / weights
    if not path.is_file():
        path = Path(weights)
    if not path.is_file():
        raise TeacherError(f"no weights file {weights} in {Path(directory).resolve()} or here")
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return str(path.resolve()), {"weights": path.name, "weights_sha256": digest.hexdigest()}
