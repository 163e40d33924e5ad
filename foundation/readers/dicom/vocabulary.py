"""Modality, body part, view and window names through closed lists: free text, and so a patient's name, never passes."""

from __future__ import annotations

import re

from pydicom.dataset import Dataset

from foundation.readers.dicom.values import word


def _set(names: str) -> frozenset[str]:
    return frozenset(names.split())


MODALITIES = _set(
    "BI CR CT DX ECG EPS ES GM HC IO IVOCT IVUS KO LS MG MR NM OAM OCT OP OPM OPT OPV OT PT PX RF RG RTIMAGE SC "
    "SM TG US VL XA XC"
)
BODY_PARTS = _set(
    "ABDOMEN ABDOMENPELVIS ANKLE ARM BLADDER BRAIN BREAST BUTTOCK CALF CALCANEUS CAROTID CEREBELLUM CERVIX CHEST "
    "CHESTABDOMEN CHESTABDPELVIS CLAVICLE COCCYX COLON CSPINE CTSPINE EAR ELBOW EXTREMITY EYE FEMUR FINGER FOOT "
    "FOREARM HAND HEAD HEADNECK HEART HIP HUMERUS JAW KIDNEY KNEE LEG LIVER LSPINE LSSPINE LUNG MANDIBLE MAXILLA "
    "MEDIASTINUM NECK NECKCHEST NOSE ORBIT PANCREAS PELVIS PROSTATE RIB SCAPULA SHOULDER SKULL SPINE SPLEEN "
    "SSPINE STERNUM STOMACH TESTIS THIGH THORAX THUMB THYMUS THYROID TLSPINE TOE TSPINE UTERUS WHOLEBODY WRIST "
    "ZYGOMA"
)
VIEWS = {
    "PA": "PA",
    "AP": "AP",
    "LL": "LATERAL",
    "RL": "LATERAL",
    "LLD": "LLD",
    "RLD": "RLD",
    "LLO": "LLO",
    "RLO": "RLO",
    "LAT": "LATERAL",
    "LATERAL": "LATERAL",
    "CC": "CC",
    "MLO": "MLO",
    "ML": "ML",
    "LM": "LM",
}
WINDOW_WORDS = _set(
    "ABDOMEN ABDOMINAL ALGO ALGO1 ANGIO ANGIOGRAPHY AVERAGE BODY BONE BRAIN CHEST CONTRAST DEFAULT FOSSA FULL "
    "HARD HARDER HEAD HIGH KIDNEY LARGE LIVER LOW LUNG LUNGS MEDIASTINAL MEDIASTINUM MINMAX NARROW NORMAL PELVIS "
    "POSTERIOR RANGE SHARP SINUS SKELETON SOFT SOFTER SPINE STANDARD STROKE SUBDURAL TISSUE USER WIDE WINDOW "
    "WINDOW1 WINDOW2 WINDOW3"
)


def modality(dataset: Dataset) -> str:
    found = word(dataset, "Modality")
    return found if found in MODALITIES else ""


def body_part(dataset: Dataset) -> str:
    found = re.sub(r"[^A-Z]", "", word(dataset, "BodyPartExamined"))
    return found if found in BODY_PARTS else ""


def view(dataset: Dataset) -> str:
    return VIEWS.get(word(dataset, "ViewPosition"), "")


def window_name(explanation: str) -> str:
    """The preset's name if every word of it is one that windows are called by, else ""."""
    found = re.findall(r"[A-Z0-9]+", explanation.upper())
    return " ".join(found).lower() if found and set(found) <= WINDOW_WORDS else ""
