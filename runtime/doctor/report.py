"""What the doctor found."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "warning", "failed"]
MARKS: dict[State, str] = {"ok": "ok", "warning": "warning", "failed": "FAILED"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: State
    found: str
    """What is there, in a few words and with its numbers."""
    meaning: str = ""
    """What follows from it; empty where nothing does."""
    fix: str = ""
    """The line that fixes it, to be copied; empty where there is none."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; the fix is called ``mend`` there, as it always was."""
        return {**{key: value for key, value in asdict(self).items() if key != "fix"}, "mend": self.fix}


def ok(name: str, found: str, meaning: str = "", fix: str = "") -> Finding:
    """Nothing wrong."""
    return Finding(name, "ok", found, meaning, fix)


def warning(name: str, found: str, meaning: str, fix: str = "") -> Finding:
    """It works, and something will be worse than it need be."""
    return Finding(name, "warning", found, meaning, fix)


def failed(name: str, found: str, meaning: str, fix: str = "") -> Finding:
    """It does not work."""
    return Finding(name, "failed", found, meaning, fix)


@dataclass(frozen=True, slots=True)
class Report:
    """All findings in their order; ``str(report)`` is a table for a terminal."""

    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed; warnings pass."""
        return all(finding.state != "failed" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"passed": self.passed, "findings": [finding.to_json() for finding in self.findings]}

    def __str__(self) -> str:
        return "\n".join([*blocks(self.findings), "", summary(self)])


def blocks(
    findings: Iterable[Finding], width: int = 118, mark: Callable[[str, State], str] = lambda word, _: word
) -> list[str]:
    """A text per finding: one line, and below it what it means and what fixes it. ``mark`` may colour the verdict."""
    findings = tuple(findings)
    names = max((len(finding.name) for finding in findings), default=0)
    marks = max(map(len, MARKS.values()))
    left = " " * (names + marks + 4)
    out = []
    for finding in findings:
        word = MARKS[finding.state]
        first, *rest = _wrapped(finding.found, width - len(left))
        rest += _wrapped(finding.meaning, width - len(left)) if finding.meaning else []
        rest += [f"→ {finding.fix}"] if finding.fix else []  # never wrapped: it is there to be copied
        head = f"{finding.name:<{names}}  {mark(word, finding.state)}{' ' * (marks - len(word))}  {first}"
        out.append("\n".join([head.rstrip(), *(f"{left}{line}" for line in rest)]))
    return out


def summary(report: Report) -> str:
    """The last line."""
    names = {state: [finding.name for finding in report.findings if finding.state == state] for state in MARKS}
    failed, warned = names["failed"], names["warning"]
    said = [f"{len(failed)} FAILED ({', '.join(failed)})"] if failed else []
    said += [f"{len(warned)} warning{'s' * (len(warned) != 1)} ({', '.join(warned)})"] if warned else []
    said += [f"{len(names['ok'])} ok"]
    return f"doctor: {', '.join(said)}"


def _wrapped(text: str, width: int) -> list[str]:
    return [line for part in text.splitlines() or [""] for line in textwrap.wrap(part, max(width, 40)) or [""]]
