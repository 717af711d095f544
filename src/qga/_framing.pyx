# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, auto_pickle=False
"""Splits a byte stream into JSON values as the C agent does, dialect, errors and recovery included.

Two stages. A resumable lexer looks at every byte once, balances brackets, enforces the limits and notes what a value
contains; it holds no copy of anything. A complete value then goes to orjson if it is plain standard JSON, and to the
parser below if it uses the C agent's dialect, holds a long string (kept in place as a `Span`), or is wrong in a way that
has to be put into the C agent's words.

Owns: the receive buffer (`Block`), shared with the Spans in it. A framer belongs to one thread at a time; a Span may be
read on another one.
"""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DecodeASCII, PyUnicode_DecodeUTF8
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcpy, memmove

import os

from orjson import loads

cdef enum:
    # Of one request: bytes of all tokens, tokens, and brackets open at once (QEMU: qobject/json-streamer.c).
    TOKEN_BYTES_MAX = 64 << 20
    TOKEN_COUNT_MAX = 2 << 20
    NESTING_MAX = 1024
    # A string of this size stays in the buffer; below it a copy is cheaper than the bookkeeping.
    SPAN_MIN = 32 << 10
    # What an idle connection has mapped, and the least room for one read.
    BLOCK_SIZE = 64 << 10
    # From here on huge pages save most of the page faults.
    HUGE_SIZE = 4 << 20
    READ_MIN = 16 << 10
    # Bytes of a token that an error message quotes.
    QUOTED_MAX = 4096

cdef enum Lexer:
    BETWEEN
    DOUBLE_QUOTED
    DOUBLE_QUOTED_ESCAPE
    SINGLE_QUOTED
    SINGLE_QUOTED_ESCAPE
    MINUS
    ZERO
    DIGITS
    POINT
    FRACTION
    EXPONENT
    EXPONENT_SIGN
    EXPONENT_DIGITS
    WORD
    RECOVERING

cdef enum Outcome:
    MORE
    COMPLETE
    STRAY
    TOO_BIG
    TOO_MANY
    TOO_DEEP

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int fd, void *buf, size_t count)

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, long offset)
    int munmap(void *addr, size_t length)
    int madvise(void *addr, size_t length, int advice)
    void *MAP_FAILED
    int PROT_READ
    int PROT_WRITE
    int MAP_PRIVATE
    int MAP_ANONYMOUS
    int MAP_NORESERVE
    int MADV_HUGEPAGE

cdef extern from *:
    """
    #define _GNU_SOURCE 1
    #include <sys/mman.h>
    #include <stddef.h>
    extern void *mremap(void *, size_t, size_t, int, ...);
    #define QGA_MREMAP_MAYMOVE 1

    /* Bytes at the start of `text` that are plain inside a string: whole groups only, so that the loop vectorises. */
    static inline ptrdiff_t qga_plain_prefix(const unsigned char *text, ptrdiff_t size, unsigned char quote)
    {
        ptrdiff_t done = 0;
        while (size - done >= 64) {
            unsigned char special = 0;
            for (int i = 0; i < 64; i++) {
                unsigned char c = text[done + i];
                special |= (unsigned char)((c == quote) | (c == '\\\\') | (c < 0x20) | (c > 0x7f));
            }
            if (special)
                break;
            done += 64;
        }
        return done;
    }
    """
    void *mremap(void *old, size_t old_size, size_t new_size, int flags) nogil
    int QGA_MREMAP_MAYMOVE
    Py_ssize_t qga_plain_prefix(const unsigned char *text, Py_ssize_t size, unsigned char quote) nogil


class ParseError:
    """Not raised: an item of the stream that says that a request could not be read, with the text for the client."""

    __slots__ = ("desc",)

    def __init__(self, desc):
        self.desc = desc

    def __repr__(self):
        return f"ParseError({self.desc!r})"


class _Defect(Exception):
    """A grammar error inside the parser; its text is the client's."""


