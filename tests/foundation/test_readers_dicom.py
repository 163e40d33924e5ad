"""DICOM: codecs, photometry, windows, geometry, and that no patient passes."""

from __future__ import annotations

import dataclasses
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from film_factory import (
    PATIENT,
    dicom_dataset,
    dicom_film,
    gradient,
    picture,
    sample,
    sequence_item,
    to_bytes,
)
from pydicom import uid
from pydicom.encaps import encapsulate

from foundation.errors import FilmError, FilmTooLarge, FilmUnreadable, FilmUnsupported
from foundation.image import Window
from foundation.preprocess import to_8bit
from foundation.readers import Limits, read_film, read_folder, read_series
from foundation.readers.dicom import pixels as dicom_pixels

# The same MR slice under every encoding pydicom carries: all must give the same values.
SAME_MR = [
    "MR_small_RLE.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_expb.dcm",
    "MR_small_implicit.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "MR_small_padded.dcm",
]


@pytest.mark.parametrize("name", SAME_MR)
def test_lossless_encodings_of_one_film_agree(name: str) -> None:
    plain, other = read_film(sample("MR_small.dcm")), read_film(sample(name))
    np.testing.assert_array_equal(plain.pixels, other.pixels)
    assert other.pixels.dtype == np.int16
    assert plain.digest == other.digest
    assert other.modality == "MR"


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_lossless_codecs_give_back_what_was_written(syntax: str, dtype: type) -> None:
    film = gradient(64, 96, top=np.iinfo(dtype).max, dtype=dtype)
    dataset = dicom_dataset(film)
    dataset.compress(syntax)
    np.testing.assert_array_equal(read_film(to_bytes(dataset)).pixels[0], film)


@pytest.mark.parametrize("syntax", [uid.JPEGLSNearLossless, uid.JPEG2000])
def test_lossy_codecs_stay_near(syntax: str) -> None:
    film = np.tile(np.arange(0, 256, 2, dtype=np.uint8), (128, 1))
    dataset = dicom_dataset(film)
    options: dict[str, Any] = {"jls_error": 2} if syntax == uid.JPEGLSNearLossless else {"j2k_psnr": [50]}
    dataset.compress(syntax, **options)
    decoded = read_film(to_bytes(dataset)).pixels[0]
    assert np.abs(decoded.astype(int) - film.astype(int)).max() <= 8


def test_jpeg_baseline() -> None:
    film = gradient(64, 64, top=255, dtype=np.uint8)
    dataset = dicom_dataset(film)
    dataset.PixelData = encapsulate([picture(film, "JPEG", quality=95)])
    dataset.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    assert np.abs(read_film(to_bytes(dataset)).pixels[0].astype(int) - film.astype(int)).max() <= 8


@pytest.mark.parametrize("name", ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1"])
def test_jpeg_lossless(tmp_path: Path, name: str) -> None:
    """Written by gdcm itself, 16 bits deep."""
    gdcm = pytest.importorskip("gdcm")
    film = gradient(top=60000)
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    plain.write_bytes(dicom_film(film))
    reader = gdcm.ImageReader()
    reader.SetFileName(str(plain))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(packed))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    data = packed.read_bytes()
    assert pydicom.dcmread(BytesIO(data)).file_meta.TransferSyntaxUID in (uid.JPEGLossless, uid.JPEGLosslessSV1)
    np.testing.assert_array_equal(read_film(data).pixels[0], film)


def test_every_codec_of_the_table_has_a_decoder_here() -> None:
    for syntax in dicom_pixels.CODECS:
        dicom_pixels.choose_plugin(uid.UID(syntax))


@pytest.mark.parametrize("syntax", [uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000, uid.HTJ2K])
def test_a_missing_codec_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, syntax: str) -> None:
    monkeypatch.setitem(dicom_pixels.CODECS, syntax, ("not_installed",))
    with pytest.raises(FilmUnsupported, match="`dicom` extra"):
        dicom_pixels.choose_plugin(uid.UID(syntax))


@pytest.mark.parametrize("name", ["JPGExtended.dcm", "JPEG-lossy.dcm"])
def test_12_bit_jpeg_is_refused_by_name(name: str) -> None:
    with pytest.raises(FilmUnsupported, match="12-bit JPEG Extended"):
        read_film(sample(name))


@pytest.mark.parametrize(
    ("syntax", "named"),
    [
        ("1.2.840.10008.1.2.4.110", "JPEG XL"),
        ("1.2.840.10008.1.2.4.102", "MPEG-4"),
        ("1.2.840.10008.1.2.4.111", "JPEG XL"),
        ("1.2.3.4.5", "private or unknown"),
    ],
)
def test_other_codecs_are_refused_by_name(syntax: str, named: str) -> None:
    written = "1.2.840.10008.1.2.4.102"  # MPEG-4, whose UID has the same length
    dataset = dicom_dataset(gradient(), syntax=written)
    dataset.PixelData = encapsulate([b"\0" * 64])
    data = to_bytes(dataset)
    assert len(syntax) <= len(written)
    with pytest.raises(FilmUnsupported, match=named):
        read_film(data.replace(written.encode(), syntax.ljust(len(written), "\0").encode()))


