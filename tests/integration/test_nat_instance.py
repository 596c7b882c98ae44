"""The user data of the NAT instance, run for real: in a network like that of infra/cloudformation/egress.yaml, made of namespaces.

Stand-ins: `dnf`, `systemctl`, `swapon` and `poweroff`, which would change this machine, and the size of the swap file. The
system is Debian, or whatever the tests run on, and not Amazon Linux 2023.
"""

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.sam_template import TEMPLATE, parse

FUNCTION, NAT, WECHAT = "10.71.0.70", "10.71.0.4", "198.51.100.7"
ROUTER = {"function": "10.71.0.65/26", "nat": "10.71.0.1/28", "internet": "198.51.100.1/24"}
HOSTS = {"function": f"{FUNCTION}/26", "nat": f"{NAT}/28", "internet": f"{WECHAT}/24"}

SERVER = f"""
import socket
server = socket.create_server(("{WECHAT}", 443))
server.settimeout(20)
print("listening", flush=True)
connection, (address, _) = server.accept()
connection.sendall(address.encode())
"""
CLIENT = f"""
import socket
with socket.create_connection(("{WECHAT}", 443), timeout=1) as connection:
    print(connection.recv(100).decode())
"""
STAND_INS = {
    "dnf": 'echo "dnf $*" >>/calls',
    "swapon": 'echo "swapon $*" >>/calls',
    "systemctl": 'echo "systemctl $*" >>/calls',
    "poweroff": "echo poweroff >>/calls",
    "sleep": 'echo "sleep $*" >>/calls',
    "dd": 'exec /usr/bin/dd "${@/count=512/count=1}"',
}

pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or not all(map(shutil.which, ("ip", "nft", "unshare"))),
    reason="network namespaces need Linux, root, iproute2 and nftables",
)


def user_data() -> str:
    resources = parse(TEMPLATE.parent / "infra/cloudformation/egress.yaml")["Resources"]
    script: str = resources["InstanceTemplate"]["Properties"]["LaunchTemplateData"]["UserData"]["Fn::Base64"]
    return script


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, text=True, capture_output=True, timeout=60, **options)


