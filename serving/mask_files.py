"""Masks as files that other programs open: a one-bit PNG, a NIfTI volume, a DICOM segmentation.

A mask arrives as COCO run lengths over the slice that was shown. NIfTI: a volume of the film's own shape and place, the
mask in its slice, one volume a class along the fourth axis where there are several. DICOM: a SEG object of the one frame
(PS3.3 A.51), written by highdicom, which is an extra. Runs in a decode process, because it reads the caller's file again.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from adapters.tasks.rle import decompress, from_rle
from foundation.errors import InvalidRequest
from foundation.preprocess import pick_slice
from serving.messages import RawFilm

Rle = Mapping[str, Any]
DICOM, NIFTI = "application/dicom", "application/x-nifti"
NO_HIGHDICOM = "This server cannot write DICOM segmentations: its operator must install highdicom. Ask for NIfTI or JSON."

UNFIT = "This film's header says too little, or contradicts itself, for a DICOM segmentation. Ask for NIfTI or JSON."


@dataclass(frozen=True)
class MaskFile:
    """What is to be written: kind is one of MASK_FILES; masks, one a label, over the slice that `raw` chooses."""

    kind: str
    raw: RawFilm
    labels: tuple[str, ...]
    masks: tuple[Rle, ...]
    model: str = ""
    digest: str = ""


def write_mask_file(wanted: MaskFile) -> bytes:
    """The file. Raises InvalidRequest where the film cannot carry this kind, FilmError where it cannot be read."""
    return MASK_FILES[wanted.kind](wanted)


def area_pixels(rle: Rle) -> int:
    """How many pixels are inside: every second run."""
    return sum(decompress(str(rle["counts"]))[1::2])


def mask_png(rle: Rle) -> bytes:
    """A one-bit grey PNG: 255 inside."""
    from PIL import Image

    target = io.BytesIO()
    Image.fromarray(np.where(from_rle(dict(rle)), np.uint8(255), np.uint8(0))).convert("1").save(target, "PNG")
    return target.getvalue()


def _nifti(wanted: MaskFile) -> bytes:
    import nibabel

    from foundation.readers import read_film

    image = read_film(wanted.raw.data)
    Z, H, W = image.pixels.shape[:3]
    volume = np.zeros((W, H, Z, len(wanted.masks)), np.uint8)
    for index, rle in enumerate(wanted.masks):
        volume[:, :, pick_slice(image, wanted.raw.slice_index), index] = _fitting(rle, H, W).T
    written = nibabel.Nifti1Image(volume[..., 0] if len(wanted.masks) == 1 else volume, _affine(image.affine, image.spacing_mm))
    written.header["descrip"] = "; ".join(wanted.labels).encode("ascii", "replace")[:79]
    return bytes(written.to_bytes())


def _affine(affine: npt.NDArray[np.float64] | None, spacing_mm: tuple[float, float, float] | None) -> npt.NDArray[np.float64]:
    """Where the file says it; else columns to the patient's left and rows to the back, as films are looked at."""
    if affine is not None:
        return affine
    slice_mm, row_mm, column_mm = spacing_mm or (1.0, 1.0, 1.0)
    return np.diag([-column_mm, -row_mm, slice_mm or 1.0, 1.0])


def _dicom(wanted: MaskFile) -> bytes:
    try:
        import highdicom
    except ImportError:
        raise InvalidRequest(NO_HIGHDICOM, param="Accept") from None
    import pydicom
    from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
    from pydicom.sr.codedict import codes
    from pydicom.uid import ExplicitVRLittleEndian

    from foundation.readers.sniff import sniff

    if sniff(wanted.raw.data) != "dicom":
        raise InvalidRequest(
            "A DICOM segmentation belongs to a DICOM film; this is none. Ask for NIfTI or JSON.", param="Accept"
        )
    source = _complete(pydicom.dcmread(io.BytesIO(wanted.raw.data)))
    if int(source.get("NumberOfFrames", 1) or 1) > 1:
        raise InvalidRequest("DICOM segmentations are written for films of one frame. Ask for NIfTI or JSON.", param="Accept")
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=wanted.model[:64], version=wanted.digest[:16] or "1", family=codes.DCM.ArtificialIntelligence
    )
    described = [
        SegmentDescription(
            segment_number=number,
            segment_label=label[:64],
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=_code_of(label),
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, label in enumerate(wanted.labels, start=1)
    ]
    masks = [_fitting(rle, int(source.Rows), int(source.Columns)) for rle in wanted.masks]
    try:
        made = Segmentation(
            source_images=[source],
            pixel_array=np.stack(masks, axis=-1)[None].astype(np.uint8),  # (frames, H, W, classes)
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=described,
            series_instance_uid=highdicom.UID(),
            series_number=900,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="Vesalius",
            manufacturer_model_name=wanted.model[:64],
            software_versions=wanted.digest[:64] or "1",
            device_serial_number="1",
            transfer_syntax_uid=ExplicitVRLittleEndian,
            omit_empty_frames=False,  # a class of which there is nothing is a finding, too
        )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InvalidRequest(UNFIT, param="Accept") from error
    target = io.BytesIO()
    made.save_as(target, enforce_file_format=True)
    return target.getvalue()


def _complete(source: Any) -> Any:
    """The film with what its study must say, left empty where it says nothing (de-identified films lack some).

    Raises InvalidRequest where it belongs to no study, to which a segmentation could be added.
    """
    missing = [keyword for keyword in _IDENTIFIERS if not source.get(keyword)]
    if missing:
        raise InvalidRequest(
            f"This film lacks {', '.join(missing)}, so no DICOM segmentation can refer to it. Ask for NIfTI or JSON.",
            param="Accept",
        )
    for keyword in _MAY_BE_EMPTY:
        if keyword not in source:
            setattr(source, keyword, "")
    if any(source.get(keyword) in (None, "") for keyword in _PLACE) and "FrameOfReferenceUID" in source:
        del source.FrameOfReferenceUID  # it says no place in the patient; the mask then lies in the film's own pixels
    return source


def _code_of(label: str) -> Any:
    """SNOMED CT for what a chest film shows; tissue for what has no line here."""
    from pydicom.sr.coding import Code

    value, meaning = _CODES.get(label.lower(), ("85756007", "Tissue"))
    return Code(value, "SCT", meaning)


_IDENTIFIERS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_PLACE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness")
_MAY_BE_EMPTY = (  # type 2 in PS3.3 C.7.1.1 and C.7.2.1
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime",
    "ReferringPhysicianName",
)  # fmt: skip
_CODES = {
    "lung": ("39607008", "Lung"),
    "lungs": ("39607008", "Lung"),
    "left lung": ("44029006", "Left lung"),
    "right lung": ("3341006", "Right lung"),
    "heart": ("80891009", "Heart"),
}


def _fitting(rle: Rle, height: int, width: int) -> npt.NDArray[np.bool_]:
    mask = from_rle(dict(rle))
    if mask.shape != (height, width):
        raise InvalidRequest("The mask is not of this film's size.", param="images")
    return mask


MASK_FILES: Mapping[str, Callable[[MaskFile], bytes]] = {DICOM: _dicom, NIFTI: _nifti}
