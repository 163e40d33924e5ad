"""Every sentence a person sees on the page. Plain English, no jargon of ours; braces are filled by the caller."""

from __future__ import annotations

TITLE = "Vesalius"
TAGLINE = "Ask a chest film, and see what the answer rests on."
RESEARCH_USE = "For research use only. Vesalius is not a medical device."
APPEARANCE = "Light / dark"

# The film
DROP = "Film: DICOM, NIfTI, PNG, JPEG or TIFF"
EXAMPLES = "No film at hand? Try a synthetic one"
EXAMPLES_NOTE = "Drawn by a program, of no patient, so that what is in them is known. Choose one to get an answer."
DRAWN = "Synthetic film, drawn with {truth}."
DRAWN_NORMAL = "nothing abnormal"
AS_SEEN = "Shown exactly as the model sees it, {size} x {size} pixels."
PICTURE = "{name}, as the model sees it"
FORMATS = {"dicom": "DICOM", "nifti": "NIfTI", "png": "PNG", "jpeg": "JPEG", "tiff": "TIFF"}
SLICE = "Slice (1 to {last})"
SLICE_SHORT = "slice {index} of {slices}"
WINDOW = "Grey-level window"
WINDOW_DEFAULT = "{name} (default)"
NO_FILM = "Drop a film first, or choose one of the synthetic films."
OLD_SERVER = "The server does not say how films are prepared. Update it to the version of this page."
UNREAD = "The file could not be taken over from your browser. Drop it again."

# Heat maps
MAP = "Heat map over the film"
NO_MAP = "None"
MAP_OF = "Bright: where this film speaks most for {label}, compared with the rest of it."
MAP_AGAINST = "No place on this film speaks for {label}; bright marks only where it speaks least against it."
MAP_LESS, MAP_MORE = "less", "more"
MAP_PICTURE = "Heat map for {label}"

# Chat
CHAT_TAB = "Chat"
CHAT_LABEL = "Conversation"
CHAT_EMPTY = "With a film on the page, ask about it here."
QUESTION = "Your question"
QUESTION_HINT = "For example: is there an effusion, and where?"
ASK, STOP, NEW_TALK = "Ask", "Stop", "New conversation"
SUGGESTED = ("What does the film show?", "Is there an effusion?", "Is the heart enlarged?")
NO_QUESTION = "Type a question first."
STOPPED = "Stopped."

# Evidence
EVIDENCE = "What the answer rests on"
EVIDENCE_EMPTY = "After an answer: the findings with their probabilities, and how much the picture mattered."
CALIBRATED = "Calibrated probabilities. A finding is reported from its tick on; where that stands low, it may yet be unlikely."
NOT_CALIBRATED = "Zero-shot scores, not calibrated. The tick marks one half, from which a finding is reported here."
NOT_ASSESSED = "Not assessed: this looks like {kind}."
NOT_ASSESSED_PLAIN = "Not assessed: this is not a film of a kind the model knows."
NOT_ASSESSED_WHY = "The model was trained on frontal chest films. For anything else it gives no numbers."
BAR = "{label}: {value}"
BAR_THRESHOLD = "{label}: {value}, threshold {threshold}, {verdict}"
PRESENT, ABSENT = "at or above the threshold", "below the threshold"
THRESHOLD = "threshold {threshold}"
INDEPENDENT = "This answer did not depend on the picture: it would have been given without it as well."
WEAK = "This answer depended only a little on the picture."
DEPENDENT = "This answer depended on the picture."
RELIANCE_NUMBER = "reliance {value} of 1"
PROVENANCE = "Where this comes from"
SEEN_SLICE = "These numbers are for slice {index}."
PROVENANCE_ROWS = {
    "model": "Model",
    "adapter": "Findings adapter",
    "pixels": "Film digest",
    "preprocessing": "Preprocessing version",
}
TIMES = "Time"
TIMES_OF = "{compute} ms computing, {decode} ms reading, {queue} ms waiting"

# Own labels
LABELS_TAB = "Your own labels"
LABELS_INTRO = "Score the film against words of your own, without any training for them."
LABELS = "Labels, one a line"
LABELS_START = "pleural effusion\ncardiomegaly\npneumothorax\nlung nodule"
SCORING = "How they are scored"
SCORINGS = {
    "softmax": "Labels compete (scores sum to one)",
    "pairwise": "Each against its denial",
    "sigmoid": "Each by itself",
}
SCORE = "Score the labels"
NO_LABELS = "Write at least one label."
SCORES_NOTE = "From the similarity between the film and your words; not calibrated probabilities."
PAIRWISE_NOTE = "The tick marks where a label and its denial fit the film equally well."

# Findings
FINDINGS_TAB = "Findings"
FINDINGS_INTRO = "The film read by a trained adapter, with probabilities and thresholds fixed on held-out films."
NO_ADAPTER = (
    "This server has no findings adapter. Train one with `vesalius finetune`, or add one with `vesalius adapters add`; "
    "it appears here once it is served."
)
ADAPTER = "Adapter"
PREDICT = "Read the film"
