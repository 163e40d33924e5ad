"""De-identify DICOM films: PS3.15 Annex E, Basic Application Confidentiality Profile, by keeping only what is known.

    rules     which attributes are kept, and what their values may be
    pseudonym keyed UIDs and patient numbers: equal for equal input and key, so that a study stays one study
    pixels    bytes around and inside the picture that are not the picture
    dataset   a new data set out of an old one, sequences to the bottom
    film      a file's bytes in, a file's bytes out, with warnings about what no rule can see

The profile lists what must go. A list of what may stay is stricter: private tags, free text, dates, overlays, names of
people, devices and institutions go because nothing keeps them, also where a new edition or a careless exporter puts them
into attributes that no list has heard of.
"""

from __future__ import annotations

from foundation.deidentify.film import DeidentifiedFilm, deidentify
from foundation.deidentify.pseudonym import Pseudonyms

__all__ = ["DeidentifiedFilm", "Pseudonyms", "deidentify"]
