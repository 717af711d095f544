# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.vm` builds the images that the scenarios boot, as far as they are not in the cache."""

from . import wheels
from .image import KINDS, build

for kind in KINDS:
    build(kind, wheels.build if kind == "qga" else None)
