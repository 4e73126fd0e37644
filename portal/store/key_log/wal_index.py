"""The header of SQLite's WAL index, by which its own readers find out whether anything was committed.

Beside a database in WAL mode lies its WAL index (`-shm`), which every connection of every process maps. It begins with
a header of 48 bytes, twice. A commit changes it before it returns, for one of its numbers counts commits; a reader that
finds it as it was goes on with what it knows (SQLite's walformat.html, 2.2, and walIndexTryHdr in wal.c). So does
whoever compares the bytes in memory, for a hundredth of what it costs to ask SQLite.

What that rests on:

- The index stays the one that all others use for as long as a connection of ours is open: SQLite removes it, or cuts it
  short, only when nobody else has it open, and takes a database out of WAL mode only when nobody else has that open.
- A header that was read while somebody wrote it is equal to no later one, for a commit that has ended left its number
  in it. (Numbers have 32 bits, checksums of what was written stand beside them.)
- The file is never closed: that would take away all locks on it that SQLite has in this process (fcntl(2)). Nor does
  Python get hold of it, which closes what it has before a process ends. One that was removed has no locks to lose.
"""

import ctypes
import mmap
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SIZE = 2 * 48  # bytes
_FORMAT = struct.pack("=I", 3_007_000)  # what a header of this format begins with

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
_NOT_MAPPED = ctypes.c_void_p(-1).value

_known: dict[tuple[int, int], tuple[int, Callable[[], bytes]]] = {}  # open files and their readers, by device and inode
_knowing = threading.Lock()


def reader_of(connection: Any) -> Callable[[], bytes]:
    """Give what reads the header of a connection that has read in WAL mode, for as long as it stays open.

    Where the index cannot be mapped, or is of another format, it always reads nothing.
    """
    index = Path(connection.execute("PRAGMA database_list").fetchall()[0][2] + "-shm")
    try:
        there = index.stat()
        with _knowing:
            _forget_removed()
            name = there.st_dev, there.st_ino
            if name not in _known:
                _known[name] = _open(index)
            read = _known[name][1]
    except OSError:
        return bytes
    return read if read().startswith(_FORMAT) else bytes


def _open(path: Path) -> tuple[int, Callable[[], bytes]]:
    file = os.open(path, os.O_RDONLY)
    address = _libc.mmap(None, _SIZE, mmap.PROT_READ, mmap.MAP_SHARED, file, 0)
    if address == _NOT_MAPPED:
        return file, bytes
    header = (ctypes.c_char * _SIZE).from_address(address)
    return file, lambda: header.raw


def _forget_removed() -> None:
    for name, (file, _) in list(_known.items()):
        if not os.fstat(file).st_nlink:
            del _known[name]
            os.close(file)
