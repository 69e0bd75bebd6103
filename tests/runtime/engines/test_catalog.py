"""Which engine is taken, which is refused, and what is said about it. Nothing here needs a GPU or a graph."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alpose.runtime.bundle import Bundle
from alpose.runtime.engines.catalog import EngineKind, default_threads, engine_kinds, open_engine, register
from alpose.runtime.errors import ConfigError, MissingExtraError, WrongAnswerError
from alpose.runtime.types import Engine

from ...fakes import scripted as fakes

Scripted: Any = fakes.Scripted


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle.open(fakes.write_bundle(tmp_path / "driver.alpose"))


class Made(Scripted):  # type: ignore[misc]
    """In place of the engines: remembers what it was made with, and whether it was closed."""

    made: list[Made]
    wrong: frozenset[str]
    broken: dict[str, Exception]
    absent: dict[str, str]

    def __init__(self, name: str, threads: int) -> None:
        super().__init__()
        if name in self.broken:
            raise self.broken[name]
        self.kind, self.threads, self.closed = name, threads, False
        self.name = f"fake {name}"
        self.made.append(self)

    def __call__(self, frames_NHW3: Any) -> Any:
        if self.kind in self.wrong:
            frames_NHW3 = 255 - frames_NHW3
        return super().__call__(frames_NHW3)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def made() -> Iterator[type[Made]]:
    """Every engine of the catalog replaced: none answers wrongly, none fails to start, no TensorRT engine was built."""
    Made.made, Made.wrong, Made.broken = [], frozenset(), {}
    Made.absent = {"tensorrt": "none was built on this device"}
    real = engine_kinds()

    def replaced(kind: EngineKind) -> EngineKind:
        def make(bundle: Bundle, argument: str, threads: int) -> Engine:
            return Made(argument or kind.name, threads)

        return replace(kind, open=make, absent=lambda bundle: Made.absent.get(kind.name))

    for kind in real:
        register(replaced(kind))
    yield Made
    for kind in real:
        register(kind)


def test_auto_takes_tensorrt_where_one_was_built_then_cuda_then_the_cpu(bundle: Bundle, made: type[Made]) -> None:
    assert open_engine(bundle).engine.name == "fake cuda"
    made.absent["cuda"] = "no CUDA"
    opened = open_engine(bundle)
    assert opened.engine.name == "fake cpu"
    assert [(attempt.engine, attempt.fallback) for attempt in opened.attempts] == [
        ("tensorrt", False), ("cuda", False), ("cpu", False),
    ]  # fmt: skip
    assert str(opened.attempts[0]) == "tensorrt: none was built on this device"
    made.absent.clear()
    assert open_engine(bundle).engine.name == "fake tensorrt"
    assert opened.fallbacks == ()


def test_tensorrt_is_absent_until_an_engine_was_built(bundle: Bundle) -> None:
    (kind,) = (kind for kind in engine_kinds() if kind.name == "tensorrt")
    assert "alpose-export engine" in str(kind.absent(bundle))
    bundle.engines.mkdir()
    (bundle.engines / "trt11-orin-sm87-fp32-0123.engine").write_bytes(b"plan")
    assert kind.absent(bundle) is None


def test_an_engine_that_answers_wrongly_is_passed_over_closed_counted_and_logged(
    bundle: Bundle, made: type[Made], caplog: pytest.LogCaptureFixture
) -> None:
    made.absent.clear()
    made.wrong = frozenset({"tensorrt"})
    made.broken = {"cuda": OSError("libcudart.so.13: cannot open shared object file\nand more")}
    with caplog.at_level(logging.WARNING, logger="alpose.monitor"):
        opened = open_engine(bundle)
    assert opened.engine.name == "fake cpu"
    refused, broken = opened.fallbacks
    assert "worst deviation" in str(refused)
    assert (broken.engine, broken.problem) == ("cuda", "libcudart.so.13: cannot open shared object file")
    assert [engine.closed for engine in made.made] == [True, False]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    opened.close()
    assert made.made[-1].closed


def test_where_none_is_left_the_error_lists_all(bundle: Bundle, made: type[Made]) -> None:
    made.wrong = frozenset({"cpu", "cuda"})
    with pytest.raises(ConfigError, match=r"(?s)tensorrt: none was built.*cuda: golden frames.*cpu: golden frames"):
        open_engine(bundle)
    assert all(engine.closed for engine in made.made)


def test_where_only_one_could_run_its_own_error_is_raised(bundle: Bundle, made: type[Made]) -> None:
    made.absent["cuda"] = "no CUDA"
    made.broken = {"cpu": MissingExtraError("onnxruntime", "running a bundle", "cpu")}
    with pytest.raises(MissingExtraError, match=r"alpose\[cpu\]"):
        open_engine(bundle)


def test_an_engine_asked_for_by_name_is_that_one_or_an_error(bundle: Bundle, made: type[Made]) -> None:
    assert open_engine(bundle, "CPU", threads=3).engine.name == "fake cpu"
    assert open_engine(bundle, "tensorrt").engine.name == "fake tensorrt"
    assert open_engine(bundle, "onnx:OpenVINOExecutionProvider").engine.name == "fake OpenVINOExecutionProvider"
    assert [engine.threads for engine in made.made] == [3, default_threads(), default_threads()]
    made.wrong = frozenset({"cuda"})
    with pytest.raises(WrongAnswerError, match="deviation"):
        open_engine(bundle, "cuda")
    made.broken = {"tensorrt": RuntimeError("no GPU")}
    with pytest.raises(RuntimeError, match="no GPU"):
        open_engine(bundle, "tensorrt")


def test_a_fallback_that_is_allowed_is_counted(bundle: Bundle, made: type[Made]) -> None:
    made.broken = {"CUDA": RuntimeError("no GPU")}
    opened = open_engine(bundle, "onnx:CUDA", allow_fallback=True)
    assert [(attempt.engine, attempt.problem) for attempt in opened.fallbacks] == [("onnx:CUDA", "no GPU")]
    assert opened.engine.name == "fake cpu"


@pytest.mark.parametrize("wish", ["gpu", "", "onnxcpu", "onnx:", "cpu:1", 3, None])
def test_an_unknown_wish_is_an_error_that_names_the_known_ones(bundle: Bundle, wish: Any) -> None:
    with pytest.raises(ConfigError, match="tensorrt, onnx:<provider>, plugin:<library or package>"):
        open_engine(bundle, wish)


@pytest.mark.parametrize("name", ["", "Mine", "auto", "my:engine"])
def test_a_name_that_could_not_be_chosen_is_not_registered(name: str) -> None:
    with pytest.raises(ConfigError, match="an engine has a name in small letters"):
        register(EngineKind(name=name, summary="", open=lambda bundle, argument, threads: Scripted()))


def test_threads_below_one_are_an_error(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="threads must be at least 1, got 0"):
        open_engine(bundle, "cpu", threads=0)


def test_an_object_is_judged_too_and_stays_the_callers(bundle: Bundle) -> None:
    class Closable(Scripted):  # type: ignore[misc]
        def close(self) -> None:
            raise AssertionError("not ours")

    engine = Closable()
    opened = open_engine(bundle, engine)
    assert opened.engine is engine
    assert all(report.passed for report in opened.golden)
    opened.close()

    def liar(frames_NHW3: Any) -> Any:
        outputs = engine(frames_NHW3)
        outputs.keypoints_NJ2[:] += np.float32(1)
        return outputs

    liar.name = "liar"  # type: ignore[attr-defined]
    with pytest.raises(WrongAnswerError, match="keypoints"):
        open_engine(bundle, liar)  # type: ignore[arg-type]


def test_golden_batches_are_no_larger_than_what_an_engine_takes(bundle: Bundle) -> None:
    class Single(Scripted):  # type: ignore[misc]
        max_batch = 1

        def __call__(self, frames_NHW3: Any) -> Any:
            assert len(frames_NHW3) == 1
            return super().__call__(frames_NHW3)

    assert "no batch was tried" in str(open_engine(bundle, Single()).golden[0])


def test_two_threads_are_the_most_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system does not say on which cores a process may run")
    for cores, threads in ((1, 1), (2, 2), (64, 2)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, cores=cores: set(range(cores)))
        assert default_threads() == threads
