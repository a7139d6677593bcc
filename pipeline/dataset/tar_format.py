"""USTAR members, byte for byte reproducible.

Own header code because no library writes this: webdataset's writer adds a PAX header with a float time to
every member (+1,024 bytes each), `tarfile` costs 61 us a member. Read back in tests with GNU tar, `tarfile`,
webdataset and Hugging Face datasets.
"""

from functools import lru_cache

TAR_BLOCK_BYTES = 512
# A tar ends with two zero blocks.
END = bytes(2 * TAR_BLOCK_BYTES)
_MAX_NAME_BYTES = 100
_SIZE_START, _SIZE_STOP = 124, 135  # of the size in a header
_MAX_MEMBER_BYTES = 8**11 - 1  # eleven octal digits
# The parts of a header that are the same for every member; only name, size and checksum stand between them.
_OWNER = b"0000444\0000000000\0000000000\0"  # mode, owner, group
_TIME = b"\00000000000000\0"
_REST = (
    b"\0 0"  # end of the checksum; a regular file
    + bytes(100)
    + b"ustar\x0000"
    + bytes(32 + 32)  # owner and group names
    + b"0000000\x000000000\0"  # device numbers
    + bytes(155 + 12)
)
_HEADER = b"%b" + _OWNER + b"%b" + _TIME + b"%06o" + _REST  # name, size and checksum
# The checksum field itself counts as eight blanks.
_FIXED_SUM = sum(_OWNER) + sum(_TIME) + sum(_REST[2:]) + 8 * ord(" ")
_JPG, _CLS, _JSON = ((suffix, _FIXED_SUM + sum(suffix)) for suffix in (b".jpg", b".cls", b".json"))


def padded(num_bytes: int) -> int:
    """Return `num_bytes` rounded up to whole tar blocks."""
    return -(-num_bytes // TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES


def header(name: str, num_bytes: int) -> bytes:
    """Return the 512-byte header of a regular file: mode 0444, owner 0, time 0.

    Args:
        name: ASCII, at most 100 bytes.
        num_bytes: Size of the member's content, below 8 GiB.

    Raises:
        ValueError: The name or the size does not fit USTAR.
    """
    encoded = name.encode("ascii")
    if not 0 < len(encoded) <= _MAX_NAME_BYTES or not 0 <= num_bytes <= _MAX_MEMBER_BYTES:
        raise ValueError(f"tar member {name!r} of {num_bytes} bytes does not fit USTAR")
    size = b"%011o" % num_bytes
    return _HEADER % (encoded.ljust(_MAX_NAME_BYTES, b"\0"), size, _FIXED_SUM + sum(encoded) + sum(size))


def sample_parts(key: bytes, image_bytes: int, cls: bytes, about: bytes) -> tuple[bytes, bytes]:
    """Return what stands before and after the picture of a sample: `KEY.jpg` without content, and two whole members.

    As `header` and `member` would, in a third of the time.

    Args:
        key: The sample's, ASCII, at most 95 bytes.
        image_bytes: Size of the picture, below 8 GiB.
        cls: Content of `KEY.cls`.
        about: Content of `KEY.json`.
    """
    key_sum = sum(key)
    before = _sample_header(key, _JPG, key_sum, image_bytes)
    after = (
        bytes(-image_bytes % TAR_BLOCK_BYTES),
        _sample_header(key, _CLS, key_sum, len(cls)),
        cls,
        bytes(-len(cls) % TAR_BLOCK_BYTES),
        _sample_header(key, _JSON, key_sum, len(about)),
        about,
        bytes(-len(about) % TAR_BLOCK_BYTES),
    )
    return before, b"".join(after)


def _sample_header(key: bytes, suffix: tuple[bytes, int], key_sum: int, num_bytes: int) -> bytes:
    size, size_sum = _size_field(num_bytes)
    return _HEADER % ((key + suffix[0]).ljust(_MAX_NAME_BYTES, b"\0"), size, key_sum + suffix[1] + size_sum)


@lru_cache(maxsize=4096)  # labels and descriptions have few sizes
def _size_field(num_bytes: int) -> tuple[bytes, int]:
    size = b"%011o" % num_bytes
    return size, sum(size)


def member(name: str, content: bytes) -> bytes:
    """Return header, content and padding of one file."""
    return b"".join((header(name, len(content)), content, bytes(-len(content) % TAR_BLOCK_BYTES)))


def contents(body: bytes) -> list[tuple[int, int]]:
    """Return first byte and byte after the content of each file in a run of members that this module wrote.

    Raises:
        ValueError: It is no such run.
    """
    found = []
    position = 0
    while position < len(body):
        start = position + TAR_BLOCK_BYTES
        stop = start + int(body[position + _SIZE_START : position + _SIZE_STOP], 8)
        found.append((start, stop))
        position = -(-stop // TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES
    return found
