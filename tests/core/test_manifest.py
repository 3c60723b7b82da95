"""Manifests: plain and signed, what is refused, and that any bytes are a manifest or an `OtaError`."""

import json
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, strategies as st

from mgota.core.envelope import MAX_SIGNATURES, Envelope, encode_pae, open_envelope, seal_envelope
from mgota.core.image import ImageScan, Trailer, attach
from mgota.core.keys import PrivateKey
from mgota.core.manifest import MAX_HARDWARE, MAX_URL, Manifest, check_hardware, encode_plain, identify
from mgota.core.signed_manifest import KIND, ManifestVerifier, encode_signed
from mgota.errors import (
    BadSignatureError,
    ConfigError,
    DigestError,
    ManifestError,
    OtaError,
    UnsignedError,
    WrongHardwareError,
)

KEY, SECOND, THIRD, FOREIGN = (PrivateKey.generate() for _ in range(4))
N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
IMAGE = b"an image"
DIGEST = sha256(IMAGE).hexdigest()
BASE: dict[str, Any] = {"version": "1.2.3", "url": "https://x/fw.bin", "size": 8}
SIGNED: dict[str, Any] = {
    "v": 1,
    **BASE,
    "sha256": DIGEST,
    "seq": 7,
    "hw": ["rev-b", "rev-c"],
    "expires": 2_000_000_000,
}
STRICT = ManifestVerifier(keys=[KEY.public])
ANY = ManifestVerifier()


def manifest(**changes: Any) -> Manifest:
    return Manifest(**{**BASE, "sha256": DIGEST, "seq": 7, **changes})


def signed(payload: Any = SIGNED, *keys: PrivateKey, **top: Any) -> bytes:
    """An envelope around any payload, JSON or not, with anything beside it."""
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return json.dumps({**BASE, **seal_envelope(KIND, data, keys or [KEY]).as_dict(), **top}).encode()


# --- plain ------------------------------------------------------------------------------------------------------------


def test_a_plain_manifest_works_as_it_is() -> None:
    found = ANY.open(json.dumps({**BASE, "anything": [1]}).encode()).manifest
    assert found == Manifest(version="1.2.3", url="https://x/fw.bin", size=8)
    assert (found.sha256, found.seq, found.hw, found.expires, found.signed) == (None, None, (), None, False)


def test_a_plain_manifest_may_have_a_digest() -> None:
    assert ANY.open(json.dumps({**BASE, "sha256": DIGEST.upper()}).encode()).manifest.sha256 == DIGEST
    assert ANY.open(encode_plain(manifest())).manifest.sha256 == DIGEST
    assert ANY.open(encode_plain(Manifest(**BASE))).manifest == Manifest(**BASE)


def test_without_keys_a_signed_manifest_is_what_stands_at_its_top() -> None:
    found = ANY.open(signed({**SIGNED, "version": "9"}, FOREIGN)).manifest
    assert found.version == "1.2.3"
    assert not found.signed


def test_with_keys_a_plain_manifest_is_refused_unless_it_is_allowed() -> None:
    with pytest.raises(UnsignedError, match="not signed"):
        STRICT.open(encode_plain(manifest()))
    lax = ManifestVerifier(keys=[KEY.public], allow_plain=True)
    assert not lax.open(encode_plain(manifest())).manifest.signed
    assert lax.open(signed()).manifest.signed
    with pytest.raises(BadSignatureError):
        lax.open(signed(SIGNED, FOREIGN))


@pytest.mark.parametrize(
    "change",
    [
        {"version": None}, {"version": 1}, {"version": ""}, {"version": "1 2"}, {"version": "9" * 65},
        {"url": None}, {"url": 1}, {"url": ""}, {"url": "https://x/a b"}, {"url": "x" * (MAX_URL + 1)}, {"url": "http://ü"},
        {"size": None}, {"size": 0}, {"size": -1}, {"size": 8.0}, {"size": True}, {"size": "8"},
        {"sha256": ""}, {"sha256": DIGEST[1:]}, {"sha256": DIGEST + "0"}, {"sha256": "g" * 64}, {"sha256": 1},
    ],
)  # fmt: skip
def test_what_is_no_manifest_plain_or_signed(change: dict[str, Any]) -> None:
    with pytest.raises(ManifestError):
        ANY.open(json.dumps({**BASE, **change}).encode())
    with pytest.raises(ManifestError):
        STRICT.open(signed({**SIGNED, **change}))


