"""The digest is BLAKE3, at every instruction-set level; values from the reference implementation (bytes 0 .. 250, repeated)."""

import pytest
import torch
from support.native_weights import LEVELS

pytestmark = pytest.mark.skipif(not LEVELS, reason="needs the compiled kernels")
OPS = torch.ops.qcompile

KNOWN = {
    0: "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
    1: "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213",
    3: "e1be4d7a8ab5560aa4199eea339849ba8e293d55ca0a81006726d184519e647f",
    63: "e9bc37a594daad83be9470df7f7b3798297c3d834ce80ba85d6e207627b7db7b",
    64: "4eed7141ea4a5cd4b788606bd23f46e212af9cacebacdc7d1f4c6dc7f2511b98",
    65: "de1e5fa0be70df6d2be8fffd0e99ceaa8eb6e8c93a63f2d8d1c30ecb6b263dee",
    1023: "10108970eeda3eb932baac1428c7a2163b0e924c9a9e25b35bba72b28f70bd11",
    1024: "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7",
    1025: "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444",
    2048: "e776b6028c7cd22a4d0ba182a8bf62205d2ef576467e838ed6f2529b85fba24a",
    3072: "b98cb0ff3623be03326b373de6b9095218513e64f1ee2edd2525c7ad1e5cffd2",
    5121: "628bd2cb2004694adaab7bbd778a25df25c47b9d4155a55f8fbd79f2fe154cff",
    16384: "f875d6646de28985646f34ee13be9a576fd515f76b5b0a26bb324735041ddde4",
    16385: "1dabe216be2578830263b049de1639f39f05a4da616b9b78c7a5e4e41662fd1f",
    17408: "993924ff3dcbd868be9cf3fed98d4538fe579ffccf390a5aa1ddba0f6a20bfed",
    32768: "162183d1f9184474f5a5c9e6224e66720cdb6523f822e52d9b1efa30893f48f9",
    33793: "dfa406473e24f8de7598b47d2b1a600c3feb7ad6111b5454cf5f49cc08bda053",
    102400: "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085",
    1048653: "cbd46f63b687aa43ceb5f5f886a6b606f90ff5444e67a72a64c64c15922f3c69",
}


def message(size: int) -> torch.Tensor:
    return (torch.arange(size) % 251).to(torch.uint8)


@pytest.mark.parametrize("level", range(len(LEVELS)), ids=LEVELS)
def test_known_digests(level: int) -> None:
    for size, expected in KNOWN.items():
        assert bytes(OPS.native_digest(message(size), level=level).tolist()).hex() == expected, size


def test_any_place_in_memory_and_any_number_of_threads() -> None:
    shifted = torch.cat((torch.zeros(7, dtype=torch.uint8), message(102400)))[7:]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert bytes(OPS.native_digest(shifted).tolist()).hex() == KNOWN[102400]
    finally:
        torch.set_num_threads(before)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(RuntimeError, match=r"native_digest: bytes: expected.*uint8.*int8"):
        OPS.native_digest(torch.zeros(3, dtype=torch.int8))
    with pytest.raises(RuntimeError, match=r"native_digest: bytes: .*contiguous"):
        OPS.native_digest(torch.zeros(4, 4, dtype=torch.uint8).t()[1:])
