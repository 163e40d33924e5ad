"""De-identification: nothing planted survives anywhere, the picture does, and a study stays one study."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom._dicom_dict import DicomDictionary
from pydicom.data import get_testdata_file
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit

from foundation.deidentify import Pseudonyms, deidentify
from foundation.deidentify.dataset import _RULED
from foundation.deidentify.film import BURNT_IN, FACE, MAY_BE_BURNT_IN
from foundation.deidentify.pixels import bare_codestream
from foundation.deidentify.rules import BINARY, CODES, EMPTIED, KEYED, KNOWN, NUMBERS, SEQUENCES
from foundation.errors import FilmError, FilmUnreadable, FilmUnsupported, InvalidRequest
from foundation.readers import read_film

KEY = Pseudonyms(b"k" * 32)
NAME, DIGITS, DATE = "Doe^Jane", "19470312081547", "19470312"
# what each value representation can say about a patient; every attribute of the standard that no rule keeps is given it
SAID: dict[str, object] = {
    **dict.fromkeys(("LO", "LT", "PN", "ST", "UC", "UT"), NAME),
    **dict.fromkeys(("OB", "OW", "OD", "OF", "OL", "OV", "UN"), b"Doe^Jane"),
    **dict.fromkeys(("US", "UL", "SL", "SV", "UV"), 19470),
    **dict.fromkeys(("FL", "FD"), 19470312.0),
    **{"SS": 19470, "AE": "DOE_JANE", "AS": "078Y", "AT": 0x4A414E45, "CS": "DOE JANE", "DA": DATE, "DS": "19470.312"},
    **{"DT": f"{DATE}081547", "IS": DATE, "SH": "DOE JANE 0815", "TM": "081547", "UI": f"1.2.{DIGITS}"},
    "UR": "http://host/Doe-Jane",
}


def film(**fields: object) -> Dataset:
    """A small film that says no more than it must."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    made.SOPInstanceUID, made.SeriesInstanceUID, made.StudyInstanceUID = "1.2.3.1", "1.2.3.2", "1.2.3.3"
    made.Modality, made.PatientID, made.PatientName = "DX", "MRN-0815", NAME
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.Rows, made.Columns, made.BitsAllocated, made.BitsStored, made.HighBit = 8, 8, 16, 12, 11
    made.PixelRepresentation = 0
    made.PixelData = np.arange(64, dtype="<u2").tobytes()
    made["PixelData"].VR = "OW"
    for keyword, value in fields.items():
        setattr(made, keyword, value)
    return made


def file_of(dataset: Dataset, preamble: bytes = b"\0" * 128) -> bytes:
    dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", "1.2.3")
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "1.2.3")
    dataset.preamble = preamble
    file = BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def reread(data: bytes) -> Dataset:
    return pydicom.dcmread(BytesIO(data))


def plant(dataset: Dataset) -> set[str]:
    """Something about a patient in every attribute of the standard that no rule keeps, and in private ones. The VRs used."""
    used = set()
    for tag, (vr, _, _, retired, keyword) in DicomDictionary.items():
        first = vr.split(" or ")[0]
        if keyword not in {"", "SpecificCharacterSet", *_RULED} and first in SAID and tag >> 16 > 0x0007 and not retired:
            dataset.add(DataElement(tag, first, SAID[first]))
            used.add(first)
    dataset.add(DataElement(0x60003000, "OW", b"Doe^Jane"))  # an overlay
    block = dataset.private_block(0x0011, "DOE VENDOR", create=True)
    for offset, vr in enumerate(SAID):
        block.add_new(offset, vr, SAID[vr])
    block.add_new(0x40, "SQ", Sequence([_item_with(NAME)]))
    return used


def _item_with(name: str) -> Dataset:
    item = Dataset()
    item.PatientName = item.SeriesDescription = name
    return item


def assert_clean(data: bytes) -> None:
    lower = data.lower()
    for word in (b"doe", b"jane", b"0815", b"19470", b"vendor", b"street"):
        assert word not in lower, word


def test_planted_values_are_gone_from_every_vr_at_every_depth() -> None:
    dataset = film(SpecificCharacterSet="ISO_IR 192", BodyPartExamined="CHEST", ViewPosition="PA")
    used = plant(dataset)
    inner, deeper, reference = Dataset(), Dataset(), Dataset()
    for item in (inner, deeper, reference):
        plant(item)
    deeper.ReferencedImageSequence = [reference]
    inner.PixelValueTransformationSequence = [deeper]
    dataset.SharedFunctionalGroupsSequence = [inner]  # kept, so what is in it must be cleaned
    dataset.RequestAttributesSequence = [inner]  # goes as a whole
    data = file_of(dataset, preamble=NAME.encode().ljust(128))
    assert data.lower().count(b"jane") > 40
    assert used >= SAID.keys() - {"UN", "OV", "SV", "UV"}  # those four no attribute of the standard has, or only kept ones
    assert len(dataset) > 3000
    done = deidentify(data, KEY)
    assert_clean(done.data)
    found = reread(done.data)
    assert found.preamble == b"\0" * 128
    assert (found.BodyPartExamined, found.ViewPosition) == ("CHEST", "PA")
    assert found.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0].ReferencedImageSequence
    assert not any(element.tag.is_private for element in found.iterall())
    assert done.removed["private"] >= 20 * 4
    assert np.array_equal(found.pixel_array, np.arange(64).reshape(8, 8))


