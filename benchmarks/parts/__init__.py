"""The parts of `real.py`: each measures one thing, and returns its figures."""
