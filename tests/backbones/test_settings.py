from recranker.backbones.settings import BackboneSettings
from recranker.tasks.settings import MAX_CANDIDATES


def test_a_list_may_be_as_long_as_can_be_asked_about() -> None:
    assert BackboneSettings(num_candidates=MAX_CANDIDATES).num_candidates == MAX_CANDIDATES
    bounds = BackboneSettings.model_json_schema()["properties"]["num_candidates"]
    assert bounds["maximum"] == MAX_CANDIDATES