def test_the_limits_of_version_and_url() -> None:
    for change in ({"version": "9" * 64}, {"url": "x" * MAX_URL}, {"size": 1}):
        assert ANY.open(json.dumps({**BASE, **change}).encode()).manifest.size


# --- signed -----------------------------------------------------------------------------------------------------------


def test_a_signed_manifest_is_its_payload() -> None:
    found = STRICT.open(signed({**SIGNED, "anything": 1}, anything=2)).manifest
    expected = manifest(hw=("rev-b", "rev-c"), expires=2_000_000_000, signed=True)
    assert found == expected
    assert STRICT.open(encode_signed(expected, [KEY])).manifest == expected
    assert STRICT.open(encode_signed(manifest(), [KEY])).manifest == manifest(signed=True)


def test_what_is_signed_is_the_pae_of_the_exact_bytes() -> None:
    assert encode_pae("a/b", b"c d\n") == b"DSSEv1 3 a/b 4 c d\n"
    assert encode_pae("ü", b"") == b"DSSEv1 2 \xc3\xbc 0 "
    envelope = json.loads(encode_signed(manifest(), [KEY]))
    spaced = json.dumps(json.loads(open_envelope(envelope).payload), indent=3).encode()
    with pytest.raises(BadSignatureError, match="not signed by a trusted key"):
        STRICT.open(json.dumps({**envelope, "signed": b64encode(spaced).decode()}).encode())
    other_kind = seal_envelope("application/vnd.mgota.keys+json", json.dumps(SIGNED).encode(), [KEY])
    with pytest.raises(BadSignatureError):
        STRICT.open(json.dumps(other_kind.as_dict()).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2}, {"v": True}, {"v": 1.0}, {"v": None}, {"sha256": None}, {"seq": None}, {"seq": -1}, {"seq": True},
        {"seq": 1.0}, {"hw": []}, {"hw": "rev-b"}, {"hw": [1]}, {"hw": [""]}, {"hw": {}}, {"hw": ["a b"]},
        {"hw": ["x"] * (MAX_HARDWARE + 1)}, {"hw": ["x" * 65]}, {"expires": "2030"}, {"expires": 1.5},
        {"expires": True},
    ],
)  # fmt: skip
def test_what_is_no_signed_manifest(change: dict[str, Any]) -> None:
    with pytest.raises(ManifestError):
        STRICT.open(signed({**SIGNED, **change}))


@pytest.mark.parametrize("change", [{"seq": 0}, {"hw": None}, {"hw": ["x" * 64] * MAX_HARDWARE}, {"expires": None}])
def test_the_limits_of_a_signed_manifest(change: dict[str, Any]) -> None:
    assert STRICT.open(signed({**SIGNED, **change})).manifest.signed


@pytest.mark.parametrize(
    "top",
    [
        {"version": "1.2.4"}, {"url": "https://evil/fw.bin"}, {"size": 9}, {"size": 8.0}, {"sha256": "0" * 64},
        {"seq": 8},
        {"seq": 7.0}, {"hw": ["rev-b"]}, {"hw": "rev-b"}, {"expires": 1}, {"expires": None}, {"sha256": None},
    ],
)  # fmt: skip
def test_a_top_level_that_says_something_else_is_refused(top: dict[str, Any]) -> None:
    with pytest.raises(ManifestError, match=f"its {next(iter(top))} is not the signed one"):
        STRICT.open(signed(**top))


def test_a_top_level_that_says_the_same_or_nothing_is_taken() -> None:
    assert STRICT.open(signed(**{name: SIGNED[name] for name in SIGNED})).manifest.seq == 7
    assert STRICT.open(
        json.dumps(seal_envelope(KIND, json.dumps(SIGNED).encode(), [KEY]).as_dict()).encode()
    ).manifest.size


