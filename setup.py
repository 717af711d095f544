# SPDX-License-Identifier: Apache-2.0
"""Builds the two Cython modules; all metadata is in pyproject.toml."""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

COMPILE_ARGS = ["-O3", "-Wall", "-Wextra", "-Wsign-compare"]
if os.environ.get("QGA_WERROR"):
    COMPILE_ARGS.append("-Werror")

setup(
    ext_modules=cythonize(
        [
            Extension(f"qga.{name}", [f"src/qga/{name}.pyx"], extra_compile_args=COMPILE_ARGS)
            for name in ("_framing", "_b64io")
        ],
    )
)
