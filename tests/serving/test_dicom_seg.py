"""DICOM segmentations, read again by pydicom and highdicom: the film's own place, study and pixels, empty classes too."""

from __future__ import annotations

import io
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
from live_api import dicom_ct_slice, error_of, files
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from adapters.tasks.rle import from_rle
from serving.fake import SEGMENTER
from serving.fake_tasks import LUNGS
from serving.mask_files import DICOM

highdicom = pytest.importorskip("highdicom")


def film(**fields: Any) -> pydicom.Dataset:
    """pydicom's CT slice, said to be a radiograph so that it is assessed; a field of None is taken out."""
    dataset = pydicom.dcmread(io.BytesIO(dicom_ct_slice()))
    dataset.Modality = "CR"
    for keyword, value in fields.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def encoded(dataset: pydicom.Dataset) -> bytes:
    target = io.BytesIO()
    dataset.save_as(target, enforce_file_format=True)
    return target.getvalue()


def asked(http: httpx.Client, dataset: pydicom.Dataset, accept: str = DICOM) -> httpx.Response:
    return http.post("/v1/segment", files=files(encoded(dataset)), data={"model": SEGMENTER}, headers={"Accept": accept})


def test_the_mask_lies_where_the_film_does(http: httpx.Client) -> None:
    dataset = film()
    answer = asked(http, dataset)
    assert (answer.status_code, answer.headers["content-type"]) == (200, DICOM), answer.text
    written = highdicom.seg.segread(io.BytesIO(answer.content))
    assert written.segmentation_type.value == "BINARY"
    assert written.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert [one.SegmentLabel for one in written.SegmentSequence] == list(LUNGS)
    assert written.NumberOfFrames == len(LUNGS)  # a class of which there is nothing has its frame, too
    assert (written.StudyInstanceUID, written.FrameOfReferenceUID) == (dataset.StudyInstanceUID, dataset.FrameOfReferenceUID)
    assert written.SeriesInstanceUID != dataset.SeriesInstanceUID
    volume = written.get_volume(combine_segments=False)
    source = highdicom.Volume.from_attributes(
        array=dataset.pixel_array[None],
        image_position=dataset.ImagePositionPatient,
        image_orientation=dataset.ImageOrientationPatient,
        pixel_spacing=dataset.PixelSpacing,
        spacing_between_slices=float(dataset.SliceThickness),
        coordinate_system="PATIENT",
    )
    np.testing.assert_allclose(volume.affine, source.affine, atol=1e-4)
    told = asked(http, dataset, "application/json").json()["data"][0]["masks"]
    frames = written.get_pixels_by_source_instance([dataset.SOPInstanceUID])[0]
    for number, mask in enumerate(told):
        np.testing.assert_array_equal(frames[..., number] > 0, from_rle(mask["rle"]))
    assert [bool(frames[..., k].any()) for k in range(len(LUNGS))] == [mask["found"] for mask in told]


def test_a_radiograph_without_a_place_in_the_patient_keeps_its_pixels(http: httpx.Client) -> None:
    """As de-identified chest films are: no birthday or sex, no position, no thickness."""
    dataset = film(
        SOPClassUID=DigitalXRayImageStorageForPresentation,
        ImagePositionPatient=None,
        ImageOrientationPatient=None,
        SliceThickness=None,
        PatientSex=None,
        PatientBirthDate=None,
    )
    answer = asked(http, dataset)
    assert answer.status_code == 200, answer.text
    written = pydicom.dcmread(io.BytesIO(answer.content))
    assert (written.Rows, written.Columns) == (dataset.Rows, dataset.Columns)
    measures = written.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.PixelSpacing == dataset.PixelSpacing
    assert "FrameOfReferenceUID" not in written
    (series,) = written.ReferencedSeriesSequence
    assert series.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == dataset.SOPInstanceUID
    told = asked(http, dataset, "application/json").json()["data"][0]["masks"]
    for frame, mask in zip(written.pixel_array, told, strict=True):
        np.testing.assert_array_equal(frame > 0, from_rle(mask["rle"]))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"StudyInstanceUID": None, "SOPInstanceUID": generate_uid()}, "StudyInstanceUID"),
        ({"ImagePositionPatient": None}, "header"),  # a CT without a place
    ],
)
def test_a_film_that_cannot_carry_one_is_refused_with_the_reason(
    http: httpx.Client, fields: dict[str, Any], words: str
) -> None:
    refused = asked(http, film(**fields))
    assert refused.status_code == 400
    assert words in error_of(refused)["message"]