def test_a_hardware_that_is_not_signed_is_refused() -> None:
    payload = {name: value for name, value in SIGNED.items() if name != "hw"}
    with pytest.raises(ManifestError, match="hw"):
        STRICT.open(signed(payload, hw=["rev-b"]))


def test_fields_swapped_between_two_manifests_are_refused() -> None:
    first = json.loads(encode_signed(manifest(), [KEY]))
    second = json.loads(encode_signed(manifest(version="2.0.0", seq=8), [KEY]))
    for name in ("version", "signed", "sigs"):
        with pytest.raises((ManifestError, BadSignatureError)):
            STRICT.open(json.dumps({**first, name: second[name]}).encode())


@pytest.mark.parametrize("payload", [b"", b"[]", b"{", b'{"v":1,"v":1}', b"\xff", b"[" * 30_000])
def test_a_signed_payload_that_is_no_json_is_malformed(payload: bytes) -> None:
    with pytest.raises(ManifestError):
        STRICT.open(signed(payload))


# --- signatures -------------------------------------------------------------------------------------------------------


def with_signatures(*sigs: Any) -> bytes:
    return json.dumps({**json.loads(signed()), "sigs": list(sigs)}).encode()


def entry(signature: bytes, key: PrivateKey = KEY) -> dict[str, str]:
    return {"keyid": key.public.keyid, "sig": b64encode(signature).decode()}


GOOD = json.loads(signed())["sigs"][0]


def test_other_keys_and_unknown_signatures_do_not_count() -> None:
    with pytest.raises(BadSignatureError, match="not signed by a trusted key"):
        STRICT.open(signed(SIGNED, FOREIGN))
    with pytest.raises(BadSignatureError):
        STRICT.open(with_signatures())
    assert STRICT.open(with_signatures({"keyid": "another kind", "sig": "of signature"}, GOOD)).manifest.size
    assert STRICT.open(signed(SIGNED, FOREIGN, KEY)).manifest.size


def test_a_signature_counts_for_the_key_that_it_names() -> None:
    with pytest.raises(BadSignatureError):
        STRICT.open(with_signatures({**GOOD, "keyid": FOREIGN.public.keyid}))
    with pytest.raises(BadSignatureError):
        STRICT.open(with_signatures({**GOOD, "keyid": GOOD["keyid"].upper()}))


def test_numbers_that_are_no_signature() -> None:
    good = open_envelope(json.loads(signed()))
    r, s = (int.from_bytes(half, "big") for half in (sha256(b"r").digest(), sha256(b"s").digest()))
    for pair in ((0, s), (r, 0), (r + N if r + N < 2**256 else N, s), (r, N), (r, s)):
        raw = b"".join(number.to_bytes(32, "big") for number in pair)
        with pytest.raises(BadSignatureError):
            STRICT.open(with_signatures(entry(raw)))
    assert len(good.signatures) == 1


SIGNATURES = {
    "none": "",
    "one byte": "AA==",
    "no end": "A" * 87,
    "65 bytes": b64encode(bytes(65)).decode(),
    "a line end": GOOD["sig"] + "\n",
    "no letter": "?",
}


# Names of their own: a signature is another one in each process that collects the tests.
@pytest.mark.parametrize("sig", SIGNATURES.values(), ids=SIGNATURES.keys())
def test_a_signature_that_is_no_base64_of_64_bytes_is_malformed(sig: str) -> None:
    with pytest.raises(ManifestError):
        STRICT.open(with_signatures({**GOOD, "sig": sig}))


def test_a_signature_in_another_spelling_is_malformed() -> None:
    # 64 bytes leave four bits of the last digit unused; Python's strict reader takes any value of them.
    text = GOOD["sig"]
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = text[:85] + digits[digits.index(text[85]) + 1] + text[86:]
    with pytest.raises(ManifestError, match="canonical"):
        STRICT.open(with_signatures({**GOOD, "sig": other}))


