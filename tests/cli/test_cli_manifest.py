"""`mgota manifest`: written, signed by one or by several, verified; and keys rotated."""

import hashlib
import json
import subprocess
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from terminal import Shop, Terminal

from mgota.core.envelope import encode_pae, open_envelope
from mgota.core.keys import PrivateKey
from mgota.core.manifest import Manifest
from mgota.core.signed_manifest import KIND, ManifestVerifier, encode_signed
from mgota.core.strict_json import parse_object
from mgota.core.trust import ROTATION


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def image(shop: Shop, here: Path) -> Path:
    return shop.image("1.2.3", 5000)


def pair(here: Path, name: str) -> PrivateKey:
    key = PrivateKey.generate()
    (here / f"{name}.pem").write_bytes(key.public.pem())
    (here / f"{name}-private.pem").write_bytes(key.pem())
    return key


def known(path: Path, **more: Any) -> dict[str, Any]:
    data = path.read_bytes()
    return {"version": "1.2.3", "url": path.name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest(), **more}


# --- plain ------------------------------------------------------------------------------------------------------------


def test_a_plain_manifest(image: Path, mgota: Terminal, here: Path) -> None:
    for command in (["manifest"], ["manifest", "write"]):
        assert mgota.ok(*command, image).json == known(image)
    done = mgota.ok("manifest", image, "--url", "http://x/fw.bin", "--version", "1.2.3", "-o", "m.json")
    assert done.out == "m.json\n"
    assert json.loads((here / "m.json").read_text()) == known(image, url="http://x/fw.bin")
    found = mgota.ok("manifest", image, "--out", "m.json", "--json").json
    assert found == {"manifest": "m.json", **known(image), "seq": None, "hw": [], "expires": None}


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--seq", str(10**19)], 2, "seq"),
        (["--seq", "-1"], 2, "seq"),
        (["--seq", "1", "--url", "ftp://x/fw.bin"], 1, "no device fetches an image from ftp://x/fw.bin"),
        (["--seq", "1", "-o", "nowhere/m.json"], 1, "nowhere/m.json: No such file or directory"),
    ],
)
def test_what_no_device_could_use_is_not_written(
    image: Path, mgota: Terminal, here: Path, options: list[str], code: int, words: str
) -> None:
    pair(here, "k")
    done = mgota("manifest", "sign", image, "--key", "k-private.pem", *options)
    assert (done.code, done.out) == (code, "")
    assert words in done.err
    assert ".tmp" not in done.err
    assert mgota("manifest", image, "--url", "ftp://x/fw.bin").code == 1


def test_the_highest_sequence_is_one_that_devices_can_read(image: Path, mgota: Terminal, here: Path) -> None:
    pair(here, "k")
    mgota.ok("manifest", "sign", image, "--key", "k-private.pem", "--seq", 10**19 - 1, "-o", "m.json")
    assert mgota.ok("manifest", "verify", "m.json", "--key", "k.pem", "--json").json["seq"] == 10**19 - 1


def test_a_url_that_no_device_fetches_from_does_not_verify(mgota: Terminal, here: Path) -> None:
    key = pair(here, "k")
    found = Manifest(version="1", url="ftp://x/fw.bin", size=1, sha256="0" * 64, seq=1)
    (here / "m.json").write_bytes(encode_signed(found, [key]))
    assert "ftp://x/fw.bin" in mgota("manifest", "verify", "m.json", "--key", "k.pem").line


def test_a_name_that_a_url_cannot_have_is_quoted(shop: Shop, mgota: Terminal, here: Path) -> None:
    path = shop.image("1.0").rename(here / "fw ä.bin")
    assert mgota.ok("manifest", path).json["url"] == "fw%20%C3%A4.bin"


def test_the_help_tells_of_the_commands_and_of_the_default(mgota: Terminal) -> None:
    out = mgota.ok("manifest", "--help").out
    assert all(word in out for word in ("write", "sign", "cosign", "rotate", "verify", "mgota manifest IMAGE"))


def test_what_a_person_should_know_is_said_on_stderr(image: Path, mgota: Terminal) -> None:
    assert "says 1.2.3, not 2.0" in mgota.ok("manifest", image, "--version", "2.0").err
    assert "cannot be compared" in mgota.ok("manifest", image, "--version", "nightly").err


# --- signed -----------------------------------------------------------------------------------------------------------


