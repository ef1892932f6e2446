"""How commands tell errors of the user's files, settings and budget, and what to call next."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import click


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Errors of the user's files, settings and budget are told on standard error, without a traceback; status 1.

    The call ledger's are SQLite's.
    """
    try:
        yield
    except click.Abort:  # of a question that was not answered; a RuntimeError, which click tells itself
        raise
    except (ValueError, OSError, RuntimeError, sqlite3.Error) as error:
        raise click.ClickException(str(error)) from error


def called() -> str:
    """How this command was called, so that the next one can be: `c3po`, `.venv/bin/c3po`, `python -m c3po_utils`."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return f"{_shown(Path(sys.executable))} -m c3po_utils"
    return _shown(program)


def _shown(program: Path) -> str:
    """A program as it can be typed here, in a shell."""
    found = shutil.which(program.name)
    if found and Path(found).absolute() == program.absolute():
        return program.name
    path = program.absolute()
    return shlex.quote(os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path))
