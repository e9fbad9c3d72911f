"""Pieces in several slots that are read as one tensor, and pages that writing has made private."""

import ctypes
import fcntl
import gc
import mmap
import os
import weakref
from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offbeat.runtime import stitching
from offbeat.runtime.mappings import Mappings
from offbeat.runtime.pages import Pagemap
from offbeat.runtime.slots import SEALS, Place, Pool
from offbeat.runtime.stitching import PAGE, Stitcher, padding


def pieces_of(pool: Pool, sizes: list[int], dtype: torch.dtype = torch.float32):
    """Pieces that begin in their pages where they will lie in the whole, each in its own slot."""
    pieces = []
    for start, stop in pairwise(accumulate(sizes, initial=0)):
        lead = padding(start * dtype.itemsize) // dtype.itemsize
        piece = pool.tensor(lead + stop - start, dtype)[lead:]
        pieces.append(piece.copy_(torch.arange(start, stop)))
    return pieces


def join(stitcher: Stitcher, pool: Pool, pieces):
    places = [pool.place(piece) for piece in pieces]
    assert None not in places
    return stitcher.join(pieces, places)


@given(st.lists(st.integers(1, 9000), min_size=1, max_size=5), st.sampled_from((4, 8)))
def test_the_whole_is_the_pieces_one_after_the_other(sizes, width):
    dtype = {4: torch.float32, 8: torch.float64}[width]
    pool, stitcher = Pool(), Stitcher()
    pieces = pieces_of(pool, sizes, dtype)
    whole = join(stitcher, pool, pieces)
    if sum(sizes) * width < PAGE:
        assert whole is None
    else:
        assert torch.equal(whole, torch.arange(sum(sizes), dtype=dtype))
    stitcher.close()
    pool.close()


def test_whole_pages_are_not_copied():
    pool, stitcher = Pool(), Stitcher()
    pieces = pieces_of(pool, [5 * PAGE, 5 * PAGE + 100])
    whole = join(stitcher, pool, pieces)
    # Written after the join: who reads in place sees it.
    pieces[0][17] = -1.0
    pieces[1][PAGE] = -2.0
    assert whole[17] == -1.0
    assert whole[5 * PAGE + PAGE] == -2.0


def test_writing_to_the_whole_changes_nobody_else_s_and_no_later_one():
    pool, stitcher = Pool(), Stitcher()
    pieces = pieces_of(pool, [40_000, 40_000])
    for _ in range(3):
        whole = join(stitcher, pool, pieces)
        assert torch.equal(whole, torch.arange(80_000.0))
        whole.mul_(2.0)
        assert torch.equal(whole, 2 * torch.arange(80_000.0))
        assert torch.equal(pieces[0], torch.arange(40_000.0))
        assert torch.equal(pieces[1], torch.arange(40_000.0, 80_000.0))
        del whole


def test_pages_that_the_program_locks_do_not_keep_what_was_written():
    pool, stitcher = Pool(), Stitcher()
    pieces = pieces_of(pool, [40_000, 40_000])
    for _ in range(3):
        whole = join(stitcher, pool, pieces)
        assert torch.equal(whole, torch.arange(80_000.0))
        whole.mul_(2.0)
        lock(whole.data_ptr(), whole.nbytes)
        del whole


def lock(address: int, length: int) -> None:
    """Lock pages in memory, as `mlockall` does all."""
    if ctypes.CDLL(None).mlock(ctypes.c_void_p(address), ctypes.c_size_t(length)):
        pytest.skip("this user may not lock memory")