def test_a_signed_manifest_is_verified_as_a_device_would(shop: Shop, image: Path, mgota: Terminal, here: Path) -> None:
    options = ["--seq", 7, "--hw", "rev-b", "--hw", "rev-c", "--expires", "2099-01-01T02:00:00+02:00", "-o", "m.json"]
    expected = known(image, seq=7, hw=["rev-b", "rev-c"], expires=4070908800)
    signed = mgota.ok("manifest", "sign", image, *options, "--json").json
    assert signed == {"manifest": "m.json", **expected, "keyids": [shop.key.public.keyid]}
    opened = ManifestVerifier(keys=[shop.key.public]).open((here / "m.json").read_bytes()).manifest
    assert (opened.seq, opened.hw, opened.expires, opened.signed) == (7, ("rev-b", "rev-c"), 4070908800, True)
    done = mgota.ok("manifest", "verify", "m.json", "--key", shop.public, "--image", image)
    assert "version 1.2.3, sequence 7" in done.out
    assert "for rev-b, rev-c, until 2099-01-01T00:00:00+00:00" in done.out
    assert mgota.ok("manifest", "verify", "m.json", "--key", shop.public, "--json").json == {"ok": True, **expected}


def test_to_stdout_it_is_the_manifest_itself(shop: Shop, image: Path, mgota: Terminal) -> None:
    done = mgota.ok("manifest", "sign", image, "--key", "private.pem", "--seq", 1, "--expires", "2099-01-01")
    opened = ManifestVerifier(keys=[shop.key.public]).open(done.out.encode()).manifest
    assert (opened.seq, opened.expires) == (1, 4070908800)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "1.2.4"}, "two things"),
        ({"signed": "e30="}, "not signed by a trusted key"),
        ({"sigs": []}, "not signed by a trusted key"),
    ],
)
def test_a_manifest_that_was_changed_is_refused(
    shop: Shop, image: Path, mgota: Terminal, here: Path, change: dict[str, Any], words: str
) -> None:
    mgota.ok("manifest", "sign", image, "--seq", 1, "-o", "m.json")
    (here / "m.json").write_text(json.dumps({**json.loads((here / "m.json").read_text()), **change}))
    assert words in mgota("manifest", "verify", "m.json", "--key", shop.public).line
    done = mgota("manifest", "verify", "m.json", "--key", shop.public, "--json")
    assert (done.code, done.json["ok"]) == (1, False)
    assert words in done.json["error"]


def test_an_expired_one_and_one_of_another_image_are_refused(
    shop: Shop, image: Path, mgota: Terminal, here: Path
) -> None:
    mgota.ok("manifest", "sign", image, "--seq", 1, "--expires", "2020-01-01", "-o", "m.json")
    assert "expired" in mgota("manifest", "verify", "m.json", "--key", shop.public).line
    mgota.ok("manifest", "sign", image, "--seq", 1, "-o", "m.json")
    other = shop.image("1.2.4")
    assert "another image" in mgota("manifest", "verify", "m.json", "--key", shop.public, "--image", other).line


def test_an_unsigned_one_is_refused(shop: Shop, image: Path, mgota: Terminal) -> None:
    mgota.ok("manifest", image, "-o", "m.json")
    assert "not signed" in mgota("manifest", "verify", "m.json", "--key", shop.public).line


# --- several keys, and keys elsewhere -------------------------------------------------------------------------------


def test_several_people_sign_one_after_the_other(shop: Shop, image: Path, mgota: Terminal, here: Path) -> None:
    second = pair(here, "second")
    both = ["--key", "public.pem", "--key", "second.pem", "--threshold", 2]
    mgota.ok("manifest", "sign", image, "--seq", 1, "-o", "m.json")
    before = json.loads((here / "m.json").read_text())
    assert "only by 1" in mgota("manifest", "verify", "m.json", *both).line
    done = mgota.ok("manifest", "cosign", "m.json", "--key", "second-private.pem", "--json")
    assert done.json == {"file": "m.json", "keyids": [shop.key.public.keyid, second.public.keyid]}
    mgota.ok("manifest", "verify", "m.json", *both)
    after = json.loads((here / "m.json").read_text())
    assert {**after, "sigs": before["sigs"]} == before
    mgota.ok("manifest", "sign", image, "--seq", 1, "--key", "private.pem", "--key", "second-private.pem", "-o", "m2")
    mgota.ok("manifest", "verify", "m2", *both)


def test_a_signature_made_elsewhere(shop: Shop, image: Path, mgota: Terminal, here: Path) -> None:
    mgota.ok("manifest", "sign", image, "--seq", 1, "--unsigned", "-o", "m.json")
    mgota.ok("manifest", "cosign", "m.json", "--pae", "to-sign")
    payload = open_envelope(parse_object((here / "m.json").read_bytes())).payload
    data = (here / "to-sign").read_bytes()
    assert data == encode_pae(KIND, payload)
    (here / "sig").write_bytes(shop.key.sign(hashlib.sha256(data).digest()))
    attach = ["manifest", "cosign", "m.json", "--signature", "sig", "--public"]
    pair(here, "other")
    assert "is no signature of other.pem" in mgota(*attach, "other.pem").line
    assert mgota.ok(*attach, shop.public, "-o", "m2.json").out == "m2.json\n"
    assert json.loads((here / "m.json").read_text())["sigs"] == []
    mgota.ok("manifest", "verify", "m2.json", "--key", shop.public)