@pytest.mark.parametrize(
    "change",
    [
        {"signed": None}, {"signed": 1}, {"signed": "A"}, {"signed": ["e30="]}, {"sigs": None}, {"sigs": {}},
        {"sigs": ["x"]}, {"sigs": [{}]}, {"sigs": [{"keyid": 1, "sig": "AA=="}]}, {"sigs": [{"keyid": "x", "sig": 1}]},
        {"rotations": None}, {"rotations": [1]}, {"rotations": [{}]},
    ],
)  # fmt: skip
def test_a_malformed_envelope_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ManifestError):
        STRICT.open(json.dumps({**json.loads(signed()), **change}).encode())


def test_the_limit_of_signatures() -> None:
    foreign = {"keyid": "x", "sig": "x"}
    assert STRICT.open(with_signatures(*[foreign] * (MAX_SIGNATURES - 1), GOOD)).manifest.size
    with pytest.raises(ManifestError, match="more than"):
        STRICT.open(with_signatures(*[foreign] * MAX_SIGNATURES, GOOD))


def test_a_threshold_asks_for_different_keys() -> None:
    keys = [KEY.public, SECOND.public, THIRD.public]
    two = ManifestVerifier(keys=keys, threshold=2)
    assert two.open(signed(SIGNED, KEY, THIRD)).manifest.signed
    with pytest.raises(BadSignatureError, match="2 trusted keys, only by 1"):
        two.open(signed(SIGNED, KEY, FOREIGN))
    with pytest.raises(BadSignatureError, match="only by 1"):
        two.open(with_signatures(GOOD, GOOD, entry(KEY.sign(sha256(b"x").digest()))))
    assert ManifestVerifier(keys=keys, threshold=3).open(signed(SIGNED, THIRD, SECOND, KEY)).manifest.size


def test_a_key_that_is_configured_twice_counts_once() -> None:
    with pytest.raises(ConfigError, match="2 of 1"):
        ManifestVerifier(keys=[KEY.public, KEY.public], threshold=2)


def test_a_revoked_key_is_one_that_is_left_out() -> None:
    assert ManifestVerifier(keys=[KEY.public, SECOND.public]).open(signed(SIGNED, SECOND)).manifest.size
    with pytest.raises(BadSignatureError):
        STRICT.open(signed(SIGNED, SECOND))


@pytest.mark.parametrize("threshold", [0, 2, -1])
def test_a_threshold_that_nobody_can_reach_is_a_wrong_configuration(threshold: int) -> None:
    with pytest.raises(ConfigError):
        ManifestVerifier(keys=[KEY.public], threshold=threshold)
    with pytest.raises(ConfigError):
        ManifestVerifier(threshold=threshold)


def test_what_cannot_be_signed() -> None:
    with pytest.raises(ConfigError, match="sha256 and seq"):
        encode_signed(manifest(seq=None), [KEY])
    with pytest.raises(ConfigError, match="sha256 and seq"):
        encode_signed(manifest(sha256=None), [KEY])


@pytest.mark.parametrize("name", ["size", "seq", "expires"])
def test_a_number_that_could_not_be_read_back_is_none(name: str) -> None:
    assert getattr(manifest(**{name: 10**19 - 1}), name) == 10**19 - 1
    with pytest.raises(ManifestError, match="19 digits"):
        manifest(**{name: 10**19})


# --- what was read back -----------------------------------------------------------------------------------------------


def scanned(image: bytes, trailer: Trailer | None) -> ImageScan:
    scan = ImageScan(len(image), trailer=trailer)
    for start in range(0, len(image), 50):
        scan.update(image[start : start + 50])
    return scan


def test_an_image_is_told_by_what_was_read_and_what_announced_it() -> None:
    firmware = b"MG_VERSION:1.2.2\0 and more"
    whole = attach(firmware, KEY.sign(sha256(firmware).digest()), Trailer.MGSG)
    digest = sha256(whole).hexdigest()
    scan = scanned(whole, Trailer.MGSG)
    alone = identify(scan, None, keys=True)
    assert (alone.size, alone.image_size, alone.version) == (len(firmware), len(whole), "1.2.2")
    assert (alone.sha256, alone.image_sha256) == (sha256(firmware).hexdigest(), digest)
    said = manifest(size=len(whole), sha256=digest, signed=True)
    for keys in (True, False):
        announced = identify(scan, said, keys=keys)
        assert (announced.version, announced.sequence, announced.digest) == ("1.2.3", 7, digest)
    assert identify(scan, replace(said, sha256=None), keys=True).version == "1.2.3"
    for wrong in ({"size": len(whole) + 1}, {"sha256": "0" * 64}, {"sha256": sha256(firmware).hexdigest()}):
        with pytest.raises(DigestError):
            identify(scan, replace(said, **wrong), keys=True)


