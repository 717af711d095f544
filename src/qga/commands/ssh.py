# SPDX-License-Identifier: Apache-2.0
"""The keys with which users may log in over SSH."""

from typing import TypedDict

from ..agent import Agent
from ..errors import CommandError
from ..platform import ssh
from ..protocol.registry import command
from ..protocol.schema import wire_bytes


class AuthorizedKeys(TypedDict):
    """The value of guest-ssh-get-authorized-keys."""

    keys: list[str]


@command()
def guest_ssh_get_authorized_keys(agent: Agent, username: str) -> AuthorizedKeys:
    """List the public keys of a user's authorized_keys file, in its order."""
    return {"keys": [key.decode(errors="replace") for key in ssh.read_keys(_user(username))]}


@command()
def guest_ssh_add_authorized_keys(agent: Agent, username: str, keys: list[str], reset: bool = False) -> None:
    """Append public keys to a user's authorized_keys file, or replace all of its content if `reset` is true."""
    lines = _lines(keys)
    ssh.add_keys(_user(username), lines, reset)


@command()
def guest_ssh_remove_authorized_keys(agent: Agent, username: str, keys: list[str]) -> None:
    """Remove public keys from a user's authorized_keys file."""
    lines = _lines(keys)
    ssh.remove_keys(_user(username), lines)


def _lines(keys: list[str]) -> list[bytes]:
    for key in keys:
        if key.startswith("#") or "\n" in key:
            raise CommandError(f"invalid OpenSSH public key: '{key}'")
    return [wire_bytes(key) for key in keys]


def _user(name: str) -> ssh.User:
    user = ssh.find_user(wire_bytes(name))
    if user is None:
        raise CommandError(f"failed to lookup user '{name}': No such user")
    return user