@pytest.mark.program("openssl")
def test_openssl_takes_a_signed_manifest_and_we_take_one_that_openssl_signed(
    image: Path, mgota: Terminal, here: Path
) -> None:
    def openssl(*arguments: object) -> bytes:
        command = ["openssl", "dgst", "-sha256", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout

    mgota.ok("manifest", "sign", image, "--seq", 1, "-o", "m.json")
    envelope = open_envelope(json.loads((here / "m.json").read_text()))
    kind = b"application/vnd.mgota.manifest+json"
    pae = b" ".join([b"DSSEv1", str(len(kind)).encode(), kind, str(len(envelope.payload)).encode(), envelope.payload])
    (here / "pae").write_bytes(pae)
    signature = b64decode(json.loads((here / "m.json").read_text())["sigs"][0]["sig"])
    halves = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    (here / "der").write_bytes(encode_dss_signature(*halves))
    assert openssl("-verify", "public.pem", "-signature", "der", "pae") == b"Verified OK\n"

    mgota.ok("manifest", "sign", image, "--seq", 2, "--unsigned", "-o", "m.json")
    mgota.ok("manifest", "cosign", "m.json", "--pae", "pae")
    openssl("-sign", "private.pem", "-out", "made.sig", "pae")
    mgota.ok("manifest", "cosign", "m.json", "--signature", "made.sig", "--public", "public.pem")
    mgota.ok("manifest", "verify", "m.json", "--key", "public.pem")


# --- rotation ---------------------------------------------------------------------------------------------------------


def test_keys_are_rotated(shop: Shop, image: Path, mgota: Terminal, here: Path) -> None:
    new = pair(here, "new")
    way = ["manifest", "rotate", "--from", "public.pem", "--to", "new.pem"]
    found = mgota.ok(*way, "--key", "private.pem", "--key", "new-private.pem", "-o", "r.json", "--json").json
    assert found["keyids"] == [shop.key.public.keyid, new.public.keyid]
    signed = ["manifest", "sign", image, "--seq", 2, "--key", "new-private.pem", "-o", "m.json"]
    mgota.ok(*signed)
    assert "not signed by a trusted key" in mgota("manifest", "verify", "m.json", "--key", "public.pem").line
    mgota.ok(*signed, "--rotation", "r.json")
    for key in ("public.pem", "new.pem"):
        mgota.ok("manifest", "verify", "m.json", "--key", key)


def test_a_rotation_by_people_who_do_not_share_keys(shop: Shop, mgota: Terminal, here: Path) -> None:
    pair(here, "new")
    done = mgota.ok("manifest", "rotate", "--from", "public.pem", "--to", "new.pem", "--key", "private.pem")
    assert "by its new keys" in done.err
    (here / "r.json").write_text(done.out)
    mgota.ok("manifest", "cosign", "r.json", "--pae", "pae")
    assert (here / "pae").read_bytes().startswith(b"DSSEv1 %d %s" % (len(ROTATION), ROTATION.encode()))
    mgota.ok("manifest", "cosign", "r.json", "--key", "new-private.pem")
    assert len(json.loads((here / "r.json").read_text())["sigs"]) == 2


# --- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.bin"], "missing.bin"),
        (["empty.bin"], "empty"),
        (["bare.bin"], "no MG_VERSION tag"),
        (["bare.bin", "--version", "1 2"], "printable"),
        (["bare.bin", "--version", "1", "--url", "http://x/ y"], "printable"),
        (["sign", "bare.bin", "--version", "1", "--seq", 1, "--key", "missing.pem"], "missing.pem"),
        (["sign", "bare.bin", "--version", "1", "--seq", 1, "--key", "public.pem"], "not a private key"),
        (["sign", "bare.bin", "--version", "1", "--seq", 1, "-o", "nowhere/m.json"], "nowhere"),
        (["sign", "bare.bin", "--version", "1", "--seq", 1, "--rotation", "bare.bin"], "cannot be signed"),
        (["cosign", "missing.json", "--key", "private.pem"], "missing.json"),
        (["cosign", "bare.bin", "--key", "private.pem"], "cannot be signed"),
        (["verify", "missing.json", "--key", "public.pem"], "missing.json"),
        (["verify", "bare.bin", "--key", "public.pem"], "malformed"),
        (["verify", "bare.bin", "--key", "private.pem"], "private key"),
        (["verify", "bare.bin", "--key", "public.pem", "--threshold", 2], "2 of 1"),
        (["rotate", "--from", "public.pem", "--to", "public.pem"], "the same"),
        (["rotate", "--from", "public.pem", "--to", "missing.pem"], "missing.pem"),
    ],
)
@pytest.mark.usefixtures("shop")
def test_what_fails_ends_in_one_line_and_status_1(
    mgota: Terminal, here: Path, arguments: list[str], words: str
) -> None:
    (here / "empty.bin").touch()
    (here / "bare.bin").write_bytes(b"no version in here")
    before = sorted(path.name for path in here.iterdir())
    done = mgota("manifest", *arguments)
    assert (done.code, done.out) == (1, "")
    assert words in done.line
    assert sorted(path.name for path in here.iterdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["sign", "fw.bin"],
        ["sign", "fw.bin", "--seq", "-1"],
        ["sign", "fw.bin", "--seq", 1, "--expires", "soon"],
        ["sign", "fw.bin", "--seq", 1, "--unsigned", "--key", "private.pem"],
        ["cosign", "m.json"],
        ["cosign", "m.json", "--key", "private.pem", "--pae", "x"],
        ["cosign", "m.json", "--signature", "x"],
        ["cosign", "m.json", "--key", "private.pem", "--public", "x"],
        ["verify", "m.json"],
        ["verify", "m.json", "--key", "public.pem", "--threshold", 0],
        ["rotate", "--from", "public.pem"],
        ["rotate", "--to", "public.pem"],
    ],
)
def test_wrong_usage(mgota: Terminal, here: Path, arguments: list[str]) -> None:
    assert mgota("manifest", *arguments).code == 2
    assert not list(here.iterdir())