def test_monochrome1_is_turned_round_with_its_windows() -> None:
    """What MONOCHROME1 shows under its own preset must equal the inverted MONOCHROME2 picture."""
    film = gradient(top=4095)
    presets = {"WindowCenter": [2000, 1000], "WindowWidth": [1500, 400], "BitsStored": 12}
    two = read_film(dicom_film(film, **presets))
    one = read_film(dicom_film(film, PhotometricInterpretation="MONOCHROME1", **presets))
    np.testing.assert_array_equal(one.pixels[0], 4095 - film)
    for index in (0, 1):
        shown_two = to_8bit(two, window=two.windows[index]).astype(int)
        shown_one = to_8bit(one, window=one.windows[index]).astype(int)
        assert np.abs(255 - shown_two - shown_one).max() <= 1


def test_monochrome1_padding_stays_black() -> None:
    film = gradient(top=4095)
    film[:4] = 0  # collimated away: MONOCHROME1 would show it white
    image = read_film(dicom_film(film, PhotometricInterpretation="MONOCHROME1", BitsStored=12, PixelPaddingValue=0))
    assert image.pixels[0, :4].max() == image.pixels.min()


def test_ct_rescale_gives_hounsfield_units() -> None:
    stored = pydicom.dcmread(BytesIO(sample("CT_small.dcm"))).pixel_array
    image = read_film(sample("CT_small.dcm"))
    np.testing.assert_array_equal(image.pixels[0], stored.astype(int) - 1024)
    assert image.pixels.dtype == np.int16
    assert image.modality == "CT"
    assert image.spacing_mm == pytest.approx((5.0, 0.661468, 0.661468))


def test_fractional_rescale_gives_float32() -> None:
    image = read_film(dicom_film(gradient(), RescaleSlope="0.5", RescaleIntercept="-3.25"))
    assert image.pixels.dtype == np.float32
    np.testing.assert_allclose(image.pixels[0], gradient() * 0.5 - 3.25)


def test_rescale_of_zero_is_refused() -> None:
    with pytest.raises(FilmUnreadable, match="slope is 0"):
        read_film(dicom_film(gradient(), RescaleSlope="0", RescaleIntercept="7"))


def test_modality_table_is_applied() -> None:
    film = gradient(top=3)
    table = sequence_item(LUTDescriptor=[4, 0, 16], ModalityLUTType="US", LUTData=[10, 200, 30, 4000])
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    image = read_film(dicom_film(film, ModalityLUTSequence=[table]))
    np.testing.assert_array_equal(image.pixels[0], np.array([10, 200, 30, 4000])[film])


def test_all_windows_are_kept_with_their_function_and_safe_names() -> None:
    image = read_film(
        dicom_film(
            gradient(),
            WindowCenter=[40, 300],
            WindowWidth=[80, 1500],
            WindowCenterWidthExplanation=["BRAIN", PATIENT],
            VOILUTFunction="SIGMOID",
        )
    )
    assert image.windows == (Window(40.0, 80.0, "brain", "sigmoid"), Window(300.0, 1500.0, "", "sigmoid"))


