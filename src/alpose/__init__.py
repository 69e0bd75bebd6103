"""alpose knows, on the device, when its pose model is wrong, and turns those frames into training data.

Import the part you need: ``alpose.runtime`` (device, numpy only), ``alpose.trainer`` (torch),
``alpose.export`` and ``alpose.tools``. This file stays empty so that importing costs nothing.
"""

__version__ = "0.2.0"
