"""From Python: a pose net of somebody else's, as an ONNX file or as a torch module, ready to be fitted with a loss head.

::

    net = alpose.trainer.wrap("net.onnx", like="rtmpose")
    net = alpose.trainer.wrap(module, size=(256, 192), taps=("layer2", "layer3"), heatmaps="final", skeleton="coco")

A module goes through its own ONNX export, once: what is trained on is what the bundle will compute.
"""

from __future__ import annotations

import difflib
import logging
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alpose.runtime.engines.onnx import import_onnxruntime
from alpose.runtime.errors import ConfigError, MissingExtraError

from .graph import FEATURE
from .net import ForeignNet, open_net
from .recognise import recognise

if TYPE_CHECKING:
    from torch import Tensor, nn

OPSET = 18
"""The lowest that PyTorch's exporter writes without converting back."""


def wrap(
    net: str | Path | nn.Module,
    *,
    size: tuple[int, int] | None = None,
    taps: Sequence[str] | None = None,
    heatmaps: str | None = None,
    file: str | Path | None = None,
    threads: int = 1,
    **stated: Any,
) -> ForeignNet:
    """Open somebody's pose net.

    Args:
        net: an ONNX file, or a torch module that takes images (N, 3, H, W).
        size: (H, W) of the input in pixels; a module needs it, a file only where it leaves them free.
        taps: feature tensors by name, finest first: of the file's graph, or submodules of the module. None: traced back from
            the outputs.
        heatmaps: the submodule, or the tensor of the file, that gives the heatmaps (N, J, h, w). None: by the outputs' shapes.
        file: where the ONNX file of a module is written; by default to a temporary folder that lives as long as the result.
        threads: of ONNX Runtime.
        stated: anything else that is known, as :class:`~.recognise.Stated` has it: ``like``, ``skeleton``, ``mean``, ``colour``, …

    Raises:
        ConfigError: something has to be stated, a submodule does not exist or runs more than once, or the module cannot be
            exported.
    """
    outputs = tuple(stated.pop("outputs", ()) or ())
    if heatmaps is not None:
        outputs = (heatmaps,)
        stated.setdefault("decode", "heatmaps")
    if isinstance(net, str | Path):
        more = {"taps": None if taps is None else tuple(taps), "outputs": outputs or None}
        spec = recognise(net, size=size, **more, **stated)
        return open_net(net, spec, threads=threads)
    if size is None or not isinstance(size, Sequence) or len(size) != 2:
        raise ConfigError("wrap: state the size of the module's input, size=(height, width) in pixels")
    path = Path(file) if file else Path(tempfile.mkdtemp(prefix="alpose-net-")) / "net.onnx"
    written = export_module(net, path, size, (*outputs, *(taps or ())))
    spec = recognise(path, size=size, taps=None if taps is None else tuple(taps),
                     outputs=outputs or written or None, **stated)  # fmt: skip
    found = open_net(path, spec, threads=threads)
    if file is None:
        weakref.finalize(found, shutil.rmtree, path.parent, ignore_errors=True)
    return found


