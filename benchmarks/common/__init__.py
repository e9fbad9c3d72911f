"""What the parts of `real.py` share: processes that take turns, networks, figures, runs of ours."""
