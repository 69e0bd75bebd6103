"""What runs on the device, and the numpy code that every other part shares with it.

Today: skeletons, the crop, bundles with their golden frames, and the engines. It imports numpy and nothing else; an
engine imports its library when it is made.
"""

from .crop import Crop, cut, square_crop
from .errors import AlposeError
from .skeleton import COCO, LSP, MPII, Skeleton

__all__ = ["COCO", "LSP", "MPII", "AlposeError", "Crop", "Skeleton", "cut", "square_crop"]
