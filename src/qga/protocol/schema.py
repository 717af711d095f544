# SPDX-License-Identifier: Apache-2.0
"""From annotations to argument checks, with the texts of the C agent.

| annotation | accepts | wire type |
|---|---|---|
| `int` | JSON integer that fits int64 | integer |
| `Uint64` | JSON integer that fits uint64; a negative one wraps, as in the C agent | integer |
| `bool`, `str` | that JSON type | boolean, string |
| `Payload` | string, possibly huge: handed over as a `Span` of the receive buffer or a `str` | string |
| `Literal["a", "b"]` | one of these strings | string |
| `list[T]` | array of T | array |
| a `TypedDict` | object with its members, `NotRequired` ones optional | object |
| `Annotated[A \\| B, "Name"]` | either; "Name" is what the error calls it | Name |

A parameter with a default is optional; `T | None = None` is how "absent" is told from a value. JSON null is never
"absent", it is a value of the wrong type.
"""

import types
from collections.abc import Callable, Mapping
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    TypeAlias,
    Union,
    get_args,
    get_origin,
    is_typeddict,
)

from .._b64io import decode
from .._framing import Span
from ..errors import CommandError

Uint64 = NewType("Uint64", int)
"""An integer argument of 64 bits without sign."""

Payload: TypeAlias = Span | str
"""A string argument that may be tens of MiB: read it through `decoded`, never through `str()`."""

Check = Callable[[Any, str], Any]
"""Takes a JSON value and the argument's name, returns the value for the handler or raises CommandError."""


class Param(NamedTuple):
    """One argument of a command."""

    wire: str
    python: str
    check: Check
    required: bool
    annotation: Any


def params_of(handler: Callable[..., Any]) -> tuple[Param, ...]:
    """The arguments of a handler: every parameter after the first, which is the agent."""
    code, defaults = handler.__code__, handler.__defaults__ or ()
    names = code.co_varnames[1 : code.co_argcount]
    first_optional = len(names) - len(defaults)
    return tuple(
        Param(
            name.replace("_", "-"),
            name,
            check_for(handler.__annotations__[name]),
            index < first_optional,
            handler.__annotations__[name],
        )
        for index, name in enumerate(names)
    )


def bind(params: tuple[Param, ...], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Check `arguments` against `params` and return the handler's keyword arguments.

    Known arguments are checked in schema order, each for presence and then type; surplus ones are reported last.
    """
    bound: dict[str, Any] = {}
    for param in params:
        if param.wire in arguments:
            bound[param.python] = param.check(arguments[param.wire], param.wire)
        elif param.required:
            raise CommandError(f"Parameter '{param.wire}' is missing")
    if len(bound) != len(arguments):
        known = {param.wire for param in params}
        surplus = next(name for name in arguments if name not in known)
        raise CommandError(f"Parameter '{surplus}' is unexpected")
    return bound


def wire_bytes(text: str) -> bytes:
    """The bytes that the C agent would pass to the system for `text`: UTF-8, with NUL as C0 80."""
    return text.encode("utf-8", "surrogatepass").replace(b"\0", b"\xc0\x80")


def decoded(payload: Payload) -> memoryview:
    """The bytes of a base64 argument, as `_b64io.decode` gives them; CommandError if it is not valid."""
    try:
        return decode(payload)
    except ValueError as exc:
        raise CommandError(str(exc)) from exc


def _wrong_type(name: str, expected: str) -> CommandError:
    return CommandError(f"Invalid parameter type for '{name}', expected: {expected}")


def _check_int(value: Any, name: str) -> int:
    if type(value) is int and -(1 << 63) <= value < 1 << 63:
        return value
    raise _wrong_type(name, "integer")


def _check_uint64(value: Any, name: str) -> int:
    if type(value) is int and -(1 << 63) <= value < 1 << 64:
        return value & ((1 << 64) - 1)
    if type(value) in (int, float):
        raise CommandError(f"Parameter '{name}' expects uint64")
    raise _wrong_type(name, "integer")


def _check_bool(value: Any, name: str) -> bool:
    if type(value) is bool:
        return value
    raise _wrong_type(name, "boolean")


def _check_str(value: Any, name: str) -> str:
    if type(value) is str:
        return value
    if type(value) is Span:
        return str(value)
    raise _wrong_type(name, "string")


def _check_payload(value: Any, name: str) -> Payload:
    if type(value) is str or type(value) is Span:
        return value
    raise _wrong_type(name, "string")


def _enum_check(words: tuple[str, ...]) -> Check:
    def check(value: Any, name: str) -> str:
        word = _check_str(value, name)
        if word not in words:
            raise CommandError(f"Parameter '{name.rpartition('.')[2]}' does not accept value '{word}'")
        return word

    return check


def _list_check(item: Check) -> Check:
    def check(value: Any, name: str) -> list[Any]:
        if type(value) is not list:
            raise _wrong_type(name, "array")
        return [item(element, f"{name}[{index}]") for index, element in enumerate(value)]

    return check


def _struct_check(struct: Any) -> Check:
    members = []
    for name, annotation in struct.__annotations__.items():
        optional = get_origin(annotation) is NotRequired
        members.append((name, check_for(get_args(annotation)[0] if optional else annotation), not optional))

    def check(value: Any, name: str) -> dict[str, Any]:
        if type(value) is not dict:
            raise _wrong_type(name, "object")
        bound = {}
        for member, member_check, required in members:
            if member in value:
                bound[member] = member_check(value[member], f"{name}.{member}")
            elif required:
                raise CommandError(f"Parameter '{name}.{member}' is missing")
        for member in value:
            if member not in bound:
                raise CommandError(f"Parameter '{name}.{member}' is unexpected")
        return bound

    return check


_JSON_TYPES: dict[Any, tuple[type, ...]] = {int: (int, float), bool: (bool,), str: (str, Span), Literal: (str, Span)}


def _alternate_check(branches: tuple[Any, ...], type_name: str) -> Check:
    by_json_type = {}
    for branch in branches:
        for json_type in _JSON_TYPES[get_origin(branch) or branch]:
            by_json_type[json_type] = check_for(branch)

    def check(value: Any, name: str) -> Any:
        branch = by_json_type.get(type(value))
        if branch is None:
            raise _wrong_type(name, type_name)
        return branch(value, name)

    return check


_SIMPLE_CHECKS: dict[Any, Check] = {
    int: _check_int,
    Uint64: _check_uint64,
    bool: _check_bool,
    str: _check_str,
    Payload: _check_payload,
}


def check_for(annotation: Any) -> Check:
    """The check for one annotation; TypeError for one that has no wire type."""
    if annotation in _SIMPLE_CHECKS:
        return _SIMPLE_CHECKS[annotation]
    if is_typeddict(annotation):
        return _struct_check(annotation)
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return _enum_check(args)
    if origin is list:
        return _list_check(check_for(args[0]))
    if origin is Annotated:
        return _alternate_check(get_args(args[0]), args[1])
    if origin in (types.UnionType, Union) and args[-1] is type(None):
        return check_for(Union[args[:-1]])  # noqa: UP007 - built at run time
    raise TypeError(f"no wire type for {annotation!r}")