class Network:
    """The function's subnet, the instance's and the internet, with the VPC's router between them.

    As in a VPC the instance has one interface, and the function's packets come to it through the router. The internet
    knows no way back to the function.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._prefix = uuid.uuid4().hex[:6]
        for name in ("router", *HOSTS):
            self._ip("netns", "add", self._name(name))
        for name, address in HOSTS.items():
            inner, outer = f"{self._prefix}{name[0]}i", f"{self._prefix}{name[0]}o"
            self._ip("link", "add", inner, "netns", self._name(name), "type", "veth", "peer", "name", outer)
            self._ip("link", "set", outer, "netns", self._name("router"))
            for where, link, its in ((name, inner, address), ("router", outer, ROUTER[name])):
                self._ip("-n", self._name(where), "address", "add", its, "dev", link)
                self._ip("-n", self._name(where), "link", "set", link, "up")
            self._ip("-n", self._name(name), "link", "set", "lo", "up")
            to = "10.71.0.0/28" if name == "internet" else "default"
            self._ip("-n", self._name(name), "route", "add", to, "via", ROUTER[name].partition("/")[0])
        self.inside("router", "sysctl", "-qw", "net.ipv4.ip_forward=1")
        self._ip("-n", self._name("router"), "rule", "add", "iif", f"{self._prefix}fo", "lookup", "100")
        self._ip("-n", self._name("router"), "route", "add", "default", "via", NAT, "table", "100")

    def _name(self, namespace: str) -> str:
        return f"{self._prefix}-{namespace}"

    def _ip(self, *arguments: str) -> None:
        run("ip", *arguments, check=True)

    def inside(self, namespace: str, *command: str) -> subprocess.CompletedProcess[str]:
        return run("ip", "netns", "exec", self._name(namespace), *command)

    def remove(self) -> None:
        for name in ("router", *HOSTS):
            run("ip", "netns", "delete", self._name(name))

    def boot(self, **stand_ins: str) -> list[str]:
        """Run the user data on the instance, in a root directory of its own; returns what the stand-ins were called with."""
        shutil.rmtree(self._root, ignore_errors=True)
        for directory in ("usr", "proc", "sys", "dev", "etc/sysctl.d", "etc/sysconfig", "opt"):
            (self._root / directory).mkdir(parents=True)
        for link in ("bin", "sbin", "lib", "lib64"):
            (self._root / link).symlink_to(f"usr/{link}")
        for name, lines in (STAND_INS | stand_ins).items():
            program = self._root / "opt" / name
            program.write_text(f"#!/bin/bash\n{lines}\n")
            program.chmod(0o755)
        (self._root / "user-data").write_text(user_data())
        mounts = "; ".join(f"mount --rbind /{name} {self._root}/{name}" for name in ("usr", "proc", "sys", "dev"))
        path = "/opt:/usr/sbin:/usr/bin"
        chroot = f"set -e; {mounts}; exec chroot {self._root} /usr/bin/env -i PATH={path} /bin/bash /user-data"
        self.booted = self.inside("nat", "unshare", "--mount", "bash", "-c", chroot)
        return (self._root / "calls").read_text().splitlines()

    def address_that_wechat_sees(self) -> str | None:
        """Connect from the function; None where no connection comes about."""
        serve = ("ip", "netns", "exec", self._name("internet"), "python3", "-c", SERVER)
        with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout
            assert server.stdout.readline() == "listening\n"
            try:
                connected = self.inside("function", "python3", "-c", CLIENT)
            finally:
                server.terminate()
        return connected.stdout.strip() or None


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    made = Network(tmp_path / "root")
    yield made
    made.remove()


def test_the_functions_calls_leave_by_the_instances_address(network: Network) -> None:
    # Given an instance that has not booted, behind which nothing responds
    assert network.address_that_wechat_sees() is None
    # When it boots
    calls = network.boot()
    # Then WeChat is reached, and sees the one address
    assert network.booted.returncode == 0, network.booted.stderr
    assert network.address_that_wechat_sees() == NAT
    # And the memory was there before the package was installed
    assert calls == ["swapon /swap", "dnf -y install nftables", "systemctl enable nftables"]


def test_a_package_that_comes_late_is_waited_for(network: Network) -> None:
    # Given a repository that fails twice
    fails_twice = 'echo dnf >>/calls; [ "$(grep -c dnf /calls)" -gt 2 ]'
    # When the instance boots
    calls = network.boot(dnf=fails_twice)
    # Then it was asked a third time, and the way out works
    assert calls == ["swapon /swap", *["dnf", "sleep 10"] * 2, "dnf", "systemctl enable nftables"]
    assert network.address_that_wechat_sees() == NAT


def test_an_instance_without_the_package_switches_itself_off(network: Network) -> None:
    # Given a repository that does not respond
    calls = network.boot(dnf="exit 1", nft="exit 127")
    # Then the group gets an instance to replace
    assert calls[-1] == "poweroff"
    assert network.booted.returncode != 0


def test_a_reboot_finds_the_same_rules(network: Network) -> None:
    # Given an instance that has booted once
    network.boot()
    # When it starts again and the service loads its file
    network.inside("nat", "nft", "flush", "ruleset")
    assert network.address_that_wechat_sees() is None
    rules = network._root / "etc" / "sysconfig" / "nftables.conf"
    network.inside("nat", "nft", "-f", str(rules))
    # Then the way out works, and forwarding is a setting that is kept
    assert network.address_that_wechat_sees() == NAT
    assert (network._root / "etc/sysctl.d/90-nat.conf").read_text() == "net.ipv4.ip_forward=1\n"
