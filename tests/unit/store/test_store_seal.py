"""Seals: nothing opens but the entry itself, of this store, unchanged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.store.seal import KeyEncryptionKey, Kind, Sealer, SealError, open_data_keys, wrap_numbers

STORE, OTHER = b"store-1", b"store-2"
SEALER = Sealer(STORE, {1: bytes(range(32))})


@given(st.sampled_from(list(Kind)), st.text(max_size=30), st.binary(max_size=200))
def test_what_is_sealed_opens_under_its_own_name_only(kind: Kind, identity: str, plain: bytes) -> None:
    blob = SEALER.seal(kind, identity, plain)
    assert SEALER.open(kind, identity, blob) == plain
    assert SEALER.seal(kind, identity, plain) != blob
    for other in Kind:
        if other is not kind:
            with pytest.raises(SealError):
                SEALER.open(other, identity, blob)
    for sealer, name in (
        (SEALER, identity + "x"),
        (SEALER, f"{identity}|"),
        (Sealer(OTHER, {1: bytes(range(32))}), identity),
        (Sealer(STORE, {1: bytes(32)}), identity),
        (Sealer(STORE, {2: bytes(range(32))}), identity),
    ):
        with pytest.raises(SealError):
            sealer.open(kind, name, blob)


@given(st.binary(min_size=1, max_size=60), st.data())
def test_one_bit_or_one_byte_is_noticed(plain: bytes, data: st.DataObject) -> None:
    blob = SEALER.seal(Kind.TOKEN, "s", plain)
    bit = data.draw(st.integers(0, len(blob) * 8 - 1))
    changed = bytearray(blob)
    changed[bit // 8] ^= 1 << bit % 8
    cut = blob[: data.draw(st.integers(0, len(blob) - 1))]
    for wrong in (bytes(changed), cut, blob + b"x", b"", b"\x01"):
        with pytest.raises(SealError):
            SEALER.open(Kind.TOKEN, "s", wrong)


@given(st.binary(max_size=100))
def test_noise_is_a_seal_error_and_nothing_else(blob: bytes) -> None:
    with pytest.raises(SealError):
        SEALER.open(Kind.KEY, "k", blob)


def test_the_highest_data_key_seals_and_all_open() -> None:
    both = Sealer(STORE, {1: bytes(range(32)), 2: bytes(32)})
    assert both.open(Kind.KEY, "k", SEALER.seal(Kind.KEY, "k", b"old")) == b"old"
    with pytest.raises(SealError):
        SEALER.open(Kind.KEY, "k", both.seal(Kind.KEY, "k", b"new"))


def test_wraps_belong_to_a_store_a_number_and_a_kek() -> None:
    one, two = (KeyEncryptionKey.of_secret(bytes([fill]) * 32, origin="x") for fill in (1, 2))
    wrapped = one.wrap(1, bytes(32), STORE)
    assert one.unwrap(1, wrapped, STORE) == bytes(32)
    assert open_data_keys([{one.field(1): wrapped}], STORE, [two, one]) == {1: bytes(32)}
    for kek, number, store, blob in (
        (two, 1, STORE, wrapped),
        (one, 2, STORE, wrapped),
        (one, 1, OTHER, wrapped),
        (one, 1, STORE, wrapped[:-1]),
        (one, 1, STORE, b""),
        (one, 1, STORE, b"x" * 20),
    ):
        with pytest.raises(SealError):
            kek.unwrap(number, blob, store)
    with pytest.raises(SealError, match=one.fingerprint):
        open_data_keys([{one.field(1): wrapped}], STORE, [two])
    with pytest.raises(SealError):
        open_data_keys([{}], STORE, [one])
    assert one.fingerprint != two.fingerprint
    assert (bytes([1]) * 32).hex() not in repr(one)
    assert one.secret.hex() not in repr(one)


def test_every_data_key_has_to_open() -> None:
    """Half of the data keys would open half of the records: the rest would look lost."""
    one, two = (KeyEncryptionKey.of_secret(bytes([fill]) * 32, origin="x") for fill in (1, 2))
    fields = {one.field(1): one.wrap(1, bytes(32), STORE), two.field(2): two.wrap(2, bytes(32), STORE)}
    assert wrap_numbers({**fields, "dk:x:y": b"", "dk:3:": b"", "epoch": b"1"}) == {
        1: [one.fingerprint], 2: [two.fingerprint],
    }  # fmt: skip
    with pytest.raises(SealError, match="data key 2"):
        open_data_keys([fields], STORE, [one])
    assert len(open_data_keys([fields], STORE, [one, two])) == 2


def test_a_damaged_wrap_leaves_the_whole_ones() -> None:
    """Each wrap lies in two places, and there is one for each configured key: any one is enough."""
    one, two = (KeyEncryptionKey.of_secret(bytes([fill]) * 32, origin="x") for fill in (1, 2))
    good, other = one.wrap(1, bytes(32), STORE), two.wrap(1, bytes(32), STORE)
    name = one.field(1)
    assert open_data_keys([{name: b"damaged"}, {name: good}], STORE, [one]) == {1: bytes(32)}
    assert open_data_keys([{name: b"damaged", two.field(1): other}], STORE, [one, two]) == {1: bytes(32)}
    with pytest.raises(SealError):
        open_data_keys([{name: b"damaged"}, {name: b"too"}], STORE, [one])