@cython.final
@cython.internal
cdef class Block:
    """Anonymous memory. It may be moved or overwritten only while no Span uses it."""
    cdef:
        unsigned char *base
        Py_ssize_t size
        Py_ssize_t users

    def __cinit__(self, Py_ssize_t size):
        cdef void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if memory == MAP_FAILED:
            raise MemoryError
        self.base = <unsigned char *>memory
        self.size = size

    def __dealloc__(self):
        if self.base != NULL:
            munmap(self.base, self.size)

    cdef int grow(self, Py_ssize_t size) except -1:
        cdef void *memory = mremap(self.base, self.size, size, QGA_MREMAP_MAYMOVE)
        if memory == MAP_FAILED:
            raise MemoryError
        self.base = <unsigned char *>memory
        self.size = size
        if size >= HUGE_SIZE:
            madvise(memory, size, MADV_HUGEPAGE)
        return 0


@cython.final
cdef class Span:
    """A long string of a request, ASCII without escapes, left where it was received; writable, so it can be decoded there."""
    cdef:
        Block block
        Py_ssize_t start
        Py_ssize_t size

    def __dealloc__(self):
        if self.block is not None:
            self.block.users -= 1

    def __len__(self):
        return self.size

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.block.base + self.start, self.size, 0, flags)

    def __str__(self):
        return PyUnicode_DecodeASCII(<const char *>self.block.base + self.start, self.size, NULL)


cdef Span new_span(Block block, Py_ssize_t start, Py_ssize_t size):
    cdef Span span = Span.__new__(Span)
    span.block = block
    span.start = start
    span.size = size
    block.users += 1
    return span


