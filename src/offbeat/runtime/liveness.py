"""Liveness: whether the machine at the other end of a TCP connection is still there.

Between processes of one machine the end of a connection says so. A machine that loses power, or a
link that is cut, says nothing. So each end sends a BEAT whenever it has written nothing for
`BEAT_SECONDS`, and measures the other's silence: the time since its last byte. Bytes of the
stream count, not frames, so that a large payload on a slow line is never silence.
Acknowledgements do not count: the system sends them in the name of a process that hangs.

A host is given up once its silence exceeds

    patience + 2 * bytes in flight / bandwidth

where bytes in flight are written and not acknowledged, and bandwidth is what was acknowledged per
second lately, while something was. The patience of 30 s is three times the outage to be ridden
out (10 s): TCP tries again at intervals that double, so that after an outage of T it may stay
silent for another T, and the rest covers a process too busy to beat. The second term is for a
line that is full: a beat waits behind what is queued on the way, here and at the other end.
"""

import array
import fcntl
import socket
import termios

PATIENCE_SECONDS = 30.0
BEAT_SECONDS = 1.0
SMOOTHING = 0.2
"""Weight of the newest measurement of the bandwidth."""


class Pulse:
    """Signs of life on one TCP connection. Times are monotonic, in seconds.

    Args:
        sock: connected.
        now: the time.
        patience: seconds of silence that are borne, at least.
    """

    def __init__(self, sock: socket.socket, now: float, patience: float) -> None:
        self._sock, self._patience = sock, patience
        self.heard = self.spoke = self._measured = now
        self.bandwidth: float | None = None
        """Bytes per second that the other end acknowledged lately; None before the first."""
        self.in_flight = 0
        self._written = self._acknowledged = 0

    def wrote(self, count: int, now: float) -> None:
        """`count` bytes have been given to the system."""
        self._written += count
        self.spoke = now

    def measure(self, now: float) -> None:
        """See what has been acknowledged since the last time."""
        self.in_flight = _unacknowledged(self._sock)
        acknowledged = self._written - self.in_flight
        progress, seconds = acknowledged - self._acknowledged, now - self._measured
        # Nothing at all is an outage, which says nothing about the bandwidth.
        if progress > 0 and seconds > 0:
            newest = progress / seconds
            before = newest if self.bandwidth is None else self.bandwidth
            self.bandwidth = before + SMOOTHING * (newest - before)
        self._acknowledged, self._measured = acknowledged, now

    def excuse(self, seconds: float) -> None:
        """We ourselves did not listen for so long: that was not its silence."""
        self.heard += seconds

    def silence(self, now: float) -> float:
        return max(0.0, now - self.heard)

    @property
    def deadline(self) -> float:
        """The silence, in seconds, at which it is given up."""
        if self.bandwidth is None:
            return self._patience
        return self._patience + 2 * self.in_flight / self.bandwidth


def _unacknowledged(sock: socket.socket) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(sock, termios.TIOCOUTQ, count)
    return count[0]
