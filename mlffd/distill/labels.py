# SPDX-License-Identifier: MIT
"""A bundle and label files: its errors on them, and what training on them showed it."""

from dataclasses import replace
from pathlib import Path

import torch

from mlffd.bundle import Bundle, read_bundle
from mlffd.dataset.store import LabelledSet, read_labels
from mlffd.domain import KEY as DOMAIN
from mlffd.errors import ConfigError
from mlffd.train.domain import training_domain
from mlffd.train.loop import labelled_graphs
from mlffd.train.metrics import evaluate


def evaluate_bundle(bundle_path: Path | str, labels_path: Path | str) -> dict:
    """Errors of a student on a label file; see ``mlffd.train.metrics.evaluate``."""
    student = read_bundle(bundle_path).student
    return evaluate(student, labelled_graphs(read_labels(labels_path), student.cutoff, torch.float64))


def with_domain(bundle: Bundle, labels: LabelledSet) -> Bundle:
    """The bundle with what training saw among its facts (mlffd/domain.py), for one that does not say yet.

    Raises:
        ConfigError: it was trained on other labels.
    """
    trained_on = bundle.metadata.get("labels", {}).get("sha256", labels.hash)
    if trained_on != labels.hash:
        raise ConfigError(
            f"the student was trained on other labels ({trained_on[:12]}, these are {labels.hash[:12]}): "
            "give all its label files, in the order of training"
        )
    frames = labelled_graphs(labels, bundle.student.cutoff, torch.float64)
    return replace(bundle, metadata={**bundle.metadata, DOMAIN: training_domain(bundle.student, frames)})