@cython.final
cdef class Framer:
    """Iterate to get the complete values of what was read so far; see the stub for the interface."""
    cdef:
        Block block
        # start <= token <= cursor <= end: the request begins at start, its current token at token, cursor is the next
        # byte to look at, end is where the received bytes end.
        Py_ssize_t start
        Py_ssize_t token
        Py_ssize_t cursor
        Py_ssize_t end
        Lexer state
        # Of the current request.
        Py_ssize_t braces
        Py_ssize_t brackets
        Py_ssize_t token_count
        Py_ssize_t token_bytes
        Py_ssize_t colons
        Py_ssize_t blanks
        bint dialect                # needs the parser below
        bint literal                # the string under way has neither escapes nor anything but ASCII so far
        # The content of the last large string of that kind, which the parser need not look at again.
        Py_ssize_t known
        Py_ssize_t known_end

    def __cinit__(self):
        self.block = Block(BLOCK_SIZE)

    def __iter__(self):
        return self

    def __next__(self):
        cdef Outcome outcome
        if self.cursor == self.end:
            raise StopIteration
        outcome = self.advance()
        if outcome == MORE:
            raise StopIteration
        try:
            if outcome == COMPLETE:
                return self.parse()
            if outcome == STRAY:
                return ParseError("JSON parse error, stray '" + self.quoted_token() + "'")
            if outcome == TOO_BIG:
                return ParseError("JSON token size limit exceeded")
            if outcome == TOO_MANY:
                return ParseError("JSON token count limit exceeded")
            return ParseError("JSON nesting depth limit exceeded")
        finally:
            self.forget_request()

    @property
    def buffered(self):
        return self.end - self.start

    @property
    def size(self):
        return self.block.size

    def fill(self, int fd):
        """Read once from a non-blocking descriptor: bytes read, 0 at end of file, -1 if nothing is there; OSError."""
        cdef ssize_t got
        self.make_room(READ_MIN)
        while True:
            got = read(fd, self.block.base + self.end, self.block.size - self.end)
            if got >= 0:
                self.end += got
                return got
            if errno == EAGAIN:
                return -1
            if errno != EINTR:
                raise OSError(errno, os.strerror(errno))

    def feed(self, bytes data):
        """Append bytes that were read elsewhere."""
        cdef Py_ssize_t size = len(data)
        self.make_room(size)
        memcpy(self.block.base + self.end, <const char *>data, size)
        self.end += size

    def trim(self):
        """Give the memory of a large request back, once it is no longer needed."""
        if self.block.size > BLOCK_SIZE and self.end - self.start <= BLOCK_SIZE // 2:
            self.move_to(Block(BLOCK_SIZE))

    # --- the buffer

    cdef int make_room(self, Py_ssize_t wanted) except -1:
        if self.start == self.end and self.block.users == 0:
            self.shift(self.start)
        if self.block.size - self.end >= wanted:
            return 0
        if self.block.users:
            self.move_to(Block(max(<Py_ssize_t>BLOCK_SIZE, self.end - self.start + wanted)))
        elif self.start:
            memmove(self.block.base, self.block.base + self.start, self.end - self.start)
            self.shift(self.start)
        if self.block.size - self.end >= wanted:
            return 0
        if self.blanks > (self.end - self.start) // 2:
            self.squeeze()
        while self.block.size - self.end < wanted:
            self.block.grow(self.block.size * 2)
        return 0

    cdef int move_to(self, Block block) except -1:
        memcpy(block.base, self.block.base + self.start, self.end - self.start)
        self.block = block
        self.shift(self.start)
        return 0

    cdef void shift(self, Py_ssize_t distance) noexcept:
        self.start -= distance
        self.token -= distance
        self.cursor -= distance
        self.end -= distance
        self.known -= distance
        self.known_end -= distance

    cdef void squeeze(self) noexcept:
        # White space between tokens is not limited by the protocol: keep one blank of each run.
        cdef:
            unsigned char *text = self.block.base
            Py_ssize_t stop = self.cursor if self.state == BETWEEN else self.token
            Py_ssize_t kept = self.start, index = self.start
            unsigned char byte, quote = 0
        while index < stop:
            byte = text[index]
            if quote:
                if byte == c"\\":
                    text[kept] = byte
                    kept += 1
                    index += 1
                    byte = text[index]
                elif byte == quote:
                    quote = 0
            elif byte == c'"' or byte == c"'":
                quote = byte
            elif is_blank(byte) and kept > self.start and is_blank(text[kept - 1]):
                index += 1
                continue
            text[kept] = byte
            kept += 1
            index += 1
        memmove(text + kept, text + stop, self.end - stop)
        self.token -= stop - kept
        self.cursor -= stop - kept
        self.end -= stop - kept
        self.blanks = 0
        self.known = self.known_end = 0  # it was moved, and another string may come to lie there

    cdef void forget_request(self) noexcept:
        self.start = self.token = self.cursor
        self.braces = self.brackets = 0
        self.token_count = self.token_bytes = 0
        self.colons = self.blanks = 0
        self.dialect = False
        self.known = self.known_end = 0

    # --- the lexer

    cdef Outcome advance(self) noexcept nogil:
        # Look at the bytes from cursor on until a request is complete or wrong.
        cdef:
            unsigned char *text = self.block.base
            unsigned char byte
            Outcome outcome
        while self.cursor < self.end:
            byte = text[self.cursor]
            if self.state == BETWEEN:
                outcome = self.begin_token(byte)
            elif self.state == DOUBLE_QUOTED or self.state == SINGLE_QUOTED:
                outcome = self.in_string(byte)
            elif self.state == DOUBLE_QUOTED_ESCAPE or self.state == SINGLE_QUOTED_ESCAPE:
                outcome = self.in_escape(byte)
            elif self.state == RECOVERING:
                outcome = self.recover(byte)
            else:
                outcome = self.in_bare(byte)
            if outcome != MORE:
                return outcome
            if self.cursor - self.token > TOKEN_BYTES_MAX and self.state != BETWEEN and self.state != RECOVERING:
                self.state = BETWEEN
                return TOO_BIG
        return MORE

    cdef Outcome begin_token(self, unsigned char byte) noexcept nogil:
        self.token = self.cursor
        if self.token_count == 0:
            self.start = self.cursor
        self.cursor += 1
        self.literal = True
        if byte == c'"':
            self.state = DOUBLE_QUOTED
        elif byte == c":":
            self.colons += 1
            return self.end_token()
        elif byte == c",":
            return self.end_token()
        elif byte == c"{":
            self.braces += 1
            return self.end_token()
        elif byte == c"}":
            self.braces -= 1
            return self.end_token()
        elif byte == c"[":
            self.brackets += 1
            return self.end_token()
        elif byte == c"]":
            self.brackets -= 1
            return self.end_token()
        elif is_blank(byte):
            if self.token_count:
                self.blanks += 1
            else:
                self.start = self.cursor
            self.token = self.cursor
        elif byte == c"0":
            self.state = ZERO
        elif is_digit(byte):
            self.state = DIGITS
        elif byte == c"-":
            self.state = MINUS
        elif c"a" <= byte <= c"z":
            self.state = WORD
        elif byte == c"'":
            self.dialect = True
            self.state = SINGLE_QUOTED
        else:
            return self.stray()
        return MORE

    cdef Outcome in_string(self, unsigned char byte) noexcept nogil:
        cdef unsigned char quote = c'"' if self.state == DOUBLE_QUOTED else c"'"
        cdef Py_ssize_t room = min(self.end - self.cursor, TOKEN_BYTES_MAX + 1 - (self.cursor - self.token))
        cdef Py_ssize_t plain = qga_plain_prefix(self.block.base + self.cursor, room, quote)
        if plain:
            self.cursor += plain
            return MORE
        self.cursor += 1
        if byte == quote:
            if self.cursor - self.token >= SPAN_MIN:
                self.dialect = True
                if self.literal:
                    self.known, self.known_end = self.token + 1, self.cursor - 1
            self.state = BETWEEN
            return self.end_token()
        if byte == c"\\":
            self.literal = False
            self.state = DOUBLE_QUOTED_ESCAPE if self.state == DOUBLE_QUOTED else SINGLE_QUOTED_ESCAPE
        elif byte < 0x20 or byte >= 0xFE:
            return self.stray()
        elif byte >= 0x7F:
            self.dialect = True
            self.literal = False
        return MORE

    cdef Outcome in_escape(self, unsigned char byte) noexcept nogil:
        self.cursor += 1
        if byte < 0x20 or byte >= 0xFE:
            return self.stray()
        if byte == c"u" or byte == c"'" or byte >= 0x7F:
            self.dialect = True
        self.state = DOUBLE_QUOTED if self.state == DOUBLE_QUOTED_ESCAPE else SINGLE_QUOTED
        return MORE

    cdef Outcome in_bare(self, unsigned char byte) noexcept nogil:
        # Numbers and words end where the next byte does not fit; that byte is looked at again.
        cdef Lexer following = next_bare_state(self.state, byte)
        if following == RECOVERING:
            self.cursor += 1
            return self.stray()
        if self.state == ZERO and byte == c"e":
            # Two tokens for the C agent, one number for orjson.
            self.dialect = True
        self.state = following
        if following == BETWEEN:
            return self.end_token()
        self.cursor += 1
        return MORE

    cdef Outcome recover(self, unsigned char byte) noexcept nogil:
        # After a stray byte nothing counts until a structural or control byte, which is then looked at normally.
        if (byte < 0x20 and byte != c"\t") or byte >= 0xFE or memchr(b"[]{}:,", byte, 6) != NULL:
            self.state = BETWEEN
        else:
            self.cursor += 1
        self.start = self.token = self.cursor
        return MORE

    cdef Outcome stray(self) noexcept nogil:
        self.state = RECOVERING
        return STRAY

    cdef Outcome end_token(self) noexcept nogil:
        cdef Py_ssize_t size = self.cursor - self.token
        if self.token_bytes + size + 1 > TOKEN_BYTES_MAX:
            return TOO_BIG
        if self.token_count + 1 > TOKEN_COUNT_MAX:
            return TOO_MANY
        if self.braces + self.brackets > NESTING_MAX:
            return TOO_DEEP
        self.token_bytes += size
        self.token_count += 1
        if self.braces < 0 or self.brackets < 0 or (self.braces == 0 and self.brackets == 0):
            return COMPLETE
        return MORE

    cdef str quoted_token(self):
        # As the C agent prints it: up to a NUL byte, each bad UTF-8 sequence as U+FFFD.
        cdef:
            const unsigned char *text = self.block.base + self.token
            Py_ssize_t size = min(self.cursor - self.token, <Py_ssize_t>QUOTED_MAX)
            const void *nul = memchr(text, 0, size)
        if nul != NULL:
            size = <const unsigned char *>nul - text
        return decode_text(text, text + size, False)

    # --- from lexed text to values

    cdef object parse(self):
        cdef:
            const unsigned char *text = self.block.base + self.start
            Py_ssize_t size = self.cursor - self.start
            Parser parser
        if not self.dialect:
            try:
                value = loads(PyBytes_FromStringAndSize(<const char *>text, size))
                # orjson lets the last of two equal keys win.
                if self.colons < 2 or count_pairs(value) == self.colons:
                    return value
            except ValueError:
                pass
        parser = Parser(self.block)
        parser.cursor = text
        parser.end = text + size
        parser.known = self.block.base + self.known
        parser.known_end = self.block.base + self.known_end
        try:
            return parser.value()
        except _Defect as defect:
            return ParseError(f"JSON parse error, {defect}")


