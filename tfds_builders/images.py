"""A release's picture files, made into the one form that every builder stores: 256×256×1 uint8.

Reading is strict, because a picture that is half there still looks like a picture: a radiograph whose lower third is
black would teach a model something, only not about chests. What cannot be read whole is set aside with its reason
(`Quarantine`), the build goes on, and it fails where more than a stated share is set aside.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import csv
import io
import itertools
import os
import struct
import threading
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
from etils import epath
from PIL import Image

from cxr_jax import tables

SIZE = 256  # pixels a side of every stored image
ASPECTS = ("squash", "pad")
MAX_PIXELS = 64 * 10**6  # of a file; the largest detectors give some 20 million, so that more is no radiograph
MAX_BYTES = 8 * MAX_PIXELS  # of a file, or of what is packed in it: 16 bits of four channels
# A picture of MAX_PIXELS takes a gigabyte and more while it is decoded, and packs into kilobytes. Above what detectors give, pictures
# are decoded one at a time, however many threads there are.
_LARGE = 24 * 10**6
_AT_ONCE = 2**24  # bytes
_one_at_a_time = threading.Lock()

# A JPEG is decoded at no less than this many times the size that is stored, so that what the decoder leaves out is
# finer than what the resize keeps: the outcome differs from a full decode's by less than half a gray level.
_OVERSAMPLED = 1.2

MISSING = "missing"
EMPTY = "empty"
NOT_AN_IMAGE = "not an image"
TRUNCATED = "truncated"
CORRUPT = "corrupt"
TOO_LARGE = "too large"
LEADS_OUT = "a link leads out of the release"
NOT_READABLE = "not readable"
NO_DECODER = "no decoder"

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"  # the last chunk's type and checksum, the same in every PNG
_DICOM = b"DICM"  # after a preamble of 128 bytes
_JPEG = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"


class UnreadableImage(Exception):
    """A picture file that cannot be read whole.

    reason: MISSING, EMPTY, NOT_AN_IMAGE (neither PNG, JPEG nor DICOM), TRUNCATED (ends before its format's end mark), CORRUPT
        (whole in length, damaged within), TOO_LARGE (more than MAX_PIXELS or MAX_BYTES), NOT_READABLE (the file system refuses), or what
        begins with NO_DECODER, and goes on with a DICOM's transfer syntax and what is to be installed.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason


def read(path: os.PathLike | str, aspect: str = "squash") -> np.ndarray:
    """The picture at `path`: uint8 [256, 256, 1], 0 black as the file has it. Raises UnreadableImage."""
    try:
        with epath.Path(path).open("rb") as file:
            data = file.read(_AT_ONCE)
            if len(data) == _AT_ONCE:  # most are smaller, and what is asked for is set aside first
                data += file.read(MAX_BYTES + 1 - _AT_ONCE)
    except FileNotFoundError:
        raise UnreadableImage(MISSING) from None
    except OSError as error:
        raise UnreadableImage(NOT_READABLE, str(error)) from None
    if len(data) > MAX_BYTES:
        raise UnreadableImage(TOO_LARGE, f"more than {MAX_BYTES:,} bytes")
    return from_bytes(data, aspect)


def from_bytes(data: bytes, aspect: str = "squash") -> np.ndarray:
    """The picture in a file's content: uint8 [256, 256, 1], as `read`. Raises UnreadableImage."""
    with contextlib.ExitStack() as held:
        gray, extent = _decode(data, int(_OVERSAMPLED * SIZE), held)
        return resize(gray, aspect, extent)[..., None]


def decode(data: bytes) -> np.ndarray:
    """Gray values of a PNG, JPEG or DICOM file: uint8 [h, w]; float32 [h, w] in [0, 255] for DICOM and 16-bit gray PNG.

    16-bit gray: the range of 16 bits, or of 12 or 10 where these hold every value of the picture, becomes 0..255, and not
        the range that the picture uses, so that two pictures stay comparable; nothing is rounded before the resize.
        Detectors give 10 or 12 bits (in PadChest all do), which some releases keep as they are and others stretch: taken
        for 16 bits, 12 would be nearly black. No radiograph is stretched and yet darker than a sixteenth of white.
    RGB, palette and CMYK: luma after ITU-R BT.601, which leaves equal channels as they are. 16-bit colour counts by its
        high bytes.
    Alpha is ignored: radiographs that carry one (NIH's RGBA files) have it constant, an artefact of conversion.

    Raises UnreadableImage. A PNG carries checksums, so any damage shows; a JPEG carries none, so that bytes changed in
    its middle may pass.
    """
    with contextlib.ExitStack() as held:
        return _decode(data, None, held)[0]


def _decode(data: bytes, least: int | None, held: contextlib.ExitStack) -> tuple[np.ndarray, tuple[float, float]]:
    """As `decode`, and the picture's height and width in pixels of what is returned.

    least: lets a JPEG be decoded at a half, a quarter or an eighth of its size, by leaving out the frequencies that a
        smaller picture cannot hold, as long as both sides keep this many pixels; None decodes every file as it is. The
        last row and column of a reduced picture stand for blocks that are partly empty where its size is no multiple of
        eight, so that the picture ends within them.
    held: takes what is to be held as long as the picture is.
    """
    if not data:
        raise UnreadableImage(EMPTY)
    if data[128:132] == _DICOM:
        gray = _decode_dicom(data, held)
        return gray, gray.shape
    if not data.startswith((_PNG, _JPEG)):
        raise UnreadableImage(NOT_AN_IMAGE)
    end = _PNG_END if data.startswith(_PNG) else _JPEG_END
    if data.rfind(end) < 0:  # from the end, where it is found at once
        raise UnreadableImage(TRUNCATED)
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImage(TOO_LARGE, f"{image.width}x{image.height} pixels")
            # Decoding a PNG passes over its checksums, and so over damage that still inflates to pixels.
            image.verify()
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            width, height = image.size
            if least is not None:
                image.draft("L", (least, least))  # nothing but JPEG can
            # Reduced sizes are whole blocks over the factor, rounded up: the factor is the power of two nearest to it.
            factor = 2 ** round(np.log2(max(width / image.width, height / image.height)))
            extent = (height / factor, width / factor)
            held.enter_context(_room_for(image.width * image.height))
            if image.mode.startswith("I"):
                deep = np.asarray(image, dtype=np.float32)
                white = next((2**bits - 1 for bits in (10, 12) if deep.max() < 2**bits), 2**16 - 1)
                return np.clip(deep * np.float32(255 / white), 0, 255), extent
            if image.mode in ("P", "CMYK"):
                return np.asarray(image.convert("RGB").convert("L")), extent
            return np.asarray(image.convert("L")), extent
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(TOO_LARGE, str(error)) from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error) as error:
        # Pillow's word for a broken file is whatever its parser stumbled over.
        # A JPEG's end mark may also stand in an embedded thumbnail, so its presence proves nothing.
        reason = TRUNCATED if "truncated" in str(error).lower() else CORRUPT
        raise UnreadableImage(reason, str(error)) from None


