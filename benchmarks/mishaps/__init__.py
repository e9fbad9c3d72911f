"""The parts of `chaos.py`: each does one thing to real runs, and sees what comes of it."""
