"""Loopback and the cluster's nodes are reached directly, whatever the user's proxies are."""

import http.server
import socket
import threading
import urllib.request

import pytest
import requests

from scrimp_cluster import proxies

NOWHERE = "http://127.0.0.1:9"


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, format, *args):  # noqa: A002
        pass


@pytest.fixture(scope="module")
def uri():
    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def environment(monkeypatch):
    """Variables of this test alone, without any about proxies."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


@pytest.mark.parametrize("proxy", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
@pytest.mark.parametrize(
    "given", [{}, {"no_proxy": ""}, {"NO_PROXY": "lab.example"}, {"no_proxy": ".lab", "NO_PROXY": "x"}]
)
def test_loopback_needs_no_proxy(environment, uri, proxy, given):
    environment.setenv(proxy, "socks5://127.0.0.1:9" if "all" in proxy.lower() else NOWHERE)
    for name, value in given.items():
        environment.setenv(name, value)
    environment.setenv("no_proxy", given.get("no_proxy", ""))
    environment.setenv("NO_PROXY", given.get("NO_PROXY", ""))
    proxies.bypass()
    assert urllib.request.urlopen(uri, timeout=5).status == 200  # noqa: S310
    assert requests.get(uri, timeout=5).status_code == 200


def test_what_the_user_exempts_stays_exempt_and_other_hosts_go_through_the_proxy(environment):
    given = {"NO_PROXY": "lab.example, .internal", "HTTP_PROXY": NOWHERE}
    proxies.bypass(["192.168.1.11"], given)
    assert given["no_proxy"] == given["NO_PROXY"]
    entries = given["no_proxy"].split(",")
    assert entries[:2] == ["lab.example", ".internal"]
    assert {"127.0.0.1", "localhost", "::1", socket.gethostname(), "192.168.1.11"} <= set(entries)
    environment.setenv("http_proxy", NOWHERE)
    environment.setenv("no_proxy", given["no_proxy"])
    assert requests.utils.get_environ_proxies("http://192.168.1.11:6379") == {}
    assert requests.utils.get_environ_proxies("http://mlflow.example")["http"] == NOWHERE


def test_a_second_call_changes_nothing(environment):
    once: dict[str, str] = {}
    proxies.bypass(["ws1"], once)
    twice = dict(once)
    proxies.bypass(["ws1"], twice)
    assert twice == once


@pytest.mark.parametrize("address", ["ws1:6379", "http://ws1:8265", "ray://ws1:10001", "ws1"])
def test_the_host_of_an_address(address):
    assert proxies.host_of(address) == "ws1"