@pytest.mark.parametrize("keyword", sorted(CODES))
def test_a_kept_code_is_kept_only_with_a_value_of_the_standard(keyword: str) -> None:
    right = sorted(CODES[keyword])[0]
    wrong = reread(deidentify(file_of(film(**{keyword: "JANE DOE 0815"})), KEY).data) if keyword not in _VITAL else None
    assert wrong is None or keyword not in wrong
    if keyword not in _VITAL:
        assert reread(deidentify(file_of(film(**{keyword: right})), KEY).data)[keyword].value == right


_VITAL = {"PhotometricInterpretation"}  # a film that lies about it cannot be read at all


def test_a_kept_number_that_is_none_and_a_kept_attribute_of_a_foreign_vr_go() -> None:
    dataset = film()
    with pydicom.config.disable_value_validation():
        dataset.SliceThickness = "1.23"
        dataset.add(DataElement(0x00180060, "LO", NAME))  # KVP
        dataset.add(DataElement(0x00281050, "PN", NAME))  # WindowCenter
        data = file_of(dataset).replace(b"DS\4\x001.23", b"DS\4\0JANE")
    done = deidentify(data, KEY)
    assert b"JANE" in data
    assert_clean(done.data)
    assert not {"SliceThickness", "KVP", "WindowCenter"} & set(reread(done.data).dir())


def test_bytes_behind_the_picture_are_cut() -> None:
    dataset = film()
    dataset.PixelData = dataset.PixelData + NAME.encode() * 2
    assert_clean(deidentify(file_of(dataset), KEY).data)


def test_comments_inside_compressed_frames_are_cut_and_the_picture_is_the_same() -> None:
    path = get_testdata_file("SC_rgb_jpeg_dcmtk.dcm", download=False)
    dataset = pydicom.dcmread(str(path))
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    segments = b"".join(
        b"\xff" + bytes([marker]) + (len(NAME) + 2).to_bytes(2, "big") + NAME.encode() for marker in (0xFE, 0xE1, 0xE0, 0xEE)
    )
    dataset.PixelData = encapsulate([frame[:2] + segments + frame[2:]])
    assert dataset.file_meta.TransferSyntaxUID == JPEGBaseline8Bit
    data = file_of(dataset)
    done = deidentify(data, KEY)
    assert b"jane" in data.lower()
    assert b"jane" not in done.data.lower()
    assert np.array_equal(read_film(done.data).pixels, read_film(data).pixels)


def test_a_comment_in_a_jpeg_2000_header_is_cut() -> None:
    dataset = pydicom.dcmread(str(get_testdata_file("JPEG2000.dcm", download=False)))
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    size_end = 4 + int.from_bytes(frame[4:6], "big")
    comment = b"\xff\x64" + (len(NAME) + 4).to_bytes(2, "big") + b"\0\1" + NAME.encode()
    marked = frame[:size_end] + comment + frame[size_end:]
    assert NAME.encode() not in bare_codestream(marked)
    assert bare_codestream(marked) == bare_codestream(frame)


def test_uids_stay_consistent_across_a_study_and_cannot_be_linked_without_the_key() -> None:
    first = film(FrameOfReferenceUID="1.2.3.9")
    second = film(SOPInstanceUID="1.2.3.8", FrameOfReferenceUID="1.2.3.9")
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = first.SOPClassUID, first.SOPInstanceUID
    second.SourceImageSequence = [reference]
    one, two = (reread(deidentify(file_of(item), KEY).data) for item in (first, second))
    assert one.StudyInstanceUID == two.StudyInstanceUID != first.StudyInstanceUID
    assert (one.SeriesInstanceUID, one.FrameOfReferenceUID) == (two.SeriesInstanceUID, two.FrameOfReferenceUID)
    assert two.SourceImageSequence[0].ReferencedSOPInstanceUID == one.SOPInstanceUID != two.SOPInstanceUID
    assert two.SourceImageSequence[0].ReferencedSOPClassUID == first.SOPClassUID
    assert one.PatientID == one.PatientName == two.PatientID
    assert one.PatientID.startswith("P")
    other = reread(deidentify(file_of(film()), Pseudonyms(b"x" * 32)).data)
    assert other.StudyInstanceUID != one.StudyInstanceUID
    assert other.PatientID != one.PatientID
    for uid in (one.StudyInstanceUID, one.SOPInstanceUID):
        assert uid.startswith("2.25.")
        assert len(uid) <= 64
        assert uid.is_valid
    assert one.file_meta.MediaStorageSOPInstanceUID == one.SOPInstanceUID


