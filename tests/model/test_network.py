"""Without a network, a run says so once and takes what is cached, instead of retrying for minutes."""

import datasets
import huggingface_hub
import pytest

from logs import warnings
from simpo_trainer.data.sources import Source, load_splits
from simpo_trainer.errors import SimPOError
from simpo_trainer.model.network import settle_network


class Session:
    """A client of the Hub that counts requests, and fails if `error` is given."""

    def __init__(self, error=None):
        self.error, self.asked = error, []

    def head(self, url, timeout):
        self.asked.append(url)
        if self.error:
            raise self.error


@pytest.fixture
def online(monkeypatch):
    """Make the libraries believe that there is a network, and return a function that sets the client."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)

    def use(session):
        monkeypatch.setattr(huggingface_hub, "get_session", lambda: session)
        return session

    return use


def test_no_network(online, caplog):
    online(Session(ConnectionError("no route to host\nmore")))
    settle_network(["someone/model", None])
    assert huggingface_hub.is_offline_mode() and datasets.config.HF_HUB_OFFLINE
    [warning] = warnings(caplog)
    assert "cannot be reached (no route to host): only what is in the cache" in warning
    # Both libraries fail at once: a request would be refused before it is sent.
    with pytest.raises(SimPOError, match="nor a dataset that could be read from the Hub"):
        load_splits(Source("someone/set"))
    with pytest.raises(huggingface_hub.errors.OfflineModeIsEnabled):
        huggingface_hub.HfApi().model_info("someone/model")


def test_a_network(online, caplog):
    session = online(Session())
    settle_network(["someone/model"])
    assert session.asked == [huggingface_hub.constants.ENDPOINT]
    assert not huggingface_hub.is_offline_mode() and not warnings(caplog)


def test_nothing_is_asked_where_all_is_here_or_the_network_is_off(online, tmp_path, monkeypatch):
    session = online(Session(ConnectionError("no")))
    settle_network([str(tmp_path), None])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    settle_network(["someone/model"])
    assert session.asked == []
