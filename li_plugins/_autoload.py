"""The environment gate: ``import torch`` calls ``main`` at its end; the standard library only, never raises."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Enable the adapters that ``LI_PLUGINS`` names, if it is set.

    Any failure becomes one line on stderr: an exception here would break ``import torch``.
    """
    value = os.environ.get("LI_PLUGINS", "").strip()
    if value in ("", "0"):
        return
    try:
        from li_plugins.host.session import SESSION

        SESSION.enable_from_environment()
    except KeyboardInterrupt:  # the user's own word
        raise
    except BaseException as error:  # whatever a stranger's module raised, SystemExit included, torch must come up
        if sys.stderr is not None:
            print(f"li_plugins: LI_PLUGINS={value}: {type(error).__name__}: {error}", file=sys.stderr)
