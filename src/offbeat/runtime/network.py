"""Modelled network: FIFO links between hosts whose two sides each carry one transfer at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .clock import SECOND, nanoseconds


class ModelledNetwork:
    """When messages arrive.

    A transfer occupies the sender's outgoing and the receiver's incoming side for the same
    interval, so that a parameter server congests as a real one does; latency comes after it and
    occupies nobody. Transfers are reserved in the order of `transfer` calls. Messages between
    nodes of one host arrive at once. Times are integer nanoseconds.
    """

    def __init__(self, hosts: int, latency: float, bandwidth: float) -> None:
        self.latency = nanoseconds(latency)
        self._ns_per_byte = SECOND / bandwidth
        self._outgoing_free = [0] * hosts
        self._incoming_free = [0] * hosts

    def duration(self, size: int) -> int:
        """How long `size` bytes occupy a link."""
        return round(size * self._ns_per_byte)

    def transfer(self, source: int, to: int, size: int, now: int) -> tuple[int, int]:
        """Reserve a transfer between two hosts; returns when it begins and when it arrives."""
        if source == to:
            return now, now
        begin = max(now, self._outgoing_free[source], self._incoming_free[to])
        end = begin + round(size * self._ns_per_byte)
        self._outgoing_free[source] = self._incoming_free[to] = end
        return begin, end + self.latency

    def ring(
        self, hosts: list[int], entered: NDArray[np.int64], sizes: list[int]
    ) -> tuple[NDArray[np.int64], int]:
        """A ring all-reduce whose members enter at the given times.

        `sizes` are the bytes of the chunks' messages. Returns when each member has its result
        and the bytes that each member sent, member by member, summed. Equal to passing the
        messages one by one, as long as nothing else is on these links.
        """
        n = len(hosts)
        if n == 1:
            return entered, 0
        busy = np.array([self.duration(size) for size in sizes], np.int64)
        outgoing = np.array([self._outgoing_free[host] for host in hosts], np.int64)
        incoming = np.array([self._incoming_free[host] for host in hosts], np.int64)
        # At step s member c + s sends chunk c on, which it has from member c + s - 1; the same
        # member sent chunk c + 1 just before. `sent[c]` is when chunk c has been sent on.
        sent = np.maximum(np.maximum(entered, outgoing), np.roll(incoming, -1)) + busy
        before = np.empty_like(sent)
        for _ in range(2 * (n - 1) - 1):
            before[:-1], before[-1] = sent[1:], sent[0]
            sent += self.latency
            np.maximum(sent, before, out=sent)
            sent += busy
        outgoing = np.roll(sent, 2 * (n - 1) - 1)
        incoming = np.roll(outgoing, 1)
        for index, host in enumerate(hosts):
            self._outgoing_free[host] = int(outgoing[index])
            self._incoming_free[host] = int(incoming[index])
        return incoming + self.latency, 2 * sum(sizes) * (n - 1)
