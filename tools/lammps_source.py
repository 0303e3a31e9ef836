# SPDX-License-Identifier: MIT
"""Finding LAMMPS' source. Standard library only.

``unpacked_source(work)`` gives a source tree from the first of these that answers:

1. ``MLFFD_LAMMPS_SOURCE``, a tarball or an unpacked directory. If it is set it is used or refused.
2. the official release from GitHub, by download, then by git.
3. Debian's source package, by apt.
"""

import hashlib
import lzma
import os
import re
import shutil
import subprocess
import tarfile
import urllib.request
import zlib
from pathlib import Path

VERSION = "2026.7.4"
TAG = "patch_4Jul2026"
TARBALL_URL = f"https://github.com/lammps/lammps/archive/refs/tags/{TAG}.tar.gz"
GIT_URL = "https://github.com/lammps/lammps.git"
DEBIAN_VERSION = "20260704+dfsg-2"
DEBIAN_SHA256 = "cddbc45a047416bd48a4a0b87f24a5b61b3446982b74d18cafe619c22b17eb62"
DEBIAN_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


class SourceError(Exception):
    """No usable source; the message is one line saying what to do."""


def given_source() -> Path | None:
    """The path in ``MLFFD_LAMMPS_SOURCE``, checked, or None when it is unset or empty.

    Raises SourceError if it names nothing or something that is not a LAMMPS source.
    """
    name = os.environ.get("MLFFD_LAMMPS_SOURCE", "")
    if not name:
        return None
    path = Path(name).expanduser().resolve()
    fault = _fault(path)
    if fault:
        raise SourceError(f"MLFFD_LAMMPS_SOURCE={name}: {fault}; give a LAMMPS tarball or directory")
    return path


def _fault(path: Path) -> str:
    if path.is_dir():
        return "" if find_tree(path) else "no LAMMPS source there (src/version.h and cmake/CMakeLists.txt)"
    if not path.is_file():
        return "no such file or directory"
    return "" if tarfile.is_tarfile(path) else "not a tar archive"


def source_identity(path: Path | None) -> str:
    """A word that changes when the source does: the release, or a digest of the given tarball or tree."""
    if path is None:
        return VERSION
    if path.is_file():
        return _digest([path])
    tree = find_tree(path)
    kinds = (".cpp", ".h", ".pyx", ".pxd", ".py", ".txt", ".cmake")
    files = [file for room in ("src", "cmake", "python") for file in (tree / room).rglob("*")]
    return _digest(sorted(file for file in files if file.suffix in kinds))


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _digest(files) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def find_tree(folder: Path) -> Path | None:
    """The directory holding src/version.h: ``folder`` itself or one directly inside it."""
    for tree in (folder, *sorted(child for child in folder.iterdir() if child.is_dir())):
        if (tree / "src" / "version.h").is_file() and (tree / "cmake" / "CMakeLists.txt").is_file():
            return tree
    return None


def unpacked_source(work: Path, given: Path | None, say=print) -> Path:
    """A writable source tree under ``work``. Raises SourceError if none can be had."""
    folder = work / "source"
    folder.mkdir()
    if given is None:
        _official_source(folder, say)
    elif given.is_dir():
        shutil.copytree(find_tree(given), folder / "lammps", ignore=shutil.ignore_patterns(".git", "doc"))
        # cmake reads the version of the manual page
        if (find_tree(given) / "doc" / "lammps.1").is_file():
            (folder / "lammps" / "doc").mkdir()
            shutil.copy(find_tree(given) / "doc" / "lammps.1", folder / "lammps" / "doc")
    else:
        _unpack(given, folder)
    tree = find_tree(folder)
    if tree is None:
        raise SourceError(f"no LAMMPS source (src/version.h) in {given or 'the downloaded archive'}")
    return tree


