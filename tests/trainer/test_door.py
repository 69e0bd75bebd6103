"""``from alpose import trainer``: what programs import, without a cost before they use it."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest

from alpose import trainer


@pytest.mark.parametrize("name", trainer.__all__)
def test_every_name_of_the_door_can_be_had(name: str) -> None:
    found = getattr(trainer, name)
    assert callable(found)
    assert not isinstance(found, types.ModuleType)
    assert found.__name__ in (name, name.removesuffix("_checkpoint"))


def test_the_door_is_cheap_and_says_what_it_has_not() -> None:
    code = "import sys, alpose.trainer; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"
    with pytest.raises(AttributeError, match=r"alpose\.trainer.* no attribute 'fti'"):
        _ = trainer.fti
