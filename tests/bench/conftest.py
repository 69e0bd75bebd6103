from __future__ import annotations

import sys
from pathlib import Path

# ``bench`` is no part of the package: it is found from the repository's root, where ``python -m pytest`` starts.
# The ``pytest`` command does not put that on the path.
ROOT = str(Path(__file__).resolve().parents[2])
if ROOT not in sys.path:
    sys.path.append(ROOT)
