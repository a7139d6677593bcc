"""Each further format is read whole, upright and in RGB, or refused before memory is taken, with what is missing."""

import base64
import struct
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.base.errors import BadImage
from pipeline.image.decode import decode, read_jpeg_header
from pipeline.image.policy import ImagePolicy, prepare
from tests.conftest import cli, jpeg

ROWS, COLUMNS = np.mgrid[0:48, 0:64]
RGB = np.stack([COLUMNS * 4, ROWS * 5, (COLUMNS + ROWS) * 2], -1).astype(np.uint8)  # a smooth one, of 48 rows
ALPHA = (COLUMNS * 4).astype(np.uint8)
# RGB by libheif and x265 at quality 60; and by libavif at 90, turned by `irot` as a phone does.
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAX1tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAAAA"
    "AERAAAEAAQAAAAABoQABAAAAAAAAAIsAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/WlwcnAAAADd"
    "aXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAA"
    "AwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xh"
    "cAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AAAAACAAAAEHBpeGkAAAAAAwgICAAAABhpcG1hAAAAAAAAAAEAAQWBAgMFhAAAAJNtZGF0AAAA"
    "hygBrwngPg6bnk4QeI6NhB+gzRduc7iO9n3mafBP5cmyZnuztXvUUzhK6NU7sWcA7I0vl86H9Ue3sfALRIZ/J7btyt6EA98xO8rXVthAK+UgPQYB"
    "xepHXPfLo4yzCk6HpkCIX9ekkS/T+SVGO8hShDLBPEFPgN/CRphwfopt5KyD7Xk+TjNH6g=="
)
TURNED_AVIF = base64.b64decode(
    "AAAAIGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZk1BMUIAAAD1bWV0YQAAAAAAAAAhaGRscgAAAAAAAAAAcGljdAAAAAAAAAAAAAAAAAAAAAAOcGl0"
    "bQAAAAAAAQAAAB5pbG9jAAAAAEQAAAEAAQAAAAEAAAEdAAAAzgAAAChpaW5mAAAAAAABAAAAGmluZmUCAAAAAAEAAGF2MDFDb2xvcgAAAAB0aXBy"
    "cAAAAFRpcGNvAAAAFGlzcGUAAAAAAAAAQAAAADAAAAAQcGl4aQAAAAADCAgIAAAADGF2MUOBAAwAAAAAE2NvbHJuY2x4AAEADQAGgAAAAAlpcm90"
    "AwAAABhpcG1hAAAAAAAAAAEAAQUBAoMEhQAAANZtZGF0EgAKCRgVf72iAhoNCDK+ARIH9/apAIIIPkAAAM/LcaUqFR02elDfY0QMF52trByzbkBd"
    "tgMZ8/BlyxeOeaXm5cpiUbMDnO6tvWQuTwZs4qG8mxmtlyWVCYpmQDFNKp0BAcuO5QnZTseJ1IBO8oVXyzjgtDrD+CHM2fB0n4JhqJW0hEgVa7zV"
    "8fH9lftFkbU2P1esaE95G+h9RhfB46sffJoamevhrdzTTuyZbTvNQOO5YUsItW7yeTynAxSKXSN2pF1wYgCQqtrQoSrVEmQ="
)

EXIF_SIX = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # orientation 6


def opencv(extension: str, pixels: np.ndarray = RGB, *options: int) -> bytes:
    ordered = pixels if pixels.ndim == 2 else pixels[..., [2, 1, 0, *range(3, pixels.shape[2])]]
    ok, data = cv2.imencode(extension, ordered, options)
    assert ok
    return bytes(data)


def webp(pixels: np.ndarray = RGB) -> bytes:
    return opencv(".webp", pixels)  # without a quality: lossless


def tiff(compression: int, pixels: np.ndarray = RGB) -> bytes:
    return opencv(".tiff", pixels, cv2.IMWRITE_TIFF_COMPRESSION, compression)


def avif(pixels: np.ndarray = RGB) -> bytes:
    return opencv(".avif", pixels, cv2.IMWRITE_AVIF_QUALITY, 95)


def jpeg_xl(pixels: np.ndarray = RGB) -> bytes:
    return bytes(pytest.importorskip("pylibjxl").encode(pixels, lossless=True))


def heic() -> bytes:
    pytest.importorskip("cykooz_heif")
    return HEIC


def over_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    weight = alpha[..., None] / 255.0
    return pixels * weight + 255.0 * (1.0 - weight)


def refused(data: bytes) -> BadImage:
    with pytest.raises(BadImage) as caught:
        decode(data)
    return caught.value


