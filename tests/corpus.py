# SPDX-License-Identifier: Apache-2.0
"""What clients send and what they should not: material for the tests of the framing."""

from __future__ import annotations


def request(identity: bytes) -> bytes:
    """A ping whose id is the JSON text `identity`, so that its value comes back."""
    return b'{"execute":"guest-ping","id":' + identity + b"}"


NUMBERS = [
    *(b"0", b"-0", b"7", b"-7", b"10", b"9007199254740993"),
    *(b"9223372036854775807", b"9223372036854775808", b"18446744073709551615", b"18446744073709551616"),
    *(b"-9223372036854775808", b"-9223372036854775809", b"-18446744073709551615", b"1" * 40, b"-" + b"9" * 400),
    *(b"0.0", b"-0.0", b"1.0", b"1.1", b"1e3", b"1E3", b"1e+3", b"1e-3", b"0.5E-3", b"1.5e300", b"2e-400", b"1e22"),
]
"""Numbers; none of those at the limit of a double, whose value would be no JSON in the reply."""

NO_NUMBERS = [
    *(b"01", b"-01", b"00", b"+1", b".5", b"-.5", b"1.", b"1.e5", b"-", b"--1", b"-a", b"1e", b"1e+", b"1e+a", b"1ee5"),
    *(b"0e1", b"0E1", b"-0e1", b"0e", b"[0e1]", b"0x10", b"1_000", b"1-2", b"1.5.5", b"1.5-3", b"1e5.5", b"1a", b"12true"),
    *(b"NaN", b"nan", b"Infinity", b"-Infinity", b"infinity"),
]

WORDS = [b"true", b"false", b"null"]

NO_WORDS = [
    *(b"nul", b"nulll", b"truefalse", b"tr_ue", b"trUe", b"True", b"NULL", b"a", b"undefined", b"true1", b"true-1"),
    *(b"null\0", b"@", b"%", b"%s", b"%%", b"$x", b"//x", b"/* x */", b"#x", b"`x`", b"(1)", b"\\", b"\\n", b"\x7f"),
    "\u00e9".encode(),
]

STRINGS = [
    *(b'""', b"''", b'"a"', b"'a'", b"""'"'""", b'''"'"''', rb'"\""', rb"'\''", rb"'\"'", rb'''"\'"''', b'"/"', b'"%d"'),
    *(rb'"\/\\\b\f\n\r\t"', rb'"\u0041"', rb'"\u00e9"', rb'"\u00E9"', rb'"\u20ac"', rb'"\ud83d\ude00"', rb'"\uD83D\uDE00x"'),
    *(rb'"\u0000"', rb'"a\u0000b"', b'"\xc0\x80"', b'"a\x7f"', rb'"\u007f"', rb'"\u001f"', rb'"\\u0041"', rb'"\ufffd"'),
    *('"\u00e9"'.encode(), '"\u20ac\U0001f600\U0010fffd"'.encode(), '"\ud7ff\ue000\ufdcf\ufdf0\ufffd"'.encode()),
    *(b'"' + b"a" * 63 + b'"', b'"' + b"b" * 64 + b'"', b'"' + b"c" * 127 + rb"\n" + b'"', b"'" + b"d" * 200 + b"'"),
]

