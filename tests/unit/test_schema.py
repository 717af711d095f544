# SPDX-License-Identifier: Apache-2.0
"""Argument checks: what each annotation takes, and the words in which it refuses the rest."""

from typing import Annotated, Any, Literal, NotRequired, Optional, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qga._framing import Framer, Span
from qga.errors import CommandError
from qga.protocol.schema import Payload, Uint64, bind, check_for, params_of, wire_bytes


def span() -> Span:
    """A long string as the framer delivers it."""
    framer = Framer()
    framer.feed(b'["' + b"x" * 50_000 + b'"]')
    value = next(framer)[0]
    assert isinstance(value, Span)
    return value


SPAN = span()


class Point(TypedDict):
    x: int
    label: NotRequired[str]


class Shape(TypedDict):
    points: list[Point]


Whence = Annotated[int | Literal["set", "cur"], "WhenceType"]
Capture = Annotated[bool | Literal["none", "all"], "CaptureType"]

WRONG = "Invalid parameter type for 'name', expected: {}"
OTHER_TYPES: dict[str, Any] = {
    "null": None,
    "boolean": True,
    "integer": 1,
    "number": 1.5,
    "string": "x",
    "long string": SPAN,
    "array": [],
    "object": {},
}


def refusal(annotation: Any, value: Any) -> str:
    with pytest.raises(CommandError) as refused:
        check_for(annotation)(value, "name")
    assert refused.value.error_class == "GenericError"
    return str(refused.value)


@pytest.mark.parametrize(
    ("annotation", "taken", "expected"),
    [
        (int, ["integer"], "integer"),
        (bool, ["boolean"], "boolean"),
        (str, ["string", "long string"], "string"),
        (Payload, ["string", "long string"], "string"),
        (Literal["x"], ["string"], "string"),
        (list[str], ["array"], "array"),
        (Shape, [], "object"),
        (Whence, ["integer"], "WhenceType"),
        (Capture, ["boolean"], "CaptureType"),
    ],
    ids=str,
)
def test_values_of_every_type(annotation: Any, taken: list[str], expected: str) -> None:
    for kind, value in OTHER_TYPES.items():
        if kind in taken:
            assert check_for(annotation)(value, "name") == (str(value) if annotation is str else value)
        elif annotation is Whence and kind == "number":
            assert refusal(annotation, value) == WRONG.format("integer")
        elif annotation in (Whence, Capture, Literal["x"]) and kind in ("string", "long string"):
            assert refusal(annotation, value) == f"Parameter 'name' does not accept value '{value}'"
        elif annotation is Shape and kind == "object":
            assert refusal(annotation, value) == "Parameter 'name.points' is missing"
        else:
            assert refusal(annotation, value) == WRONG.format(expected), kind


@pytest.mark.parametrize("value", [0, -1, (1 << 63) - 1, -(1 << 63)])
def test_integers_of_64_bits(value: int) -> None:
    assert check_for(int)(value, "name") == value


@pytest.mark.parametrize("value", [1 << 63, -(1 << 63) - 1, (1 << 64) - 1, 1.0, 1e3, 1e300])
def test_integers_that_do_not_fit(value: float) -> None:
    assert refusal(int, value) == WRONG.format("integer")


@given(st.integers(-(1 << 63), (1 << 64) - 1))
def test_unsigned_integers_wrap(value: int) -> None:
    assert check_for(Uint64)(value, "name") == value % (1 << 64)


@pytest.mark.parametrize("value", [1 << 64, -(1 << 63) - 1, 1.0, -0.5])
def test_unsigned_integers_that_do_not_fit(value: float) -> None:
    assert refusal(Uint64, value) == "Parameter 'name' expects uint64"


@pytest.mark.parametrize("value", [None, True, "1", [], {}])
def test_unsigned_integers_that_are_none(value: Any) -> None:
    assert refusal(Uint64, value) == WRONG.format("integer")


def test_words_are_taken_exactly() -> None:
    check = check_for(Literal["freeze", "thaw"])
    assert check("thaw", "name") == "thaw"
    for word in ("Thaw", "thaw ", "", "fre"):
        assert refusal(Literal["freeze", "thaw"], word) == f"Parameter 'name' does not accept value '{word}'"


def test_a_payload_is_not_copied() -> None:
    assert check_for(Payload)(SPAN, "name") is SPAN