FORMATS: dict[str, Callable[[], bytes]] = {
    "webp": webp,
    "avif": avif,
    "jp2": lambda: opencv(".jp2"),
    "tiff-lzw": lambda: tiff(5),
    "tiff-jpeg": lambda: tiff_of(jpeg(RGB), {259: 7, 262: 6, 277: 3}),
    "tiff-deflate": lambda: tiff(8),
    "tiff-packbits": lambda: tiff(32773),
    "jxl": jpeg_xl,
    "heic": heic,
}


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_becomes_a_jpeg_of_the_same_picture(name: str) -> None:
    data = FORMATS[name]()
    assert np.abs(decode(data).astype(int) - RGB).mean() < 4
    stored = prepare(data, ImagePolicy())
    assert read_jpeg_header(stored.data).is_plain
    assert (stored.width, stored.height) == (64, 48)
    assert stored.code is not None
    assert prepare(data, ImagePolicy()) == stored


@pytest.mark.parametrize("name", FORMATS)
def test_a_truncated_file_is_refused(name: str) -> None:
    data = FORMATS[name]()
    for kept in (len(data) // 2, len(data) * 9 // 10):
        assert refused(data[:kept]).reason == "truncated"


def test_class_folders_of_each_format_are_packed(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "shapes"
    folder.mkdir(parents=True)
    for name in ("webp", "avif", "jp2", "tiff-deflate"):
        (folder / f"{name}.{name.partition('-')[0]}").write_bytes(FORMATS[name]())
    printed = cli("shard", tmp_path / "in", tmp_path / "set")
    assert "4 samples" in printed


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    "encode", [webp, lambda p: opencv(".jp2", p), lambda p: tiff(5, p), lambda p: tiff(8, p), avif]
)
def test_transparency_shows_white_at_any_depth(encode: Callable[[np.ndarray], bytes], bits: int) -> None:
    pixels = np.dstack([RGB, ALPHA])
    if bits == 16:
        if encode in (webp, avif):
            pytest.skip("the encoder has 8 bits only")
        pixels = pixels.astype(np.uint16) * 257
    assert np.abs(decode(encode(pixels)) - over_white(RGB, ALPHA)).mean() < 4


def test_jpeg_xl_with_transparency_shows_white() -> None:
    assert np.abs(decode(jpeg_xl(np.dstack([RGB, ALPHA]))) - over_white(RGB, ALPHA)).mean() < 1


def test_ten_bits_are_scaled_not_clipped() -> None:
    data = opencv(".avif", RGB.astype(np.uint16) * 4, cv2.IMWRITE_AVIF_DEPTH, 10, cv2.IMWRITE_AVIF_QUALITY, 95)
    assert np.abs(decode(data).astype(int) - RGB).mean() < 4


@pytest.mark.parametrize(
    ("values", "scale"), [(np.uint16, 257), (np.float32, 1 / 255)], ids=["16 bit", "floating point"]
)
def test_grey_tiff_of_many_bits_is_scaled(values: type, scale: float) -> None:
    grey = RGB[..., 0]
    pixels = decode(tiff(8, (grey * scale).astype(values) if scale < 1 else grey.astype(values) * values(scale)))
    assert np.abs(pixels[..., 1].astype(int) - grey).max() <= 1


@pytest.mark.parametrize("extension", [".webp", ".avif"])
def test_of_an_animation_the_first_frame_is_stored(extension: str) -> None:
    frames = cv2.Animation()
    frames.frames = [np.ascontiguousarray(RGB[..., ::-1]), np.ascontiguousarray(RGB[::-1, :, ::-1])]
    frames.durations = [100, 100]
    ok, data = cv2.imencodeanimation(extension, frames)
    assert ok
    assert np.abs(decode(bytes(data)).astype(int) - RGB).mean() < 4


def test_orientation_of_webp_tiff_and_avif_is_applied() -> None:
    upright = np.rot90(RGB, -1)
    exif = b"EXIF" + struct.pack("<I", len(EXIF_SIX)) + EXIF_SIX
    data = webp() + exif
    data = data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
    assert np.array_equal(decode(data), upright)
    for bits in (8, 16):
        pixels = RGB if bits == 8 else RGB.astype(np.uint16) * 257
        assert np.array_equal(decode(turned_tiff(tiff(8, pixels))), upright)
    assert np.abs(decode(TURNED_AVIF).astype(int) - upright).mean() < 4


def turned_tiff(data: bytes) -> bytes:
    """Return the file with orientation 6 in place of its number of pages' like: a tag that nothing needs."""
    start = struct.unpack("<I", data[4:8])[0]
    (count,) = struct.unpack("<H", data[start : start + 2])
    entries = [data[start + 2 + 12 * number : start + 14 + 12 * number] for number in range(count)]
    tags = [entry for entry in entries if entry[:2] != struct.pack("<H", 274)]
    tags.append(struct.pack("<HHII", 274, 3, 1, 6))
    listed = b"".join(sorted(tags, key=lambda entry: entry[:2][::-1]))
    return data[:4] + struct.pack("<I", len(data)) + data[8:] + struct.pack("<H", len(tags)) + listed + bytes(4)


def test_cmyk_tiff_becomes_rgb(tmp_path: Path) -> None:
    path = tmp_path / "raw.tiff"
    Image.fromarray(RGB).convert("CMYK").save(path)  # Pillow writes it uncompressed
    pixels = np.asarray(Image.open(path))
    assert np.array_equal(decode(deflated(pixels, photometric=5)), decode(path.read_bytes()))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("extra", [None, 0, 1, 2])
def test_what_a_tiff_says_of_its_fourth_channel_is_heeded(extra: int | None, bits: int) -> None:
    multiplied = extra == 1  # associated alpha
    colours = (RGB * (ALPHA[..., None] / 255.0)).astype(np.uint8) if multiplied else RGB
    pixels = np.dstack([colours, ALPHA]).astype(f"uint{bits}") * (257 if bits == 16 else 1)
    expected = RGB if extra == 0 else over_white(RGB, ALPHA)
    assert np.abs(decode(deflated(pixels, photometric=2, extra=extra)) - expected).max() <= 2


def deflated(pixels: np.ndarray, photometric: int, extra: int | None = None) -> bytes:
    strip = zlib.compress(pixels.tobytes())
    further = {} if extra is None else {338: extra}
    return tiff_of(strip, {258: 8 * pixels.itemsize, 259: 8, 262: photometric, 277: 4} | further)


def tiff_of(strip: bytes, tags: dict[int, int]) -> bytes:
    """Return a TIFF of 64x48 pixels in one strip, with tags of one value each."""
    tags = {256: 64, 257: 48, 258: 8, 273: 8, 277: 1, 278: 48, 279: len(strip)} | tags
    channels, at = tags[277], 8 + len(strip)
    depths = struct.pack("<4H", *[tags[258]] * 4)
    entries = {tag: struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()}
    if channels > 2:
        entries[258] = struct.pack("<HHII", 258, 3, channels, at)
    directory = struct.pack("<H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4)
    return b"II*\0" + struct.pack("<I", at + 8) + strip + depths + directory


def patched(data: bytes, mark: bytes, offset: int, new: bytes) -> bytes:
    at = data.index(mark) + offset
    return data[:at] + new + data[at + len(new) :]


HUGE = {
    "webp": lambda: patched(webp(), b"VP8L", 9, struct.pack("<I", 0x0FFFFFFF)),
    "webp-canvas": lambda: patched(webp(np.dstack([RGB, ALPHA])), b"RIFF", 12, b"VP8X" + bytes(8) + b"\xff" * 6),
    "avif": lambda: patched(avif(), b"ispe", 8, struct.pack(">2I", 60_000, 60_000)),
    "heic": lambda: patched(heic(), b"ispe", 8, struct.pack(">2I", 16_000, 16_000)),
    "jp2": lambda: patched(opencv(".jp2"), b"\xff\x4f\xff\x51", 8, struct.pack(">2I", 60_000, 60_000)),
    "tiff": lambda: tiff_of(b"", {256: 60_000, 257: 60_000, 259: 5}),
    "tiff-tile": lambda: tiff_of(b"", {322: 60_000, 323: 60_000, 259: 5}),
    # Two bits of type, 18 of the height less 1, ratio 1:1, then what is default.
    "jxl": lambda: (
        pytest.importorskip("pylibjxl")
        and b"\xff\x0a" + (0b100 | 99_999 << 3 | 1 << 21 | 1 << 24).to_bytes(40, "little")
    ),
}


@pytest.mark.parametrize("name", HUGE)
def test_a_decompression_bomb_is_refused_by_its_header(name: str) -> None:
    assert refused(HUGE[name]()).reason == "too-large"


@pytest.mark.parametrize(
    ("compression", "name"), [(50000, "zstd"), (34925, "lzma"), (50001, "webp"), (12345, "number 12345")]
)
def test_the_reason_names_the_missing_codec_of_a_tiff(compression: int, name: str) -> None:
    data = patched(tiff(8), struct.pack("<HHI", 259, 3, 1), 8, struct.pack("<H", compression))
    error = refused(data)
    assert error.reason == "no-decoder"
    assert name in error.detail


@pytest.mark.parametrize(
    ("module", "data", "name"),
    [("pylibjxl", b"\xff\x0a rest", "JPEG XL"), ("cykooz_heif.errors", HEIC, "HEIC")],
)
def test_without_its_wheel_the_reason_names_the_format_and_the_remedy(
    monkeypatch: pytest.MonkeyPatch, module: str, data: bytes, name: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as where no wheel fits
    error = refused(data)
    assert error.reason == "no-decoder"
    assert name in error.detail
    assert "pip install -e '.[formats]'" in error.detail


def test_damaged_bytes_are_refused_or_decoded_and_nothing_else() -> None:
    generator = np.random.default_rng(0)
    for name, make in FORMATS.items():
        if name in ("heic", "jxl"):
            continue  # their wheels may be missing
        data = make()
        for _ in range(60):
            damaged = np.frombuffer(data, np.uint8).copy()
            damaged[generator.integers(0, min(len(data), 300), 2)] = generator.integers(0, 256, 2)
            with suppress(BadImage):
                assert decode(damaged.tobytes()).ndim == 3