def test_a_slot_whose_pages_the_program_locks_is_read_as_its_owner_wrote_it():
    fd = os.memfd_create("slot", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4 * PAGE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    mappings = Mappings(lambda token, length: None)
    mappings.add(1, 4 * PAGE, fd)
    for token in range(3):
        payload = torch.frombuffer(mappings.view(1, token, PAGE, 2 * PAGE), dtype=torch.uint8)
        assert not payload.any()
        payload.fill_(1)
        lock(payload.data_ptr(), payload.nbytes)
        del payload
    mappings.close()


def test_a_region_is_used_again_and_shows_what_the_slots_hold_now(monkeypatch):
    made = []
    build = stitching._Region.__init__

    def counted(self, *arguments):
        made.append(self)
        build(self, *arguments)

    monkeypatch.setattr(stitching._Region, "__init__", counted)
    pool, stitcher = Pool(), Stitcher()
    pieces = pieces_of(pool, [3000, 5000, 3000])
    for k in range(4):
        for piece in pieces:
            piece += 1
        whole = join(stitcher, pool, pieces)
        assert torch.equal(whole, torch.arange(11_000.0) + k + 1)
        del whole
    assert len(made) == 1
    # Two that live at once have a region each, and not too many are kept.
    held = [join(stitcher, pool, pieces) for _ in range(stitching.REGIONS_KEPT + 5)]
    assert all(torch.equal(one, held[0]) for one in held)
    del held
    others = pieces_of(pool, [20_000])
    join(stitcher, pool, others)
    assert len(stitcher._idle) <= stitching.REGIONS_KEPT


def test_pieces_are_kept_while_the_whole_lives():
    pool, stitcher = Pool(), Stitcher()
    whole = join(stitcher, pool, pieces_of(pool, [40_000, 40_000]))
    gc.collect()
    for _ in range(4):
        pool.tensor(40_000, torch.float32).fill_(-1.0)
    assert torch.equal(whole, torch.arange(80_000.0))


def test_a_slot_is_kept_as_long_as_a_region_goes_by_its_name():
    class Name:
        pass

    pool, stitcher, name = Pool(), Stitcher(), Name()
    (piece,) = pieces_of(pool, [5000])
    place = pool.place(piece)
    stitcher.join([piece], [Place(name, place.fd, place.offset)])
    alive = weakref.ref(name)
    del name
    gc.collect()
    assert alive() is not None


def test_what_cannot_be_mapped_is_left_to_others(monkeypatch):
    pool, stitcher = Pool(), Stitcher()
    first, second = pool.tensor(3000, torch.float32), pool.tensor(3000, torch.float32)
    assert join(stitcher, pool, [first, second]) is None  # 3000 numbers are no whole pages.
    good = pieces_of(pool, [3000, 3000])
    places = [pool.place(piece) for piece in good]
    closed = os.memfd_create("closed")
    os.close(closed)
    broken = [Place(place.slot, closed, place.offset) for place in places]
    assert stitcher.join(good, broken) is None
    assert stitcher.join(good, places) is not None
    assert pool.place(torch.zeros(5000)) is None


@pytest.mark.parametrize("scans", [True, False])
def test_a_written_page_is_found(scans):
    size = 50 * PAGE
    fd = os.memfd_create("pages")
    os.ftruncate(fd, size)
    memory = mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    pagemap = Pagemap()
    pagemap._scans = scans
    assert not pagemap.has_private(address, size)
    assert sum(memory[::PAGE]) == 0  # All are there, and all are the file's.
    assert not pagemap.has_private(address, size)
    memory[37 * PAGE + 5] = 1
    assert pagemap.has_private(address, size)
    assert not pagemap.has_private(address, 37 * PAGE)
    assert pagemap.has_private(address + 37 * PAGE, PAGE)
    memory.madvise(mmap.MADV_DONTNEED)
    assert not pagemap.has_private(address, size)
    pagemap.close()
    os.close(fd)


def test_a_written_page_is_found_in_swap_and_in_the_last_page_too(monkeypatch):
    written, read, untouched = (
        (1 << 62).to_bytes(8, "little"),
        (5 << 61).to_bytes(8, "little"),
        bytes(8),
    )
    entries = []
    monkeypatch.setattr(os, "pread", lambda fd, n, at: b"".join(entries)[:n])
    pagemap = Pagemap()
    pagemap._scans = False
    entries[:] = [read, untouched, read]
    assert not pagemap.has_private(0, 3 * PAGE)
    entries[:] = [read, untouched, written]
    assert pagemap.has_private(0, 3 * PAGE)
    assert pagemap.has_private(0, 2 * PAGE + 1)
    assert not pagemap.has_private(0, 2 * PAGE)
    pagemap.close()


def test_where_the_system_does_not_say_every_page_counts_as_written(monkeypatch):
    def refuse(*arguments):
        raise PermissionError

    monkeypatch.setattr(os, "open", refuse)
    assert Pagemap().has_private(0, PAGE)
