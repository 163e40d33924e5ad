"""What callers are told of an adapter comes from its card: limits, classes taken together, fields of the table."""

from __future__ import annotations

from dataclasses import replace

from adapters.store import AdapterStore, StoredAdapter
from serving.adapter_info import OPERATIONS, adapter_info
from serving.schemas.models import Model

LIBRARY = AdapterStore()


def told(stored: StoredAdapter) -> Model:
    return Model.model_validate_json(Model.from_info(adapter_info(stored, "base")).model_dump_json())


def test_every_bundled_adapter_says_what_it_can_do_and_where_its_limits_are() -> None:
    for stored in LIBRARY.list():
        model = told(stored)
        assert model.vesalius.capabilities == list(OPERATIONS[stored.card.task])
        assert model.vesalius.limits == list(stored.card.limits)
        assert model.vesalius.limits
        assert str(stored.folder) not in model.model_dump_json()


def test_a_fusion_adapter_says_which_fields_it_reads() -> None:
    fields = {one.name: one for one in told(LIBRARY.get("covid-course")).vesalius.fields}
    assert (fields["crp_val"].unit, fields["crp_val"].modality, fields["crp_val"].low) == ("mg/L", "laboratory", 0.0)
    assert (fields["sex"].kind, fields["sex"].categories) == ("category", ["F", "M"])
    assert told(LIBRARY.get("covid-course")).vesalius.modalities == ["film", "laboratory", "demographics"]


def test_a_segmenter_names_its_classes_together() -> None:
    assert told(LIBRARY.get("lungs")).vesalius.unions["lung fields"] == ["right lung field", "left lung field"]


def test_a_head_described_otherwise_is_listed_without_it() -> None:
    stored = LIBRARY.get("covid-course")
    for head in ({"fields": [{"name": "crp"}]}, {"unions": 3}, {"modalities": 3}):
        model = told(replace(stored, card=replace(stored.card, head=head)))
        assert (model.vesalius.fields, model.vesalius.task) == ([], "fusion")
