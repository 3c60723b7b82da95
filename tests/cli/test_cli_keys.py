"""keygen, sign, verify, info: the build machine."""

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from terminal import Shop, Terminal

from mgota.core.keys import load_private_key, load_public_key


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_keygen_makes_a_pair_and_prints_the_define(here: Path, mgota: Terminal) -> None:
    done = mgota.ok("keygen", "--out", "keys")
    public = load_public_key((here / "keys/public.pem").read_bytes())
    assert load_public_key(done.out.encode()) == public
    assert load_private_key((here / "keys/private.pem").read_bytes()).public == public
    assert stat.S_IMODE((here / "keys/private.pem").stat().st_mode) == 0o600


def test_the_private_key_is_secret_from_its_first_byte_on(
    here: Path, mgota: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    real = os.open

    def spy(path: str, flags: int, mode: int = 0o777, **more: int) -> int:
        if "private.pem" in str(path):
            modes.append((mode, bool(flags & os.O_EXCL)))
        return real(path, flags, mode, **more)

    monkeypatch.setattr(os, "open", spy)
    mgota.ok("keygen")
    mgota.ok("keygen", "--force")
    assert modes == [(0o600, True), (0o600, True)]


@pytest.mark.parametrize("kept", ["private.pem", "public.pem"])
def test_keygen_overwrites_nothing_unless_forced(here: Path, mgota: Terminal, kept: str) -> None:
    (here / kept).write_text("precious")
    assert kept in mgota("keygen").line
    assert (here / kept).read_text() == "precious"
    assert len(list(here.iterdir())) == 1
    mgota.ok("keygen", "--force")
    assert (here / kept).read_text() != "precious"


def test_an_encrypted_key_signs_with_its_password_only(here: Path, mgota: Terminal) -> None:
    (here / "password").write_text("correct horse\n")
    (here / "wrong").write_text("battery\n")
    (here / "fw.bin").write_bytes(b"firmware")
    found = mgota.ok("keygen", "--password-file", "password", "--json").json
    assert b"ENCRYPTED" in (here / "private.pem").read_bytes()
    assert "password" in mgota("sign", "fw.bin").line
    assert "password" in mgota("sign", "fw.bin", "--password-file", "wrong").line
    assert not (here / "fw.signed.bin").exists()
    mgota.ok("sign", "fw.bin", "--password-file", "password")
    mgota.ok("verify", "fw.signed.bin", "--key", "public.pem")
    assert load_public_key(found["define"].encode()).keyid == found["keyid"]


@pytest.mark.parametrize(("trailer", "size"), [("raw", 64), ("mgsg", 68)])
def test_sign_and_verify_agree(shop: Shop, mgota: Terminal, trailer: str, size: int, here: Path) -> None:
    firmware = b"MG_VERSION:7.8.9\0" + os.urandom(3_000_000)
    (here / "app.v1.bin").write_bytes(firmware)
    done = mgota.ok("sign", "app.v1.bin", "--trailer", trailer)
    assert done.out == "app.v1.signed.bin\n"
    image = (here / "app.v1.signed.bin").read_bytes()
    assert image.startswith(firmware)
    assert len(image) == len(firmware) + size
    found = mgota.ok("verify", "app.v1.signed.bin", "--key", shop.public, "--trailer", trailer, "--json").json
    digest = hashlib.sha256(firmware).hexdigest()
    assert found == {"ok": True, "firmware_size": len(firmware), "sha256": digest, "version": "7.8.9"}
    other = "mgsg" if trailer == "raw" else "raw"
    assert (
        f"try --trailer {trailer}"
        in mgota("verify", "app.v1.signed.bin", "--key", shop.public, "--trailer", other).line
    )


def test_signatures_made_elsewhere_are_attached_raw_and_der(shop: Shop, mgota: Terminal, here: Path) -> None:
    (here / "fw").write_bytes(b"firmware")
    raw = shop.key.sign(hashlib.sha256(b"firmware").digest())
    der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    for signature in (raw, der):
        (here / "sig").write_bytes(signature)
        found = mgota.ok("sign", "fw", "--signature", "sig", "--out", "image", "--json").json
        assert (here / "image").read_bytes() == b"firmware" + raw
        assert found["image"] == "image"
        assert found["firmware_size"] == 8
    (here / "sig").write_bytes(b"rubbish")
    assert "64 raw bytes" in mgota("sign", "fw", "--signature", "sig").line
    both = mgota("sign", "fw", "--signature", "sig", "--key", "private.pem")
    assert both.code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sign", "missing.bin"], "missing.bin"),
        (["sign", "empty.bin"], "empty"),
        (["sign", "fw.bin", "--key", "missing.pem"], "missing.pem"),
        (["sign", "fw.bin", "--key", "public.pem"], "not a private key"),
        (["sign", "fw.bin", "--out", "nowhere/fw"], "nowhere"),
        (["verify", "fw.bin", "--key", "private.pem"], "private key"),
        (["verify", "fw.bin", "--key", "public.pem"], "shorter than a signature"),
        (["verify", "missing.bin", "--key", "public.pem"], "missing.bin"),
        (["info", "missing.bin"], "missing.bin"),
        (["info", "."], "directory"),
    ],
)
def test_what_fails_ends_in_one_line_and_status_1(
    shop: Shop, mgota: Terminal, here: Path, arguments: list[str], words: str
) -> None:
    (here / "empty.bin").touch()
    (here / "fw.bin").write_bytes(b"firmware")
    before = sorted(path.name for path in here.iterdir())
    done = mgota(*arguments)
    assert done.code == 1
    assert words in done.line
    assert sorted(path.name for path in here.iterdir()) == before, "half a file stays"


