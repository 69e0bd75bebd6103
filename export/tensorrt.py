"""Building the TensorRT engine of a bundle, on the machine that will run it. ``docs/tensorrt.md`` has the facts.

One path serves TensorRT 10.3, 10.16 and 11: what a release has is asked of it, never concluded from its version. Every
network is strongly typed: the graph's own types say what is float16 and what is int8, and no flag of the builder does.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import alpose
from alpose.runtime.bundle import Bundle
from alpose.runtime.bundle.golden import GoldenReport
from alpose.runtime.bundle.keys import device_key_path, device_mac
from alpose.runtime.engines.catalog import verify_engine
from alpose.runtime.engines.tensorrt import INPUT, TensorRTEngine
from alpose.runtime.engines.tensorrt_plans import (
    MAC,
    PLAN,
    SIDECAR,
    EngineKey,
    Profile,
    Sidecar,
    TensorRTDevice,
    TensorRTError,
    create,
    logger,
)
from alpose.runtime.errors import ConfigError, WrongAnswerError
from alpose.runtime.io import remove_abandoned, write_atomically

log = logging.getLogger("alpose")

MAX_LEVEL = 5
"""Of the builder's optimisation; 3 is TensorRT's default, more takes longer and tries more."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildConfig:
    """How an engine is built."""

    profile: Profile
    workspace_bytes: int | None = None
    """The most scratch memory that a layer may ask for; None leaves TensorRT's limit, all memory of the GPU."""
    optimization_level: int = 3
    tf32: bool = False
    """Whether float32 products may round their factors to 10 bits. TensorRT's own default is yes. Here it is no: the
    parts that a graph keeps in float32, the loss head above all, are those that must not be rounded."""
    timing_cache: Path | None = None
    """Where timings are kept between builds; None for no cache. :func:`build_engine` chooses one in the bundle."""

    def __post_init__(self) -> None:
        if self.workspace_bytes is not None and self.workspace_bytes < 1 << 20:
            raise ConfigError(f"workspace_bytes must be at least one MiB (1048576), got {self.workspace_bytes}")
        if not 0 <= self.optimization_level <= MAX_LEVEL:
            raise ConfigError(f"optimization_level must be 0 to {MAX_LEVEL}, got {self.optimization_level}")


def build_engine(
    bundle: Bundle | str | Path,
    *,
    max_batch: int = 1,
    profile: tuple[int, int, int] | None = None,
    workspace_bytes: int | None = None,
    timing_cache: bool | str | Path = True,
    optimization_level: int = 3,
    tf32: bool = False,
    public_key: str | Path | None = None,
    say: Say = log.info,
) -> Path:
    """Build the engine of a bundle for this machine, let it answer the golden frames, and keep it if it passes.

    It takes the place of an engine that was built for the same TensorRT, GPU, precision and model. An engine that
    fails never gets there: the one that was there stays.

    Args:
        bundle: an opened bundle, or its folder.
        max_batch: the most frames of one run; 1 builds a static batch, which is what a camera wants.
        profile: (min, opt, max) instead; it is fastest at ``opt``. Three equal numbers build a static batch.
        workspace_bytes: the most scratch memory that a layer may ask for.
        timing_cache: True keeps timings in the bundle's ``engines/`` (beside this device's key where ``public_key`` is
            given), which makes the next build fast; a path keeps them there, False nowhere.
        optimization_level: 0 to 5; more takes longer and tries more.
        tf32: let float32 products be rounded to TF32.
        public_key: refuse a bundle that this key did not sign, as in :meth:`Bundle.open`.
        say: takes one line at every step; a build takes minutes.

    Returns:
        The plan. Its sidecar lies beside it, and the sidecar's MAC.

    Raises:
        MissingExtraError: TensorRT or cuda-python is not installed.
        TensorRTError: TensorRT cannot read the graph or build it; the message names the nodes.
        WrongAnswerError: the engine does not answer the golden frames rightly. It is gone.
        CudaError: there is no GPU, or not enough memory on it.
        ConfigError: an option that cannot be carried out.
    """
    if profile is not None and max_batch != 1:
        raise ConfigError(f"give max_batch or profile, not both: got {max_batch} and {profile}")
    sizes = (1, max_batch, max_batch) if profile is None else profile
    try:
        low, best, high = sizes
        batches = Profile(min=low, opt=best, max=high)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"the batches cannot be built: {error}") from error
    # Options are judged before a GPU is looked for, and both before a bundle is read.
    config = BuildConfig(
        profile=batches, workspace_bytes=workspace_bytes, optimization_level=optimization_level, tf32=tf32
    )
    here = TensorRTDevice.here()
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle, public_key)
    key = here.key(bundle)
    if timing_cache is not False:
        # TensorRT parses the cache: beside a signed bundle it is kept where only this user can have written.
        folder = bundle.engines if bundle.signed_by is None else device_key_path().parent
        place = folder / f"{key.machine}.timing" if timing_cache is True else Path(timing_cache)
        if bundle.signed_by is not None:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        config = replace(config, timing_cache=place)
    return _build(bundle, here, key, config, say)