def test_a_rotation_is_no_manifest_and_a_manifest_is_no_rotation(image: Path, mgota: Terminal, here: Path) -> None:
    pair(here, "new")
    mgota.ok("manifest", "sign", image, "--seq", 1, "-o", "m.json")
    mgota.ok("manifest", "rotate", "--from", "public.pem", "--to", "new.pem", "--key", "private.pem", "-o", "r.json")
    assert mgota("manifest", "sign", image, "--seq", 1, "--rotation", "m.json").code == 2
    assert "is a rotation of keys" in mgota("manifest", "verify", "r.json", "--key", "public.pem").line


def test_no_moment_is_too_far_to_be_told(shop: Shop, mgota: Terminal, here: Path) -> None:
    told = {253402300799: "9999-12-31T23:59:59", 10**18: "until 1000000000000000000 s"}
    for expires, words in told.items():
        made = Manifest(version="1", url="x", size=1, sha256="0" * 64, seq=1, expires=expires)
        (here / "m.json").write_bytes(encode_signed(made, [shop.key]))
        assert words in mgota.ok("manifest", "verify", "m.json", "--key", shop.public).out


def test_an_image_that_no_key_of_the_manifest_signed_is_told(
    shop: Shop, image: Path, mgota: Terminal, here: Path
) -> None:
    new = pair(here, "new")
    keys = ["--key", "private.pem", "--key", "new-private.pem"]
    mgota.ok("manifest", "rotate", "--from", "public.pem", "--to", "new.pem", *keys, "-o", "r.json")
    sign = ["--key", "new-private.pem", "--seq", "1", "-o", "m.json"]
    follow = [*sign, "--rotation", "r.json"]
    for options in (sign, follow):
        assert f"note: {image} is not signed by a key" in mgota.ok("manifest", "sign", image, *options).err
    assert mgota.ok("manifest", "sign", image, "--key", "private.pem", "--seq", "1", "-o", "m.json").err == ""
    assert mgota.ok("manifest", "sign", image, "--unsigned", "--seq", "1", "-o", "m.json").err == ""
    firmware = here / "fw.bin"
    firmware.write_bytes(image.read_bytes()[:-64])
    assert f"note: {firmware} is not signed" in mgota.ok("manifest", "sign", firmware, *sign).err
    for form in ("raw", "mgsg"):
        mgota.ok("sign", firmware, "--key", "new-private.pem", "--trailer", form)
        for options in (sign, follow):
            assert mgota.ok("manifest", "sign", here / "fw.signed.bin", *options).err == ""
    assert new.public != shop.key.public


def test_what_is_odd_is_told(image: Path, mgota: Terminal) -> None:
    sign = ["sign", image, "--key", "private.pem", "--seq", "1", "-o", "m.json"]
    assert "expired already" in mgota.ok("manifest", *sign, "--expires", "2020-01-01").err
    assert mgota.ok("manifest", *sign, "--expires", "2999-01-01").err == ""
    for options, words in (
        (["--url", ""], "the url"),
        (["--version", ""], "the version"),
        (["--version", "a\nb"], "the version"),
    ):
        assert words in mgota("manifest", *sign, *options).line
    assert "no regular file" in mgota("manifest", "/dev/zero").line