def test_a_firmware_that_changes_while_it_is_signed_is_not(
    shop: Shop, mgota: Terminal, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    firmware = here / "fw.bin"
    firmware.write_bytes(b"firmware")
    sign = type(shop.key).sign

    def slow(key: object, digest: bytes) -> bytes:
        firmware.write_bytes(b"FIRMWARE")
        return sign(shop.key, digest)

    monkeypatch.setattr(type(shop.key), "sign", slow)
    assert "changed" in mgota("sign", "fw.bin").line
    assert not (here / "fw.signed.bin").exists()


def test_verify_refuses_and_says_so_in_json_too(shop: Shop, mgota: Terminal, here: Path) -> None:
    image = shop.image("1.0.0")
    data = bytearray(image.read_bytes())
    data[5] ^= 1
    image.write_bytes(data)
    done = mgota("verify", image, "--key", shop.public, "--json")
    assert done.code == 1
    assert done.json["ok"] is False
    assert "bad signature" in done.line


def test_info_tells_both_readings_and_guesses_nothing(shop: Shop, mgota: Terminal, here: Path) -> None:
    image = shop.image("1.2.3", 1000)
    data = image.read_bytes()
    found = mgota.ok("info", image, "--json").json
    assert found["version"] == "1.2.3"
    assert found["size"] == len(data)
    assert not found["ends_like_mgsg"]
    assert found["trailer"]["none"]["sha256"] == hashlib.sha256(data).hexdigest()
    assert found["trailer"]["raw"]["sha256"] == hashlib.sha256(data[:-64]).hexdigest()
    assert found["trailer"]["mgsg"]["firmware_size"] == len(data) - 68
    assert "does not end in MGSG" in mgota.ok("info", image).out
    image.write_bytes(data + b"MGSG")
    assert "does not end" not in mgota.ok("info", image).out
    image.write_bytes(b"tiny")
    assert "too short" in mgota.ok("info", image).out
    assert json.loads(mgota.ok("info", image, "--json").out)["trailer"]["raw"]["firmware_size"] == 0
