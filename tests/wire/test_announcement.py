"""A TXT record holds what a node says of itself, and whatever else it holds does no harm."""

from __future__ import annotations

import ipaddress
import re
from typing import Any
from xml.etree import ElementTree

import project_paths
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosollol.core.address import Address
from aiosollol.errors import InvalidInput
from aiosollol.wire.announcement import SERVICE_TYPE, Announcement, read_announcement, urls_of

FULL = Announcement(
    "gpu-box",
    scheme="https",
    path="/ollama",
    version="0.33.0-rc1",
    machine="00ff00ff00ff00ff",
    gpu="NVIDIA GeForce RTX 4090",
    gpu_memory=25_757_220_864,
    gpu_free=19_327_352_832,
    agent=11435,
)
TXT = {
    b"txtvers": b"1",
    b"scheme": b"https",
    b"path": b"/ollama",
    b"version": b"0.33.0-rc1",
    b"machine": b"00ff00ff00ff00ff",
    b"gpu": b"NVIDIA GeForce RTX 4090",
    b"gpumem": b"25757220864",
    b"gpufree": b"19327352832",
    b"agent": b"11435",
}


def test_a_record_and_back() -> None:
    assert FULL.as_txt() == TXT
    assert read_announcement("gpu-box", TXT) == FULL
    assert Announcement("plain").as_txt() == {b"txtvers": b"1"}
    assert read_announcement("plain", {}) == Announcement("plain")  # as Avahi announces it


def test_keys_are_not_case_sensitive_and_the_first_counts() -> None:
    record = {b"Version": b"0.1.0", b"VERSION": b"0.2.0", b"gpu": None}
    assert read_announcement("box", record) == Announcement("box", version="0.1.0")


names = st.text(st.characters(codec="utf-8", categories=("L", "N", "Zs")), max_size=40).filter(
    lambda name: name.isprintable() and name == name.strip()
)
word = st.from_regex(r"[0-9A-Za-z][0-9A-Za-z.-]{0,30}", fullmatch=True)
part = st.from_regex(r"/[0-9A-Za-z_~-][0-9A-Za-z._~-]{0,8}", fullmatch=True)
size = st.integers(0, 10**15 - 1)


@given(
    st.builds(
        Announcement,
        name=names,
        scheme=st.sampled_from(["http", "https"]),
        path=st.lists(part, max_size=5).map("".join),
        version=word | st.just(""),
        machine=word | st.just(""),
        gpu=names,
        gpu_memory=size,
        gpu_free=size,
        agent=st.integers(0, 65_535),
    )
)
def test_every_announcement_survives(announcement: Announcement) -> None:
    record = announcement.as_txt()
    assert read_announcement(announcement.name, record) == announcement
    assert all(len(key) + 1 + len(value) <= 255 for key, value in record.items())
    assert len(b"".join(key + value for key, value in record.items())) < 1000  # one packet


@pytest.mark.parametrize(
    "record",
    [
        {b"scheme": b"javascript"},
        {b"scheme": b"HTTP"},
        {b"scheme": b"\xff"},
        {b"path": b"ollama"},
        {b"path": b"//evil.test"},
        {b"path": b"/../admin"},
        {b"path": b"/a/./b"},
        {b"path": b"/a?b=c"},
        {b"path": b"/a#b"},
        {b"path": b"/a@evil.test"},
        {b"path": b"/a b"},
        {b"path": b"/%2e%2e/"},
        {b"path": b"/a\r\nHost: evil.test"},
        {b"path": b"/\xff\xfe"},
        {b"path": b"/" + b"a" * 200},
    ],
)
def test_what_would_lead_elsewhere_leads_nowhere(record: dict[bytes, bytes | None]) -> None:
    assert read_announcement("box", record) is None


