"""Pictures are read right whatever their depth and mode, or refused with the reason."""

import io
import struct
import zlib

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageFile
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGExtended12Bit, JPEGLSLossless, RLELossless, generate_uid

from cxr_jax.tables import UserError
from tfds_builders import images


def encoded(array, form="PNG", mode=None, **options) -> bytes:
    picture = Image.fromarray(array)
    data = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(data, form, **options)
    return data.getvalue()


@pytest.fixture
def gray():
    """Noise, so that no two pixels that could be mixed up are alike, and compressed data are long enough to cut."""
    return np.random.default_rng(0).integers(0, 256, (300, 200), dtype=np.uint8)


def rgba(gray, alpha):
    return np.dstack([gray, gray, gray, np.broadcast_to(np.uint8(alpha), gray.shape)])


def test_gray_comes_back_bit_for_bit(gray):
    np.testing.assert_array_equal(images.decode(encoded(gray)), gray)


@pytest.mark.parametrize("alpha", [255, 128, 0])
def test_alpha_is_ignored(gray, alpha):
    np.testing.assert_array_equal(images.decode(encoded(rgba(gray, alpha))), gray)


def test_equal_colours_are_gray(gray):
    np.testing.assert_array_equal(images.decode(encoded(np.dstack([gray] * 3))), gray)


def test_colour_is_luma():
    colour = np.zeros((1, 3, 3), np.uint8)
    colour[0, [0, 1, 2], [0, 1, 2]] = 255
    # ITU-R BT.601 weights of red, green and blue.
    np.testing.assert_allclose(images.decode(encoded(colour))[0], np.array([0.299, 0.587, 0.114]) * 255, atol=0.51)


@pytest.mark.parametrize("mode", ["LA", "P"])
def test_gray_with_alpha_and_palette(gray, mode):
    np.testing.assert_array_equal(images.decode(encoded(gray, mode=mode)), gray)


def test_one_bit(gray):
    np.testing.assert_array_equal(images.decode(encoded(gray > 127)), np.where(gray > 127, 255, 0))


def test_cmyk_jpeg():
    flat = np.full((16, 16), 90, np.uint8)
    np.testing.assert_allclose(images.decode(encoded(flat, "JPEG", mode="CMYK", quality=95)), 90, atol=2)


def test_jpeg():
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    np.testing.assert_allclose(images.decode(encoded(ramp, "JPEG", quality=95)), ramp, atol=4)


def test_sixteen_bits_are_scaled_from_their_whole_range():
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    values = images.decode(encoded(deep))
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, deep / 65535 * 255, rtol=1e-6)
    # Clipping to eight bits, which a plain conversion does, would leave 255 in all but the first row.
    np.testing.assert_array_equal(images.resize(values), np.rint(deep / 65535 * 255).astype(np.uint8))


def test_a_dim_sixteen_bit_picture_stays_dim():
    dim = np.full((64, 64), 65535 // 5, np.uint16)
    assert (images.resize(images.decode(encoded(dim))) == 51).all()


@pytest.mark.parametrize("brightest, bits", [(1023, 10), (1024, 12), (4095, 12), (4096, 16), (65535, 16)])
def test_sixteen_bit_words_that_hold_fewer_bits_are_scaled_from_those(brightest, bits):
    ramp = np.linspace(0, brightest, 64 * 64).round().astype(np.uint16).reshape(64, 64)
    np.testing.assert_allclose(images.decode(encoded(ramp)), ramp / (2**bits - 1) * 255, rtol=1e-6)


def test_sixteen_bits_resize_as_eight_do(gray):
    eight = images.resize(images.decode(encoded(gray)))
    sixteen = images.resize(images.decode(encoded(gray.astype(np.uint16) * 257)))
    # Eight bits are rounded between the two passes of the filter.
    assert np.abs(eight.astype(int) - sixteen).max() <= 1


def test_squash_fills_the_square():
    halves = np.zeros((100, 500), np.uint8)
    halves[:, 250:] = 200
    square = images.resize(halves, "squash")
    assert square.shape == (256, 256) and square.dtype == np.uint8
    assert (square[:, :126] == 0).all() and (square[:, 130:] == 200).all()


@pytest.mark.parametrize(
    ("shape", "rows", "columns"),
    [
        ((500, 250), slice(0, 256), slice(64, 192)),
        ((250, 500), slice(64, 192), slice(0, 256)),
        ((256, 255), slice(0, 256), slice(0, 255)),  # the odd column goes right
        ((2000, 1), slice(0, 256), slice(127, 128)),  # never thinner than a pixel
    ],
)
def test_pad_keeps_the_ratio_and_centres(shape, rows, columns):
    square = images.resize(np.full(shape, 200, np.uint8), "pad")
    inside = np.zeros((256, 256), bool)
    inside[rows, columns] = True
    np.testing.assert_array_equal(square, np.where(inside, 200, 0))


def test_reduction_does_not_alias():
    # Single-pixel stripes have nothing that survives a reduction by four: gray is right, any stripe would be an alias.
    stripes = np.tile(np.array([0, 255], np.uint8), (1024, 512))
    small = images.resize(stripes).astype(int)
    assert np.abs(small[:, 1:-1] - 127).max() <= 2
    assert np.abs(small - 127).max() <= 12  # at the rim the filter has one side only


def test_unknown_aspect():
    with pytest.raises(UserError, match=r"aspect: 'crop' found, squash or pad expected"):
        images.resize(np.zeros((4, 4), np.uint8), "crop")


def reason(data: bytes) -> str:
    with pytest.raises(images.UnreadableImage) as caught:
        images.decode(data)
    return caught.value.reason


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.95])
def test_truncated(gray, form, kept):
    data = encoded(gray, form)
    assert reason(data[: int(len(data) * kept)]) == images.TRUNCATED


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("cut", [1, 2, 12, 16, 20])
def test_truncated_by_a_few_bytes(gray, form, cut):
    assert reason(encoded(gray, form)[:-cut]) == images.TRUNCATED


