"""deidentify: a DICOM file's bytes in, a de-identified file's bytes out, and warnings about what no rule can see."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO

from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID

from foundation.deidentify.dataset import Account, cleaned
from foundation.deidentify.pixels import bare_pixels
from foundation.deidentify.pseudonym import Pseudonyms
from foundation.deidentify.rules import EMPTIED
from foundation.errors import FilmError, FilmUnreadable, FilmUnsupported
from foundation.readers.dicom.parse import parse
from foundation.readers.dicom.values import word
from foundation.readers.dicom.vocabulary import body_part
from foundation.readers.limits import Limits
from foundation.readers.sniff import sniff

METHOD = "Vesalius: PS3.15 Annex E Basic Profile by allow-list"
BURNT_IN = "Its header says that text is burnt into the picture. Look at it before you share it."
MAY_BE_BURNT_IN = "Films of this kind often have text burnt into the picture, and its header does not deny it. Look at it."
FACE = "A face can be rebuilt from volumes of the head. Remove it before you share them."
_OFTEN_BURNT_IN = frozenset(["US", "SC", "OT", "XA", "RF", "ES", "XC", "GM", "SM", "OP", "PX", "IVUS", "DG"])
_HEAD = frozenset(["HEAD", "BRAIN", "SKULL", "FACE", "HEADNECK", "ORBIT"])
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


@dataclass(frozen=True)
class DeidentifiedFilm:
    """data: the new file. uid: its new SOPInstanceUID, which may also name it. removed: attributes that went, by keyword."""

    data: bytes
    uid: str
    kept: int
    removed: Mapping[str, int]
    warnings: tuple[str, ...]


def deidentify(data: bytes, pseudonyms: Pseudonyms, limits: Limits | None = None) -> DeidentifiedFilm:
    """Raises FilmError for what is no DICOM film, is broken, or is of a kind that has not been tested."""
    limits = limits or Limits()
    limits.check_bytes(len(data))
    if sniff(data) != "dicom":
        raise FilmUnsupported("Only DICOM films can be de-identified: other formats say little, and their names are yours.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # their texts quote the file
            return _deidentified(parse(data, limits), pseudonyms)
    except FilmError:
        raise
    except Exception:  # whatever a broken file does to the library, nothing half-cleaned may come out
        raise FilmUnreadable("The DICOM file is damaged: its content contradicts its header. Export it again.") from None


def _deidentified(dataset: Dataset, pseudonyms: Pseudonyms) -> DeidentifiedFilm:
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    account = Account()
    film = cleaned(dataset, pseudonyms, account)
    if "PixelData" in dataset:
        film["PixelData"].value = bare_pixels(dataset, syntax)
        film["PixelData"].is_undefined_length = syntax.is_compressed
    if not film.get("SOPInstanceUID"):
        film.SOPInstanceUID = pseudonyms.uid(hashlib.sha256(film.get("PixelData", b"")).hexdigest())
    if not film.get("SOPClassUID"):
        raise FilmUnreadable("The DICOM file does not say of which kind it is (SOP class); export it again.")
    _describe(film, dataset, pseudonyms)
    return DeidentifiedFilm(
        data=_written(film, syntax),
        uid=str(film.SOPInstanceUID),
        kept=account.kept,
        removed=dict(sorted(account.removed.items())),
        warnings=tuple(_warnings(dataset)),
    )


def _describe(film: Dataset, original: Dataset, pseudonyms: Pseudonyms) -> None:
    """Who stands for the patient, what the standard wants to be there, and that this was done (PS3.15 E.1.1)."""
    number = f"{original.get('IssuerOfPatientID', '')}\0{original.get('PatientID', '')}"
    film.PatientID = film.PatientName = pseudonyms.patient(number if original.get("PatientID") else "")
    for keyword in EMPTIED:
        setattr(film, keyword, "")
    if part := body_part(original):
        film.BodyPartExamined = part  # spelt as the standard does
    film.PatientIdentityRemoved = "YES"
    film.DeidentificationMethod = METHOD
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = "113100", "DCM"
    code.CodeMeaning = "Basic Application Confidentiality Profile"
    film.DeidentificationMethodCodeSequence = [code]
    film.LongitudinalTemporalInformationModified = "REMOVED"


def _written(film: Dataset, syntax: UID) -> bytes:
    """A file of its own: a preamble of zeros, a header that says no more than what follows."""
    film.file_meta = FileMetaDataset()
    film.file_meta.MediaStorageSOPClassUID = film.SOPClassUID
    film.file_meta.MediaStorageSOPInstanceUID = film.SOPInstanceUID
    film.file_meta.TransferSyntaxUID = syntax
    film.preamble = b"\0" * 128
    file = BytesIO()
    dcmwrite(file, film, enforce_file_format=True)
    return file.getvalue()


def _warnings(dataset: Dataset) -> Iterator[str]:
    said, modality = word(dataset, "BurnedInAnnotation"), word(dataset, "Modality")
    if said == "YES":
        yield BURNT_IN
    elif said != "NO" and (modality in _OFTEN_BURNT_IN or str(dataset.get("SOPClassUID", "")).startswith(_SECONDARY_CAPTURE)):
        yield MAY_BE_BURNT_IN
    if modality in ("CT", "MR", "PT") and word(dataset, "BodyPartExamined") in _HEAD:
        yield FACE