NO_STRINGS = [
    # Escapes that mean nothing.
    *(rb'"\x41"', rb'"\a"', rb'"\0"', rb'"\U0041"', rb'"\ "', b'"\\\xc3\xa9"', b'"\\\x7f"', rb'"\"', rb"'\'"),
    # \u with too few digits, or none.
    *(rb'"\u"', rb'"\u1"', rb'"\u12"', rb'"\u123"', rb'"\u123g"', rb'"\uzzzz"', rb'"\u 123"', rb'"\u+123"', rb'"\u0x41"'),
    *(b'"\\u00e\xc3\xa9"', b'"\\u00\xe2\x82\xac"', b'"\\u0\xe2\x82"', rb'"\u00\n0"', rb"""'\u"'""", rb'"\u12\"'),
    # Surrogates and characters that are none.
    *(rb'"\ud800"', rb'"\udc00"', rb'"\ud800x"', rb'"\ud800\n"', rb'"\ud800\u0041"', rb'"\ud800\ud800"', rb'"\udc00\ud800"'),
    *(rb'"\ud83d\u"', rb'"\ud83d\ude"', rb'"\ud83d\ude0"', rb'"\ud83d\uzzzz"', rb'"\ufdd0"', rb'"\ufdef"', rb'"\ufffe"'),
    *(rb'"\uFFFF"', rb'"\ud83f\udffe"', rb'"\udbff\udfff"', b'"\xef\xbf\xbe"', b'"\xef\xb7\x90"', b'"\xf4\x8f\xbf\xbf"'),
    # UTF-8 that is none: cut off, overlong, surrogates, past Unicode, stray continuation.
    *(b'"\xc3"', b'"\xe2\x82"', b'"\xe2\x82x"', b'"\xf0\x9f\x98"', b'"\x80"', b'"\xbf\xbf"', b'"\xc0\x81"', b'"\xc1\xbf"'),
    *(b'"\xe0\x80\x80"', b'"\xe0\x9f\xbf"', b'"\xf0\x80\x80\x80"', b'"\xf0\x8f\xbf\xbf"', b'"\xed\xa0\x80"', b'"\xed\xbf\xbf"'),
    *(b'"\xf4\x90\x80\x80"', b'"\xf5\x80\x80\x80"', b'"\xf8\x88\x80\x80\x80"', b'"\xfc\x84\x80\x80\x80\x80"', b'"\xfc"'),
    # Bytes that end a token wherever they come.
    *(b'"a\nb"', b'"a\tb"', b"'a\rb'", b'"a\0b"', b'"a\x1fb"', b'"a\xffb"', b'"a\xfeb"', b'"\\\nb"', b'"\\\xffb"', b'"\\\0b"'),
    *(b'"a\xe2\x82\0', b'"a\xe2\xff"', b"'a\xc0\x80\0b'", b'"a\xed\xa0\x80\x01"', b'"a\xfd\xbf\xbf\xbf\xbf\xbf\xff"'),
    *(b'"', b"'", b'"a', b"'a", b"\"a'", b"'a\""),
]

STRUCTURES = [
    *(b"[]", b"{}", b"[[]]", b"[{}]", b'{"a":{}}', b'[1,2.5,"x",true,null,[],{}]', b'{"a":1,"b":[{"c":null}],"":""}'),
    *(b"{'a':1,\"b\":'c'}", b'[ 1 ,\t2\r,\n3 ]', b'{ "a" : 1 , "b" : 2 }', b"[" * 40 + b"]" * 40, b'{"a":' * 40 + b"1" + b"}" * 40),
    *(b'{"A":1,"a":2}', rb'{"\u0061":1}', b'{"a":{"a":{"a":1}}}', b'[{"a":1},{"a":1}]'),
]

NO_STRUCTURES = [
    *(b"[,]", b"[1,]", b"[,1]", b"[1,,2]", b"[1 2]", b"[1:2]", b'["a""b"]', b"[1", b"[", b"[[]", b"[1}", b"[{]", b"[{]}", b"[(])"),
    *(b"{,}", b'{"a"}', b'{"a":}', b'{"a":1,}', b'{,"a":1}', b'{"a":1,,"b":2}', b'{"a" 1}', b'{"a":1 "b":2}', b'{"a":1:2}'),
    *(b'{"a","b"}', b'{"a"::1}', b"{a:1}", b"{1:2}", b"{1.5:2}", b"{null:1}", b"{true:1}", b"{[]:1}", b"{{}:1}", b"{[1,]:1}"),
    *(b"{", b'{"a"', b'{"a":', b'{"a":1', b'{"a":[}', b'{"a":{]', b"}", b"]", b"}}", b"]]", b"[}", b"{]", b":", b",", b"::", b"[]]"),
    *(b'{"a":1,"a":1}', b'{"a":1,"b":2,"a":3}', rb'{"a":1,"\u0061":2}', b'{"\\u0000":1,"\xc0\x80":2}', b'{"a":1,"a":nul}'),
    *(b'[{"a":1,"a":2}]', b'{"a":{"b":1,"b":2}}', b'{"a":1,"a":2,"b":}', b"{'a':1,\"a\":2}"),
]

