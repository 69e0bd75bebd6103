"""How every command speaks of errors: one line and an exit status, no traceback."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import click

from .errors import AlposeError, MissingExtraError


class OneLineErrors(click.Group):
    """A group whose expected errors are one line, and whose interruption is no error."""

    packages: ClassVar[Mapping[str, str]] = {}
    """Import names that the commands may lack, each with the extra that brings it. Any other that is missing is a bug."""
    wanted_by: ClassVar[str] = "this command"
    """What needs the packages, in the message."""
    interrupted: ClassVar[str] = "Stopped."
    """What is said after Ctrl-C."""

    def invoke(self, ctx: click.Context) -> Any:
        """Exit status 1 for an error of alpose or a missing extra, 130 for Ctrl-C."""
        try:
            return super().invoke(ctx)
        except AlposeError as error:
            raise click.ClickException(str(error)) from error
        except ModuleNotFoundError as error:
            extra = self.packages.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            raise click.ClickException(str(MissingExtraError(str(error.name), self.wanted_by, extra))) from error
        except KeyboardInterrupt:
            click.echo(f"\n{self.interrupted}", err=True)
            ctx.exit(130)
