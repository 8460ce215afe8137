"""API keys from settings and files, and the token by which our own proxy asks who is there."""

from __future__ import annotations

import pytest

from common.api.auth import KeyCheck
from common.api.key_ring import KeyRing, read_keys
from common.api.settings import ApiSettings
from common.errors import ConfigError, InvalidApiKey


def bearer(key):
    return [(b"authorization", b"Bearer " + key.encode())]


@pytest.fixture
def file(tmp_path):
    made = tmp_path / "keys"
    made.write_text("# of the two tenants\nfirst\n\n  second  \n")
    return made


def test_a_file_holds_one_key_a_line(file):
    ring = KeyRing(("given",), str(file))
    names = [ring.find(key) for key in (b"given", b"first", b"second")]
    assert all(names) and len(set(names)) == 3
    assert not any(map(ring.find, (b"", b"# of the two tenants", b"  second  ", b"third")))


def test_reading_again_takes_and_gives(file):
    ring = KeyRing((), str(file))
    file.write_text("second\nthird\n")
    assert ring.find(b"first")
    ring.reload()
    assert not ring.find(b"first")
    assert ring.find(b"second") and ring.find(b"third")


@pytest.mark.parametrize("contents", ["", "# nothing\n\n", None])
def test_a_file_without_keys_never_opens_the_door(file, contents, caplog):
    ring = KeyRing((), str(file))
    if contents is None:
        file.unlink()
    else:
        file.write_text(contents)
    ring.reload()
    assert ring.find(b"first") and not ring.find(b"")
    assert "stay as they were" in caplog.text
    with pytest.raises(ConfigError, match="--api-key-file"):
        read_keys(str(file))


PEER = ApiSettings(
    key_ring=KeyRing(("user",)), peer_token="token", peer_paths=frozenset({"/instance"})
)


def test_the_proxys_token_opens_one_page_only():
    check = KeyCheck(PEER).check
    assert check("/instance", bearer("token")) == ""
    assert check("/instance", bearer("user"))
    for path in ("/v1/models", "/debug/kv", "/instance/", "//instance"):
        with pytest.raises(InvalidApiKey):
            check(path, bearer("token"))


@pytest.mark.parametrize("shown", ["", "other", "toke", "token2"])
def test_another_token_opens_nothing(shown):
    with pytest.raises(InvalidApiKey):
        KeyCheck(PEER).check("/instance", bearer(shown))


def test_without_a_token_an_empty_one_opens_nothing():
    settings = ApiSettings(api_keys=("user",), peer_paths=frozenset({"/instance"}))
    with pytest.raises(InvalidApiKey):
        KeyCheck(settings).check("/instance", [(b"x-api-key", b"")])
