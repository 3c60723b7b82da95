"""Rotations of keys: which keys count afterwards, and that nobody leads a device back."""

import json
from collections.abc import Sequence
from hashlib import sha256
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from mgota.core.envelope import Envelope, seal_envelope
from mgota.core.image import ImageScan, Trailer, Verifier, attach
from mgota.core.keychain import MAX_CHAIN, MAX_KEYS, KeyChain
from mgota.core.keys import PrivateKey
from mgota.core.manifest import Manifest
from mgota.core.signed_manifest import ManifestVerifier, encode_signed
from mgota.core.strict_json import encode_base64
from mgota.core.trust import (
    ROTATION,
    KeySet,
    check_image,
    check_rotation,
    effective,
    follow,
    is_signed,
    last_keys,
    make_rotation,
    read_rotations,
    trusted,
)
from mgota.errors import BadSignatureError, ConfigError, ManifestError, OtaError, UnsignedError

KEYS = [PrivateKey.generate() for _ in range(9)]
A, B, C, D, EVIL = KEYS[:5]


def keys(*private: PrivateKey, threshold: int = 1) -> KeySet:
    return KeySet(tuple(key.public for key in private), threshold)


def rotation(old: KeySet, new: KeySet, *signers: PrivateKey) -> Envelope:
    """One that `make_rotation` might refuse to make."""
    payload = {"v": 1, "from": old.id, "keys": [encode_base64(k.raw) for k in new.keys], "threshold": new.threshold}
    return seal_envelope(ROTATION, json.dumps(payload).encode(), signers)


AB = make_rotation(keys(A), keys(B), [A, B])
BC = make_rotation(keys(B), keys(C), [B, C])


def counts(configured: KeySet, chain: KeyChain | None) -> KeySet:
    return effective(configured, chain)


def test_without_a_rotation_the_configured_keys_count() -> None:
    assert follow(keys(A), None, []) is None
    assert counts(keys(A), None) == keys(A)
    assert follow(keys(A), None, [BC]) is None


def test_a_rotation_replaces_the_keys_and_is_remembered() -> None:
    chain = follow(keys(A), None, [AB])
    assert chain
    assert counts(keys(A), chain) == keys(B)
    assert chain.retired == (A.public.keyid,)
    assert follow(keys(A), chain, [AB]) is chain


def test_several_are_followed_in_any_order_and_from_anywhere() -> None:
    chain = follow(keys(A), None, [BC, AB])
    assert counts(keys(A), chain) == keys(C)
    assert counts(keys(B), follow(keys(B), None, [AB, BC])) == keys(C)
    assert counts(keys(A), follow(keys(A), follow(keys(A), None, [AB]), [BC])) == keys(C)


def test_who_has_a_key_that_was_rotated_out_cannot_lead_back() -> None:
    chain = follow(keys(A), None, [AB])
    evil = [rotation(keys(A), keys(EVIL), A, EVIL), rotation(keys(B), keys(EVIL), A, EVIL)]
    assert follow(keys(A), chain, evil[:1]) is chain
    with pytest.raises(BadSignatureError, match="by its old keys"):
        follow(keys(A), chain, evil[1:])


def test_a_key_that_was_rotated_out_does_not_come_back() -> None:
    chain = follow(keys(A), None, [AB])
    assert follow(keys(A), chain, [rotation(keys(B), keys(A), A, B)]) is chain
    assert follow(keys(A), chain, [rotation(keys(B), keys(A, C), A, B, C)]) is chain


def test_an_older_program_with_the_old_key_built_in_changes_nothing() -> None:
    chain = follow(keys(A), None, [AB, BC])
    for built_in in (keys(A), keys(B), keys(A, B), keys(C)):
        assert counts(built_in, chain).keys == keys(C).keys


def test_keys_that_the_chain_has_never_seen_are_a_newer_decision() -> None:
    chain = follow(keys(A), None, [AB])
    assert counts(keys(D), chain) == keys(D)
    assert counts(keys(A, D), chain) == keys(D)
    assert counts(keys(A, D, threshold=2), chain) == keys(B)  # one key alone cannot do what two were asked for


