"""The boxes of ISO files (AVIF, HEIC, JPEG 2000): what is in them, without decoding."""

from collections.abc import Iterator

Box = tuple[bytes, int, int]  # kind, and where its content begins and ends


def boxes_of(data: bytes, position: int, stop: int) -> Iterator[Box]:
    """Yield the boxes of an ISO file between two positions."""
    while position + 8 <= stop:
        num_bytes, kind, start = (
            int.from_bytes(data[position : position + 4], "big"),
            data[position + 4 : position + 8],
            8,
        )
        if num_bytes == 1:
            num_bytes, start = int.from_bytes(data[position + 8 : position + 16], "big"), 16
        elif num_bytes == 0:  # to the end
            num_bytes = stop - position
        if num_bytes < start:
            return
        yield kind, position + start, min(stop, position + num_bytes)
        position += num_bytes


def brands_of(data: bytes) -> set[bytes]:
    """Return what an ISO file says it is."""
    _, start, stop = next(boxes_of(data, 0, len(data)), (b"", 0, 0))
    stop = min(stop, start + 256)
    return {data[start : start + 4], *(data[at : at + 4] for at in range(start + 8, stop, 4))}


def inside(data: bytes, boxes: Iterator[Box], kind: bytes, skipped: int = 0) -> Iterator[Box]:
    """Yield the boxes inside the first one of a kind, after so many bytes of its own."""
    for found, start, stop in boxes:
        if found == kind:
            yield from boxes_of(data, start + skipped, stop)
            return


def item_properties(data: bytes) -> tuple[list[Box], set[int]]:
    """Return the properties of an AVIF's items, and the numbers (from 1) of those that the primary item has."""
    meta = list(inside(data, boxes_of(data, 0, len(data)), b"meta", 4))
    property_boxes = list(inside(data, iter(meta), b"iprp"))
    primary = 0
    for kind, start, stop in meta:
        if kind == b"pitm":
            primary = int.from_bytes(data[start + 4 : stop], "big")
    associated: set[int] = set()
    for kind, start, stop in property_boxes:
        if kind == b"ipma":
            associated |= _associations(data[start:stop], primary)
    return list(inside(data, iter(property_boxes), b"ipco")), associated


def _associations(body: bytes, item: int) -> set[int]:
    """Return the numbers of an item's properties from an `ipma` box."""
    id_bytes, index_bytes = (2 if body[:1] == b"\0" else 4), 1 + (body[3:4] >= b"\x01" and body[3] & 1)
    position = 8
    while position + id_bytes < len(body):
        found, count = int.from_bytes(body[position : position + id_bytes], "big"), body[position + id_bytes]
        first = position + id_bytes + 1
        position = first + count * index_bytes
        if found == item:
            mask = (1 << (8 * index_bytes - 1)) - 1  # the first bit says whether it is essential
            return {
                int.from_bytes(body[at : at + index_bytes], "big") & mask
                for at in range(first, min(position, len(body)), index_bytes)
            }
    return set()