def test_the_film_says_what_was_done_to_it() -> None:
    found = reread(deidentify(file_of(film(PatientBirthDate=DATE, PatientSex="F")), KEY).data)
    assert found.PatientIdentityRemoved == "YES"
    assert found.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
    assert [str(found[keyword].value or "") for keyword in EMPTIED] == [""] * len(EMPTIED)


def test_twice_is_as_once() -> None:
    once = deidentify(file_of(film()), KEY)
    again = reread(deidentify(once.data, KEY).data)
    assert len(again) == len(reread(once.data))


@pytest.mark.parametrize(
    ("fields", "warned"),
    [
        ({"BurnedInAnnotation": "YES"}, {BURNT_IN}),
        ({"BurnedInAnnotation": "NO", "Modality": "US"}, set()),
        ({"Modality": "US"}, {MAY_BE_BURNT_IN}),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, {MAY_BE_BURNT_IN}),
        ({"Modality": "CT", "BodyPartExamined": "HEAD"}, {FACE}),
        ({}, set()),
    ],
)
def test_what_no_rule_can_see_is_warned_of(fields: dict[str, str], warned: set[str]) -> None:
    assert set(deidentify(file_of(film(**fields)), KEY).warnings) == warned


def _readable() -> list[Path]:
    folder = Path(str(get_testdata_file("CT_small.dcm", download=False))).parent
    return sorted(folder.glob("*.dcm"))


@pytest.mark.parametrize("path", _readable(), ids=lambda path: path.name)
def test_pydicoms_own_films_keep_their_picture_and_lose_the_rest(path: Path) -> None:
    data = path.read_bytes()
    try:
        before = read_film(data)
    except FilmError:
        try:  # it may be of a syntax that is read but a picture that is not; no more may come out than an error
            deidentify(data, KEY)
        except FilmError:
            return
        return
    done = deidentify(data, KEY)
    after = read_film(done.data)
    assert np.array_equal(before.pixels, after.pixels)
    assert (before.modality, before.body_part, before.view) == (after.modality, after.body_part, after.view)
    assert before.spacing_mm == after.spacing_mm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original = pydicom.dcmread(path, force=True)
        list(original.iterall())
    found = reread(done.data)
    for element in original.iterall():
        if element.VR in ("PN", "LO", "SH", "LT", "ST", "UT", "DA", "TM", "DT", "AS") and len(str(element.value)) >= 6:
            assert str(element.value).encode() not in done.data.replace(b"Vesalius", b""), element
    uids = {str(element.value) for element in original.iterall() if element.keyword in KEYED}
    assert not uids & {str(element.value) for element in found.iterall() if element.VR == "UI"}


def test_rules_name_attributes_of_the_standard_once() -> None:
    groups = (NUMBERS, frozenset(CODES), KEYED, KNOWN, BINARY, SEQUENCES, frozenset(EMPTIED))
    names = [name for group in groups for name in group]
    assert len(names) == len(set(names))
    for name in names:
        assert pydicom.datadict.tag_for_keyword(name) is not None, name
    wanted = {"DS", "IS", "US", "SS", "UL", "SL", "FL", "FD", "US or SS", "AT", "US or OW"}
    assert {dictionary_VR(name) for name in NUMBERS} <= wanted
    assert {dictionary_VR(name) for name in SEQUENCES} == {"SQ"}
    assert {dictionary_VR(name) for name in KEYED | KNOWN} == {"UI"}


def test_what_cannot_be_cleaned_is_refused() -> None:
    with pytest.raises(FilmUnsupported):
        deidentify(b"\x89PNG\r\n\x1a\n" + b"\0" * 200, KEY)
    data = file_of(film())
    with pytest.raises(FilmError):
        deidentify(data[:200], KEY)
    with pytest.raises(FilmUnreadable, match="cut short"):
        deidentify(data[:-16], KEY)
    with pytest.raises(InvalidRequest, match="16 bytes"):
        Pseudonyms(b"short")


def test_implicit_films_keep_their_encoding() -> None:
    dataset = film()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    done = reread(deidentify(file_of(dataset), KEY).data)
    assert done.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    assert np.array_equal(done.pixel_array, np.arange(64).reshape(8, 8))