def test_revocation_by_configuration_works_after_a_rotation() -> None:
    chain = follow(keys(A), None, [make_rotation(keys(A), keys(B, C), [A, B])])
    assert counts(keys(A), chain) == keys(B, C)
    assert counts(keys(B), chain) == keys(B)


def test_a_rotation_goes_on_from_keys_that_were_configured_anew() -> None:
    chain = follow(keys(A), None, [AB])
    later = follow(keys(A, D), chain, [make_rotation(keys(D), keys(C), [C, D])])
    for configured in (keys(A), keys(D), keys(A, D), keys(B)):
        expected = keys(B) if configured == keys(B) else keys(C)  # B was never rotated out
        assert counts(configured, later) == expected


def test_a_key_that_was_only_added_and_one_that_went_again() -> None:
    more = make_rotation(keys(A), keys(A, B), [A, B])
    less = make_rotation(keys(A, B), keys(A), [A])
    chain = follow(keys(A), None, [more, less])
    assert counts(keys(A), chain) == keys(A)
    assert counts(keys(A, B), chain) == keys(A)
    assert follow(keys(A), chain, [more, less]) is chain


def test_old_and_new_keys_sign_each_by_their_threshold() -> None:
    old, new = keys(A, B, threshold=2), keys(C, D, threshold=2)
    assert follow(old, None, [rotation(old, new, A, B, C, D)])
    for signers in ((A, C, D), (B, C, D), (C, D)):
        with pytest.raises(BadSignatureError, match="by its old keys"):
            follow(old, None, [rotation(old, new, *signers)])
    for signers in ((A, B, C), (A, B, D), (A, B)):
        with pytest.raises(BadSignatureError, match="by its new keys"):
            follow(old, None, [rotation(old, new, *signers)])


def test_the_threshold_of_the_new_set_counts_afterwards() -> None:
    chain = follow(keys(A), None, [make_rotation(keys(A), keys(B, C, threshold=2), [A, B, C])])
    assert counts(keys(A), chain).threshold == 2


def test_images_are_verified_with_the_keys_that_count() -> None:
    configured = Verifier(keys=[A.public], trailer=Trailer.MGSG)
    assert trusted(configured, None) == configured
    assert trusted(configured, follow(keys(A), None, [AB])) == Verifier(keys=[B.public], trailer=Trailer.MGSG)


def scanned(key: PrivateKey) -> ImageScan:
    firmware = bytes(40)
    image = attach(firmware, key.sign(sha256(firmware).digest()), Trailer.RAW)
    scan = ImageScan(len(image), trailer=Trailer.RAW)
    scan.update(image)
    return scan


def test_an_image_by_a_key_that_was_rotated_out_is_told_so() -> None:
    old, chain = Verifier(keys=[A.public]), follow(keys(A), None, [rotation(keys(A), keys(B), A, B)])
    check_image(old, None, scanned(A))
    check_image(old, chain, scanned(B))
    for key, words in ((A, "rotated out"), (C, "bad signature, or none")):
        with pytest.raises(BadSignatureError, match=words):
            check_image(old, chain, scanned(key))
    with pytest.raises(BadSignatureError, match="bad signature, or none"):
        check_image(old, None, scanned(B))
    with pytest.raises(UnsignedError):
        check_image(old, chain, ImageScan(64, trailer=Trailer.RAW))
    assert is_signed(old, scanned(A))
    assert not is_signed(old, scanned(B))


def test_where_rotations_lead() -> None:
    ways = [rotation(keys(A), keys(B), A, B), rotation(keys(B), keys(C, D), B, C)]
    assert set(last_keys(ways)) == {C.public, D.public}
    assert set(last_keys(reversed(ways))) == {C.public, D.public}
    assert last_keys(ways[:1]) == (B.public,)
    assert last_keys([]) == ()


def test_a_manifest_brings_the_rotation_that_it_is_signed_after() -> None:
    manifest = Manifest(version="1", url="x", size=1, sha256="0" * 64, seq=1)
    verifier = ManifestVerifier(keys=[A.public])
    opened = verifier.open(encode_signed(manifest, [C], [AB, BC]))
    assert opened.manifest.signed
    assert opened.chain
    assert verifier.open(encode_signed(manifest, [C]), opened.chain).chain is opened.chain
    for data in (encode_signed(manifest, [A]), encode_signed(manifest, [A], [AB])):
        with pytest.raises(BadSignatureError):
            verifier.open(data, opened.chain)
    with pytest.raises(BadSignatureError):
        verifier.open(encode_signed(manifest, [A], [AB]))  # the old key signs no manifest any more


