# SPDX-License-Identifier: Apache-2.0
"""The same bytes to qga and qemu-ga over real sockets, reply by reply: framing, request objects, ids, argument types.

The model of the framing in tests/oracle.py is held to qemu-ga here too, since the framer's unit tests rely on it.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.agents import NO_QEMU_GA, QEMU_GA, QGA, AgentProcess, Client
from tests.corpus import FRAGMENTS, NO_VALUES, PING, PLACES, STREAMS, VALUES, at_place, request, short
from tests.oracle import TOKEN_BYTES_MAX, TOKEN_COUNT_MAX, Oracle, OracleError
from tests.sides import plain

Reply = dict[str, Any]

QUOTED_MAX = 4096
"""Characters that qga's errors quote of a stray token or an unknown command; qemu-ga quotes all."""


class Peer:
    """A connection to an agent that knows which replies a stream of bytes has led to."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._marks = itertools.count(1 << 40)

    def lines(self, stream: bytes) -> list[bytes]:
        """All reply lines to the stream, without those to the sync request that shows where they end.

        What is left of an unfinished request is ended by a newline, which no token survives, and FF.
        """
        mark = next(self._marks)
        self.client.send(stream + b'\n\xff{"execute":"guest-sync","arguments":{"id":%d}}' % mark)
        lines: list[bytes] = []
        while (line := self.client.recv_line()).replace(b" ", b"") != b'{"return":%d}\n' % mark:
            assert line.endswith(b"\n"), f"agent gone after {lines}"
            lines.append(line)
        return lines

    def replies(self, stream: bytes) -> list[Reply]:
        """The replies parsed; `inf`, the C agent's word for a number past the limit of a double, as null."""
        lines = [
            re.sub(rb"(?<=[ \[])-?inf(?=[],}])", b"null", line.removeprefix(b"\xff")) for line in self.lines(stream)
        ]
        return [json.loads(line) for line in lines]


class Pair(NamedTuple):
    """Both agents; `version` is that of the reference."""

    ours: Peer
    theirs: Peer
    version: tuple[int, ...]


