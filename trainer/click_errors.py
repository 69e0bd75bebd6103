"""How the commands speak of errors: one line and an exit status, no traceback."""

from __future__ import annotations

from typing import Any

import click

from alpose.runtime.errors import AlposeError, MissingExtraError

TRAIN_PACKAGES = ("cv2", "h5py", "jinja2", "matplotlib", "safetensors", "scipy", "sklearn", "torch", "tqdm")
"""Import names of the train extra."""


class OneLineErrors(click.Group):
    """A group whose expected errors are one line, and whose interruption is no error."""

    def invoke(self, ctx: click.Context) -> Any:
        """Exit status 1 for an error of alpose or a missing extra, 130 for Ctrl-C."""
        try:
            return super().invoke(ctx)
        except AlposeError as error:
            raise click.ClickException(str(error)) from error
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in TRAIN_PACKAGES:
                raise
            raise click.ClickException(str(MissingExtraError(str(error.name), "alpose-train", "train"))) from error
        except KeyboardInterrupt:
            click.echo("\nStopped. The same command goes on from here.", err=True)
            ctx.exit(130)
