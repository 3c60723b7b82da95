"""Keys and signatures go to openssl and come from it."""

import subprocess
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from mgota.core.image import ImageScan, Trailer, Verifier, attach
from mgota.core.keys import PrivateKey, PublicKey, load_private_key, load_public_key, signature_from_any
from mgota.errors import ConfigError

pytestmark = pytest.mark.program("openssl")

FIRMWARE = bytes(range(256)) * 33


def openssl(*arguments: str | Path, data: bytes = b"") -> bytes:
    done = subprocess.run(["openssl", *map(str, arguments)], input=data, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture
def where(tmp_path: Path) -> Path:
    key = PrivateKey.generate()
    (tmp_path / "private.pem").write_bytes(key.pem())
    (tmp_path / "public.pem").write_bytes(key.public.pem())
    (tmp_path / "fw.bin").write_bytes(FIRMWARE)
    return tmp_path


def der(signature: bytes) -> bytes:
    return encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))


def openssl_takes(where: Path, signature: bytes, firmware: Path) -> bool:
    (where / "sig.der").write_bytes(der(signature))
    arguments = ["dgst", "-sha256", "-verify", where / "public.pem", "-signature", where / "sig.der", firmware]
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, check=False, timeout=60)
    return done.returncode == 0


def openssl_signs(where: Path, firmware: Path) -> bytes:
    return openssl("dgst", "-sha256", "-sign", where / "private.pem", firmware)


def is_taken(key: PublicKey, firmware: bytes, signature: bytes) -> bool:
    for trailer in Trailer:
        image = attach(firmware, signature, trailer)
        scan = ImageScan(len(image), trailer=trailer)
        scan.update(image)
        Verifier(keys=[key], trailer=trailer).check(scan)
    return True


def test_openssl_takes_our_signature(where: Path) -> None:
    key = load_private_key((where / "private.pem").read_bytes())
    signature = key.sign(sha256(FIRMWARE).digest())
    assert openssl_takes(where, signature, where / "fw.bin")
    assert not openssl_takes(where, key.sign(bytes(32)), where / "fw.bin")


def test_we_take_openssls_signature(where: Path) -> None:
    signature = openssl_signs(where, where / "fw.bin")
    key = load_public_key((where / "public.pem").read_bytes())
    assert is_taken(key, FIRMWARE, signature_from_any(signature))


@pytest.mark.parametrize("half", [0, 32], ids=["r", "s"])
def test_openssl_takes_our_signature_with_leading_zeros(where: Path, half: int) -> None:
    """One in 256: sign until it comes."""
    key = load_private_key((where / "private.pem").read_bytes())
    digest = sha256(FIRMWARE).digest()
    signature = next(s for s in iter(lambda: key.sign(digest), b"") if s[half] == 0)
    assert len(signature) == 64
    assert openssl_takes(where, signature, where / "fw.bin")
    assert is_taken(key.public, FIRMWARE, signature)


def test_we_take_openssls_signatures_with_leading_zeros(where: Path) -> None:
    """A nonce cannot be asked for: openssl signs until r or s is short, which one signature in 128 is."""
    key = load_public_key((where / "public.pem").read_bytes())
    for _ in range(3000):
        signature = openssl_signs(where, where / "fw.bin")
        found = signature_from_any(signature)
        assert len(found) == 64
        if 0 in (found[0], found[32]):
            assert len(signature) < 72  # shorter in DER: what a missing zero would have been is not there
            assert is_taken(key, FIRMWARE, found)
            return
    pytest.fail("3000 signatures without a leading zero")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ecparam", ["ecparam", "-name", "prime256v1", "-genkey", "-noout"]),
        ("ecparam, parameters first", ["ecparam", "-name", "prime256v1", "-genkey"]),
        ("genpkey", ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]),
    ],
)
def test_openssls_keys_load_here(where: Path, name: str, arguments: list[str]) -> None:
    pem = openssl(*arguments)
    (where / "private.pem").write_bytes(pem)
    (where / "public.pem").write_bytes(openssl("pkey", "-in", where / "private.pem", "-pubout"))
    key = load_private_key(pem)
    assert load_public_key((where / "public.pem").read_bytes()) == key.public
    assert openssl_takes(where, key.sign(sha256(FIRMWARE).digest()), where / "fw.bin"), name


@pytest.mark.parametrize("form", ["pkcs8", "ec"])
def test_openssls_encrypted_keys_load_here(where: Path, form: str) -> None:
    command = ["pkcs8", "-topk8"] if form == "pkcs8" else ["ec", "-aes256"]
    pem = openssl(*command, "-in", where / "private.pem", "-passout", "pass:secret")
    assert b"ENCRYPTED" in pem
    assert load_private_key(pem, b"secret").public.pem() == (where / "public.pem").read_bytes()
    with pytest.raises(ConfigError):
        load_private_key(pem, b"other")
    with pytest.raises(ConfigError):
        load_private_key(pem)


def test_our_encrypted_keys_load_there(where: Path) -> None:
    key = load_private_key((where / "private.pem").read_bytes())
    (where / "encrypted.pem").write_bytes(key.pem(b"secret"))
    public = openssl("pkey", "-in", where / "encrypted.pem", "-passin", "pass:secret", "-pubout")
    assert public == key.public.pem()


def test_our_keys_load_there(where: Path) -> None:
    assert b"Private-Key: (256 bit" in openssl("pkey", "-in", where / "private.pem", "-noout", "-text")
    told = openssl("pkey", "-pubin", "-in", where / "public.pem", "-noout", "-text").decode()
    point = told.split("pub:")[1].split("ASN1 OID: prime256v1")[0]
    key = load_public_key((where / "public.pem").read_bytes())
    assert bytes.fromhex("".join(point.replace(":", " ").split())) == b"\x04" + key.raw


def test_the_signature_in_an_image_is_what_openssl_made(where: Path) -> None:
    """The seed's recipe by hand: openssl signs, the DER becomes R and S, and they go to the end of the file."""
    told = openssl("asn1parse", "-inform", "DER", data=openssl_signs(where, where / "fw.bin")).decode()
    r, s = (line.rpartition(":")[2].zfill(64) for line in told.splitlines() if "INTEGER" in line)
    key = load_public_key((where / "public.pem").read_bytes())
    assert is_taken(key, FIRMWARE, bytes.fromhex(r + s))
