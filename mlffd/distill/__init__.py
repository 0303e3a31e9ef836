# SPDX-License-Identifier: MIT
"""From a teacher, a system and conditions to a student with a fidelity report, in one resumable run."""

from mlffd.distill.labels import evaluate_bundle, with_domain
from mlffd.distill.run import distill
from mlffd.distill.start import write_config
from mlffd.distill.status import status

__all__ = ["distill", "evaluate_bundle", "status", "with_domain", "write_config"]
