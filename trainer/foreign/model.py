"""A pose net of somebody else's with the detector of its failures: a folder on disk, and the part of a graph.

``model.json`` holds the spec, the detector's config, facts, and the hashes of the other files; ``net.onnx`` the net's own
bytes; ``model.safetensors`` the detector's numbers. Nothing is pickled, and files that do not belong together are refused.

Shapes: N images, J joints, E embedding.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from alpose.runtime.errors import CheckpointError, ConfigError, DataError
from alpose.runtime.io import (
    fields_from_json,
    fields_to_json,
    file_sha256,
    read_json,
    replacing,
    write_atomically,
    write_json,
)

from .heads import Detector, DetectorConfig, build_detector
from .net import Shape
from .reader import NetReader
from .recognition.graph import is_inside, weights_beside
from .spec import PoseSpec

KIND, SCHEMA = "alpose foreign pose model", 2
NET, WEIGHTS, FACTS = "net.onnx", "model.safetensors", "model.json"


class Answer(NamedTuple):
    """What a monitor is told of N images."""

    keypoints_NJ2: Tensor
    """Pixels of the input; the centre of its first pixel is (0, 0)."""
    scores_NJ: Tensor
    """The net's own."""
    predicted_loss_N: Tensor
    """Higher means worse; calibration makes a probability of failure of it."""
    confidence_NJ: Tensor
    """How right each joint is likely to be, [0, 1]; a joint that no label taught has the others' mean."""
    embedding_NE: Tensor


class Readout(nn.Module):
    """From the tensors of a net, ``reader.spec.tensors`` in that order, to an :class:`Answer`; exported as it is."""

    def __init__(self, reader: NetReader, detector: Detector) -> None:
        super().__init__()
        self.reader, self.detector = reader, detector

    def forward(self, *tensors: Tensor) -> Answer:
        """Answer a batch."""
        reading = self.reader(*tensors)
        loss_N, confidence_NJ = self.detector(reading, self.detector.summary(self.reader, tensors))
        return Answer(reading.keypoints_NJ2, reading.scores_NJ, loss_N, confidence_NJ, reading.embedding_NE)


@dataclass(frozen=True, slots=True)
class ForeignModel:
    """One net with what tells its failures."""

    spec: PoseSpec
    net: Path
    """The ONNX file, whose bytes nobody changes."""
    shapes: Mapping[str, Shape]
    """Of the tensors that the spec reads."""
    detector: Detector
    facts: Mapping[str, Any]
    """Provenance in plain JSON values: data, who was labelled, measures."""

    def readout(self) -> Readout:
        """The part of the graph behind the net, in eval mode."""
        return Readout(NetReader(self.spec, self.shapes), self.detector).eval()


def save(model: ForeignModel, folder: Path) -> Path:
    """Write a model; the JSON goes last, so that a half-written folder is no model."""
    weights = safetensors.torch.save(
        {name: value.detach().cpu().contiguous() for name, value in model.detector.state_dict().items()}
    )
    beside = weights_beside(model.net)
    if taken := {NET, WEIGHTS, FACTS} & set(beside):
        raise ConfigError(f"{model.net} has its weights in {', '.join(taken)}, as a file of the model's own is called: rename it, "
                          "onnx.save(model, path, save_as_external_data=True, location='weights.bin')")  # fmt: skip
    facts = {
        "schema": SCHEMA,
        "kind": KIND,
        "sha256": {
            NET: file_sha256(model.net),
            WEIGHTS: hashlib.sha256(weights).hexdigest(),
            **{name: file_sha256(model.net.parent / name) for name in beside},
        },
        "spec": fields_to_json(model.spec),
        "shapes": {name: list(shape) for name, shape in model.shapes.items()},
        "detector": fields_to_json(model.detector.config),
        "facts": dict(model.facts),
    }
    (folder / FACTS).unlink(missing_ok=True)
    for source, name in ((model.net, NET), *((model.net.parent / name, name) for name in beside)):
        with replacing(folder / name) as temporary:
            shutil.copyfile(source, temporary)
    write_atomically(folder / WEIGHTS, weights)
    return write_json(folder / FACTS, facts)


def is_foreign(folder: Path) -> bool:
    """Whether a folder holds a model of a foreign net."""
    try:
        found = read_json(folder / FACTS)
    except (DataError, OSError):
        return False
    return isinstance(found, dict) and found.get("kind") == KIND


def load(folder: Path) -> ForeignModel:
    """Read what :func:`save` wrote.

    Raises:
        CheckpointError: a file is missing, differs from what the JSON was written for, or does not fit the others.
    """
    facts_path = folder / FACTS
    try:
        facts = read_json(facts_path)
    except (DataError, OSError) as error:
        raise CheckpointError(f"{facts_path} cannot be read: {error}") from error
    if not isinstance(facts, dict) or facts.get("kind") != KIND or facts.get("schema") != SCHEMA:
        raise CheckpointError(f"{facts_path} does not describe an {KIND} of schema {SCHEMA}")
    hashes = facts.get("sha256")
    if not isinstance(hashes, dict) or not {NET, WEIGHTS} <= set(hashes):
        raise CheckpointError(f"{facts_path} is damaged: it has no hashes of {NET} and {WEIGHTS}")
    for name, wanted in hashes.items():
        path = folder / name
        if not is_inside(name) or not path.is_file():
            raise CheckpointError(f"{path} does not exist: a model is {FACTS} with {NET} and {WEIGHTS} beside it")
        if file_sha256(path) != wanted:
            raise CheckpointError(f"{path} is not the file that {FACTS} was written for: sha256 differs")
    try:
        spec = fields_from_json(PoseSpec, facts["spec"], "spec")
        detector = build_detector(fields_from_json(DetectorConfig, facts["detector"], "detector"), len(spec.skeleton))
        detector.load_state_dict(safetensors.torch.load((folder / WEIGHTS).read_bytes()))
        shapes = {str(name): tuple(shape) for name, shape in facts["shapes"].items()}
        model = ForeignModel(spec, folder / NET, shapes, detector.eval(), dict(facts["facts"]))
        model.readout()
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError, ConfigError, DataError) as error:
        raise CheckpointError(f"{folder} is not a usable model of a foreign net: {error}") from error
    return model
