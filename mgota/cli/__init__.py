"""A terminal: parses, calls, draws.

Rules:
- a command is imported when it is called, and rich when something is drawn: `serve` and `run` stay small;
- what a script reads goes to stdout, what a person is told besides to stderr;
- exit 0 done, 1 refused or failed with one line on stderr, 2 usage, 3 nothing to pull, 130 interrupted.
  Never a traceback without `-v`.
"""

import logging
import os
import sys
from collections.abc import Sequence
from typing import cast

from mgota.errors import OtaError

DONE, FAILED, INTERRUPTED = 0, 1, 130
"""Exit statuses; the last one is a shell's for SIGINT. Click's own for wrong usage is 2."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The `mgota` command. Does not return."""
    try:
        import click  # noqa: PLC0415  it may be missing

        from mgota.cli.commands import group  # noqa: PLC0415  it needs click
    except ModuleNotFoundError as exc:
        if exc.name != "click":
            raise
        sys.exit("mgota: the command line needs click and rich: pip install 'mgota[cli]'")
    try:
        result: object = group.main(args=arguments, prog_name="mgota", standalone_mode=False)
        if sys.stdout:  # it may be closed: >&-
            sys.stdout.flush()
    except click.ClickException as exc:
        exc.show()
        sys.exit(exc.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(INTERRUPTED)
    except BaseExceptionGroup as exc:
        sys.exit(_tell(_first(exc)))
    except Exception as exc:  # noqa: BLE001  whatever it is, a person gets one line
        sys.exit(_tell(exc))
    sys.exit(result if isinstance(result, int) else DONE)


def _first(exc: BaseException) -> BaseException:
    """What happened first in a group of tasks."""
    while isinstance(exc, BaseExceptionGroup):
        exc = cast(BaseExceptionGroup[BaseException], exc).exceptions[0]
    return exc


def _tell(exc: BaseException) -> int:
    """One line on stderr. Returns the exit status."""
    match exc:
        case KeyboardInterrupt():
            return INTERRUPTED
        case BrokenPipeError():
            # Whoever read stdout has gone; Python must not try to flush it once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILED
        case OtaError():
            line = str(exc) or type(exc).__name__
        case OSError(strerror=str()):
            line = f"{exc.filename}: {exc.strerror}" if exc.filename else str(exc.strerror)
        case _:
            line = f"{type(exc).__name__}: {exc} (a fault of mgota; run it with -v for the traceback)"
    if logging.getLogger("mgota").isEnabledFor(logging.DEBUG):
        logging.getLogger("mgota.cli").debug("the traceback", exc_info=exc)
    print(f"mgota: {' '.join(line.split())}", file=sys.stderr)  # noqa: T201
    return FAILED
