"""Every sentence a person sees on the page."""

from __future__ import annotations

TITLE = "Vesalius"
RESEARCH_USE = "For research use only. Vesalius is not a medical device."
FILM = "Film (DICOM, NIfTI, PNG, JPEG, TIFF)"
ASK = "Ask"
SCORE = "Score labels"
QUESTION = "Question"
LABELS = "Labels, one a line"
NO_FILM = "Drop a film first."
NOT_ASSESSED = "Not assessed: this looks like {kind}."
