"""offbeat: asynchronous, decentralized and local-update SGD for PyTorch."""

__version__ = "0.1.0"