def _build(bundle: Bundle, here: TensorRTDevice, key: EngineKey, config: BuildConfig, say: Say) -> Path:
    if bundle.weights_path is not None:
        raise ConfigError(f"{bundle.folder} has its weights in {bundle.weights_path.name}, beside its graph: TensorRT's parser is given a "
                          "graph of at most 2 GiB with its weights inside. Export a smaller net, or run it with ONNX Runtime")  # fmt: skip
    bundle.engines.mkdir(exist_ok=True)
    remove_abandoned(bundle.engines)
    say(f"building for {key.gpu} with TensorRT {key.tensorrt}, {_words(config.profile)}: this takes minutes")
    start = time.perf_counter()
    plan, cache = _plan(bundle.model_bytes(), here.trt, config, str(bundle.model_path))
    seconds = time.perf_counter() - start
    say(f"built {len(plan) / 1e6:.1f} MB in {seconds:.1f} s; asking the golden frames")
    with TensorRTEngine(bundle, plan=plan, here=here) as engine:
        reports = _require(verify_engine(engine, bundle.golden), bundle)
    gpu = here.cuda.gpu()
    sidecar = Sidecar(
        key=key,
        profile=config.profile,
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        cuda_driver=gpu.driver,
        cuda_runtime=gpu.runtime,
        builder_optimization_level=config.optimization_level,
        tf32=config.tf32,
        workspace_bytes=config.workspace_bytes,
        timing_cache=cache,
        build_seconds=round(seconds, 3),
        created=datetime.now(timezone.utc).replace(microsecond=0).isoformat(),
        alpose=alpose.__version__,
        golden=tuple(report.to_json() for report in reports),
    )
    path = bundle.engines / f"{key.stem}{PLAN}"
    # Killed between two of them, they do not belong together, and none is loaded.
    write_atomically(path, plan)
    write_atomically(bundle.engines / f"{key.stem}{SIDECAR}", sidecar.to_bytes())
    try:
        write_atomically(bundle.engines / f"{key.stem}{MAC}", device_mac(sidecar.to_bytes()))
    except (ConfigError, OSError) as error:
        log.warning("the engine has no MAC, so it is not loaded where the bundle must be signed: %s", error)
    say(f"golden frames passed: {path}")
    return path


def _require(reports: tuple[GoldenReport, ...], bundle: Bundle) -> tuple[GoldenReport, ...]:
    for report in reports:
        if not report.passed:
            raise WrongAnswerError(
                f"{report}\nThe engine that was built for {bundle.folder} answers wrongly: it was deleted. Try a "
                "static batch of 1, another optimization level, or another version of TensorRT or of the driver"
            )
    return reports


# --- TensorRT