def export_module(module: nn.Module, path: Path, size: tuple[int, int], named: Sequence[str]) -> tuple[str, ...]:
    """Write the ONNX graph of a module whose outputs are its own and those of some of its submodules, by their names.

    Args:
        module: takes images (N, 3, H, W); it is not changed.
        path: the file.
        size: (H, W) in pixels.
        named: submodules whose outputs become outputs of the graph, under the submodule's name.

    Returns:
        Names of the module's own outputs.
    """
    import torch

    class WithTaps(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = module

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            with _watched(self.net, named) as seen:
                answer = self.net(images)
            _check_calls(seen)
            return (*_tensors(answer).values(), *(seen[name][0] for name in named))

    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(str(error.name), FEATURE, "export") from error
    modes = [(part, part.training) for part in module.modules()]  # frozen norms may be in another mode than the rest
    parameter = next(module.parameters(), None)
    images = torch.zeros(2, 3, *size, device=None if parameter is None else parameter.device)
    whole = WithTaps().eval()
    try:
        with torch.no_grad():
            with _watched(module, named) as seen:
                answer = module(images)
            _check_calls(seen)
            own = tuple(_tensors(answer))
            _export(whole, images, path, [*own, *named])
            _require_equal(whole, images, path, [*own, *named])
    finally:
        for part, training in modes:
            part.training = training
    return own


def _export(whole: nn.Module, images: Tensor, path: Path, names: Sequence[str]) -> None:
    """With a free batch, by the newer exporter; where that fails, by the older one."""
    import torch

    how: tuple[dict[str, Any], ...] = (
        {"dynamo": True, "dynamic_shapes": ({0: torch.export.Dim("batch")},), "external_data": False},
        {"dynamo": False, "dynamic_axes": {name: {0: "batch"} for name in ("images", *names)}},
    )
    errors = []
    for options in how:
        try:
            with _quiet():
                torch.onnx.export(whole, (images,), str(path), input_names=["images"], output_names=list(names),
                                  opset_version=OPSET, verbose=False, **options)  # fmt: skip
            return
        except Exception as error:  # the exporters have no family of errors
            errors.append(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    raise ConfigError(
        f"wrap: the module cannot be exported to ONNX. {errors[0]}. Its forward pass must not depend on values, and it takes images "
        "(N, 3, H, W); or export it yourself and give the file"
    )


def _require_equal(whole: nn.Module, blank_23HW: Tensor, path: Path, names: Sequence[str]) -> None:
    """Refuse a graph that does not answer as the module does.

    The older exporter follows one image through a module and writes what that one met: another image may take another way.
    """
    import torch

    session = import_onnxruntime("a pose net from torch").InferenceSession(
        str(path), providers=["CPUExecutionProvider"]
    )
    noise_23HW = torch.rand(blank_23HW.shape, generator=torch.Generator().manual_seed(0)).to(blank_23HW.device)
    for what, images_23HW in (("a black", blank_23HW), ("a white", blank_23HW + 1), ("a noisy", noise_23HW)):
        expected, again = ([value.cpu().numpy() for value in whole(images_23HW)] for _ in range(2))
        given = session.run(list(names), {"images": images_23HW.cpu().numpy()})
        for name, one, other, repeated in zip(names, given, expected, again, strict=True):
            if not np.array_equal(other, repeated, equal_nan=True):
                raise ConfigError(
                    f"wrap: {name} of {what} image differs from call to call: a pose net must not draw at random"
                )
            scale = 1 + float(np.abs(other).max(initial=0.0))
            if one.shape != other.shape or not np.allclose(one, other, rtol=0, atol=1e-2 * scale, equal_nan=True):
                raise ConfigError(
                    f"wrap: the exported graph does not answer as the module does: {name} of {what} image is another. Its forward pass "
                    "must not depend on values, such as an if on what an image holds; or export it yourself and give the file"
                )


@contextmanager
def _watched(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """What submodules give while the module runs."""
    known = dict(module.named_modules())
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    hooks = []
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, list(known), 3, 0.4)
            hint = f"; near it are {', '.join(near)}" if near else ""
            raise ConfigError(f"wrap: the module has no submodule {name!r}{hint}")

        def note(_module: Any, _inputs: Any, output: Any, name: str = name) -> None:
            tensors = list(_tensors(output).values())
            if len(tensors) != 1:
                raise ConfigError(
                    f"wrap: the submodule {name!r} gives {len(tensors)} tensors; name one that gives a single one"
                )
            seen[name].append(tensors[0])

        hooks.append(known[name].register_forward_hook(note))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _check_calls(seen: Mapping[str, list[Tensor]]) -> None:
    for name, found in seen.items():
        if len(found) != 1:
            times = f"runs {len(found)} times" if found else "does not run"
            raise ConfigError(f"wrap: the submodule {name!r} {times} in one forward pass; name one that runs once")


def _tensors(value: Any, name: str = "output") -> dict[str, Tensor]:
    """The tensors of whatever a module returns, by key or number."""
    import torch

    if isinstance(value, torch.Tensor):
        return {name: value}
    if isinstance(value, Mapping):
        return {found: tensor for key, item in value.items() for found, tensor in _tensors(item, str(key)).items()}
    if isinstance(value, list | tuple):
        parts = [_tensors(item, f"{name}_{place}") for place, item in enumerate(value)]
        return {found: tensor for part in parts for found, tensor in part.items()}
    return {}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks on their own pytrees, versions and passes."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