def test_truncated_although_an_end_mark_is_there(gray):
    # As in a JPEG that holds a thumbnail, or a PNG whose text quotes one.
    data = encoded(gray, "JPEG", comment=b"\xff\xd9")
    assert reason(data[: len(data) // 2]) == images.TRUNCATED


def test_truncation_is_not_let_pass_by_pillow():
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_damage_that_still_inflates(gray):
    data = bytearray(encoded(gray, compress_level=0))  # stored, not compressed: a changed byte is a changed pixel
    data[len(data) // 2] ^= 0xFF
    assert reason(bytes(data)) == images.CORRUPT


def test_a_broken_chunk_after_the_picture(gray):
    """Pillow reads chunks that follow the pixels too, and fails there in ways of its own."""
    data = encoded(gray)
    body = b"iCCP" + b"icc\0"  # a colour profile that ends where its method of compression should stand
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    assert reason(data[:-12] + chunk + data[-12:]) == images.CORRUPT


def test_empty_and_not_an_image(gray):
    assert reason(b"") == images.EMPTY
    assert reason(b"<html>404 Not Found</html>") == images.NOT_AN_IMAGE
    assert reason(encoded(gray, "GIF")) == images.NOT_AN_IMAGE


def test_a_decompression_bomb_is_refused_unopened(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 10**6)
    assert reason(encoded(np.zeros((1000, 1001), np.uint8))) == images.TOO_LARGE
    assert images.decode(encoded(np.zeros((1000, 1000), np.uint8))).shape == (1000, 1000)


@pytest.mark.parametrize("side", [9_500, 14_000])  # above where Pillow warns, and above where it refuses
def test_pillow_s_own_guard_is_a_reason_too(side):
    assert reason(encoded(np.zeros((side, side), bool))) == images.TOO_LARGE


def test_read_names_what_the_file_system_refuses(tmp_path, gray):
    (tmp_path / "a.png").write_bytes(encoded(gray))
    assert images.read(tmp_path / "a.png").shape == (256, 256, 1)
    (tmp_path / "folder.png").mkdir()
    for name, expected in (("none.png", images.MISSING), ("folder.png", images.NOT_READABLE)):
        with pytest.raises(images.UnreadableImage) as caught:
            images.read(tmp_path / name)
        assert caught.value.reason == expected


def test_read_all_sets_aside_what_it_cannot_read(tmp_path, gray):
    quarantine = images.Quarantine("here", 100, 0.02)
    for i in range(100):
        (tmp_path / f"{i:02d}.png").write_bytes(encoded(np.full((3, 3), i, np.uint8)))
    (tmp_path / "90.png").write_bytes(b"")
    (tmp_path / "07.png").write_bytes(b"not a picture")
    files = [(f"{i:02d}", tmp_path / f"{i:02d}.png") for i in reversed(range(100))]
    read = list(images.read_all(files, tmp_path, "squash", quarantine))
    assert [name for name, _ in read] == [f"{i:02d}" for i in reversed(range(100)) if i not in (7, 90)]
    assert all((image == int(name)).all() for name, image in read)
    quarantine.write(tmp_path / "quarantine.csv")
    assert (tmp_path / "quarantine.csv").read_text() == (
        "image_id,path,reason\n07,07.png,not an image\n90,90.png,empty\n"
    )


def test_quarantine_fails_above_its_share_and_not_at_it():
    quarantine = images.Quarantine("the release", 200, 0.01)
    quarantine.add(("a", "images/a.png", images.EMPTY), ("b", "images/b.png", images.EMPTY))
    with pytest.raises(
        UserError,
        match=r"the release: of 200 images, 3 or more cannot be read \(2 empty, 1 truncated\), above the share of 0.01 "
        r"that max_unreadable_share allows; the first: images/a.png: empty",
    ):
        quarantine.add(("c", "images/c.png", images.TRUNCATED))


def test_a_share_of_zero_allows_none():
    with pytest.raises(UserError, match="1 or more cannot be read"):
        images.Quarantine("r", 10, 0).add(("a", "a.png", images.EMPTY))


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_is_a_share(share):
    with pytest.raises(UserError, match="max_unreadable_share"):
        images.Quarantine("r", 10, share)


# ---- JPEGs at reduced size -------------------------------------------------------------------------


def radiograph_like(height, width):
    """Smooth, with edges and grain, so that a filter that differs shows."""
    rng = np.random.default_rng(height * width)
    coarse = np.asarray(Image.fromarray(rng.integers(0, 256, (24, 20), dtype=np.uint8)).resize((width, height)), float)
    coarse[height // 3 : height // 2, width // 4 : width // 2] *= 0.6
    return np.clip(coarse + rng.normal(0, 2, coarse.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("aspect", images.ASPECTS)
@pytest.mark.parametrize("shape", [(3056, 2544), (2544, 3056), (2100, 2022), (4100, 4101), (1300, 1101), (615, 700), (300, 280)])
def test_a_jpeg_decoded_at_reduced_size_is_the_picture_decoded_whole(shape, aspect):
    data = encoded(radiograph_like(*shape), "JPEG", quality=95)
    whole = images.resize(images.decode(data), aspect).astype(float)
    ours = images.from_bytes(data, aspect)[..., 0].astype(float)
    # What is decoded at a half or less is faster, and not the same to the bit; what has no such half is decoded as it is.
    assert (ours != whole).any() == (min(shape) >= 2 * 1.2 * 256)
    assert np.abs(ours - whole).mean() < 0.5
    # A picture that is shifted by a fraction of a pixel differs by as much everywhere; this looks along both axes.
    for axis in (0, 1):
        slope = np.gradient(whole, axis=axis)
        assert abs((slope * (ours - whole)).sum() / (slope**2).sum()) < 0.05  # pixels


def test_colour_and_gray_jpegs_are_reduced_alike():
    gray = radiograph_like(1400, 1200)
    one = images.from_bytes(encoded(gray, "JPEG", quality=95)).astype(float)
    three = images.from_bytes(encoded(np.dstack([gray] * 3), "JPEG", quality=95)).astype(float)
    assert np.abs(one - three).mean() < 0.5


def test_a_large_jpeg_that_is_cut_is_told():
    data = encoded(radiograph_like(1400, 1200), "JPEG", quality=95)
    # Its end mark may stand elsewhere in the file, as that of a thumbnail does.
    for spoilt in (data[: len(data) // 2], data[:2] + b"\xff\xfe\x00\x04\xff\xd9" + data[2 : len(data) // 2]):
        with pytest.raises(images.UnreadableImage) as caught:
            images.from_bytes(spoilt)
        assert caught.value.reason == images.TRUNCATED


# ---- DICOM -----------------------------------------------------------------------------------------


def dicom(stored, bits=12, photometric="MONOCHROME2", **tags) -> bytes:
    """A DICOM file of one gray picture, written by pydicom."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["a picture"])
    dataset = pydicom.Dataset()
    dataset.file_meta = meta
    dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, int(stored.dtype.kind == "i")
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PhotometricInterpretation = photometric
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.PixelData = stored.tobytes()
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def test_dicom_without_a_window_uses_the_whole_range_of_its_bits():
    np.testing.assert_allclose(images.decode(dicom(RAMP)), RAMP / 4095 * 255, atol=1e-3)
    half = (RAMP // 2).astype(np.uint16)  # uses half the range, and stays half as bright
    np.testing.assert_allclose(images.decode(dicom(half)), half / 4095 * 255, atol=1e-3)


def test_monochrome1_is_turned_over():
    np.testing.assert_allclose(images.decode(dicom(RAMP, photometric="MONOCHROME1")), 255 - RAMP / 4095 * 255, atol=1e-3)


def test_dicom_window_is_that_of_the_standard():
    """PS3.3 C.11.2.1.2.1, written out: below and above the window flat, between them linear."""
    centre, width = 1500.0, 1000.0
    found = images.decode(dicom(RAMP, WindowCenter=centre, WindowWidth=width))
    inside = ((RAMP - (centre - 0.5)) / (width - 1) + 0.5) * 255
    np.testing.assert_allclose(found, np.clip(inside, 0, 255), atol=0.1)
    assert (found[RAMP < 1000] == 0).all() and (found[RAMP > 2000] > 254.9).all()


def test_dicom_rescale_comes_before_the_window():
    found = images.decode(
        dicom(RAMP, RescaleSlope=2.0, RescaleIntercept=-1000.0, WindowCenter=3000.0, WindowWidth=2000.0)
    )
    hounsfield = RAMP * 2.0 - 1000
    np.testing.assert_allclose(found, np.clip(((hounsfield - 2999.5) / 1999 + 0.5) * 255, 0, 255), atol=0.1)


def test_dicom_voi_table():
    table = pydicom.Dataset()
    table.LUTDescriptor = [4096, 0, 12]
    table.LUTData = (4095 - np.arange(4096)).astype(np.uint16).tobytes()
    found = images.decode(dicom(RAMP, VOILUTSequence=pydicom.Sequence([table])))
    np.testing.assert_allclose(found, 255 - RAMP / 4095 * 255, atol=0.1)


def test_signed_dicom():
    signed = (RAMP.astype(np.int32) - 2048).astype(np.int16)
    np.testing.assert_allclose(images.decode(dicom(signed)), RAMP / 4095 * 255, atol=1e-3)


@pytest.mark.parametrize(
    "data, reason",
    [
        (dicom(RAMP)[:-1000], images.TRUNCATED),
        (dicom(RAMP)[:200], images.NOT_AN_IMAGE),
        (dicom(np.zeros((64, 64), np.uint16), NumberOfFrames=2), images.CORRUPT),
        (dicom(RAMP, SamplesPerPixel=3), images.CORRUPT),
        (b"\0" * 128 + b"DICM" + b"nothing of the kind", images.NOT_AN_IMAGE),
    ],
)
def test_dicom_that_is_wrong(data, reason):
    with pytest.raises(images.UnreadableImage) as caught:
        images.decode(data)
    assert caught.value.reason == reason


def in_syntax(syntax, frame: bytes, stored=RAMP, bits=12) -> bytes:
    """A DICOM file whose picture is `frame`, encoded in a transfer syntax."""
    dataset = pydicom.dcmread(io.BytesIO(dicom(stored, bits)))
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


@pytest.mark.parametrize(
    "syntax, said",
    [
        (JPEGLSLossless, "no decoder for JPEG-LS Lossless Image Compression; install pylibjpeg>="),
        (JPEGExtended12Bit, "no decoder for JPEG Extended (Process 2 and 4); install pylibjpeg>="),
        (UID("1.2.840.10008.1.2.4.100"), "no decoder for MPEG2 Main Profile / Main Level, nor is one known"),
    ],
)
def test_dicom_that_wants_a_decoder_says_which(syntax, said):
    if syntax.name.startswith("JPEG") and set(get_decoder(syntax).available_plugins) - {"pillow"}:
        pytest.skip(f"a decoder of {syntax.name} is installed")
    with pytest.raises(images.UnreadableImage) as caught:
        images.decode(in_syntax(syntax, encoded((RAMP // 16).astype(np.uint8), "JPEG")))
    assert caught.value.reason.startswith(said)


def test_compressed_dicom_is_read_where_there_is_a_decoder_and_corrupt_where_it_fails():
    dataset = pydicom.dcmread(io.BytesIO(dicom(RAMP)))
    dataset.compress(RLELossless)
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    np.testing.assert_allclose(images.decode(file.getvalue()), RAMP / 4095 * 255, atol=1e-3)
    assert reason(in_syntax(RLELossless, b"nothing of the kind ")) == images.CORRUPT