cdef inline bint is_blank(unsigned char byte) noexcept nogil:
    return byte == c" " or byte == c"\t" or byte == c"\r" or byte == c"\n"


cdef inline bint is_digit(unsigned char byte) noexcept nogil:
    return c"0" <= byte <= c"9"


cdef Lexer next_bare_state(Lexer state, unsigned char byte) noexcept nogil:
    # BETWEEN: the token ended before `byte`; RECOVERING: `byte` makes it wrong.
    cdef bint digit = is_digit(byte)
    if state == WORD:
        return WORD if c"a" <= byte <= c"z" else BETWEEN
    if state == MINUS:
        return ZERO if byte == c"0" else DIGITS if digit else RECOVERING
    if state == ZERO:
        return POINT if byte == c"." else RECOVERING if digit else BETWEEN
    if state == DIGITS:
        if byte == c".":
            return POINT
        if byte == c"e" or byte == c"E":
            return EXPONENT
        return DIGITS if digit else BETWEEN
    if state == POINT:
        return FRACTION if digit else RECOVERING
    if state == FRACTION:
        return EXPONENT if byte == c"e" or byte == c"E" else FRACTION if digit else BETWEEN
    if state == EXPONENT and (byte == c"+" or byte == c"-"):
        return EXPONENT_SIGN
    if state == EXPONENT or state == EXPONENT_SIGN:
        return EXPONENT_DIGITS if digit else RECOVERING
    return EXPONENT_DIGITS if digit else BETWEEN