def test_what_is_no_rotation_to_be_made() -> None:
    with pytest.raises(ConfigError, match="the same"):
        make_rotation(keys(A, B), keys(B, A), [A])
    for signer, which in ((B, "old"), (A, "new")):
        half = make_rotation(keys(A), keys(B), [signer])
        with pytest.raises(BadSignatureError, match=f"by its {which} keys"):
            check_rotation(half, keys(A), keys(B))
    check_rotation(half.signed_by(ROTATION, [B]), keys(A), keys(B))
    assert make_rotation(keys(A), keys(*KEYS[1 : MAX_KEYS + 1]), [A, B]).signatures
    with pytest.raises(ConfigError, match="at most"):
        make_rotation(keys(EVIL), keys(*KEYS[: MAX_KEYS + 1]), [A, EVIL])


def test_what_is_no_set_of_keys() -> None:
    for private, threshold in (((), 1), ((A,), 0), ((A,), 2), ((A, A), 2)):
        with pytest.raises(ConfigError):
            keys(*private, threshold=threshold)
    assert keys(A, B) == keys(B, A, A)


def payload(**changes: Any) -> Envelope:
    good = {"v": 1, "from": keys(A).id, "keys": [encode_base64(B.public.raw)], "threshold": 1}
    return seal_envelope(ROTATION, json.dumps({**good, **changes}).encode(), [A, B])


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2}, {"v": True}, {"from": 1}, {"threshold": True}, {"threshold": 0}, {"threshold": 2}, {"keys": []},
        {"keys": "x"}, {"keys": [1]}, {"keys": ["AA=="]}, {"keys": [encode_base64(bytes(64))]},
        {"keys": [encode_base64(key.public.raw) for key in KEYS]},
    ],
)  # fmt: skip
def test_a_malformed_rotation_is_refused(changes: dict[str, Any]) -> None:
    assert follow(keys(A), None, [payload()])
    with pytest.raises(OtaError):
        follow(keys(A), None, [payload(**changes)])


@pytest.mark.parametrize("found", [None, {}, [1], [{}], [{"signed": "?", "sigs": []}]])
def test_a_malformed_list_of_rotations_is_refused(found: object) -> None:
    with pytest.raises(OtaError):
        read_rotations(found)


def test_a_chain_has_an_end() -> None:
    pool = [PrivateKey.generate() for _ in range(MAX_CHAIN + 2)]
    steps = [make_rotation(keys(old), keys(new), [old, new]) for old, new in pairwise(pool)]
    chain = follow(keys(pool[0]), None, steps[:MAX_CHAIN])
    assert chain
    assert len(chain.retired) == len(chain.left) == MAX_CHAIN
    assert counts(keys(pool[0]), chain) == keys(pool[MAX_CHAIN])
    with pytest.raises(ManifestError, match="too many"):
        follow(keys(pool[0]), chain, steps)


SETS = st.lists(st.sampled_from(KEYS[:4]), min_size=1, max_size=3).map(lambda private: keys(*private))


@settings(max_examples=60)
@given(SETS, st.lists(st.tuples(SETS, SETS), max_size=6), st.data())
def test_whatever_is_followed_a_retired_key_never_counts_again(
    first: KeySet, ways: Sequence[tuple[KeySet, KeySet]], data: st.DataObject
) -> None:
    envelopes = [rotation(old, new, *KEYS[:4]) for old, new in ways]
    chain: KeyChain | None = None
    retired: set[str] = set()
    for _ in range(4):
        some = data.draw(st.lists(st.sampled_from(envelopes))) if envelopes else []
        chain = follow(first, chain, some)
        retired |= set(chain.retired if chain else ())
        for configured in (first, data.draw(SETS)):
            now = effective(configured, chain)
            assert not retired & {key.keyid for key in now.keys}
