# SPDX-License-Identifier: Apache-2.0
"""Network interfaces and routes."""

import socket
from typing import Literal, NotRequired, TypedDict

from ..agent import Agent
from ..errors import from_os
from ..platform import net
from ..protocol.registry import command

IpAddress = TypedDict("IpAddress", {"ip-address": str, "ip-address-type": Literal["ipv4", "ipv6"], "prefix": int})

InterfaceStat = TypedDict(
    "InterfaceStat",
    {
        "rx-bytes": int,
        "rx-packets": int,
        "rx-errs": int,
        "rx-dropped": int,
        "tx-bytes": int,
        "tx-packets": int,
        "tx-errs": int,
        "tx-dropped": int,
    },
)

NetworkInterface = TypedDict(
    "NetworkInterface",
    {
        "name": str,
        "hardware-address": str,
        "ip-addresses": NotRequired[list[IpAddress]],
        "statistics": NotRequired[InterfaceStat],
    },
)


@command()
def guest_network_get_interfaces(agent: Agent) -> list[NetworkInterface]:
    """List network interfaces with their addresses and counters."""
    try:
        return [_interface(interface) for interface in net.list_interfaces()]
    except OSError as exc:
        raise from_os("failed to list network interfaces", exc) from exc


def _interface(interface: net.Interface) -> NetworkInterface:
    info: NetworkInterface = {"name": interface.name, "hardware-address": interface.hardware_address}
    if interface.addresses:
        info["ip-addresses"] = [_address(address) for address in interface.addresses]
    if interface.counters is not None:
        info["statistics"] = _statistics(interface.counters)
    return info


def _address(address: net.InetAddress) -> IpAddress:
    return {
        "ip-address": address.address,
        "ip-address-type": "ipv4" if address.family == socket.AF_INET else "ipv6",
        "prefix": address.prefix,
    }


def _statistics(counters: net.Counters) -> InterfaceStat:
    return {
        "rx-bytes": counters.rx_bytes,
        "rx-packets": counters.rx_packets,
        "rx-errs": counters.rx_errors,
        "rx-dropped": counters.rx_dropped,
        "tx-bytes": counters.tx_bytes,
        "tx-packets": counters.tx_packets,
        "tx-errs": counters.tx_errors,
        "tx-dropped": counters.tx_dropped,
    }


class NetworkRoute(TypedDict):
    """One entry of guest-network-get-route: some members are IPv4's, some IPv6's."""

    iface: str
    destination: str
    metric: int
    flags: int
    refcnt: int
    use: int
    version: Literal[4, 6]
    gateway: NotRequired[str]
    mask: NotRequired[str]
    mtu: NotRequired[int]
    window: NotRequired[int]
    irtt: NotRequired[int]
    source: NotRequired[str]
    nexthop: NotRequired[str]
    desprefixlen: NotRequired[str]
    srcprefixlen: NotRequired[str]


@command()
def guest_network_get_route(agent: Agent) -> list[NetworkRoute]:
    """List the IPv4 routes, then the IPv6 routes."""
    try:
        return [*map(_route4, net.routes4()), *map(_route6, net.routes6())]
    except OSError as exc:
        raise from_os("failed to list routes", exc) from exc


def _route4(route: net.Route4) -> NetworkRoute:
    return {
        "iface": route.interface,
        "destination": route.destination,
        "gateway": route.gateway,
        "mask": route.mask,
        "metric": route.metric,
        "flags": route.flags,
        "refcnt": route.refcnt,
        "use": route.use,
        "mtu": route.mtu,
        "window": route.window,
        "irtt": route.irtt,
        "version": 4,
    }


def _route6(route: net.Route6) -> NetworkRoute:
    return {
        "iface": route.interface,
        "destination": route.destination,
        "desprefixlen": str(route.destination_prefix),
        "source": route.source,
        "srcprefixlen": str(route.source_prefix),
        "nexthop": route.nexthop,
        "metric": route.metric,
        "flags": route.flags,
        "refcnt": route.refcnt,
        "use": route.use,
        "version": 6,
    }