cdef Py_ssize_t count_pairs(object value) except -1:
    cdef Py_ssize_t pairs = 0
    if type(value) is dict:
        pairs = len(<dict>value)
        for item in (<dict>value).values():
            if type(item) is dict or type(item) is list:
                pairs += count_pairs(item)
    elif type(value) is list:
        for item in <list>value:
            if type(item) is dict or type(item) is list:
                pairs += count_pairs(item)
    return pairs


@cython.final
@cython.internal
cdef class Parser:
    """Builds the value of one lexed request; what the lexer checked (tokens, balance, depth) is not checked again."""
    cdef:
        Block block
        const unsigned char *cursor
        const unsigned char *end
        const unsigned char *known
        const unsigned char *known_end

    def __init__(self, Block block):
        self.block = block

    cdef unsigned char peek(self) noexcept:
        # The first byte of the next token, 0 at the end.
        while self.cursor < self.end and is_blank(self.cursor[0]):
            self.cursor += 1
        return self.cursor[0] if self.cursor < self.end else 0

    cdef object value(self):
        cdef unsigned char byte = self.peek()
        if byte == c"{":
            return self.object_()
        if byte == c"[":
            return self.array()
        if byte == c'"' or byte == c"'":
            return self.string(byte)
        if byte == c"-" or is_digit(byte):
            return self.number()
        if c"a" <= byte <= c"z":
            return self.word()
        raise _Defect("expecting value")

    cdef dict object_(self):
        cdef dict members = {}
        cdef unsigned char byte
        self.cursor += 1
        if self.peek() == c"}":
            self.cursor += 1
            return members
        while True:
            self.pair(members)
            byte = self.peek()
            self.cursor += 1
            if byte == c"}":
                return members
            if byte != c",":
                raise _Defect("expected separator in dict")

    cdef int pair(self, dict members) except -1:
        key = self.value()
        if type(key) is Span:
            key = str(key)
        if type(key) is not str:
            raise _Defect("key is not a string in object")
        if self.peek() != c":":
            raise _Defect("missing : in object pair")
        self.cursor += 1
        value = self.value()
        if key in members:
            raise _Defect("duplicate key")
        members[key] = value
        return 0

    cdef list array(self):
        cdef list items = []
        cdef unsigned char byte
        self.cursor += 1
        if self.peek() == c"]":
            self.cursor += 1
            return items
        while True:
            items.append(self.value())
            byte = self.peek()
            self.cursor += 1
            if byte == c"]":
                return items
            if byte != c",":
                raise _Defect("expected separator in list")

    cdef object string(self, unsigned char quote):
        cdef:
            const unsigned char *text = self.cursor + 1
            const unsigned char *stop = text
            bint plain = True
        if text == self.known:
            stop = self.known_end
        while True:
            stop += qga_plain_prefix(stop, self.end - stop, quote)
            if stop[0] == quote:
                break
            if stop[0] == c"\\":
                plain = False
                stop += 1
            elif stop[0] > 0x7F:
                plain = False
            stop += 1
        self.cursor = stop + 1
        if not plain:
            return decode_text(text, stop, True)
        if stop - text >= SPAN_MIN:
            return new_span(self.block, text - self.block.base, stop - text)
        return PyUnicode_DecodeASCII(<const char *>text, stop - text, NULL)

    cdef object number(self):
        cdef const unsigned char *text = self.cursor
        cdef Lexer state = MINUS if text[0] == c"-" else ZERO if text[0] == c"0" else DIGITS
        cdef bint integer = True
        self.cursor += 1
        # Two numbers may touch, as in "1-2", so it ends where the lexer ended it.
        while self.cursor < self.end:
            state = next_bare_state(state, self.cursor[0])
            if state == BETWEEN:
                break
            integer = integer and state <= DIGITS
            self.cursor += 1
        digits = PyBytes_FromStringAndSize(<const char *>text, self.cursor - text)
        # Past 20 digits it fits no 64-bit integer, and int() would refuse thousands of them.
        if integer and len(digits) <= 20:
            number = int(digits)
            if -(1 << 63) <= number < (1 << 64):
                return number
        return float(digits)

    cdef object word(self):
        cdef const unsigned char *text = self.cursor
        while self.cursor < self.end and c"a" <= self.cursor[0] <= c"z":
            self.cursor += 1
        name = PyUnicode_DecodeASCII(<const char *>text, self.cursor - text, NULL)
        if name == "true":
            return True
        if name == "false":
            return False
        if name == "null":
            return None
        raise _Defect(f"invalid keyword '{name[:QUOTED_MAX]}'")


