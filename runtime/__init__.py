"""What runs on the device, and the numpy code that every other part shares with it.

Today: skeletons, the crop, and the decoding of heatmaps. It imports numpy and nothing else.
"""

from .crop import Crop, cut, square_crop
from .errors import AlposeError
from .skeleton import COCO, LSP, MPII, Skeleton

__all__ = ["COCO", "LSP", "MPII", "AlposeError", "Crop", "Skeleton", "cut", "square_crop"]
