"""The words of a chest radiograph: findings with their synonyms, sides, zones and severities.

Nouns only. Training builds sentences from them, `questions.py` recognises them in what a person asks, and
`decoder.py` names them in the prompt. Nothing here depends on a model.
"""

from __future__ import annotations

FINDINGS: tuple[str, ...] = (
    "atelectasis",
    "cardiomegaly",
    "consolidation",
    "edema",
    "effusion",
    "emphysema",
    "fibrosis",
    "hernia",
    "infiltration",
    "mass",
    "nodule",
    "pleural thickening",
    "pneumonia",
    "pneumothorax",
)

NOUNS: dict[str, str] = {
    "effusion": "pleural effusion",
    "edema": "pulmonary edema",
    "nodule": "lung nodule",
    "mass": "lung mass",
    "hernia": "hiatal hernia",
}
"""How an answer calls a finding; by its own name where it is not listed."""

# The first of each list is how a report says it; the rest are how colleagues and patients say it.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "atelectasis": (
        "atelectasis",
        "atelectatic change",
        "collapsed lung segment",
        "volume loss",
        "lung collapse",
        "partial lung collapse",
        "plate-like atelectasis",
        "subsegmental atelectasis",
        "collapse of a lobe",
        "lobar collapse",
    ),
    "cardiomegaly": (
        "cardiomegaly",
        "enlarged heart",
        "enlarged cardiac silhouette",
        "heart enlargement",
        "increased cardiothoracic ratio",
        "enlargement of the cardiac silhouette",
        "big heart",
        "increased heart size",
        "cardiac enlargement",
        "widened cardiac shadow",
    ),
    "consolidation": (
        "consolidation",
        "airspace consolidation",
        "airspace opacity",
        "alveolar consolidation",
        "consolidated lung",
        "airspace disease",
        "air bronchograms",
        "dense opacity",
    ),
    "edema": (
        "pulmonary edema",
        "edema",
        "pulmonary oedema",
        "interstitial edema",
        "fluid in the lungs",
        "vascular congestion",
        "pulmonary vascular congestion",
        "water on the lung",
        "oedema",
    ),
    "effusion": (
        "pleural effusion",
        "effusion",
        "pleural fluid",
        "fluid in the pleural space",
        "blunted costophrenic angle",
        "hydrothorax",
        "blunting of the costophrenic angle",
        "fluid around the lung",
        "fluid collection in the pleura",
    ),
    "emphysema": (
        "emphysema",
        "emphysematous change",
        "hyperinflated lungs",
        "hyperinflation",
        "flattened diaphragms",
        "bullous change",
        "overinflated lungs",
        "chronic obstructive lung disease",
    ),
    "fibrosis": (
        "fibrosis",
        "fibrotic change",
        "lung scarring",
        "pulmonary fibrosis",
        "scarring",
        "fibrous scar",
        "reticular scarring",
        "fibrotic bands",
    ),
    "hernia": (
        "hiatal hernia",
        "hernia",
        "diaphragmatic hernia",
        "hiatus hernia",
        "intrathoracic stomach",
    ),
    "infiltration": (
        "infiltration",
        "infiltrate",
        "pulmonary infiltrates",
        "patchy infiltrates",
        "hazy opacity",
        "patchy opacity",
        "ill-defined opacity",
        "lung infiltrates",
    ),
    "mass": (
        "mass",
        "lung mass",
        "pulmonary mass",
        "large rounded opacity",
        "tumour",
        "tumor",
        "mass lesion",
        "suspected lung cancer",
    ),
    "nodule": (
        "nodule",
        "lung nodule",
        "pulmonary nodule",
        "small rounded opacity",
        "coin lesion",
        "nodular opacity",
        "solitary nodule",
        "small round lesion",
    ),
    "pleural thickening": (
        "pleural thickening",
        "thickened pleura",
        "thickening of the pleura",
        "apical pleural thickening",
        "pleural scarring",
        "apical cap",
    ),
    "pneumonia": (
        "pneumonia",
        "lung infection",
        "chest infection",
        "infected lung",
        "bronchopneumonia",
        "lobar pneumonia",
        "infectious process",
    ),
    "pneumothorax": (
        "pneumothorax",
        "air in the pleural space",
        "visible pleural line",
        "collapsed lung",
        "pleural air",
        "air around the lung",
        "ptx",
    ),
}

# Findings outside the fourteen that reports and questions nevertheless speak of.
OTHER_TERMS: dict[str, tuple[str, ...]] = {
    "tuberculosis": (
        "tuberculosis",
        "pulmonary tuberculosis",
        "ptb",
        "secondary ptb",
        "tb",
        "cavitary lesion",
        "post-primary tuberculosis",
        "upper lobe cavities",
    ),
    "tube": ("support device", "endotracheal tube", "central venous catheter", "feeding tube", "tube", "line", "ett"),
    "chest drain": ("chest drain", "chest tube", "thoracostomy tube"),
    "pacemaker": ("pacemaker", "cardiac pacemaker", "implanted cardiac device"),
    "fracture": ("rib fracture", "broken rib", "fracture", "fractured rib"),
    "lymphadenopathy": ("lymphadenopathy", "enlarged lymph nodes", "hilar lymphadenopathy", "hilar enlargement"),
    "covid-19": ("covid-19 pneumonia", "covid-19", "coronavirus pneumonia", "peripheral ground-glass opacities"),
    "viral pneumonia": ("viral pneumonia", "viral lung infection", "interstitial pneumonia"),
    "bacterial pneumonia": ("bacterial pneumonia", "bacterial lung infection", "focal bacterial consolidation"),
    "pneumoperitoneum": ("pneumoperitoneum", "free air under the diaphragm", "free intraperitoneal air"),
    "scoliosis": ("scoliosis", "curved spine", "spinal curvature"),
    "calcification": ("calcification", "calcified granuloma", "calcified lesion"),
    "mediastinal widening": ("widened mediastinum", "mediastinal widening", "mediastinal enlargement"),
}

NORMAL_PHRASES: tuple[str, ...] = (
    "normal",
    "normal chest radiograph",
    "no acute cardiopulmonary abnormality",
    "unremarkable chest film",
    "clear lungs",
    "the lungs are clear",
    "no abnormality detected",
    "healthy chest",
    "no significant abnormality",
    "heart size normal, lungs clear",
    "within normal limits",
    "no finding",
)

SIDES: tuple[str, ...] = ("left", "right", "bilateral")
ZONES: tuple[str, ...] = ("upper", "mid", "lower")
SEVERITIES: tuple[str, ...] = ("mild", "moderate", "severe")
SIDE_WORDS: dict[str, tuple[str, ...]] = {
    "left": ("left", "left-sided"),
    "right": ("right", "right-sided"),
    "bilateral": ("bilateral", "both", "on both sides"),
}
ZONE_WORDS: dict[str, tuple[str, ...]] = {
    "upper": ("upper", "apical", "apex"),
    "mid": ("mid", "middle", "perihilar"),
    "lower": ("lower", "basal", "basilar", "base"),
}
SEVERITY_WORDS: dict[str, tuple[str, ...]] = {
    "mild": ("small", "mild", "slight", "minimal", "subtle", "trace"),
    "moderate": ("moderate", "moderate-sized"),
    "severe": ("large", "severe", "marked", "extensive", "massive"),
}