def directory(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    if QEMU_GA is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(NO_QEMU_GA)
    place = tmp_path_factory.mktemp("wire")
    with (
        AgentProcess(QGA, directory(place, "ours")) as ours,
        AgentProcess([QEMU_GA], directory(place, "theirs")) as theirs,
        ours.connect() as our_client,
        theirs.connect() as their_client,
    ):
        version = their_client.ok("guest-info")["version"]
        yield Pair(Peer(our_client), Peer(their_client), tuple(int(part) for part in re.findall(r"\d+", version)[:2]))


def exactly(value: Any) -> str:
    """Equal for values that are equal in type too; but 1.0 is 1, as the C agent prints it so."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, list):
        return f"[{', '.join(map(exactly, value))}]"
    if isinstance(value, dict):
        members = [f"{name!r}: {exactly(value[name])}" for name in sorted(value)]
        return "{" + ", ".join(members) + "}"
    return repr(value)


def comparable(reply: Reply) -> str:
    """The reply without what differs on purpose."""
    error = reply.get("error")
    if error:
        text = plain(error["desc"])
        # The C agent leaves out the number; before level 9 it had another text.
        text = re.sub(r"^(PID \S+ does not exist|Invalid parameter 'pid')$", "PID <n> does not exist", text)
        reply = {**reply, "error": {**error, "desc": text}}
    return exactly(reply)


def assert_same(pair: Pair, stream: bytes) -> list[Reply]:
    """Both agents reply the same to the stream; return the reference's replies."""
    ours, theirs = pair.ours.replies(stream), pair.theirs.replies(stream)
    assert [comparable(reply) for reply in ours] == [comparable(reply) for reply in theirs], stream
    return theirs


def assert_same_framing(pair: Pair, stream: bytes) -> None:
    """The same, for streams with objects that are no request: which member the C agent names is its hash order."""
    ours, theirs = (
        [re.sub("QMP input (member|lacks).*", "<no request>", comparable(reply)) for reply in peer.replies(stream)]
        for peer in (pair.ours, pair.theirs)
    )
    assert ours == theirs, stream


def expected(item: object) -> Reply:
    """The reply to an item of the framing: an error, a ping, an empty object or another value."""
    if isinstance(item, dict) and item:
        assert item["execute"] == "guest-ping"
        return {"return": {}, **{name: value for name, value in item.items() if name == "id"}}
    no_request = "QMP input lacks member 'execute'" if item == {} else "QMP input must be a JSON object"
    text = item.desc if isinstance(item, OracleError) else no_request
    return {"error": {"class": "GenericError", "desc": text}}


# --- framing

FRAMING = [*STREAMS, *(request(value) for value in (*VALUES, *NO_VALUES)), *VALUES, *NO_VALUES]


@pytest.mark.parametrize("stream", FRAMING, ids=short)
def test_same_replies_to_framing(pair: Pair, stream: bytes) -> None:
    assert_same_framing(pair, stream)
    assert_same_framing(pair, stream + PING)


@pytest.mark.parametrize(
    "streams",
    [STREAMS, [request(value) for value in VALUES], [request(text) for text in NO_VALUES]],
    ids=["streams", "values", "no-values"],
)
def test_model_of_the_framing_is_true(pair: Pair, streams: list[bytes]) -> None:
    for stream in streams:
        items = Oracle().feed(stream + b"\n\xff{")
        replies = pair.theirs.replies(stream)
        assert [exactly(reply) for reply in replies] == [exactly(expected(item)) for item in items], stream


def random_stream(rng: random.Random) -> bytes:
    stream = bytearray(b"".join(rng.choices(FRAGMENTS, k=rng.randrange(1, 9))))
    for _ in range(rng.choice([0, 0, 1, 3])):
        stream[rng.randrange(len(stream))] = rng.randrange(256)
    return bytes(stream)


@pytest.mark.parametrize("seed", range(4))
def test_same_replies_to_random_streams(pair: Pair, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(1000):
        assert_same_framing(pair, random_stream(rng))


@pytest.mark.parametrize("place", PLACES, ids=short)
def test_same_replies_to_every_byte_at_a_place(pair: Pair, place: bytes) -> None:
    for stream in at_place(place):
        assert_same_framing(pair, stream)


def test_number_that_fits_no_double_comes_back_as_null(pair: Pair) -> None:
    assert pair.theirs.lines(request(b"1e400"))[0] == b'{"return": {}, "id": inf}\n'
    assert json.loads(pair.ours.lines(request(b"1e400"))[0]) == {"return": {}, "id": None}
    assert_same(pair, request(b'[1e400,-1e400,{"a":1e999}]'))


def test_long_stray_token_is_quoted_in_part(pair: Pair) -> None:
    stream = b'"' + b"x" * 50_000 + b"\n"
    ours, theirs = (peer.replies(stream)[0]["error"]["desc"] for peer in (pair.ours, pair.theirs))
    assert theirs == "JSON parse error, stray '\"" + "x" * 50_000 + "\n'"
    assert ours == "JSON parse error, stray '\"" + "x" * (QUOTED_MAX - 1) + "'"


def test_long_unknown_keyword_is_quoted_in_part(pair: Pair) -> None:
    ours = pair.ours.replies(b"x" * 50_000 + b"\n")[0]["error"]["desc"]
    theirs = pair.theirs.replies(b"x" * 50_000 + b"\n")[0]["error"]["desc"]
    assert ours == "JSON parse error, invalid keyword '" + "x" * QUOTED_MAX + "'"
    assert theirs.startswith("JSON parse error, invalid keyword '" + "x" * 900)


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize("depth", [1000, 1022, 1023, 1024, 1025, 1026])
def test_same_replies_about_the_nesting_limit(pair: Pair, opening: bytes, depth: int) -> None:
    closing = b"]" if opening == b"[" else b"}"
    ours, theirs = (peer.lines(request(opening * depth + b"1" + closing * depth)) for peer in (pair.ours, pair.theirs))
    # json.loads would refuse the depth, so the texts are compared.
    assert [line.replace(b" ", b"") for line in ours] == [line.replace(b" ", b"") for line in theirs]


LARGE: dict[str, Callable[[int, int], bytes]] = {
    "one byte less than the limit": lambda size, count: b'["' + b"x" * (size - 5) + b'"]',
    "bytes up to the limit": lambda size, count: b'["' + b"x" * (size - 4) + b'"]',
    "an endless token": lambda size, count: b'"' + b"x" * size + b'rest"',
    "as many tokens as the limit": lambda size, count: b"[1" + b",1" * (count // 2 - 2) + b" 1]",
    "one token more": lambda size, count: b"[1" + b",1" * (count // 2 - 1) + b"]",
}


@pytest.mark.parametrize("make", LARGE.values(), ids=LARGE.keys())
def test_same_replies_about_the_size_limits(pair: Pair, make: Callable[[int, int], bytes]) -> None:
    stream = make(TOKEN_BYTES_MAX, TOKEN_COUNT_MAX)
    ours, theirs = (peer.replies(stream) for peer in (pair.ours, pair.theirs))
    assert ours == theirs
    # The model is too slow for these sizes; smaller limits do not change what it says.
    model = Oracle(token_bytes=1000, token_count=100).feed(make(1000, 100) + b"\n\xff{")
    assert theirs == [expected(item) for item in model]


def test_same_replies_to_many_ff(pair: Pair) -> None:
    assert len(assert_same(pair, b"\xff" * 1000)) == 1001


def test_half_a_request_is_continued_by_the_next_bytes(pair: Pair) -> None:
    for peer in (pair.ours, pair.theirs):
        peer.client.send(b'{"execute":"guest-')
        assert peer.client.raw(b'ping","id":4}')["id"] == 4


def test_each_reply_is_one_line_of_ascii(pair: Pair) -> None:
    text = '"\u00e9\u007f\u20ac\U0001f600"'.encode()
    for peer in (pair.ours, pair.theirs):
        [line, _] = peer.lines(request(text))
        assert rb"\u00E9\u007F\u20AC\uD83D\uDE00" in line
        assert line.count(b"\n") == 1


# --- sync


def test_ff_comes_in_front_of_the_delimited_reply_only(pair: Pair) -> None:
    delimited = b'{"execute":"guest-sync-delimited","arguments":{"id":%b}}'
    stream = (
        PING
        + delimited % b"5"
        + PING
        + delimited % b'"x"'
        + delimited % b"-9223372036854775808"
        + b'{"execute":"nope"}'
    )
    marks = []
    for peer in (pair.ours, pair.theirs):
        lines = peer.lines(stream)
        assert [line.find(b"\xff") for line in lines] == [line.rfind(b"\xff") for line in lines]
        marks.append([line.startswith(b"\xff") for line in lines])
    assert marks[0] == marks[1] == [False, True, False, False, True, False, False]
    assert_same(pair, stream)


@pytest.mark.parametrize(
    "number", ["0", "-1", "9223372036854775807", "9223372036854775808", "1.0", "1e3", "-0", "null"]
)
@pytest.mark.parametrize("command", ["guest-sync", "guest-sync-delimited"])
def test_same_replies_to_sync_numbers(pair: Pair, command: str, number: str) -> None:
    assert_same(pair, f'{{"execute":"{command}","arguments":{{"id":{number}}}}}'.encode())


def test_usual_handshake_works_on_a_dirty_stream(pair: Pair) -> None:
    for peer in (pair.ours, pair.theirs):
        peer.client.send(b'{"execute":"guest-file-wri\xff{"execute":"guest-sync-delimited","arguments":{"id":77}}')
        assert b"stray" in peer.client.recv_line()
        line = peer.client.recv_line()
        assert line[:1] == b"\xff"
        assert json.loads(line[1:]) == {"return": 77}


# --- request objects

REQUESTS = [
    # Members.
    *("{}", '{"id":1}', '{"execute":"guest-ping"}', '{"id":1,"execute":"guest-ping"}', '{"arguments":{}}'),
    *(
        '{"execute":"guest-ping","arguments":{}}',
        '{"execute":"guest-ping","x":1}',
        '{"execute":"guest-ping","x":1,"id":7}',
    ),
    *(
        '{"exec-oob":"guest-ping"}',
        '{"exec-oob":"guest-ping","id":1}',
        '{"execute":"guest-ping","exec-oob":"guest-ping"}',
    ),
    *('{"execute":"guest-ping","control":{}}', '{"Execute":"guest-ping"}', '{"":1}', '{"\u00e9":1}', '{"x\\u0000y":1}'),
    *('{"execute":"guest-ping","arguments":{},"arguments":{}}', '{"execute":"guest-ping","id":1,"id":1}', '{"x%sd":1}'),
    # Types of members.
    *('{"execute":1}', '{"execute":null}', '{"execute":["guest-ping"]}', '{"execute":{},"id":5}', '{"execute":true}'),
    *('{"execute":"guest-ping","arguments":[]}', '{"execute":"guest-ping","arguments":null,"id":5}'),
    *('{"execute":"guest-ping","arguments":"x"}', '{"execute":"guest-ping","arguments":1,"id":[]}'),
    # Commands.
    *(
        '{"execute":""}',
        '{"execute":"nope"}',
        '{"execute":"nope","id":3}',
        '{"execute":"Guest-Ping"}',
        '{"execute":" guest-ping"}',
    ),
    *(
        '{"execute":"guest_ping"}',
        '{"execute":"guest-ping\\u0000"}',
        '{"execute":"\u00e9\\"\\\\%s"}',
        '{"execute":"quit","id":""}',
    ),
    *('{"execute":"qmp_capabilities"}', '{"execute":"guest-sync\\n"}', '{"execute":"nope","arguments":{"x":1}}'),
    # Which problem is reported when there are two.
    *('{"execute":"nope","x":1}', '{"execute":1,"arguments":1}', '{"execute":"nope","arguments":1}', '{"arguments":1}'),
    *('{"execute":"guest-sync","arguments":{"id":"x","y":1}}', '{"execute":"guest-sync","arguments":{"y":1}}'),
    *(
        '{"execute":"guest-sync","arguments":{"y":1,"id":2}}',
        '{"execute":"guest-sync"}',
        '{"execute":"guest-sync","id":1}',
    ),
    *('{"execute":"guest-ping","arguments":{"x":1}}', '{"execute":"guest-ping","arguments":{"a.b":1}}'),
    *('{"execute":"guest-sync","arguments":{"id":1,"\u00e9\\n":1}}', '{"execute":"guest-sync","arguments":{"ID":1}}'),
    *(
        '{"execute":"guest-file-open","arguments":{"mode":1,"path":2}}',
        '{"execute":"guest-file-open","arguments":{"mode":1}}',
    ),
    *(
        '{"execute":"guest-exec","arguments":{"arg":[1],"env":1}}',
        '{"execute":"guest-file-seek","arguments":{"whence":true}}',
    ),
    # No objects.
    *("[]", "1\n", "null\n", '"guest-ping"', "true\n", '[{"execute":"guest-ping"}]', "1.5\n"),
]


@pytest.mark.parametrize("text", REQUESTS)
def test_same_reply_to_request_object(pair: Pair, text: str) -> None:
    assert_same(pair, text.encode())


@pytest.mark.parametrize("identity", [*VALUES, b'{"a":[1,{"b":null}],"":"\\u0000"}', b"[" * 90 + b"]" * 90], ids=short)
def test_same_id_comes_back(pair: Pair, identity: bytes) -> None:
    for rest in (b'"execute":"guest-ping"', b'"execute":"nope"', b'"execute":5', b'"x":1'):
        replies = assert_same(pair, b'{"id":' + identity + b"," + rest + b"}")
        assert "id" in replies[0]


def test_unknown_command_of_great_length_is_named_in_part(pair: Pair) -> None:
    stream = b'{"execute":"' + b"x" * 50_000 + b'"}'
    ours, theirs = (peer.replies(stream)[0]["error"] for peer in (pair.ours, pair.theirs))
    assert theirs["desc"] == f"The command {'x' * 50_000} has not been found"
    assert ours == {"class": theirs["class"], "desc": f"The command {'x' * QUOTED_MAX} has not been found"}


# --- types of arguments (no handle or process has these numbers, and no file these names)

COMMANDS: dict[str, dict[str, str]] = {
    "guest-sync": {"id": "1"},
    "guest-sync-delimited": {"id": "1"},
    "guest-file-open": {"path": '"/nowhere/x"', "mode": '"r"'},
    "guest-file-close": {"handle": "1"},
    "guest-file-read": {"handle": "1", "count": "1"},
    "guest-file-write": {"handle": "1", "buf-b64": '"YQ=="', "count": "1"},
    "guest-file-seek": {"handle": "1", "offset": "0", "whence": '"set"'},
    "guest-file-flush": {"handle": "1"},
    "guest-exec": {
        "path": '"/nowhere/x"',
        "arg": '["a"]',
        "env": '["A=1"]',
        "input-data": '"YQ=="',
        "capture-output": "true",
    },
    "guest-exec-status": {"pid": "1"},
}

# The strings are base64, as a wrong padding is answered otherwise on purpose.
TYPES = [
    *("null", "true", "0", "-1", "3", "1.0", "1.5", "1e3", "2147483648", "9223372036854775807", "9223372036854775808"),
    *(
        "18446744073709551615",
        "18446744073709551616",
        "-9223372036854775808",
        "-9223372036854775809",
        '""',
        '"AAAA"',
        '"1234"',
    ),
    *('"\u00e9\\u0000"', "[]", '["x"]', "[1]", "[[]]", '["x",null]', "{}", '{"a":1}'),
]


def called(command: str, arguments: dict[str, str]) -> bytes:
    members = ",".join(f'"{name}":{value}' for name, value in arguments.items())
    return f'{{"execute":"{command}","arguments":{{{members}}}}}'.encode()


def skip_unless_known(pair: Pair, argument: str) -> None:
    if argument == "capture-output" and pair.version < (8, 1):
        pytest.skip("the installed qemu-ga takes a boolean only")


@pytest.mark.parametrize(("command", "argument"), [(name, arg) for name, args in COMMANDS.items() for arg in args])
def test_same_reply_to_an_argument_of_any_type(pair: Pair, command: str, argument: str) -> None:
    skip_unless_known(pair, argument)
    for value in TYPES:
        assert_same(pair, called(command, {**COMMANDS[command], argument: value}))


@pytest.mark.parametrize("command", COMMANDS)
def test_same_reply_to_missing_and_surplus_arguments(pair: Pair, command: str) -> None:
    arguments = COMMANDS[command]
    for left_out in arguments:
        assert_same(pair, called(command, {name: value for name, value in arguments.items() if name != left_out}))
    assert_same(pair, called(command, {}))
    assert_same(pair, called(command, {**arguments, "extra": "1"}))
    assert_same(pair, called(command, {"extra": "1", **arguments}))
    assert_same(pair, called(command, dict(reversed(arguments.items()))))
    assert_same(pair, called(command, {name.replace("-", "_"): value for name, value in arguments.items()}))
    assert_same(pair, called(command, dict.fromkeys(arguments, "null")))


# The words "stdout" and "stderr" make the C agent close a descriptor that is not its own: later programs misbehave.
@pytest.mark.parametrize("word", ["none", "separated", "merged", "Merged", "stdin", ""])
def test_same_reply_to_words_of_capture_output(pair: Pair, word: str) -> None:
    skip_unless_known(pair, "capture-output")
    assert_same(pair, called("guest-exec", {"path": '"/nowhere/x"', "capture-output": f'"{word}"'}))
