"""What the commands of the trainer say where the train extra is missing, and after Ctrl-C."""

from __future__ import annotations

from alpose.runtime import command_line

TRAIN_PACKAGES = ("cv2", "h5py", "jinja2", "matplotlib", "safetensors", "scipy", "sklearn", "torch", "tqdm")
"""Import names of the train extra."""


class OneLineErrors(command_line.OneLineErrors):
    """The group of ``alpose-train``, and of ``alpose-export``, which trains nothing and needs the same packages."""

    packages = dict.fromkeys(TRAIN_PACKAGES, "train")
    wanted_by = "alpose-train"
    interrupted = "Stopped. The same command goes on from here."
