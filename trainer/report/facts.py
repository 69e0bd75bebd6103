"""What was run, read from ``results.json``: the config as far as it is known, and the rows by their key."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from ..results import Results, Row
from .methods import in_order

UNKNOWN = "not recorded"


@dataclass(frozen=True, slots=True)
class Facts:
    """A run, finished or not."""

    dataset: str
    preset: str
    profile: str
    start: str
    budget: str
    select_only: bool
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    stages: tuple[int, ...]
    rows: dict[tuple[str, int, int], Row]
    """By method, seed and stage."""
    base_pck: dict[int, float | None]
    """Test PCK of the base model by seed; all methods of a seed start from it."""
    base_seconds: list[float | None]
    """Training time of the base models, in seconds."""
    config: dict[str, Any] = field(repr=False)
    environment: dict[str, Any] = field(repr=False)

    @property
    def first_seed(self) -> int:
        """The seed whose pictures are shown."""
        return self.seeds[0]

    @property
    def first_stage(self) -> int:
        """The stage at which all methods share the base model."""
        return self.stages[0]

    @property
    def missing(self) -> tuple[tuple[str, int, int], ...]:
        """Selections that were asked for and have no row yet."""
        asked = product(self.methods, self.seeds, self.stages)
        return tuple(key for key in asked if key not in self.rows)

    def over_seeds(self, method: str, stage: int, name: str) -> list[float | None]:
        """One field of one method at one stage, a value per seed of the run; None where there is no row."""
        rows = (self.rows.get((method, seed, stage)) for seed in self.seeds)
        return [None if row is None else getattr(row, name) for row in rows]

    def at_stage(self, stage: int) -> list[Row]:
        """All rows of one stage."""
        return [row for (_, _, at), row in self.rows.items() if at == stage]


def facts_of(results: Results) -> Facts:
    """Facts of a run; the rows fill in where the config is silent, and add what the config does not name."""
    config, rows = results.config, results.rows
    seeds = {*counted(config.get("seeds"), 0), *(row.seed for row in rows)}
    stages = {*counted(config.get("stages"), 1), *(row.stage for row in rows)}
    select_only = config.get("select_only")
    return Facts(
        dataset=named(config.get("dataset")),
        preset=named(config.get("preset")),
        profile=named(config.get("profile")),
        start=named(config.get("start")),
        budget=named(config.get("budget")),
        select_only=nothing_retrained(rows) if select_only is None else bool(select_only),
        methods=in_order([*listed(config.get("methods")), *(row.method for row in rows)]),
        seeds=tuple(sorted(seeds)) or (0,),
        stages=tuple(sorted(stages)) or (1,),
        rows={(row.method, row.seed, row.stage): row for row in rows},
        base_pck=base_pck_of(results),
        base_seconds=[base.get("train_seconds") for base in results.bases],
        config=config,
        environment=results.environment,
    )  # fmt: skip


def base_pck_of(results: Results) -> dict[int, float | None]:
    """Test PCK of the base models by seed: from ``bases``, or from the rows of stage 1, whose model it is."""
    from_rows = {row.seed: row.base_test_pck for row in results.rows if row.stage == 1}
    return from_rows | {int(base["seed"]): base.get("test_pck") for base in results.bases if "seed" in base}


def nothing_retrained(rows: tuple[Row, ...]) -> bool:
    """Whether rows are there, and none has a test PCK."""
    return bool(rows) and all(row.test_pck is None for row in rows)


def named(value: Any) -> str:
    """A config value as a word; a nested config answers with its own name, path or kind."""
    if isinstance(value, dict):
        value = next((value[key] for key in ("name", "kind", "path") if value.get(key) is not None), None)
    return UNKNOWN if value is None or value == "" else str(value)


def listed(value: Any) -> list[str]:
    """Names from a list, or from one comma-separated string."""
    if isinstance(value, str):
        return [name.strip() for name in value.split(",") if name.strip()]
    return [str(name) for name in value] if isinstance(value, Iterable) else []


def counted(value: Any, first: int) -> list[int]:
    """Numbers from a list of them, or from how many there are, counting from ``first``."""
    if isinstance(value, bool) or value is None or isinstance(value, str | dict):
        return []
    if isinstance(value, int):
        return list(range(first, first + value))
    return [int(number) for number in value] if isinstance(value, Iterable) else []


def lookup(config: dict[str, Any], *names: str) -> Any:
    """The value under the first of these keys, however nested, nearest the top first; or None."""
    for name in names:
        queue: deque[dict[str, Any]] = deque([config])
        while queue:
            level = queue.popleft()
            if level.get(name) is not None:
                return level[name]
            queue.extend(value for value in level.values() if isinstance(value, dict))
    return None
