"""The HTML report of a benchmark run."""

from __future__ import annotations

from .write import write_report

__all__ = ["write_report"]
