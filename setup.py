# SPDX-License-Identifier: MIT
"""Builds the CPU kernels; everything else about the package is in pyproject.toml.

Two files come out, beside mlffd/kernels/cpu/__init__.py: libmlffd.so, which has the C interface and knows
nothing of Python, and _binding, which hands NumPy arrays to it. Without a C++ compiler the package installs
all the same and runs on plain PyTorch.
"""

import os
import platform
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, ExecError

CPU = Path("mlffd/kernels/cpu")
LIBRARY, BINDING = "mlffd.kernels.cpu.libmlffd", "mlffd.kernels.cpu._binding"
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
# students.cpp is compiled once for each; interface.cpp picks one at run time
INSTRUCTIONS = {"baseline": []}
if IS_X86:
    INSTRUCTIONS["avx2"] = ["-mavx2", "-mfma"]
    INSTRUCTIONS["avx512"] = [
        "-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mavx2", "-mfma", "-mprefer-vector-width=512",
    ]  # fmt: skip
FLAGS = ["-std=c++17", "-O3", "-g0", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-fno-math-errno"]
FLAGS += ["-fno-trapping-math", "-Wno-psabi"]


class BuildKernels(build_ext):
    """build_ext that compiles one source for several instruction sets."""

    def get_ext_filename(self, fullname: str) -> str:
        """libmlffd.so is no Python module and has a plain name."""
        if fullname.rpartition(".")[2] == "libmlffd":
            return os.path.join(*fullname.split(".")) + ".so"
        return super().get_ext_filename(fullname)

    def build_extensions(self) -> None:
        """Nothing without a fitting compiler; with one, an error in the sources is an error."""
        fault = self.why_no_compiler()
        if fault:
            self.warn(f"the CPU kernels of mlffd are not built, students will run on plain PyTorch: {fault}")
            self.extensions.clear()
        super().build_extensions()

    def why_no_compiler(self) -> str:
        """Empty where the compiler takes our flags; else why it does not."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.cpp")
            source.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
            flags = [*FLAGS, *(flag for flags in INSTRUCTIONS.values() for flag in flags)]
            try:
                self.compiler.compile([str(source)], folder, extra_postargs=flags)
            except (CompileError, ExecError) as error:
                return f"no C++17 compiler with OpenMP ({error})"
        return ""

    def build_extension(self, extension: Extension) -> None:
        """The library by hand, the binding as usual but linked to the library beside it."""
        if extension.name == LIBRARY:
            self.build_library(extension)
            return
        extension.library_dirs.append(str(Path(self.get_ext_fullpath(LIBRARY)).parent))
        super().build_extension(extension)

    def build_library(self, extension: Extension) -> None:
        """Compile what is common once and students.cpp for each instruction set, side by side."""
        path = Path(self.get_ext_fullpath(extension.name))
        path.parent.mkdir(parents=True, exist_ok=True)
        newest = max(os.path.getmtime(file) for file in [*extension.sources, *extension.depends])
        if not self.force and path.exists() and os.path.getmtime(path) > newest:
            return
        path.unlink(missing_ok=True)  # an old one must not be taken for what cannot be compiled now
        common = [("MLFFD_X86", "1")] if IS_X86 else []
        jobs = [(str(CPU / name), "common", common, []) for name in ("block.cpp", "interface.cpp")]
        jobs += [
            (str(CPU / "students.cpp"), name, [("MLFFD_ISA", name)], flags)
            for name, flags in INSTRUCTIONS.items()
        ]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            objects = list(pool.map(self.compile_one, jobs))
        self.compiler.link_shared_object(
            objects,
            str(path),
            target_lang="c++",
            extra_postargs=["-fopenmp", "-s", "-Wl,-soname,libmlffd.so"],
        )

    def compile_one(self, job: tuple) -> str:
        """The object file of one source for one instruction set."""
        source, name, macros, flags = job
        (compiled,) = self.compiler.compile(
            [source], os.path.join(self.build_temp, name), macros, extra_postargs=[*FLAGS, *flags]
        )
        return compiled


def extensions() -> list[Extension]:
    """Both files; pybind11 is there whenever pip builds the package (pyproject.toml)."""
    import pybind11

    files = [str(file) for pattern in ("*.h", "*.hpp", "*.cpp") for file in CPU.glob(pattern)]
    sources = [file for file in files if file.endswith(".cpp") and not file.endswith("binding.cpp")]
    library = Extension(LIBRARY, sources, depends=[*files, "setup.py"])
    binding = Extension(
        BINDING, [str(CPU / "binding.cpp")], depends=[str(CPU / "mlffd.h")], language="c++",
        include_dirs=[pybind11.get_include()], libraries=["mlffd"], runtime_library_dirs=["$ORIGIN"],
        extra_compile_args=["-std=c++17", "-O2", "-g0", "-fvisibility=hidden"], extra_link_args=["-s"],
    )  # fmt: skip
    return [library, binding]


if __name__ == "__main__":
    setup(ext_modules=extensions(), cmdclass={"build_ext": BuildKernels})
