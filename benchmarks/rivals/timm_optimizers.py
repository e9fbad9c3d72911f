"""timm's LARS and LAMB, from the files of its package that hold them.

`import timm.optim` imports all of timm, whose models need the torchvision that fits the installed
torch; the optimizers need torch alone, and so does `pip install --no-deps timm`.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

PACKAGE = "timm_optim"
"""The folder `timm/optim` by this name, so that whoever imports timm itself has all of it."""

found = find_spec("timm")
if found is None or found.submodule_search_locations is None:
    raise ImportError("timm is not installed", name="timm")
if PACKAGE not in sys.modules:
    package = ModuleType(PACKAGE)
    package.__path__ = [str(Path(place) / "optim") for place in found.submodule_search_locations]
    sys.modules[PACKAGE] = package

Lars = importlib.import_module(f"{PACKAGE}.lars").Lars
Lamb = importlib.import_module(f"{PACKAGE}.lamb").Lamb