def test_voi_table_equals_pydicom() -> None:
    from pydicom.pixels import apply_voi_lut

    film = gradient(top=99)
    entries = [(index * index) // 40 for index in range(100)]
    table = sequence_item(LUTDescriptor=[100, 0, 8], LUTData=entries)
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    dataset = dicom_dataset(film, VOILUTSequence=[table])
    truth = apply_voi_lut(film, dataset).astype(float)
    image = read_film(to_bytes(dataset))
    assert image.windows[0].function == "table"
    expected = np.rint((truth - truth.min()) / (truth.max() - truth.min()) * 255)
    assert np.abs(to_8bit(image).astype(float) - expected).max() <= 1


def test_palette_colours_are_applied() -> None:
    from pydicom.pixels import apply_color_lut

    dataset = pydicom.dcmread(BytesIO(sample("examples_palette.dcm")))
    image = read_film(sample("examples_palette.dcm"))
    assert image.pixels.shape == (1, 350, 800, 3)
    truth = apply_color_lut(dataset.pixel_array, dataset)
    np.testing.assert_array_equal(image.pixels[0], (truth >> 8) if truth.dtype == np.uint16 else truth)


@pytest.mark.parametrize("name", ["SC_rgb_rle.dcm", "SC_rgb_jpeg_gdcm.dcm", "SC_rgb_dcmtk_+eb+cy+n1.dcm"])
def test_colour_is_rgb_whatever_it_was_stored_as(name: str) -> None:
    """The same test card in RLE, lossless JPEG and YBR JPEG: a red bar on top."""
    image = read_film(sample(name))
    assert image.is_color
    red, green, blue = image.pixels[0, 5, 50].astype(int)
    assert red > 240
    assert max(green, blue) < 20


def test_multi_frame_becomes_a_volume_sorted_by_position() -> None:
    frames = np.stack([np.full((4, 6), value, dtype=np.uint16) for value in (30, 10, 20)])
    groups = [sequence_item(PlanePositionSequence=[sequence_item(ImagePositionPatient=[0, 0, depth])]) for depth in (6, 2, 4)]
    shared = sequence_item(
        PlaneOrientationSequence=[sequence_item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelMeasuresSequence=[sequence_item(PixelSpacing=[0.5, 0.25])],
        PixelValueTransformationSequence=[sequence_item(RescaleSlope="2", RescaleIntercept="-1")],
    )
    image = read_film(
        dicom_film(
            frames,
            NumberOfFrames=3,
            PerFrameFunctionalGroupsSequence=groups,
            SharedFunctionalGroupsSequence=[shared],
        )
    )
    assert image.pixels[:, 0, 0].tolist() == [19, 39, 59]
    assert image.spacing_mm == pytest.approx((2.0, 0.5, 0.25))
    assert image.affine is not None
    np.testing.assert_allclose(image.affine @ [3, 2, 1, 1], [-0.75, -1.0, 4.0, 1.0])  # LPS (.75, 1, 4) in RAS


def test_more_frames_than_the_header_states_do_not_pass() -> None:
    data = dicom_film(np.zeros((5, 8, 8), dtype=np.uint8), NumberOfFrames=5)
    with pytest.raises(FilmTooLarge, match="5 slices"):
        read_film(data, Limits(max_frames=4))
    with pytest.raises(FilmUnreadable):
        read_film(dicom_film(np.zeros((5, 8, 8), dtype=np.uint8), NumberOfFrames=9))


def _ct_series(count: int = 4, **fields: Any) -> list[bytes]:
    series = uid.generate_uid()
    return [
        dicom_film(
            np.full((8, 8), 100 + index, dtype=np.int16),
            Modality="CT",
            SeriesInstanceUID=series,
            InstanceNumber=count - index,
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ImagePositionPatient=[-10, -20, 3.0 * index],
            PixelSpacing=[0.7, 0.9],
            RescaleSlope="1",
            RescaleIntercept="-1000",
            **fields,
        )
        for index in range(count)
    ]


def test_series_folder_becomes_a_volume(tmp_path: Path) -> None:
    """Sorted by position, not by name or number; what is no DICOM is passed over."""
    files = _ct_series()
    for index, name in enumerate(("d", "a.png", "sub/c", "b")):
        target = tmp_path / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(files[index])
    (tmp_path / "notes.txt").write_text("no film")
    image = read_folder(tmp_path)
    assert image.pixels[:, 0, 0].tolist() == [-900, -899, -898, -897]
    assert image.pixels.dtype == np.int16
    assert image.spacing_mm == pytest.approx((3.0, 0.7, 0.9))
    assert image.affine is not None
    np.testing.assert_allclose(image.affine @ [0, 0, 2, 1], [10.0, 20.0, 6.0, 1.0])
    assert not image.notes


def test_a_gap_in_the_series_is_said() -> None:
    files = _ct_series(6)
    del files[3]
    assert any("missing" in note for note in read_series(files).notes)


def test_series_refusals(tmp_path: Path) -> None:
    with pytest.raises(FilmUnsupported, match="more than one DICOM series"):
        read_series(_ct_series(2) + _ct_series(2))
    with pytest.raises(FilmUnsupported, match="no DICOM film"):
        read_folder(tmp_path)
    with pytest.raises(FilmUnreadable, match="no such folder"):
        read_folder(tmp_path / "absent")
    with pytest.raises(FilmTooLarge):
        read_series(_ct_series(5), Limits(max_inflated_bytes=4 * 8 * 8 * 2))
    with pytest.raises(FilmUnreadable, match="cannot be ordered"):
        read_series([_ct_series(1)[0]] * 2)


def test_series_without_positions_goes_by_number() -> None:
    series = uid.generate_uid()
    files = [
        dicom_film(np.full((4, 4), number, dtype=np.uint8), SeriesInstanceUID=series, InstanceNumber=number)
        for number in (10, 9, 11)
    ]
    image = read_series(files)
    assert image.pixels[:, 0, 0].tolist() == [9, 10, 11]
    assert any("number" in note for note in image.notes)


def test_modality_body_part_and_view() -> None:
    image = read_film(dicom_film(gradient(), Modality="CR", BodyPartExamined="CHEST", ViewPosition="LL"))
    assert (image.modality, image.body_part, image.view) == ("CR", "CHEST", "LATERAL")


def test_no_patient_passes_even_through_free_text() -> None:
    hidden = {
        "BodyPartExamined": "SECRETNAME",
        "ViewPosition": "SECRETNAME",
        "Modality": "SECRETNAME",
        "SeriesDescription": PATIENT,
        "WindowCenter": [1],
        "WindowWidth": [2],
        "WindowCenterWidthExplanation": "SECRETNAME",
    }
    image = read_film(dicom_film(gradient(), **hidden))
    said = [getattr(image, item.name) for item in dataclasses.fields(image) if item.name != "pixels"]
    everything = repr(said).upper()
    assert "SECRET" not in everything
    assert "1970" not in everything


def test_preamble_may_be_missing_but_not_the_file_header() -> None:
    data = dicom_film(gradient())
    np.testing.assert_array_equal(read_film(data[132:]).pixels[0], gradient())
    with pytest.raises(FilmUnsupported, match="without its file header"):
        read_film(sample("ExplVR_LitEndNoMeta.dcm"))
    with pytest.raises(FilmUnreadable, match="how the film is encoded"):
        read_film(sample("meta_missing_tsyntax.dcm"))


@pytest.mark.parametrize("name", ["rtplan.dcm", "test-SR.dcm", "waveform_ecg.dcm", "rtdose.dcm", "liver_1frame.dcm"])
def test_what_is_no_film_is_refused(name: str) -> None:
    with pytest.raises(FilmUnsupported):
        read_film(sample(name))


def test_deflated_is_read_and_capped() -> None:
    assert read_film(sample("image_dfl.dcm")).pixels.shape == (1, 512, 512)
    head = dicom_film(gradient(2, 2))[:132] + struct.pack("<HH2sH", 2, 0x10, b"UI", 22) + b"1.2.840.10008.1.2.1.99"
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = head + packer.compress(b"\0" * 30_000_000) + packer.flush()
    assert len(bomb) < 60_000
    with pytest.raises(FilmTooLarge, match="unpacks to over"):
        read_film(bomb, Limits(max_inflated_bytes=1_000_000))


def test_a_codestream_that_claims_another_size_never_reaches_a_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A JPEG 2000 codestream claiming 40,000 x 40,000 would make its decoder reserve gigabytes."""
    dataset = dicom_dataset(gradient(64, 64))
    dataset.compress(uid.JPEG2000Lossless)
    data = bytearray(to_bytes(dataset))
    size = data.index(b"\xff\x4f\xff\x51") + 8
    data[size : size + 8] = struct.pack(">2I", 40_000, 40_000)
    monkeypatch.setattr(dicom_pixels, "get_decoder", _decoder_must_not_iterate)
    with pytest.raises(FilmUnreadable, match="not the one the DICOM header states"):
        read_film(bytes(data))


def _decoder_must_not_iterate(syntax: str) -> Any:
    from pydicom.pixels import get_decoder

    class Guarded:
        available_plugins = get_decoder(syntax).available_plugins

        def iter_array(self, *_args: Any, **_options: Any) -> None:
            raise AssertionError("the decoder was reached")

    return Guarded()


def test_a_run_length_bomb_is_counted_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_pixels, "PACKBITS_UNCOUNTED_BYTES", 1)
    film = gradient(top=255, dtype=np.uint8)
    dataset = dicom_dataset(film)
    dataset.compress(uid.RLELossless)
    np.testing.assert_array_equal(read_film(to_bytes(dataset)).pixels[0], film)
    dataset.PixelData = encapsulate([struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\x00" * 500])
    with pytest.raises(FilmUnreadable, match="run-length"):
        read_film(to_bytes(dataset))


def test_limits_are_asked_before_decoding() -> None:
    data = sample("CT_small.dcm")
    for limits in (Limits(max_bytes=1000), Limits(max_pixels=100), Limits(max_inflated_bytes=1000)):
        with pytest.raises(FilmTooLarge):
            read_film(data, limits)
    lying = pydicom.dcmread(BytesIO(data))
    lying.Rows, lying.Columns = 60_000, 60_000
    with pytest.raises(FilmTooLarge, match="60,000 x 60,000"):
        read_film(to_bytes(lying))


def test_truncated_file_is_unreadable() -> None:
    data = sample("CT_small.dcm")
    for keep in (200, 2000, len(data) - 4000):
        with pytest.raises(FilmError):
            read_film(data[:keep])
    with pytest.raises(FilmUnreadable):
        read_film(sample("MR_truncated.dcm"))
