"""Golden frames that run while the engine already answers: ``Monitor(verify="background")``."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alpose.runtime import Monitor
from alpose.runtime.errors import ConfigError, WrongAnswerError

from ...fakes import scripted

FRAME = np.zeros((48, 64, 3), np.uint8)
Scripted: Any = scripted.Scripted


class Gated(Scripted):  # type: ignore[misc]
    """Answers the golden frames only when it is let to, rightly or wrongly."""

    def __init__(self, wrong: bool = False) -> None:
        super().__init__()
        self.gate, self.wrong, self.answered = threading.Event(), wrong, 0

    def __call__(self, frames_NHW3: Any) -> Any:
        golden = threading.current_thread().name == "alpose-verify"
        if golden:
            assert self.gate.wait(20)
            self.answered += 1
        outputs = super().__call__(frames_NHW3)
        if golden and self.wrong:
            outputs.keypoints_NJ2[:] += np.float32(1)
        return outputs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(scripted.write_bundle(tmp_path / "driver.alpose"))


def finish(engine: Gated) -> None:
    engine.gate.set()
    for thread in threading.enumerate():
        if thread.name == "alpose-verify":
            thread.join(20)


def test_verdicts_say_that_the_engine_is_not_verified_until_it_is(folder: Path) -> None:
    engine = Gated()
    with Monitor(folder, None, engine=engine, verify="background") as monitor:
        assert not monitor(FRAME).verified
        assert monitor.stats().engine.golden_deviation == {}
        finish(engine)
        assert monitor(FRAME).verified
        assert set(monitor.stats().engine.golden_deviation) >= {"keypoints", "scores"}


def test_an_engine_that_fails_in_the_background_answers_no_further_frame(folder: Path) -> None:
    engine = Gated(wrong=True)
    with Monitor(folder, None, engine=engine, verify="background") as monitor:
        assert not monitor(FRAME).verified
        finish(engine)
        for _ in range(2):
            with pytest.raises(WrongAnswerError, match="keypoints"):
                monitor(FRAME)


def test_closing_ends_the_verification_between_two_calls(folder: Path) -> None:
    engine = Gated()
    monitor = Monitor(folder, None, engine=engine, verify="background")
    threading.Timer(0.2, engine.gate.set).start()
    monitor.close()
    assert engine.answered <= 1
    assert "alpose-verify" not in {thread.name for thread in threading.enumerate()}


def test_by_default_an_engine_is_verified_first(folder: Path) -> None:
    with Monitor(folder, None, engine=Scripted()) as monitor:
        assert monitor(FRAME).verified
    with pytest.raises(ConfigError, match="verify must be one of first, background, got 'later'"):
        Monitor(folder, None, engine=Scripted(), verify="later")  # type: ignore[arg-type]
