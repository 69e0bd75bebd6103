"""From Python: a pose net of somebody else's, as an ONNX file or as a torch module, ready to be fitted with a loss head.

::

    net = alpose.trainer.wrap("net.onnx", like="rtmpose")
    net = alpose.trainer.wrap(module, size=(256, 192), taps=("layer2", "layer3"), heatmaps="final", skeleton="coco")

A module goes through its own ONNX export, once: what is trained on is what the bundle will compute.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import json
import logging
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from alpose.runtime.engines.onnx import import_onnxruntime
from alpose.runtime.errors import ConfigError, MissingExtraError
from alpose.runtime.io import to_json, write_atomically

from .net import ForeignNet, open_net
from .recognition.graph import FEATURE
from .recognition.recognise import examine, stated_by_name
from .recognition.stated import SPEC_KEY
from .spec import PoseSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger("alpose")

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
        net: an ONNX file, or a torch module that takes images (N, 3, H, W), on any device and in either mode.
        size: (H, W) of the input in pixels; a module needs it, a file only where it leaves them free.
        taps: feature tensors by name, finest first: of the file's graph, or submodules of the module. None: traced back from
            the outputs.
        heatmaps: the submodule, or the tensor of the file, that gives the heatmaps (N, J, h, w). None: by the outputs' shapes.
        file: where the ONNX file of a module is written; by default to a temporary folder that lives as long as the result.
        threads: of ONNX Runtime.
        stated: anything else that is known, as :class:`~.recognition.stated.Stated` has it: ``like``, ``skeleton``, ``mean``, ``colour``, …

    Raises:
        ConfigError: something has to be stated, a submodule does not exist or runs more than once, or the module cannot be
            exported.

    A module in half precision is exported in float32, with the same weights; one that takes a single image only is fed one at
    a time. The file that is written carries its spec, so that it needs no statements later.
    """
    import torch

    if heatmaps is not None:
        stated |= {"outputs": heatmaps} | ({} if "decode" in stated else {"decode": "heatmaps"})
    said = stated_by_name(
        {"size": size, "taps": taps if taps is None or isinstance(taps, str) else tuple(taps), **stated}
    )
    if isinstance(net, str | Path):
        if file is not None:
            raise ConfigError(
                f"wrap: file={file} is where the ONNX file of a module is written; {net} is a file already"
            )
        return open_net(net, examine(net, said).spec, threads=threads)
    if not isinstance(net, torch.nn.Module):
        raise ConfigError(f"wrap: expected a torch module or the path of an ONNX file, got {type(net).__name__}")
    if said.size is None:
        raise ConfigError("wrap: state the size of the module's input, size=(height, width) in pixels")
    folder = None if file else Path(tempfile.mkdtemp(prefix="alpose-net-"))
    path = Path(file) if file else cast(Path, folder) / "net.onnx"
    try:
        written = export_module(net, path, said.size, (*(said.outputs or ()), *(said.taps or ())))
        spec = examine(path, replace(said, outputs=said.outputs or written or None)).spec
        embed_spec(path, spec)
        found = open_net(path, spec, threads=threads)
    except BaseException:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if folder is not None:
        weakref.finalize(found, shutil.rmtree, folder, ignore_errors=True)
    return found


def export_module(module: nn.Module, path: Path, size: tuple[int, int], named: Sequence[str]) -> tuple[str, ...]:
    """Write the ONNX graph of a module whose outputs are its own and those of some of its submodules, by their names.

    Args:
        module: takes images (N, 3, H, W); it is not changed.
        path: the file.
        size: (H, W) in pixels.
        named: outputs of the module, and submodules whose outputs become outputs of the graph, under the submodule's name.

    Returns:
        Names of the module's own outputs.
    """
    import torch

    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(str(error.name), FEATURE, "export") from error
    first = next((value for value in (*module.parameters(), *module.buffers()) if value.is_floating_point()), None)
    if first is not None and first.device.type == "meta":
        raise ConfigError("wrap: the module is on torch's device meta, which holds no weights: load them first")
    if first is not None and first.dtype in (torch.float16, torch.bfloat16):
        log.info(
            "the module is in %s and is exported in float32, with the same weights",
            str(first.dtype).removeprefix("torch."),
        )
        module = copy.deepcopy(module).float()

    class WithTaps(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = module

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            with _watched(self.net, named) as seen:
                answer = self.net(images)
            _check_calls(seen)
            return (*_tensors(answer).values(), *(seen[name][0] for name in named))

    modes = [(part, part.training) for part in module.modules()]  # frozen norms may be in another mode than the rest
    images = torch.zeros(2, 3, *size, device=None if first is None else first.device)
    whole = WithTaps().eval()
    try:
        with torch.no_grad():
            answer, images = _first_answer(module, images)
            own = tuple(_tensors(answer))
            if not own:
                raise ConfigError(f"wrap: the module returns {type(answer).__name__}, in which there is no tensor")
            named = [name for name in dict.fromkeys(named) if name not in own]
            with _watched(module, named) as seen:
                module(images)
            _check_calls(seen)
            _export(whole, images, path, [*own, *named])
            _require_equal(whole, images, path, [*own, *named])
    finally:
        for part, training in modes:
            part.training = training
    return own


def _first_answer(module: nn.Module, images_23HW: Tensor) -> tuple[Any, Tensor]:
    """What the module answers to two images, or to one where it takes no two; and what it was given."""
    errors = []
    for images in (images_23HW, images_23HW[:1]):
        try:
            answer = module(images)
        except Exception as error:  # anything that a user's module raises
            errors.append(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(": "))
            continue
        if errors:
            log.warning("the module takes no two images at once (%s): it is fed one at a time", errors[0])
        return answer, images
    shape = ", ".join(map(str, images_23HW.shape[1:]))
    needed = [
        name for name, one in inspect.signature(module.forward).parameters.items()
        if one.default is one.empty and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    ]  # fmt: skip
    more = (
        f". Its forward pass wants {', '.join(needed)}: wrap it in a module that takes images alone and gives it the rest"
        if len(needed) > 1
        else ". All of its weights must be on one device"
        if "device" in errors[-1]
        else ""
    )
    raise ConfigError(f"wrap: the module does not answer images (1, {shape}) of float32: {errors[-1]}{more}")


def embed_spec(path: Path, spec: PoseSpec) -> None:
    """Write a spec into the metadata of an ONNX file of our own, where :func:`~.recognition.recognise.examine` finds it."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    onnx.helper.set_model_props(
        model, {one.key: one.value for one in model.metadata_props} | {SPEC_KEY: json.dumps(to_json(spec))}
    )
    write_atomically(path, model.SerializeToString())


def _export(whole: nn.Module, images: Tensor, path: Path, names: Sequence[str]) -> None:
    """With a free batch where there are two images, by the newer exporter; where that fails, by the older one."""
    import torch

    free = len(images) > 1
    how: tuple[dict[str, Any], ...] = (
        {"dynamo": True, "external_data": False}
        | ({"dynamic_shapes": ({0: torch.export.Dim("batch")},)} if free else {}),
        {"dynamo": False} | ({"dynamic_axes": {name: {0: "batch"} for name in ("images", *names)}} if free else {}),
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
