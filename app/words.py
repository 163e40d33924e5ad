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
PREDICT = "Read the film"

# Adapters, in every panel that has one
ADAPTER = "Adapter"
NO_ADAPTER = (
    "No adapter for this is installed on this server. Train one with `vesalius finetune {task}`, or add one with "
    "`vesalius adapters add`, and load the page again."
)
LIMITS = "Where its limits are"
LICENCE = "Licence: {licence}"
NO_CHOICE = "Choose an adapter first."

# Regions
REGIONS_TAB = "Regions"
REGIONS_INTRO = "Outlines on the film, by name, by words of your own, or by what you click on."
CLASSES = "What to outline"
OTHER_WORDS = "Or in your own words, one a line"
OTHER_WORDS_HINT = "Sought by what the words mean; not calibrated."
MARK_BY = "A click on the film"
MARKS = {"inside": "is inside what is meant", "outside": "is outside of it", "box": "is a corner of a box"}
FIND, CLEAR_MARKS = "Find", "Clear the marks"
MARKABLE = "Click on the film to mark what is meant; without a mark the whole of each is outlined."
MARKED = "Marked so far: inside {inside}, outside {outside}, boxes {boxes}."
SECOND_CORNER = "Now click on the opposite corner of the box."
OUTSIDE_FILM = "That place is not on the film: the model sees an empty border there. Click on the film itself."
SMALL_BOX = "The two corners lie too close together for a box. Click on two corners further apart."
NOTHING_CHOSEN = "Choose at least one thing to outline, or write it in your own words."
REGIONS_CARD = "What was outlined"
REGION_CONFIDENCE = "Confidence that it is there: {value}, threshold {threshold}"
REGION_ABSENT = "nothing of it found"
REGION_ABSENT_MARKED = "nothing of it where you marked"
REGION_BY_WORDS = "sought by its words, not calibrated"
AREA_PIXELS = "{area} pixels, {share} of the film"
AREA_MM2 = "{area} mm²"
NO_SPACING = "The file does not say how large a pixel is, so areas are in pixels of the film as it was sent."
REGIONS_NOTE = "The number is the probability that there is any of it, its tick the threshold below which nothing is drawn."
REGION_LAYER = "Outline of {label}"
SAVE_PNG, SAVE_PNG_OF = "PNG", "Save the mask of {label} as a PNG"
SAVE_DICOM, SAVE_NIFTI = "Save as DICOM SEG", "Save as NIfTI"
SAVED = "Saved by your browser as {name}. If nothing happened, click on the name."

# Anomaly
ANOMALY_TAB = "Anomaly"
ANOMALY_INTRO = "How strange the film is among normal films, and where."
ANOMALY_LOOK = "Compare with normal films"
ANOMALY_CARD = "How strange it is"
ANOMALY_VERDICTS = (
    (0.01, "Very unusual among normal films."),
    (0.05, "Unusual among normal films."),
    (0.2, "Somewhat unusual among normal films."),
    (1.0, "Within what normal films look like."),
)
ANOMALY_COUNT = "Of {normals} normal films kept aside, {count} look at least as strange as this one (p = {p})."
ANOMALY_NOT_DISEASE = (
    "This is not the probability of disease: of films that are normal, one in twenty has a p of 0.05 or less. "
    "The smallest p that these {normals} films allow is {least}."
)
BRANCHES_TITLE = "What each way of looking says by itself"
BRANCHES_NOTE = "A full bar: stranger than all normal films by this way alone. The tick marks p = 0.05."
BRANCH_P = "p = {p}"
BRANCHES = {
    "text": "Words: does it look like what findings are called?",
    "memory": "Memory: is each patch like one of a normal film?",
    "reconstruction": "Rebuilding: can it be put together from normal patches?",
    "trained": "Trained: does it look like films known to be abnormal?",
}
HEAT_NORMAL, HEAT_STRANGE = "as in normal films", "stranger than in nearly all"
HEAT_NOTE = "Coloured: patches stranger than {share} of those of normal films."
HEAT_LAYER = "Where the film is strange"

# Course
COURSE_TAB = "Course"
COURSE_INTRO = (
    "One outcome from the film, a note and values from the chart. Whatever is left out is left out of the answer as well."
)
WITH_FILM = "Use the film on the page"
NOTE = "Note"
NOTE_HINT = "Sentences that state the outcome are not read."
MISSING = "missing"
FIELDS_NOTE = "Leave empty what is missing. Write < for below and > for above what the laboratory can measure."
FIELD_SEEN = "learnt from {low} to {high}"
FIELD_UNIT = "{name} ({unit})"
FIELD_WRONG = (
    "{name} is '{value}'. Write a number with a point, such as 12.5; < or > where it is below or above detection; or nothing."
)
ESTIMATE = "Estimate"
NOTHING_GIVEN = "There is nothing to judge by yet: use a film, or fill in a value."
COURSE_CARD = "What is estimated"
WITHOUT_FILM = "To estimate from the other values alone, take the tick from the film."
OUTCOME = {True: "At or above the threshold.", False: "Below the threshold."}
PRIOR = "Without knowing anything of the patient it would be {value}."
RULED_OUT_NONE = "Neither outcome can be ruled out with the confidence the card states."
RULED_OUT = "With the confidence the card states, only this cannot be ruled out: {labels}."
ALONE_TITLE = "What each part says"
ALONE, TOGETHER = "{name} alone", "all together"
SUBSETS = "Every combination of what was given"
JOIN = " + "
SHARES_TITLE = "What moved the answer"
SHARES_NOTE = "From the probability without knowing anything to this one, in log-odds; the parts add up."
RAISES, LOWERS = "raises it", "lowers it"
MISSING_TITLE = "What was missing"
NOTHING_MISSING = "Nothing: every part and every value was given."
MISSING_PARTS = "Not given: {names}."
MISSING_FIELDS = "Empty in the chart: {names}."
UNUSUAL = "Outside the range that was learnt from, so held at its border: {names}."
REMOVED = "Sentences of the note that were not read, because they state the outcome: {count}."
METHOD = "Who answered"
METHODS = {
    "joint": "The network that reads all parts together.",
    "product": "What the parts say by themselves, multiplied.",
}
METHOD_ALONE = "{name} alone: on patients kept aside, the other parts given here did not make it better."

# Findings, more of them
MULTI_CLASS = "Calibrated probabilities of classes that exclude one another; they add up to one."
CANNOT_TELL = "With {coverage} confidence it cannot be told whether there is: {labels}."
ONE_OF = "With {coverage} confidence it is one of: {labels}."
NONE_OF = "With {coverage} confidence it is none of the classes: this film is unlike those learnt from."
NORMAL = "That none of these findings is there: {value}, were they independent of each other."
