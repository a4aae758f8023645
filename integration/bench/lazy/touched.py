#!/usr/bin/env python3
"""What a program touched of the files below a directory: pages in the page cache, and what zlib makes of them.

usage: touched.py DIR        (root; nothing else must have read there, with a readahead of 0 on the device)

Prints: files, bytes of pages, bytes of the same compressed by runs of pages. mincore(2) tells which pages are cached.
"""
import ctypes
import mmap
import os
import stat
import sys
import zlib

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
PAGE = mmap.PAGESIZE


def resident(fd, size):
    """Runs of cached pages, as pairs of first page and number of pages."""
    count = -(-size // PAGE)
    start = libc.mmap(None, size, 0, mmap.MAP_SHARED, fd, 0)
    if start == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    cached = ctypes.create_string_buffer(count)
    try:
        if libc.mincore(start, size, cached) != 0:
            raise OSError(ctypes.get_errno(), "mincore")
    finally:
        libc.munmap(start, size)
    runs = []
    for page in (n for n in range(count) if cached.raw[n] & 1):
        if runs and sum(runs[-1]) == page:
            runs[-1][1] += 1
        else:
            runs.append([page, 1])
    return runs


def main(top):
    seen, found = set(), []
    device = os.stat(top).st_dev
    for directory, below, names in os.walk(top):
        below[:] = [name for name in below if os.lstat(os.path.join(directory, name)).st_dev == device]
        for name in names:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode) and status.st_size and status.st_ino not in seen:
                seen.add(status.st_ino)
                with open(path, "rb") as file:
                    runs = resident(file.fileno(), status.st_size)
                if runs:
                    found.append((path, runs))
    pages = packed = 0
    for path, runs in found:
        with open(path, "rb") as file:
            for first, number in runs:
                file.seek(first * PAGE)
                content = file.read(number * PAGE)
                pages += len(content)
                packed += len(zlib.compress(content, 6))
    print(len(found), pages, packed)


main(sys.argv[1])
