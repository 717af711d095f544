# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, auto_pickle=False
"""Base64 between descriptors, and the child processes whose output it carries.

Owns: the raw block of an `Encoder` and the encoded block that is being written. Bulk data never becomes a Python `str`
and is held one block at a time. An object belongs to one thread at a time; system calls run without the GIL. The base64
arithmetic itself is pybase64's, one call per block.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.types cimport off_t, pid_t

import os

from pybase64 import b64decode, b64encode

cdef enum:
    # A multiple of 3, so that blocks join without padding. With its encoded form it stays inside a 256 KiB L2 cache;
    # larger blocks were slower on every machine measured.
    RAW_BLOCK = 96 * 1024
    # A multiple of 4 characters that decodes to one raw block.
    TEXT_BLOCK = 128 * 1024

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int fd, void *buf, size_t count)
    off_t lseek(int fd, off_t offset, int whence)
    int SEEK_CUR
    int SEEK_SET

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t writev(int fd, const iovec *iov, int iovcnt)
    ssize_t preadv2(int fd, const iovec *iov, int iovcnt, off_t offset, int flags)
    int RWF_NOWAIT

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long nfds, int timeout)
    int POLLOUT

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    int sigemptyset(sigset_t *set)
    int sigaddset(sigset_t *set, int signum)
    int SIGPIPE
    int SIGXFSZ

cdef extern from "<spawn.h>" nogil:
    ctypedef struct posix_spawn_file_actions_t:
        pass
    ctypedef struct posix_spawnattr_t:
        pass
    int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
                    const posix_spawnattr_t *attributes, char **argv, char **envp)
    int posix_spawn_file_actions_init(posix_spawn_file_actions_t *actions)
    int posix_spawn_file_actions_destroy(posix_spawn_file_actions_t *actions)
    int posix_spawn_file_actions_adddup2(posix_spawn_file_actions_t *actions, int fd, int newfd)
    int posix_spawnattr_init(posix_spawnattr_t *attributes)
    int posix_spawnattr_destroy(posix_spawnattr_t *attributes)
    int posix_spawnattr_setflags(posix_spawnattr_t *attributes, short flags)
    int posix_spawnattr_setsigdefault(posix_spawnattr_t *attributes, const sigset_t *set)
    int posix_spawnattr_setsigmask(posix_spawnattr_t *attributes, const sigset_t *set)
    short POSIX_SPAWN_SETSIGDEF
    short POSIX_SPAWN_SETSIGMASK
    short POSIX_SPAWN_SETSID
    char **environ


cdef class Encoder:
    """Reads up to `count` bytes from `source` and writes them, base64, between a head and a tail to another descriptor.

    head: bytes written before the data.
    tail: called with (count, eof) when the data is complete, returns the bytes written after it.

    The descriptors are the caller's and must outlive the encoder; `source` is read at its own position.
    """
    cdef:
        readonly long long count    # raw bytes taken from the source so far
        readonly bint eof           # the source ended before the wanted count
        int source
        long long wanted            # raw bytes still to be read; 0 once the source gave its last
        object tail                 # None once it was called
        bytearray raw
        # Not yet written: `parts[first:]`, of which `offset` bytes of the first are done already.
        list parts
        Py_ssize_t offset

    def __init__(self, int source, long long count, bytes head, tail):
        self.source = source
        self.wanted = count
        self.tail = tail
        self.parts = [head]
        # Small requests get a small block: most reads are far below the block size.
        self.raw = bytearray(min(max(count, 1), RAW_BLOCK))

    def prime(self):
        """Read the first block, so that a source that cannot be read at all fails before anything is sent.

        Raises OSError if the very first read fails; BlockingIOError if nothing is there yet.
        """
        cdef int error = self.next_block()
        if error and self.count == 0:
            raise OSError(error, os.strerror(error))

    def pump(self, int out, int patience):
        """Write until everything is out (True), or `patience` milliseconds were spent waiting for `out` (False).

        A read error after the first block ends the data early: the tail tells the count really sent. Raises OSError if
        `out` fails.
        """
        cdef int status
        cdef bint waited = False
        while True:
            while self.parts:
                status = self.write_parts(out)
                if status == 0:
                    waited = False
                elif status != EAGAIN:
                    raise OSError(status, os.strerror(status))
                elif waited or not wait_writable(out, &patience):
                    # "Writable" and yet EAGAIN: a virtio port whose host side is closed. Never spin on it.
                    return False
                else:
                    waited = True
            if self.tail is None:
                return True
            self.next_block()

    def prime_cached(self):
        """Queue all of the data if it is a single block that is in memory already: True. Otherwise nothing happens.

        Never blocks. Source: RWF_NOWAIT in preadv2(2).
        """
        cdef:
            iovec vector
            ssize_t got = -1
            off_t position
        if self.wanted > len(self.raw):
            return False
        vector.iov_base = PyByteArray_AS_STRING(self.raw)
        vector.iov_len = self.wanted
        position = lseek(self.source, 0, SEEK_CUR)
        if position >= 0:
            got = preadv2(self.source, &vector, 1, position, RWF_NOWAIT)
        # Fewer bytes may mean "the rest is not in memory" as well as "end of file".
        if got != self.wanted or lseek(self.source, position + got, SEEK_SET) < 0:
            return False
        self.queue(got, 0, False)
        return True

    cdef int next_block(self) except -1:
        # Read and queue the next block. Returns 0 or the errno that ended the data.
        cdef:
            char *buffer = PyByteArray_AS_STRING(self.raw)
            Py_ssize_t size = min(<long long>len(self.raw), self.wanted)
            Py_ssize_t got = 0
            int error = 0
        with nogil:
            got = read_full(self.source, buffer, size, &error)
        return self.queue(got, error, got < size)

    cdef int queue(self, Py_ssize_t got, int error, bint last) except -1:
        # Encode `got` bytes of the raw block, and put the tail behind the last one.
        self.count += got
        self.wanted -= got
        if last:
            self.eof = error == 0
            self.wanted = 0
        if got:
            self.parts.append(b64encode(self.raw if got == len(self.raw) else memoryview(self.raw)[:got]))
        if self.wanted == 0:
            self.parts.append(self.tail(self.count, self.eof))
            self.tail = None
        return error

    cdef int write_parts(self, int out) except -1:
        # One writev of what is queued (head, block and tail at the most); 0 or an errno.
        cdef:
            iovec vector[3]
            Py_ssize_t written
            Py_ssize_t size
            int used = 0
            int error = 0
            bytes part
        for part in self.parts:
            vector[used].iov_base = PyBytes_AS_STRING(part)
            vector[used].iov_len = PyBytes_GET_SIZE(part)
            used += 1
        vector[0].iov_base = <char *>vector[0].iov_base + self.offset
        vector[0].iov_len -= self.offset
        with nogil:
            written = writev(out, vector, used)
            if written < 0:
                error = errno
        if error == EINTR:
            return 0
        if error:
            return error
        written += self.offset
        while self.parts:
            size = PyBytes_GET_SIZE(self.parts[0])
            if written < size:
                break
            written -= size
            del self.parts[0]
        self.offset = written
        return 0


cdef Py_ssize_t read_full(int fd, char *buffer, Py_ssize_t size, int *error) noexcept nogil:
    # Bytes read, fewer than `size` only at end of file (error 0) or at an error.
    cdef Py_ssize_t got = 0
    cdef ssize_t step
    while got < size:
        step = read(fd, buffer + got, size - got)
        if step == 0:
            break
        if step < 0:
            if errno == EINTR:
                continue
            error[0] = errno
            break
        got += step
    return got


cdef bint wait_writable(int fd, int *patience) noexcept:
    # True if `fd` takes bytes, or has failed and will say so at the next write. Uses up the milliseconds of patience.
    cdef pollfd entry
    cdef timespec before, after
    cdef int ready
    entry.fd = fd
    entry.events = POLLOUT
    with nogil:
        clock_gettime(CLOCK_MONOTONIC, &before)
        ready = poll(&entry, 1, patience[0])
        clock_gettime(CLOCK_MONOTONIC, &after)
    patience[0] -= (after.tv_sec - before.tv_sec) * 1000 + (after.tv_nsec - before.tv_nsec) // 1000000
    patience[0] = max(patience[0], 0)
    return ready > 0


def decode(data):
    """Decode base64 strictly: the standard alphabet, correct padding, newlines anywhere and nothing else.

    data: a `str`, or a writable buffer such as a `Span`, which is decoded in place and so is destroyed.
    Returns a buffer with the bytes: for a `Span` a view into it, which is valid only as long as the span.
    Raises ValueError with the text for the client; the decoded bytes are complete or not returned at all.
    """
    if isinstance(data, str):
        if not data.isascii():
            raise ValueError("Base64 data contains invalid characters")
        data = bytearray(data, "ascii")
    cdef Py_ssize_t size = decode_in_place(data)
    return memoryview(data)[:size]


cdef Py_ssize_t decode_in_place(object data) except -1:
    cdef:
        Py_buffer view
        char *text
        const char *source
        Py_ssize_t end, taken = 0, decoded = 0, block, size
        bytes raw
        object window = memoryview(data)
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    try:
        text = <char *>view.buf
        end = view.len
        while taken < end:
            block = min(end - taken, <Py_ssize_t>TEXT_BLOCK)
            try:
                raw = b64decode(window[taken : taken + block], validate=True)
            except ValueError:
                raw = None
            if raw is None or (PyBytes_GET_SIZE(raw) * 4 != block * 3 and taken + block < end):
                # A newline in the block, or a defect: drop the newlines from here on and try once more.
                block = without_newlines(text + taken, end - taken)
                if block == end - taken:
                    raise ValueError(defect(text + taken, block))
                end = taken + block
                continue
            source = PyBytes_AS_STRING(raw)
            size = PyBytes_GET_SIZE(raw)
            # Behind what was read, never over it; without the GIL so that the loop gets a turn at every block.
            with nogil:
                memcpy(text + decoded, source, size)
            decoded += size
            taken += block
        return decoded
    finally:
        PyBuffer_Release(&view)


cdef Py_ssize_t without_newlines(char *text, Py_ssize_t size) noexcept:
    cdef Py_ssize_t kept = 0, index
    with nogil:
        for index in range(size):
            if text[index] != c"\n":
                text[kept] = text[index]
                kept += 1
    return kept


cdef str defect(const char *text, Py_ssize_t size):
    # A character that has no place in base64 outranks wrong padding, as in the C agent.
    cdef const char *alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
    cdef Py_ssize_t index
    cdef bint good = True
    with nogil:
        for index in range(size):
            if not memchr(alphabet, text[index], 65):
                good = False
                break
    return "Base64 data is not valid" if good else "Base64 data contains invalid characters"


def spawn(bytes path, list argv, env, int stdin, int stdout, int stderr, bint session=False):
    """Start a program and return its process id; the GIL is free while the kernel loads it.

    path: the file to execute, no search is made; argv, env: lists of bytes, passed verbatim, None for the agent's own
    environment; stdin, stdout, stderr: descriptors above 2 that the child gets as 0, 1 and 2; session: it leads a
    session and a process group of its own.

    The child keeps the working directory and umask. Raises OSError if it cannot be started.
    Source: posix_spawn(3).
    """
    cdef:
        posix_spawn_file_actions_t actions
        posix_spawnattr_t attributes
        sigset_t defaults, unblocked
        char **c_argv = NULL
        char **c_env = NULL
        short flags = POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK
        pid_t pid = 0
        int error
        const char *program = path
    posix_spawn_file_actions_init(&actions)
    posix_spawnattr_init(&attributes)
    try:
        posix_spawn_file_actions_adddup2(&actions, stdin, 0)
        posix_spawn_file_actions_adddup2(&actions, stdout, 1)
        posix_spawn_file_actions_adddup2(&actions, stderr, 2)
        sigemptyset(&unblocked)
        sigemptyset(&defaults)
        # The interpreter ignores these two; a child must not inherit that.
        sigaddset(&defaults, SIGPIPE)
        sigaddset(&defaults, SIGXFSZ)
        posix_spawnattr_setsigdefault(&attributes, &defaults)
        posix_spawnattr_setsigmask(&attributes, &unblocked)
        if session:
            flags |= POSIX_SPAWN_SETSID
        posix_spawnattr_setflags(&attributes, flags)
        c_argv = string_array(argv)
        c_env = environ if env is None else string_array(env)
        with nogil:
            error = posix_spawn(&pid, program, &actions, &attributes, c_argv, c_env)
        if error:
            raise OSError(error, os.strerror(error))
        return pid
    finally:
        posix_spawn_file_actions_destroy(&actions)
        posix_spawnattr_destroy(&attributes)
        free(c_argv)
        if env is not None:
            free(c_env)


cdef char **string_array(list strings) except NULL:
    # NULL-terminated pointers into the bytes objects, which the caller keeps alive; free() it.
    cdef char **array = <char **>malloc((len(strings) + 1) * sizeof(char *))
    cdef Py_ssize_t index
    if array == NULL:
        raise MemoryError
    for index in range(len(strings)):
        array[index] = PyBytes_AS_STRING(<bytes?>strings[index])
    array[len(strings)] = NULL
    return array
