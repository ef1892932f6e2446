"""How commands tell errors of the user's files, settings and budget."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import click


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Errors of the user's files, settings and budget are told on standard error, without a traceback; status 1."""
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        raise click.ClickException(str(error)) from error
