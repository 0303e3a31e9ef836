# SPDX-License-Identifier: MIT
"""What something ran with: versions, commit, processor, device. A number means little without them."""

import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[1]


def installed_version(package: str) -> str | None:
    """None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of this checkout, with "-dirty" where files differ from it; None where it is not one.

    An installed copy may lie inside somebody else's repository, whose commit says nothing about it.
    """
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def cpu_model() -> str:
    """As the kernel names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def device_name(device: str) -> str:
    """The accelerator's name, or "cpu"."""
    if not device.startswith("cuda"):
        return device
    import torch  # late: importing it takes seconds

    return torch.cuda.get_device_name(device)


def load_average() -> float:
    """Of the last minute: processes that wanted a core, this one included."""
    return round(os.getloadavg()[0], 2)


def sha256_of(path: str | Path) -> str:
    """Of a file's bytes."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
