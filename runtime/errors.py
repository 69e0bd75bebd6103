"""The errors of alpose, one root and a builtin second parent each.

::

    AlposeError
    ├── DataError (ValueError)          a dataset, image, box or array that cannot be used
    │   ├── BundleError                 a bundle that is damaged, incomplete, or contradicts itself
    │   └── SignatureError              a bundle that the trusted key did not sign
    ├── WrongAnswerError (RuntimeError) an engine that does not give the expected answers
    ├── DataNotFoundError (FileNotFoundError)
    ├── ConfigError (ValueError)        an option that cannot be carried out
    ├── CheckpointError (ValueError)    a file of weights that is not what it claims
    ├── QueueError (OSError)            a queue file that cannot be read or written now; ``reason`` tells why
    └── MissingExtraError (ImportError) an optional package that is not installed

Every message says what is wrong, where, the value, and what to do.
"""

from __future__ import annotations


class AlposeError(Exception):
    """Anything that alpose raises on purpose."""


class DataError(AlposeError, ValueError):
    """A dataset, image, box or array that cannot be used."""


class DataNotFoundError(AlposeError, FileNotFoundError):
    """A dataset or file that is not where it was looked for."""


class ConfigError(AlposeError, ValueError):
    """An option, or a combination of options, that cannot be carried out."""


class CheckpointError(AlposeError, ValueError):
    """A checkpoint that is damaged or of another kind."""


class BundleError(DataError):
    """A bundle that is damaged, incomplete, of another kind, or that contradicts itself. Names every bad file."""


class SignatureError(DataError):
    """A bundle that the configured key did not sign."""


class WrongAnswerError(AlposeError, RuntimeError):
    """An engine does not give the answers that its bundle expects. The message is the whole report."""


class QueueError(AlposeError, OSError):
    """A queue file cannot be read or written now. ``reason`` is a word for counters and decisions.

    ``full``: no room on the disk. ``read_only``. ``locked``: another process held it for too long. ``damaged``.
    ``moved``: the path names another file now, or none. ``held``: a reader keeps the write-ahead log from being emptied.
    ``hung``: it did not answer in time.
    ``foreign``: the database of another program, or of a newer version. ``closed``. ``io``: anything else.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class MissingExtraError(AlposeError, ImportError):
    """An optional package that a feature needs is not installed."""

    def __init__(self, package: str, feature: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs {package}, which is not installed. Install it with: pip install 'alpose[{extra}]'"
        )
        self.package = package
        self.extra = extra
