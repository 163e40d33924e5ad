"""Synthetic frontal chest films with exact truth: masks, labels, a report and questions, all from one seed.

    anatomy -> canvas -> tissue -> lesions -> film      pixels (`phantom.py` joins them)
    findings -> words                                   truth and sentences

numpy and Pillow only. "tube" is an endotracheal tube, "line" a central venous catheter. Not a patient's picture:
phantoms teach and test, they prove nothing about real films.
"""

from foundation.phantom.findings import FINDINGS, SEVERITIES, SIDES, ZONES, PhantomFinding
from foundation.phantom.phantom import Phantom, make_phantom
from foundation.phantom.words import Question

__all__ = ["FINDINGS", "SEVERITIES", "SIDES", "ZONES", "Phantom", "PhantomFinding", "Question", "make_phantom"]