def test_either_of_two() -> None:
    assert check_for(Whence)(2, "name") == 2
    assert check_for(Whence)("cur", "name") == "cur"
    assert check_for(Capture)(False, "name") is False
    assert check_for(Capture)("all", "name") == "all"


@pytest.mark.parametrize("annotation", [str | None, Optional[str]])  # noqa: UP045 - both spellings occur
def test_optional_does_not_mean_null(annotation: Any) -> None:
    assert check_for(annotation)("x", "name") == "x"
    assert refusal(annotation, None) == WRONG.format("string")


def test_elements_are_named_by_their_place() -> None:
    assert check_for(list[int])([1, 2, 3], "name") == [1, 2, 3]
    assert refusal(list[int], [1, "2", None]) == "Invalid parameter type for 'name[1]', expected: integer"
    assert refusal(list[list[int]], [[], [0, None]]) == "Invalid parameter type for 'name[1][1]', expected: integer"


def test_members_are_named_by_their_path() -> None:
    good = {"points": [{"x": 1}, {"x": 2, "label": "b"}]}
    assert check_for(Shape)(good, "name") == good
    cases: list[tuple[Any, str]] = [
        ({"points": [{"x": 1}, {}]}, "Parameter 'name.points[1].x' is missing"),
        ({"points": [{"x": None}]}, "Invalid parameter type for 'name.points[0].x', expected: integer"),
        ({"points": [{"x": 1, "label": None}]}, "Invalid parameter type for 'name.points[0].label', expected: string"),
        ({"points": [{"x": 1, "y": 2}]}, "Parameter 'name.points[0].y' is unexpected"),
        ({"points": [1]}, "Invalid parameter type for 'name.points[0]', expected: object"),
        ({"points": [], "lines": []}, "Parameter 'name.lines' is unexpected"),
    ]
    for value, text in cases:
        assert refusal(Shape, value) == text


def test_words_inside_structures_are_named_alone() -> None:
    class Choice(TypedDict):
        word: Literal["a"]

    assert refusal(list[Choice], [{"word": "b"}]) == "Parameter 'word' does not accept value 'b'"


@pytest.mark.parametrize("annotation", [float, bytes, dict, list, object, tuple[int, ...]])
def test_annotations_without_a_type_on_the_wire(annotation: Any) -> None:
    with pytest.raises((TypeError, IndexError)):
        check_for(annotation)


# --- whole argument lists


def handler(agent: object, first_name: int, second: str, third: bool = False, fourth: str | None = None) -> None:
    """Take arguments."""


PARAMS = params_of(handler)


def test_parameters_come_from_the_signature() -> None:
    assert [(param.wire, param.python, param.required) for param in PARAMS] == [
        ("first-name", "first_name", True),
        ("second", "second", True),
        ("third", "third", False),
        ("fourth", "fourth", False),
    ]


def test_local_variables_are_no_parameters() -> None:
    def busy(agent: object, only: int) -> int:
        for local in range(only):
            only += local
        return only

    assert [param.wire for param in params_of(busy)] == ["only"]


def test_absent_optional_arguments_are_left_to_the_handler() -> None:
    assert bind(PARAMS, {"first-name": 1, "second": "x"}) == {"first_name": 1, "second": "x"}
    assert bind(PARAMS, {"fourth": "y", "second": "x", "first-name": 1})["fourth"] == "y"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "Parameter 'first-name' is missing"),
        ({"first-name": "x"}, "Invalid parameter type for 'first-name', expected: integer"),
        ({"second": 1, "surplus": 1}, "Parameter 'first-name' is missing"),
        ({"first-name": 1, "second": 1, "surplus": 1}, "Invalid parameter type for 'second', expected: string"),
        ({"surplus": 1, "first-name": 1, "second": "x"}, "Parameter 'surplus' is unexpected"),
        ({"first-name": 1, "second": "x", "first_name": 1}, "Parameter 'first_name' is unexpected"),
        ({"first-name": 1, "second": "x", "third": None}, "Invalid parameter type for 'third', expected: boolean"),
    ],
)
def test_the_first_problem_in_schema_order_is_told(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(CommandError) as refused:
        bind(PARAMS, arguments)
    assert str(refused.value) == text


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_reaches_the_system_as_utf_8_without_nul(text: str) -> None:
    data = wire_bytes(text)
    assert b"\0" not in data
    assert data.replace(b"\xc0\x80", b"\0").decode() == text
