from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from .fakes import cuda as fake_cuda
from .fakes import tensorrt as fake_tensorrt

settings.register_profile("alpose", deadline=None)  # speed is never asserted: a machine may have other work
settings.load_profile("alpose")
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # tests that import onnxruntime by themselves send nothing either


@pytest.fixture(autouse=True, scope="session")
def _no_second_copy_of_a_folder() -> Iterator[None]:
    """A folder imported by its bare name would be a second copy of its classes."""
    yield
    assert not {"trainer", "runtime", "export", "tools"} & sys.modules.keys()


@pytest.fixture(autouse=True, scope="session")
def _a_state_folder_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a test builds is not sealed with the key of the machine that runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALPOSE_STATE", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def one_torch_thread() -> Iterator[None]:
    """Nets this small are slower on two threads than on one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def cuda() -> Iterator[Any]:
    """A fake of CUDA's runtime, whose memory is all given back when the test ends."""
    state = fake_cuda.FakeCuda()
    yield state
    assert state.leaks == 0


@pytest.fixture
def trt(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A fake of the newest TensorRT on that CUDA."""
    return fake_tensorrt.install(monkeypatch, cuda)


@pytest.fixture
def data_root() -> Path:
    """The folder of the real datasets; for tests that are marked ``real_data``."""
    value = os.environ.get("ALPOSE_DATA")
    if not value:
        pytest.skip("ALPOSE_DATA is not set: it names the folder of the real datasets")
    return Path(value)


@pytest.fixture
def real_folder(data_root: Path) -> Callable[[str], Path]:
    """One folder below the data root, or a skip that names it."""

    def folder(name: str) -> Path:
        if not (data_root / name).is_dir():
            pytest.skip(f"{data_root / name} does not exist")
        return data_root / name

    return folder
