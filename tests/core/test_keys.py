"""Keys in every form that people have them, and signatures."""

import subprocess
import sys
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from hypothesis import given, strategies as st

from mgota.core.keys import SPKI, PrivateKey, PublicKey, load_private_key, load_public_key, signature_from_any
from mgota.errors import ConfigError

N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""The order of P-256 (SEC 2, 2.4.2)."""

DIGEST = bytes(range(32))
KEY = PrivateKey.generate()
PUBLIC = KEY.public
SIGNATURE = KEY.sign(DIGEST)

# The seed's own rows are cut short with "..."; these go on in its format: eight bytes a row, not indented, a comma and
# a backslash at the end of each.
SEED_ROWS = (
    "#define MG_OTA_PUBLIC_KEY { \\\n"
    + "".join(", ".join(f"0x{byte:02x}" for byte in PUBLIC.raw[at : at + 8]) + ", \\\n" for at in range(0, 64, 8))
    + "}\n"
)


def raw(r: int, s: int) -> bytes:
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def split(signature: bytes) -> tuple[int, int]:
    return int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")


# --- signatures -----------------------------------------------------------------------------------------------------


def test_a_signature_verifies_with_its_key_and_digest_only() -> None:
    assert len(SIGNATURE) == 64
    assert PUBLIC.verify(DIGEST, SIGNATURE)
    assert not PUBLIC.verify(bytes(32), SIGNATURE)
    assert not PrivateKey.generate().public.verify(DIGEST, SIGNATURE)


def test_every_flipped_byte_of_a_signature_is_noticed() -> None:
    for at in range(64):
        bad = bytearray(SIGNATURE)
        bad[at] ^= 0x01
        assert not PUBLIC.verify(DIGEST, bytes(bad)), at


@pytest.mark.parametrize("half", [0, N, N + 1, (1 << 256) - 1])
def test_zero_and_numbers_from_the_order_on_are_no_signature(half: int) -> None:
    r, s = split(SIGNATURE)
    assert not PUBLIC.verify(DIGEST, raw(half, s))
    assert not PUBLIC.verify(DIGEST, raw(r, half))
    assert not PUBLIC.verify(DIGEST, raw(half, half))


def test_the_mirrored_signature_verifies_too() -> None:
    """Why a signature is never an identity."""
    r, s = split(SIGNATURE)
    assert PUBLIC.verify(DIGEST, raw(r, N - s))


@given(st.binary(max_size=80).filter(lambda data: len(data) != 64))
def test_another_length_is_no_signature(signature: bytes) -> None:
    assert not PUBLIC.verify(DIGEST, signature)


def test_der_is_no_signature_in_a_trailer_and_is_converted_at_the_edge() -> None:
    r, s = split(SIGNATURE)
    der = encode_dss_signature(r, s)
    assert not PUBLIC.verify(DIGEST, der)
    assert signature_from_any(der) == SIGNATURE
    assert signature_from_any(SIGNATURE) == SIGNATURE


def test_leading_zeros_are_kept() -> None:
    for r, s in ((1, 1), (0x80, N - 1), (1 << 240, 1 << 247)):
        assert signature_from_any(encode_dss_signature(r, s)) == raw(r, s)
        assert decode_dss_signature(encode_dss_signature(*split(raw(r, s)))) == (r, s)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"0",
        SIGNATURE[:-1],
        SIGNATURE + b"\0",
        encode_dss_signature(1 << 256, 1),
        bytes.fromhex("30060201010201ff"),
    ],
    ids=["empty", "one byte", "63", "65", "too large", "negative"],
)
def test_anything_else_is_no_signature_from_a_signer(data: bytes) -> None:
    with pytest.raises(ConfigError, match="not an ECDSA-P256 signature"):
        signature_from_any(data)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_raw_signature_or_a_config_error(data: bytes) -> None:
    try:
        assert len(signature_from_any(data)) == 64
    except ConfigError:
        assert len(data) != 64


# --- public keys ----------------------------------------------------------------------------------------------------


def test_every_form_of_a_public_key_is_the_same_key() -> None:
    forms = [PUBLIC.raw, PUBLIC.pem(), PUBLIC.c_define().encode(), SEED_ROWS.encode()]
    assert [load_public_key(form) for form in forms] == [PUBLIC] * 4
    assert len({load_public_key(form) for form in forms}) == 1
    assert load_public_key(PUBLIC.pem()).verify(DIGEST, SIGNATURE)


@pytest.mark.parametrize(
    "text",
    [
        "/* keys */\n#pragma once\n" + SEED_ROWS + "#define MG_OTA MG_OTA_STM32H5\n",
        SEED_ROWS.replace("\n", "\r\n"),
        SEED_ROWS.replace("\\\n", " ").replace("0x", "0X"),
        SEED_ROWS.replace("{ \\", "\\\n {"),
        "#  define  MG_OTA_PUBLIC_KEY {" + ",".join(hex(byte) for byte in PUBLIC.raw) + "}",
    ],
    ids=["inside a header", "CRLF", "one line", "brace on the next line", "tight"],
)
def test_the_c_define_is_found_however_it_is_set(text: str) -> None:
    assert load_public_key(text.encode()) == PUBLIC


def test_the_c_define_is_the_documented_one() -> None:
    lines = PUBLIC.c_define().splitlines()
    assert lines[0] == "#define MG_OTA_PUBLIC_KEY { \\"
    assert lines[-1] == "}"
    assert len(lines) == 10
    first = ", ".join(f"0x{byte:02x}" for byte in PUBLIC.raw[:8])
    assert lines[1].strip() == first + ", \\"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("#define MG_OTA_PUBLIC_KEY { 0x19, 0x7f, ... }", "something else than bytes"),
        ("#define MG_OTA_PUBLIC_KEY { 0x100 }", "something else than bytes"),
        ("#define MG_OTA_PUBLIC_KEY { -1 }", "something else than bytes"),
        ("#define MG_OTA_PUBLIC_KEY { }", "0 bytes"),
        ("#define MG_OTA_PUBLIC_KEY { 0x19, 0x7f }", "2 bytes"),
        ("#define MG_OTA_PUBLIC_KEY {" + "0x01, " * 65 + "}", "65 bytes"),
        ("#define MG_OTA_PUBLIC_KEY {" + "0x01, " * 64 + "}", "not a point"),
        ("#define MG_OTA_PUBLIC_KEY 0x19", "not a public key"),
    ],
)
def test_a_wrong_c_define_is_a_config_error(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        load_public_key(text.encode())


def test_a_point_off_the_curve_is_a_config_error() -> None:
    off = bytearray(PUBLIC.raw)
    off[-1] ^= 1
    for data in (bytes(off), bytes(64), b"\xff" * 64):
        with pytest.raises(ConfigError, match="not a point"):
            load_public_key(data)


@pytest.mark.parametrize("size", [0, 63, 65])
def test_a_raw_key_has_64_bytes(size: int) -> None:
    with pytest.raises(ConfigError):
        PublicKey(b"\x01" * size)


def pem_of(key: rsa.RSAPublicKey | ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    "pem",
    [
        pem_of(rsa.generate_private_key(65537, 2048).public_key()),
        pem_of(ed25519.Ed25519PrivateKey.generate().public_key()),
        pem_of(ec.generate_private_key(ec.SECP256K1()).public_key()),
        pem_of(ec.generate_private_key(ec.SECP384R1()).public_key()),
    ],
    ids=["RSA", "Ed25519", "secp256k1", "P-384"],
)
def test_another_kind_of_public_key_is_a_config_error(pem: bytes) -> None:
    with pytest.raises(ConfigError, match="P-256"):
        load_public_key(pem)


def test_a_private_key_is_refused_where_the_public_one_belongs() -> None:
    for pem in (KEY.pem(), KEY.pem(b"secret")):
        with pytest.raises(ConfigError, match="private key"):
            load_public_key(pem)


MUTILATED = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda data, at, junk: data[:at] + junk + data[at + len(junk) :],
        st.sampled_from([PUBLIC.pem(), PUBLIC.c_define().encode(), KEY.pem(), KEY.pem(b"x"), PUBLIC.raw]),
        st.integers(0, 300),
        st.binary(max_size=6),
    ),
)


@given(MUTILATED)
def test_any_bytes_are_a_public_key_or_a_config_error(data: bytes) -> None:
    try:
        key = load_public_key(data)
    except ConfigError:
        return
    assert load_public_key(key.raw) == key


@given(MUTILATED, st.none() | st.binary(max_size=8))
def test_any_bytes_are_a_private_key_or_a_config_error(data: bytes, password: bytes | None) -> None:
    try:
        key = load_private_key(data, password)
    except ConfigError:
        return
    assert key.public.verify(DIGEST, key.sign(DIGEST))


def test_a_key_id_is_made_of_the_subject_public_key_info() -> None:
    assert len(PUBLIC.keyid) == 16
    assert int(PUBLIC.keyid, 16) >= 0
    assert load_public_key(PUBLIC.pem()).keyid == PUBLIC.keyid
    assert PrivateKey.generate().public.keyid != PUBLIC.keyid


# --- private keys ---------------------------------------------------------------------------------------------------


def test_a_private_key_survives_its_pem() -> None:
    pem = KEY.pem()
    assert pem.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert load_private_key(pem).public == PUBLIC
    assert load_private_key(pem, b"not needed").public == PUBLIC


def test_an_encrypted_private_key_needs_its_password() -> None:
    pem = KEY.pem("pässword".encode())
    assert b"ENCRYPTED" in pem
    assert load_private_key(pem, "pässword".encode()).public == PUBLIC
    for password, why in ((None, "no password"), (b"", "no password"), (b"wrong", "wrong password")):
        with pytest.raises(ConfigError, match=why):
            load_private_key(pem, password)


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_traditional_pem_is_read_as_well(encrypted: bool) -> None:
    key = serialization.load_pem_private_key(KEY.pem(), None)
    encryption = serialization.BestAvailableEncryption(b"pw") if encrypted else serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, encryption)
    assert pem.startswith(b"-----BEGIN EC PRIVATE KEY-----")
    assert load_private_key(pem, b"pw").public == PUBLIC


def test_another_kind_of_private_key_is_a_config_error() -> None:
    for key in (ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())):
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        with pytest.raises(ConfigError, match="not a P-256 key"):
            load_private_key(pem)
    with pytest.raises(ConfigError, match="not a private key"):
        load_private_key(PUBLIC.pem())


# --- what a device reads by itself, and what the library reads for it -------------------------------------------------


def spki(form: serialization.PublicFormat = serialization.PublicFormat.SubjectPublicKeyInfo) -> bytes:
    return KEY._key.public_key().public_bytes(serialization.Encoding.PEM, form)


def test_a_pem_and_a_keyid_are_those_of_the_library() -> None:
    assert PUBLIC.pem() == spki()
    key = serialization.load_pem_public_key(PUBLIC.pem())
    assert isinstance(key, ec.EllipticCurvePublicKey)
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert PUBLIC.keyid == sha256(der).hexdigest()[:16]


def test_a_compressed_point_is_the_same_key() -> None:
    head = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200")  # RFC 5480, 2
    x, y = PUBLIC.raw[:32], PUBLIC.raw[32:]
    text = b64encode(head + bytes([2 + y[-1] % 2]) + x)
    assert load_public_key(b"-----BEGIN PUBLIC KEY-----\n" + text + b"\n-----END PUBLIC KEY-----\n") == PUBLIC


def test_text_around_a_key_and_other_line_ends_do_no_harm() -> None:
    assert load_public_key(b"a word before\n" + spki() + b"and one behind\n") == PUBLIC
    assert load_public_key(spki().replace(b"\n", b"\r\n")) == PUBLIC


def test_a_key_that_is_not_whole_is_none() -> None:
    pem = spki()
    for bad in (pem.replace(b"\n", b"\n=", 1), pem[:60] + pem[64:], pem.replace(b"END PUBLIC", b"END"), b"?" + pem[1:]):
        with pytest.raises(ConfigError, match="public key"):
            load_public_key(bad)
    off = bytearray(PUBLIC.raw)
    off[-1] ^= 1
    text = b64encode(SPKI + off)
    with pytest.raises(ConfigError, match=r"not a point of P-256"):
        load_public_key(b"-----BEGIN PUBLIC KEY-----\n" + text + b"\n-----END PUBLIC KEY-----\n")


def test_a_device_does_not_load_the_readers_of_all_kinds_of_keys(tmp_path: Path) -> None:
    """Nearly three mebibytes of them."""
    (tmp_path / "key").write_bytes(spki())
    code = (
        "import sys; from mgota import load_public_key\n"
        "load_public_key(open(sys.argv[1], 'rb').read()).verify(bytes(32), bytes(64))\n"
        "print('cryptography.hazmat.primitives.serialization' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "key"], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"
