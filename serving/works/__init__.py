"""Works: what each operation needs of the trunk and the text tower, and what it makes of what they saw.

    Request --plan--> Work(views, texts) --one trunk forward for all works of a batch--> Seen --finish--> value

One file a kind of work; `work.py` holds what they share, `plan.py` the table of them. A work knows nothing of its
neighbours in the batch.
"""

from serving.works.findings import FindingsReader
from serving.works.plan import plan
from serving.works.work import Seen, Tools, Value, View, Work, film_of, further_views

__all__ = ["FindingsReader", "Seen", "Tools", "Value", "View", "Work", "film_of", "further_views", "plan"]