def _room_for(pixels: int) -> contextlib.AbstractContextManager:
    """To be held while a picture of so many pixels is decoded."""
    return _one_at_a_time if pixels > _LARGE else contextlib.nullcontext()


def _decode_dicom(data: bytes, held: contextlib.ExitStack) -> np.ndarray:
    """float32 [h, w] in [0, 255], black low, as the file asks to be shown.

    The order is DICOM's (PS3.3 C.11.1, C.11.2; PS3.4 N.2): rescale or modality table, then the first window or VOI
    table, then MONOCHROME1 turned over. The range that the outcome could have becomes 0 to 255, not the range that it
    has, so that two pictures stay comparable.
    """
    import pydicom
    from pydicom import pixels

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on values that are not as the standard has them, in tags we do not read
            dataset = _read_dicom(data)
            if "PixelData" not in dataset:
                raise UnreadableImage(NOT_AN_IMAGE, "DICOM without PixelData")
            if dataset.get("SamplesPerPixel", 1) != 1 or int(dataset.get("NumberOfFrames") or 1) != 1:
                raise UnreadableImage(CORRUPT, "DICOM with several frames or colours; one gray picture expected")
            if dataset.Rows * dataset.Columns > MAX_PIXELS:
                raise UnreadableImage(TOO_LARGE, f"{dataset.Columns}x{dataset.Rows} pixels")
            _check_decoder(dataset.file_meta.TransferSyntaxUID, dataset.BitsStored)
            _check_frame(dataset)
            held.enter_context(_room_for(dataset.Rows * dataset.Columns))
            stored = dataset.pixel_array
            signed, bits = dataset.PixelRepresentation, dataset.BitsStored
            extremes = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1], stored.dtype)
            shown, limits = (
                np.asarray(pixels.apply_voi_lut(pixels.apply_modality_lut(values, dataset), dataset), np.float64)
                for values in (stored, extremes)
            )
    except UnreadableImage:
        raise
    except Exception as error:  # pydicom's word for a broken file is whatever it stumbled over
        short = isinstance(error, EOFError) or "less than expected" in str(error)
        reason = TRUNCATED if short else CORRUPT
        raise UnreadableImage(reason, str(error)) from None
    low, high = min(limits.min(), shown.min()), max(limits.max(), shown.max())
    gray = (shown - low) / (high - low) * 255 if high > low else np.zeros_like(shown)
    return (255 - gray if dataset.PhotometricInterpretation == "MONOCHROME1" else gray).astype(np.float32)