cdef str decode_text(const unsigned char *text, const unsigned char *end, bint strict):
    # strict: a string's content, with escapes, defects raise. Otherwise: raw bytes, defects become U+FFFD.
    # The result never takes more than 3 bytes for each byte of the text.
    cdef:
        unsigned char *output = <unsigned char *>malloc((end - text) * (1 if strict else 3) + 1)
        unsigned char *tail = output
        long code
    if output == NULL:
        raise MemoryError
    try:
        while text < end:
            if strict and text[0] == c"\\":
                code = unescape(&text, end)
            else:
                code = next_code_point(&text, end)
                if code < 0:
                    if strict:
                        raise _Defect("invalid UTF-8 sequence in string")
                    code = 0xFFFD
            tail = put_utf8(tail, code)
        return PyUnicode_DecodeUTF8(<const char *>output, tail - output, NULL)
    finally:
        free(output)


cdef long next_code_point(const unsigned char **cursor, const unsigned char *end) noexcept nogil:
    # One character of modified UTF-8 (U+0000 as C0 80); -1 for a sequence that is wrong, which is consumed.
    cdef:
        const unsigned char *text = cursor[0]
        unsigned char lead = text[0]
        int size = 1, index
        long code
    if lead < 0x80:
        cursor[0] = text + 1
        return lead
    while lead & (0x80 >> size) and size < 7:
        size += 1
    if size == 1 or size > 6:
        cursor[0] = text + 1
        return -1
    code = lead & (0x7F >> size)
    for index in range(1, size):
        if text + index == end or text[index] & 0xC0 != 0x80:
            cursor[0] = text + index
            return -1
        code = code << 6 | text[index] & 0x3F
    cursor[0] = text + size
    if size == 2 and code == 0:
        return 0
    if (size == 2 and code < 0x80) or (size == 3 and code < 0x800) or (size == 4 and code < 0x10000):
        return -1
    return code if size <= 4 and is_character(code) else -1


