# SPDX-License-Identifier: Apache-2.0
"""`python -m qga` is the console script `qga`."""

import sys

from .cli import main

sys.exit(main())
