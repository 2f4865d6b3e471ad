"""The private copy of a header: each seal refuses its kind of change, and no other program inherits the memory."""

import fcntl
import mmap
import os

import pytest

from csi.guest.seal import memfd

HEADER = b"header" * 1000


def test_what_was_given_is_there_whole() -> None:
    with memfd.sealed(HEADER) as descriptor:
        assert os.pread(descriptor, 2 * len(HEADER), 0) == HEADER


def test_it_is_followed_by_zeroes_as_far_as_it_should_reach() -> None:
    with memfd.sealed(HEADER, len(HEADER) + 5) as descriptor:
        assert os.pread(descriptor, 2 * len(HEADER), 0) == HEADER + bytes(5)
        with pytest.raises(PermissionError):
            os.pwrite(descriptor, b"x", len(HEADER) + 1)


def test_it_can_not_be_written_cut_grown_or_mapped_for_writing() -> None:
    with memfd.sealed(HEADER) as descriptor:
        with pytest.raises(PermissionError):
            os.pwrite(descriptor, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, len(HEADER) - 1)
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, len(HEADER) + 1)
        with pytest.raises(PermissionError):
            mmap.mmap(descriptor, len(HEADER))


def test_its_seals_are_final() -> None:
    with memfd.sealed(HEADER) as descriptor, pytest.raises(PermissionError):
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_a_program_gets_it_only_when_it_is_handed_over() -> None:
    with memfd.sealed(HEADER) as descriptor:
        # os.memfd_create() adds CLOEXEC by itself when it is given no flags; with flags they say all.
        assert fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
