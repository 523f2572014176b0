"""Words and variables by which machines find each other."""

import errno
import socket
from types import SimpleNamespace

import psutil
import pytest

from simpo_trainer.errors import SimPOError
from simpo_trainer.run import machines
from simpo_trainer.run.launcher import Processes, launch_words, variables_of
from simpo_trainer.run.machines import Machine, as_prefix, find_machine, rendezvous_words, surroundings

MAIN = Machine("10.0.0.1", "eth0", is_main=True)
OTHER = Machine("10.0.0.2", "ib0", is_main=False)


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    for name in ("GLOO_SOCKET_IFNAME", "PET_LOCAL_ADDR", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_the_machine_with_the_address_holds_the_rendezvous():
    assert "is_host=1" in rendezvous_words(MAIN, 0)[-1] and "is_host=0" in rendezvous_words(OTHER, 0)[-1]
    assert rendezvous_words(OTHER, 3)[-2:] == ["--max_restarts", "3"]


def test_this_machine_is_found_by_its_address():
    here = find_machine("127.0.0.1", None)
    assert here == Machine("127.0.0.1", None, is_main=True)


def test_a_name_that_leads_to_the_machine_itself_is_told_to_the_others(monkeypatch):
    """Debian writes 127.0.1.1 for a machine's own name into /etc/hosts; the others know a better address for it."""
    answer = [(socket.AF_INET, socket.SOCK_DGRAM, 0, "", ("127.0.0.1", 29500))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: answer)
    assert find_machine("node-0", None) == Machine("node-0", None, is_main=True)


def test_a_name_that_nobody_knows(monkeypatch, caplog):
    def unknown(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(SimPOError, match="is node-9, which this machine cannot resolve .Name or service not known"):
        find_machine("node-9", None, wait=-1)


def test_a_name_that_comes_to_be_known(monkeypatch):
    """As the name of a pod does."""
    answers = iter([socket.gaierror(socket.EAI_AGAIN, "not yet"), None])
    known = socket.getaddrinfo

    def later(*args, **kwargs):
        if error := next(answers):
            raise error
        return known("127.0.0.1", 29500, type=socket.SOCK_DGRAM)

    monkeypatch.setattr(socket, "getaddrinfo", later)
    monkeypatch.setattr(machines.time, "sleep", lambda seconds: None)
    assert find_machine("pod-0", None, wait=60).is_main


def test_no_network_leads_there(monkeypatch):
    class Unconnected(socket.socket):
        def connect(self, address):
            raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(socket, "socket", Unconnected)
    with pytest.raises(SimPOError, match="no network of this machine leads there: Network is unreachable"):
        find_machine("10.9.9.9", None)


def test_variables_that_the_user_has_not_set(monkeypatch):
    with_rank, without = ["--machine_rank", "1"], rendezvous_words(OTHER, 0)
    assert surroundings(OTHER, with_rank) == {"GLOO_SOCKET_IFNAME": "ib0"}
    assert surroundings(OTHER, without) == {"GLOO_SOCKET_IFNAME": "ib0", "PET_LOCAL_ADDR": "10.0.0.2"}
    assert surroundings(OTHER, rendezvous_words(OTHER, 1))["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    assert surroundings(OTHER, with_rank) == {}
    assert as_prefix({"A": "b c"}) == "A='b c' "


def test_the_interface_of_an_address(monkeypatch):
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"eth3": [SimpleNamespace(address="10.1.2.3")]})
    assert machines._interface("10.1.2.3") == "eth3" and machines._interface("10.1.2.4") is None


def test_rank_0_must_have_the_address(monkeypatch):
    """Otherwise two machines would hold a store, or none."""
    monkeypatch.setattr("simpo_trainer.run.launcher.find_machine", lambda main, port: OTHER)
    processes = Processes(num_processes=2, num_machines=2, machine_rank=0, main_process_ip="10.0.0.1")
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 0)
    with pytest.raises(SimPOError, match="10.0.0.1 is not an address of this machine .it is 10.0.0.2"):
        variables_of(launch_words("ddp", ["r.yaml"], processes))


def test_one_machine_needs_no_variables(monkeypatch):
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 0)
    assert variables_of(launch_words("ddp", ["r.yaml"], Processes(num_processes=2))) == {}