def _official_source(folder: Path, say):
    failures = []
    for name, fetch in (("download", _download), ("git", _git_clone), ("Debian's source package", _debian)):
        say(f"LAMMPS: fetching the source of {VERSION} ({name})")
        try:
            return fetch(folder)
        except (OSError, subprocess.SubprocessError, SourceError) as error:
            failures.append(f"{name}: {_one_line(error)}")
            shutil.rmtree(folder)
            folder.mkdir()
    raise SourceError(
        "its source could not be fetched; set MLFFD_LAMMPS_SOURCE to a LAMMPS tarball or directory "
        f"({'; '.join(failures)})"
    )


def _one_line(error) -> str:
    text = (getattr(error, "stderr", None) or str(error)).strip()
    return text.splitlines()[-1] if text else type(error).__name__


def _unpack(archive: Path, folder: Path):
    try:
        with tarfile.open(archive) as tar:
            if hasattr(tarfile, "data_filter"):
                tar.extractall(folder, filter="data")
            else:  # Python 3.10 and 3.11 before their security releases
                tar.extractall(folder)
    except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise SourceError(f"{archive} cannot be unpacked: {_one_line(error)}") from error


def _download(folder: Path):
    archive = folder / "lammps.tar.gz"
    with urllib.request.urlopen(TARBALL_URL, timeout=20) as answer, open(archive, "wb") as file:
        shutil.copyfileobj(answer, file)
    _unpack(archive, folder)
    archive.unlink()


def _git_clone(folder: Path):
    if shutil.which("git") is None:
        raise SourceError("git is not installed")
    # give up on a stalled connection, and never ask for a password
    command = ["git", "-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=30", "clone", "--quiet",
               "--depth", "1", "--branch", TAG, GIT_URL, str(folder / "lammps")]  # fmt: skip
    _run(command, env={**os.environ, "GIT_TERMINAL_PROMPT": "0"}, timeout=1800)


def _debian(folder: Path):
    """The original tarball of Debian's package; apt keeps its lists in ``folder``, not in the system."""
    if shutil.which("apt-get") is None or not Path(DEBIAN_KEYRING).exists():
        raise SourceError("this is no Debian system with apt-get and Debian's keyring")
    apt = _apt_of_its_own(folder)
    _run([*apt, "update"], timeout=600)
    download = [*apt, "source", "--tar-only", "--download-only", f"lammps={DEBIAN_VERSION}"]
    _run(download, cwd=folder, timeout=1800)
    archive = next(folder.glob("lammps_*.orig.tar.*"), None)
    if archive is None or _sha256(archive) != DEBIAN_SHA256:
        raise SourceError("the archive is missing or its checksum is wrong")
    # this tarball has no top-level folder
    (folder / "lammps").mkdir()
    _unpack(archive, folder / "lammps")


def _apt_of_its_own(folder: Path) -> list:
    """The apt-get command with its state in ``folder`` and Debian's unstable sources as the only ones."""
    for name in ("lists", "cache/archives"):
        (folder / name / "partial").mkdir(parents=True)
    sources = folder / "sources.list"
    sources.write_text(f"deb-src [signed-by={DEBIAN_KEYRING}] {_debian_mirror()} sid main\n")
    settings = {
        "Dir::State::Lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "-",
        "APT::Sandbox::User": "root",  # the temporary directory is not open to apt's own user
        "Acquire::Retries": 1,
        "Acquire::http::Timeout": 30,
    }
    return ["apt-get", "-q", *(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))]


def _debian_mirror() -> str:
    for file in (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list")):
        if file.is_file():
            found = re.search(r"^(?:URIs:\s*|deb\s+(?:\[.*?\]\s*)?)(\S+)", file.read_text(), re.MULTILINE)
            if found:
                return found.group(1)
    raise SourceError("apt's sources name no Debian mirror")


def _run(command, **options):
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True, **options)


def release_version(tree: Path) -> str:
    """LAMMPS' version as a package version: "4 Jul 2026" is "2026.7.4"."""
    header = tree / "src" / "version.h"
    found = re.search(r'LAMMPS_VERSION\s+"(\d+) (\w{3})\w* (\d{4})"', header.read_text())
    if found is None:
        raise SourceError(f"{header} states no LAMMPS version")
    day, month, year = found.groups()
    return f"{year}.{MONTHS.index(month) + 1}.{day}"
