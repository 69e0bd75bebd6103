from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpose.runtime.errors import ConfigError
from alpose.runtime.triggers import (
    Budget,
    Catch,
    Control,
    Cooldown,
    Episodes,
    Jump,
    Limbs,
    Novel,
    Threshold,
    Trigger,
    parse,
)

positive = st.floats(1e-9, 1e12) | st.integers(1, 10**9)
share = st.floats(0, 1)
leaves = (
    st.builds(Budget, positive) | st.builds(Threshold, share) | st.builds(Catch, share) | st.builds(Jump, positive)
    | st.builds(Limbs, positive) | st.builds(Novel, st.floats(1e-9, 2)) | st.builds(Cooldown, positive)
)  # fmt: skip


def joined(parts: st.SearchStrategy[Trigger]) -> st.SearchStrategy[Trigger]:
    return st.builds(lambda a, b: a | b, parts, parts) | st.builds(lambda a, b: a & b, parts, parts)


plain = st.recursive(leaves, joined, max_leaves=5)
episodes = st.builds(Episodes, plain, best=st.integers(1, 9), gap_s=st.floats(0.1, 50), longest_s=st.floats(50, 1e6))
controls = st.builds(Control, rate=share) | st.builds(Control, per_hour=positive)
policies = st.builds(lambda a, b: a | b, plain | episodes, controls | plain) | plain | episodes | controls


@given(policies)
def test_what_a_trigger_prints_is_read_back(trigger: Trigger) -> None:
    assert parse(str(trigger)) == trigger


def test_the_text_of_a_command_line() -> None:
    assert parse(" Episodes(Budget(per_hour=20), best=5) | Control(rate=0.001) ") == (
        Episodes(Budget(20), best=5) | Control(0.001)
    )
    assert parse("Budget(20) & Novel(0.2) | Jump(3)") == (Budget(20) & Novel(0.2)) | Jump(3)
    assert str(parse("Episodes(Budget(20), 4, gap_s=1.5)|Control(per_hour=2)")) == (
        "Episodes(Budget(per_hour=20), best=4, gap_s=1.5) | Control(per_hour=2)"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Budgt(3)", r"no trigger 'Budgt' \(did you mean 'Budget'\?\); there are: Budget, Control"),
        ("budget(3)", "did you mean 'Budget'"),
        ("Budget(perhour=3)", r"no 'perhour' \(did you mean 'per_hour'\?\); it is Budget\(per_hour\)"),
        ("Budget()", "missing a required argument: 'per_hour'"),
        ("Budget(3, 4)", "too many positional arguments"),
        ("Episodes(Budget(3), longest=3)", r"did you mean 'longest_s'.*best=3, gap_s=2.0, longest_s=60.0"),
        ("Budget", r"needs its arguments: Budget\(per_hour\)"),
        ("Budget(20) or Jump(2)", r"\| instead of 'or'"),
        ("Budget(20) + Jump(2)", "has no meaning in a trigger"),
        ("Budget(20) | 3", "has no meaning in a trigger"),
        ("Budget(-3)", "above 0, got -3"),
        ("Budget('3')", "has no meaning in a trigger"),
        ("Budget(Jump(2))", "per_hour must be a number above 0"),
        ("Episodes(3)", "Episodes wraps a trigger"),
        ("Episodes(Budget(20) | Control(0.1))", r"Episodes\(…\) \| Control\(…\)"),
        ("3", "a number alone"),
        ("", "not a trigger"),
        ("Budget(", "not a trigger"),
        ("__import__('os').system('true')", "has no meaning in a trigger"),
        ("(lambda: 0)()", "has no meaning in a trigger"),
        ("Budget.__class__(20)", "has no meaning in a trigger"),
        ("[Budget(20)][0]", "has no meaning in a trigger"),
        ("Budget(*[20])", "has no meaning in a trigger"),
        ("Budget(**{'per_hour': 20})", "Budget has no None"),
        ("Budget(True)", "has no meaning in a trigger"),
        ("Budget(1j)", "has no meaning in a trigger"),
        ("Budget(1e999)", "got inf"),
        ("-" * 1500 + "1", "nested"),
        ("Jump(1) | " * 150 + "Jump(1)", "nested"),
        ("(" * 900 + "1" + ")" * 900, "not a trigger"),
        ("x" * 3000, "at most 2000 characters"),
        ("Budget(20)\0", "not a trigger"),
    ],
    ids=lambda text: text[:30].replace("\0", "0"),
)
def test_what_does_not_read_is_an_error_that_helps(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(text)


@given(st.text(alphabet="BudgetJmpControl()|&=.,0123 e-*[]'\"{}:_\n\\", max_size=60))
def test_no_text_breaks_it(text: Any) -> None:
    try:
        trigger = parse(text)
    except ConfigError:
        return
    assert isinstance(trigger, Trigger)