def _plan(model: bytes, trt: Any, config: BuildConfig, where: str) -> tuple[bytes, str]:
    """The plan of a graph, and what became of the timing cache."""
    log_to, messages = logger(trt)
    builder = create(lambda: trt.Builder(log_to), "starting TensorRT's builder", messages)
    network = create(lambda: builder.create_network(_network_flags(trt)), "making a network", messages)
    parser = create(lambda: trt.OnnxParser(network, log_to), "starting the parser", messages)
    _parse(model, trt, parser, where)
    settings = create(builder.create_builder_config, "configuring the builder", messages)
    settings.builder_optimization_level = config.optimization_level
    if config.workspace_bytes is not None:
        settings.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, config.workspace_bytes)
    if not config.tf32:
        settings.clear_flag(trt.BuilderFlag.TF32)
    _set_batches(builder, network, settings, config.profile)
    cache = _use_timings(settings, config.timing_cache)
    memory = create(
        lambda: builder.build_serialized_network(network, settings), f"building an engine of {where}", messages
    )
    plan = bytes(memory)
    if config.timing_cache is not None:
        _keep_timings(settings, config.timing_cache)
    return plan, cache


def _network_flags(trt: Any) -> int:
    """The bit that makes a network strongly typed, wherever a release has it.

    It is bit 1 in TensorRT 10 and bit 0 in 11, where bit 1 means something else and every network is strongly typed:
    a number written here would be wrong in one of them. EXPLICIT_BATCH is not asked for. Since 10.0 it is ignored, and
    11 has no such name.
    """
    flag = getattr(getattr(trt, "NetworkDefinitionCreationFlag", None), "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parse(model: bytes, trt: Any, parser: Any, where: str) -> None:
    if parser.parse(model):
        return
    errors = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
    raise TensorRTError(
        f"TensorRT {trt.__version__} cannot read {where}:\n  " + "\n  ".join(errors or ["it gave no reason"])
    )


def _parser_error(error: Any) -> str:
    name, operator = error.node_name(), error.node_operator()
    node = f"node {name or error.node()} ({operator})" if operator else f"node {name}" if name else "the graph"
    return f"{node}: {error.desc()} [{error.code()}]"


def _set_batches(builder: Any, network: Any, settings: Any, profile: Profile) -> None:
    """One batch size becomes the network's shape, a range of them an optimisation profile."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    if [tensor.name for tensor in inputs] != [INPUT]:
        raise TensorRTError(f"the graph must have one input, {INPUT}: it has {[tensor.name for tensor in inputs]}")
    rest = tuple(int(length) for length in inputs[0].shape)[1:]
    if profile.static:
        inputs[0].shape = (profile.min, *rest)
        return
    range_of_shapes = builder.create_optimization_profile()
    range_of_shapes.set_shape(INPUT, (profile.min, *rest), (profile.opt, *rest), (profile.max, *rest))
    if settings.add_optimization_profile(range_of_shapes) < 0:
        raise TensorRTError(f"TensorRT refuses {profile} for an input of shape {(-1, *rest)}")


def _use_timings(settings: Any, path: Path | None) -> str:
    """Attach the timing cache of this machine, or an empty one where there is none that fits."""
    if path is None:
        return "none"
    kept = b""
    with suppress(FileNotFoundError):
        kept = path.read_bytes()
    # ignore_mismatch would accept timings of another GPU, which TensorRT's header warns of.
    if kept:
        cache = settings.create_timing_cache(kept)
        if cache is not None and settings.set_timing_cache(cache, ignore_mismatch=False):
            return "used"
        log.warning("%s was not made by this TensorRT on this GPU: it is replaced", path)
    settings.set_timing_cache(settings.create_timing_cache(b""), ignore_mismatch=False)
    return "replaced" if kept else "new"


def _keep_timings(settings: Any, path: Path) -> None:
    """Write the timings of this build; they only make the next one faster, so nothing fails for them."""
    cache = settings.get_timing_cache()
    memory = None if cache is None else cache.serialize()
    if memory is None:
        log.warning("TensorRT gave no timings to keep in %s", path)
        return
    try:
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path.parent} does not exist")
        write_atomically(path, bytes(memory))
    except OSError as error:
        log.warning("the timings were not kept in %s: %s", path, error)


# --- Files


def _words(profile: Profile) -> str:
    if profile.static:
        return f"batch {profile.min}"
    return f"batches {profile.min} to {profile.max}, fastest at {profile.opt}"