@pytest.mark.parametrize(
    "record",
    [
        {b"version": b"0.1 0"},
        {b"version": b"\x1b[31m"},
        {b"version": b"1" * 40},
        {b"machine": b"-x"},
        {b"machine": "é".encode()},
        {b"gpu": b"\xff\x00"},
        {b"gpu": b"\x1b\x07"},
        {b"gpumem": b"-1"},
        {b"gpumem": b"1e9"},
        {b"gpumem": "٣".encode()},
        {b"gpufree": b"9" * 30},
        {b"agent": b"65536"},
        {b"agent": b"http://evil.test"},
        {b"\xff\xfe": b"\x00"},
        {b"": b""},
    ],
)
def test_a_description_that_cannot_be_read_is_left_out(record: dict[bytes, bytes | None]) -> None:
    assert read_announcement("box", record) == Announcement("box")


def test_names_cannot_steer_a_terminal() -> None:
    shown = read_announcement("\x1b]0;title\x07box\n\u202e", {b"gpu": b"a\x1b[2Jb"})
    assert shown == Announcement("]0;titlebox", gpu="a[2Jb")


@given(
    st.text(),
    st.dictionaries(
        st.binary(max_size=9) | st.sampled_from(list(TXT)),
        st.none() | st.binary(max_size=255) | st.sampled_from(list(TXT.values())),
    ),
    st.lists(st.text(max_size=20) | st.ip_addresses().map(str), max_size=4),
    st.integers(-1, 70_000),
)
def test_nothing_raises_and_every_url_is_sound(
    name: str, record: dict[bytes, bytes | None], addresses: list[str], port: int
) -> None:
    announcement = read_announcement(name, record)
    if announcement is None:
        return
    assert announcement.name.isprintable()
    for url in urls_of(announcement, addresses, port):
        address = Address.parse(url)
        assert address.url == url
        assert str(ipaddress.ip_address(address.host)) in {
            str(ipaddress.ip_address(text)) for text in addresses if is_ip(text)
        }
        assert (address.port, address.path) == (port, announcement.path)


def is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def test_urls() -> None:
    addresses = ["fd00::2", "10.0.0.2", "192.168.1.2", "10.0.0.2"]
    assert urls_of(FULL, addresses, 443) == (
        "https://10.0.0.2:443/ollama",
        "https://192.168.1.2:443/ollama",
        "https://[fd00::2]:443/ollama",
    )
    assert urls_of(FULL, ["10.0.0.2"], 0) == ()
    assert urls_of(FULL, ["10.0.0.2"], 65_536) == ()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "0.1.2.3",
        "224.0.0.251",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "ff02::fb",
        "fe80::1",
        "fe80::1%eth0",
        "::ffff:127.0.0.1",
        "gpu-box",
        "10.0.0",
        "",
    ],
)
def test_addresses_that_lead_to_nobody_else(address: str) -> None:
    assert urls_of(Announcement("box"), [address], 11434) == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"scheme": "ftp"},
        {"path": "no-slash"},
        {"version": "a b"},
        {"machine": "a/b"},
        {"gpu": "a\nb"},
        {"gpu_memory": -1},
        {"agent": 70_000},
    ],
)
def test_what_nobody_would_believe_is_not_announced(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="cannot be announced"):
        FULL._replace(**changes).as_txt()


def test_a_long_name_of_a_gpu_is_cut() -> None:
    assert len(FULL._replace(gpu="x" * 300).as_txt()[b"gpu"]) == 64


def test_the_file_for_avahi_in_the_docs() -> None:
    """As avahi-daemon 0.8 reads it: tried by hand, found by `browse`."""
    text = (project_paths.DOCS / "advertising.md").read_text("utf-8")
    found = re.search("```xml\n(.*?)```", text, re.DOTALL)
    assert found
    service = ElementTree.fromstring(found[1]).find("service")
    assert service is not None
    assert f"{service.findtext('type')}.local." == SERVICE_TYPE
    entries = [(entry.text or "").partition("=") for entry in service.iter("txt-record")]
    record = {key.encode(): value.encode() for key, _, value in entries}
    said = read_announcement("box", record)
    assert said == Announcement(
        "box", machine="gpu-box", gpu="NVIDIA GeForce RTX 4090", gpu_memory=25_757_220_864
    )
    assert said.as_txt().items() >= record.items()