cdef bint is_character(long code) noexcept nogil:
    # No surrogate, noncharacter, or anything past Unicode.
    return not (0xD800 <= code <= 0xDFFF or 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE or code > 0x10FFFF)


cdef long unescape(const unsigned char **cursor, const unsigned char *end) except -1:
    cdef:
        const unsigned char *text = cursor[0]
        unsigned char kind = text[1]
        const char *plain = b"\"'\\/bfnrt"
        const char *meant = b"\"'\\/\b\f\n\r\t"
        const void *found
        long code, low
    if kind != c"u":
        found = memchr(plain, kind, 9)
        if found == NULL:
            raise _Defect("invalid escape sequence in string")
        cursor[0] = text + 2
        return meant[<const char *>found - plain]
    code = four_hex(text + 2, end)
    cursor[0] = text + 6
    if 0xD800 <= code <= 0xDBFF and end - text >= 12 and text[6] == c"\\" and text[7] == c"u":
        low = four_hex(text + 8, end)
        if 0xDC00 <= low <= 0xDFFF:
            code = 0x10000 + ((code & 0x3FF) << 10 | low & 0x3FF)
            cursor[0] = text + 12
    if code < 0 or not is_character(code):
        # The C agent counts bytes, so a short escape takes the closing quote along.
        quoted = decode_text(text, min(cursor[0], end + 1), False)
        raise _Defect(f"{quoted} is not a valid Unicode character")
    return code


cdef long four_hex(const unsigned char *text, const unsigned char *end) noexcept:
    cdef long code = 0
    cdef int index
    cdef unsigned char byte
    if end - text < 4:
        return -1
    for index in range(4):
        byte = text[index]
        if is_digit(byte):
            code = code << 4 | byte - c"0"
        elif c"a" <= byte | 0x20 <= c"f":
            code = code << 4 | (byte | 0x20) - c"a" + 10
        else:
            return -1
    return code


cdef unsigned char *put_utf8(unsigned char *tail, long code) noexcept:
    if code < 0x80:
        tail[0] = <unsigned char>code
        return tail + 1
    if code < 0x800:
        tail[0] = <unsigned char>(0xC0 | code >> 6)
        tail[1] = <unsigned char>(0x80 | code & 0x3F)
        return tail + 2
    if code < 0x10000:
        tail[0] = <unsigned char>(0xE0 | code >> 12)
        tail[1] = <unsigned char>(0x80 | code >> 6 & 0x3F)
        tail[2] = <unsigned char>(0x80 | code & 0x3F)
        return tail + 3
    tail[0] = <unsigned char>(0xF0 | code >> 18)
    tail[1] = <unsigned char>(0x80 | code >> 12 & 0x3F)
    tail[2] = <unsigned char>(0x80 | code >> 6 & 0x3F)
    tail[3] = <unsigned char>(0x80 | code & 0x3F)
    return tail + 4