def _read_dicom(data: bytes):
    """The pydicom.Dataset of a file. Raises UnreadableImage for one that is packed as a whole, and larger than MAX_BYTES unpacked."""
    import pydicom
    from pydicom import dataset, filereader, uid

    file = io.BytesIO(data)
    file.seek(len(_DICOM) + 128)
    about = filereader.read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, *_: tag.group != 2)
    if about.get("TransferSyntaxUID") != uid.DeflatedExplicitVRLittleEndian:
        return pydicom.dcmread(io.BytesIO(data))
    # Which pydicom would unpack whatever it comes to: a megabyte may hold a gigabyte.
    inflating = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = inflating.decompress(file.read(), MAX_BYTES)
    if inflating.unconsumed_tail:
        raise UnreadableImage(TOO_LARGE, f"more than {MAX_BYTES:,} bytes unpacked")
    if not inflating.eof:
        raise UnreadableImage(TRUNCATED)
    found = filereader.read_dataset(io.BytesIO(plain), is_implicit_VR=False, is_little_endian=True)
    found.file_meta = dataset.FileMetaDataset()
    found.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    return found


_SIZES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7)  # JPEG's and JPEG-LS's markers that give a size


def _check_frame(dataset) -> None:
    """Raises UnreadableImage where a compressed picture is of another size than its DICOM header says: decoders go by its own, however large."""
    from pydicom import encaps, uid

    syntax, rows, columns = dataset.file_meta.TransferSyntaxUID, dataset.Rows, dataset.Columns
    if not syntax.is_encapsulated:
        return
    frame, found = next(encaps.generate_frames(dataset.PixelData, number_of_frames=1)), None
    if syntax == uid.RLELossless:
        return _check_runs(frame, rows * columns * dataset.BitsAllocated // 8)
    if frame.startswith(b"\xff\xd8"):
        at = 2
        while at + 9 <= len(frame) and frame[at] == 0xFF:
            if frame[at + 1] in _SIZES:
                found = struct.unpack_from(">2H", frame, at + 5)
                break
            at += 1 if frame[at + 1] == 0xFF else 2 + struct.unpack_from(">H", frame, at + 2)[0]  # one that fills, or a segment
    elif (start := frame.find(b"\xff\x4f\xff\x51")) >= 0:  # where the code of JPEG 2000 begins, and its size
        right, below, left, above = struct.unpack_from(">4I", frame, start + 8)
        found = below - above, right - left
    if found is not None and tuple(found) != (rows, columns):
        raise UnreadableImage(CORRUPT, f"the picture within is {found[1]}x{found[0]}, its header says {columns}x{rows}")


def _check_runs(frame: bytes, length: int) -> None:
    """Raises UnreadableImage where DICOM's run-length code (PS3.5 G.3) unpacks to more than `length` bytes, and a few that fill the last run."""
    count, *starts = struct.unpack_from("<16I", frame)
    starts, unpacked = [*starts[: min(count, 15)], len(frame)], 0
    for at, end in itertools.pairwise(starts):
        while at < end and unpacked <= length + 128 * len(starts):
            run = frame[at]
            unpacked += run + 1 if run < 128 else 257 - run if run > 128 else 0
            at += run + 2 if run < 128 else 2 if run > 128 else 1
    if unpacked > length + 128 * len(starts):
        raise UnreadableImage(CORRUPT, f"the picture within unpacks to more than the {length:,} bytes that its header says")


def _check_decoder(syntax, bits: int) -> None:
    """Raises UnreadableImage, with a reason that says what to install, where nothing decodes `bits` of a transfer syntax."""
    from pydicom import pixels, uid

    try:
        decoder = pixels.get_decoder(syntax)
    except NotImplementedError:
        raise UnreadableImage(f"{NO_DECODER} for {syntax.name}, nor is one known") from None
    able = set(decoder.available_plugins)
    if syntax == uid.JPEGExtended12Bit and bits > 8:
        able -= {"pillow"}  # which pydicom asks all the same
    if syntax.is_encapsulated and not able:
        needed = [dependency.partition(" - requires ")[2] for dependency in decoder.missing_dependencies]
        raise UnreadableImage(f"{NO_DECODER} for {syntax.name}; install {' or '.join(n for n in needed if 'pylibjpeg' in n)}")


def resize(gray: np.ndarray, aspect: str = "squash", extent: tuple[float, float] | None = None) -> np.ndarray:
    """[h, w] in 0..255 → uint8 [256, 256]; a triangle filter as wide as the reduction, so that nothing aliases.

    aspect: `squash` scales both sides to 256, whatever their ratio; `pad` scales the longer side to 256, keeps the
        ratio, and adds black on both sides of the shorter one (an odd pixel goes right or below).
    extent: height and width of the picture, in pixels of `gray`, where it does not fill the last row and column.
    """
    check_aspect(aspect)
    height, width = extent or gray.shape
    box = (0, 0, width, height)
    if aspect == "pad":
        scale = SIZE / max(height, width)
        height, width = max(1, round(height * scale)), max(1, round(width * scale))
    else:
        height = width = SIZE
    small = np.asarray(Image.fromarray(gray).resize((width, height), Image.Resampling.BILINEAR, box))
    if small.dtype != np.uint8:
        small = np.clip(np.rint(small), 0, 255).astype(np.uint8)
    top, left = (SIZE - height) // 2, (SIZE - width) // 2
    return np.pad(small, ((top, SIZE - height - top), (left, SIZE - width - left)))


def check_aspect(aspect: str) -> None:
    if aspect not in ASPECTS:
        raise tables.UserError(f"aspect: {aspect!r} found, {' or '.join(ASPECTS)} expected")


class Quarantine:
    """The images of a release that cannot be read, each with its path and reason.

    source: how errors name the release.
    listed: images that the release lists, of which the share is taken.
    max_share: of `listed`, in [0, 1]; one image more than this share raises UserError.
    """

    COLUMNS = ("image_id", "path", "reason")

    def __init__(self, source: str, listed: int, max_share: float):
        if not 0 <= max_share <= 1:
            raise tables.UserError(f"max_unreadable_share: {max_share} found, a share in [0, 1] expected")
        self.source = source
        self.listed = listed
        self.max_share = max_share
        self.rows: list[tuple[str, str, str]] = []

    def add(self, *rows: tuple[str, str, str]) -> None:
        """Sets aside (image_id, path, reason). Raises UserError when the share is passed, not after an hour."""
        self.rows.extend(rows)
        if len(self.rows) > self.max_share * self.listed:
            reasons = ", ".join(f"{n} {reason}" for reason, n in self.reasons().items())
            first = "; ".join(f"{path}: {reason}" for _, path, reason in self.rows[:3])
            raise tables.UserError(
                f"{self.source}: of {self.listed} images, {len(self.rows)} or more cannot be read ({reasons}), above"
                f" the share of {self.max_share:g} that max_unreadable_share allows; the first: {first}"
            )

    def reasons(self) -> dict[str, int]:
        """How many images for each reason, the most frequent first."""
        return dict(Counter(reason for *_, reason in self.rows).most_common())

    def write(self, path: os.PathLike | str) -> None:
        """A CSV of COLUMNS, in the order of image_id, with its header even where nothing is set aside."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.COLUMNS)
        writer.writerows(sorted(self.rows))
        tables.write_text(path, text.getvalue())


def read_all(
    files: Iterable[tuple[str, os.PathLike]], root: os.PathLike, aspect: str, quarantine: Quarantine
) -> Iterator[tuple[str, np.ndarray]]:
    """Reads (image_id, path) pairs in their order; yields (image_id, uint8 [256, 256, 1]) of those that can be read.

    The others go to `quarantine`, with their path below `root`. Decoding runs in threads, a bounded number of files
    ahead (Pillow lets go of the interpreter's lock while it works), and neither order nor result depend on it.
    """
    check_aspect(aspect)

    def attempt(file):
        try:
            return read(file[1], aspect)
        except UnreadableImage as error:
            return error

    with concurrent.futures.ThreadPoolExecutor() as pool:
        files = iter(files)
        while batch := list(itertools.islice(files, 64)):
            for (image_id, path), result in zip(batch, pool.map(attempt, batch), strict=True):
                if isinstance(result, UnreadableImage):
                    quarantine.add((image_id, epath.Path(path).relative_to(root).as_posix(), result.reason))
                else:
                    yield image_id, result