VALUES = [*NUMBERS, *WORDS, *STRINGS, *STRUCTURES]
"""JSON texts with a value."""

NO_VALUES = [*NO_NUMBERS, *NO_WORDS, *NO_STRINGS, *NO_STRUCTURES]
"""Texts without one."""

PING = request(b"1")

STREAMS = [
    # Several in a row, with all kinds of blanks and none.
    *(PING * 3, PING + b"\n" + PING + b"\r\n\t " + PING, b" \n" + PING, b"1 2 3 ", b'"a""b"[][]{}', b"1[2]3", b"truefalse null\n"),
    *(b"", b" ", b"\n\n\n", b"5", b"true", b"-", b"1,2", PING + b"," + PING, PING + b"}" + PING, PING + b"]]" + PING),
    # Resynchronising with FF (or FE): before, between, inside, many.
    *(b"\xff" + PING, b"\xff\n" + PING, b"\xfe" + PING, b"\xff\xff\xff" + PING, PING + b"\xff" + PING, b"\xff" * 20 + PING),
    *(b"5\xff" + PING, b"nul\xff" + PING, b"0\xff", b"1.\xff", b"1.5\xff", b"1e\xfe", b"1e5\xff[]", b"-\xff{}", b"[1\xff2]", b'"\xff"x" 5 '),
    *(b'{"execute":"gue\xff' + PING, b'{"execute":"guest-ping","id":\xff' + PING, b"[[[[\xff" + PING, b'{"a":"\\\xff' + PING),
    # Garbage, and where it ends.
    *(b"@@@ " + PING, b"@ 1 2 3 " + PING, b"@\n5 " + PING, b"@\t5\n" + PING, b"@\x0b5 ", b"@\0\0\0" + PING, b"@:" + PING, b"@,]" + PING),
    *(b"AT+CGMI\r\n" + PING, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + PING, b"\x1b[0m\x1b[?25h" + PING, b"login: \xff" + PING),
    *(b"\0" + PING, b"\0\0\0\0" + PING, b"\xef\xbb\xbf" + PING, b"\x80\x81\x82" + PING, b"\x16\x03\x01\x02\0\x01" + PING),
    *(b'{"execute":@"guest-ping"}' + PING, b'{"execute":"guest\nping"}' + PING, b'[1,"a\0b",2]' + PING, b'{"a":\x01}' + PING),
    # A message that was cut off, and its neighbour.
    *(PING[:20] + PING, PING[:11] + PING, PING[:-1] + PING, PING[:9] + b"\n" + PING, PING[5:] + PING),
]
"""Streams that hold more, or less, than one value."""

FRAGMENTS = [
    *VALUES,
    *NO_VALUES,
    *(b"{", b"}", b"[", b"]", b":", b",", b'"', b"'", b"\\", b" ", b"\n", b"\t", b"\0", b"\xff", b"\xfe", b"\xc3", b'"a":'),
    *(b'{"execute":"guest-ping","id":', b'"execute"', b'"id"', PING),
]
"""What random streams are made of."""


def short(text: bytes) -> str:
    """A name for a test of `text`."""
    return repr(text)[2:-1] if len(text) <= 40 else f"{repr(text[:30])[2:-1]}...{len(text)}"