@pytest.mark.parametrize(
    ("keys", "tag", "version"),
    [(False, b"MG_VERSION:1.2.2\0", "1.2.3"), (True, b"MG_VERSION:1.2.2\0", "1.2.2"), (True, b"", None)],
    ids=["without keys", "with keys", "with keys and no tag"],
)
def test_where_keys_are_configured_a_version_that_nobody_signed_is_none(
    keys: bool, tag: bytes, version: str | None
) -> None:
    image = tag + b"and more"
    scan = scanned(image, None)
    said = manifest(size=len(image), sha256=None, seq=7, signed=False)
    found = identify(scan, said, keys=keys)
    assert (found.version, found.sequence) == (version, None)


def test_an_image_without_a_trailer_has_one_digest() -> None:
    found = identify(scanned(IMAGE, None), None, keys=False)
    assert (found.sha256, found.image_sha256, found.digest) == (DIGEST, None, DIGEST)


def test_hardware_is_checked_by_its_id() -> None:
    check_hardware(manifest(), None)
    check_hardware(manifest(hw=("a", "b")), "b")
    for hardware, said in (("c", "is c"), (None, "no hardware id")):
        with pytest.raises(WrongHardwareError, match=said):
            check_hardware(manifest(hw=("a", "b")), hardware)


# --- anything ---------------------------------------------------------------------------------------------------------


def assert_one_line(error: OtaError) -> None:
    assert str(error)
    assert "\n" not in str(error)


MEMBERS = st.sampled_from([*SIGNED, "signed", "sigs", "rotations"])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=70) | st.sampled_from([DIGEST, "e30="]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["keyid", "sig", "signed"]), inner),
    max_leaves=8,
)


@given(
    st.binary(max_size=50)
    | st.dictionaries(MEMBERS, VALUES).map(lambda found: json.dumps({**BASE, **found}).encode())
    | st.dictionaries(MEMBERS, VALUES).map(lambda found: signed({**SIGNED, **found}))
    | st.dictionaries(MEMBERS, VALUES).map(lambda found: signed(**found))
    | st.binary(max_size=50).map(signed)
)
def test_any_bytes_are_a_manifest_or_an_ota_error(data: bytes) -> None:
    for verifier in (STRICT, ANY, ManifestVerifier(keys=[KEY.public], allow_plain=True)):
        try:
            found = verifier.open(data).manifest
        except OtaError as exc:
            assert_one_line(exc)
        else:
            assert found.size >= 1
            assert (verifier is not STRICT) or found.signed


@given(st.integers(0, len(signed()) - 1), st.integers(0, 255))
def test_a_changed_byte_changes_nothing_or_is_refused(at: int, value: int) -> None:
    whole = signed()
    changed = whole[:at] + bytes([value]) + whole[at + 1 :]
    try:
        found = STRICT.open(changed).manifest
    except OtaError:
        return
    assert found == STRICT.open(whole).manifest


def test_an_envelope_says_who_signed() -> None:
    envelope = seal_envelope(KIND, b"x", [KEY, KEY, SECOND])
    assert len(envelope.signatures) == 2
    assert envelope.signed_by(KIND, [THIRD]).signers(KIND, [k.public for k in (KEY, SECOND, THIRD)]) == {
        KEY.public,
        SECOND.public,
        THIRD.public,
    }
    elsewhere = KEY.sign(sha256(encode_pae(KIND, b"x")).digest())
    assert Envelope(b"x", ()).with_signatures({KEY.public.keyid: elsewhere}).signers(KIND, [KEY.public])
    assert envelope.signers(KIND, [KEY.public, FOREIGN.public]) == {KEY.public}
    assert Envelope(b"x", ()).signers(KIND, [KEY.public]) == frozenset()
