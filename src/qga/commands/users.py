# SPDX-License-Identifier: Apache-2.0
"""Users: who is logged in, and their passwords."""

from typing import NotRequired, TypedDict

from ..agent import Agent
from ..errors import CommandError
from ..platform import accounts
from ..protocol.registry import command
from ..protocol.schema import Payload, decoded, wire_bytes

User = TypedDict("User", {"user": str, "login-time": float, "domain": NotRequired[str]})


@command()
def guest_get_users(agent: Agent) -> list[User]:
    """List who is logged in, and since when: the earliest login of each user."""
    return [{"user": login.user, "login-time": login.time} for login in accounts.list_logins()]


@command()
def guest_set_user_password(agent: Agent, username: str, password: Payload, crypted: bool) -> None:
    """Set a user's password, sent as base64; `crypted` if it is a hash already. A NUL byte ends it."""
    secret = bytes(decoded(password)).partition(b"\0")[0]
    if b"\n" in secret:
        raise CommandError("forbidden characters in raw password")
    if ":" in username or "\n" in username:
        raise CommandError("forbidden characters in username")
    accounts.set_password(wire_bytes(username), secret, crypted)
