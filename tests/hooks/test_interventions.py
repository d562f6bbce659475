import json

import pytest
import yaml

from neuro_lens.base import NeuroLensError
from neuro_lens.hooks import Change, Intervention, Target, Where, as_intervention, as_interventions

PLAIN = [
    {"hook": "a", "change": "zero"},
    {"hook": "a", "features": [3, 17], "error_term": True, "change": {"clamp": [1.5, -2.0]}},
    {"hook": "a", "dimensions": [0], "change": {"scale": 0.5}, "positions": [0, 4]},
    {"hook": "a", "heads": [1], "change": {"resample": 3}, "times": [-0.5, 0.0], "since": "trial"},
    {"hook": "a", "change": {"project_out": [[0.0, 1.0]]}, "windows": {"direction": [90.0]}},
    {"units": ["m/3", 5], "change": {"add": 1.0}},
    {"hook": "a", "features": [2], "change": "mean", "windows": {"a": [1], "b": ["x", "y"]}},
]


@pytest.mark.parametrize("plain", PLAIN)
def test_round_trip_through_yaml_and_json(plain):
    found = as_intervention(plain)
    assert found.plain() == plain
    assert as_intervention(json.loads(json.dumps(found.plain()))) == found
    assert as_intervention(yaml.safe_load(yaml.safe_dump(found.plain()))) == found
    assert hash(found) == hash(as_intervention(plain))


def test_made_of_its_three_parts():
    built = Intervention(Target("a", "features", [3]), Change("clamp", 2.0), Where(positions=[1]))
    plain = {"hook": "a", "features": 3, "change": {"clamp": 2.0}, "positions": [1]}
    assert as_intervention(plain) == built


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"hook": "a", "feature": [1]}, "did you mean 'features'"),
        ({"hook": "a", "features": []}, "list of features is empty"),
        ({"hook": "a", "features": [1, 1]}, "named twice"),
        ({"hook": "a", "features": [1], "heads": [0]}, "features and heads"),
        ({"hook": "a", "change": "clamp"}, "needs a value"),
        ({"hook": "a", "change": {"zero": 1}}, "takes no value"),
        ({"hook": "a", "change": "zeros"}, "did you mean 'zero'"),
        ({"hook": "a", "features": [1, 2], "change": {"clamp": [1.0]}}, "1 values for 2 features"),
        ({"hook": "a", "dimensions": [1], "change": "project_out"}, "takes a direction"),
        ({"hook": "a", "units": [1]}, "take no hook"),
        ({"features": [1]}, "needs one"),
        ({"units": [1], "change": "mean"}, "clamp to 0"),
        ({"hook": "a", "times": [1.0, 0.5]}, "later end"),
        ({"hook": "a", "heads": [1], "error_term": True}, "for features"),
        (3, "a int was given"),
        ({"hook": 3}, "hook is 3; give the name"),
        ({"hook": "a", "features": [True]}, "features is .True.; give whole numbers"),
        ({"hook": "a", "features": [3.5]}, "features is .3.5.; give whole numbers"),
        ({"hook": "a", "dimensions": [[1]]}, "dimensions is ..1..; give whole numbers"),
        ({"units": [1.5]}, "units is .1.5.; give whole numbers"),
        ({"hook": "a", "features": [1], "error_term": "no"}, "error_term is 'no'; give true or"),
        ({"hook": "a", "positions": 3}, "positions is 3; give a list"),
        ({"hook": "a", "positions": []}, "positions is ..; give a list"),
        ({"hook": "a", "positions": ["b"]}, "positions is .'b'.; give a list"),
        ({"hook": "a", "windows": ["direction"]}, "windows is .'direction'.; give labels"),
        ({"hook": "a", "windows": "direction"}, "windows is 'direction'; give labels"),
        ({"hook": "a", "windows": {"direction": []}}, "windows is .*; give labels"),
        ({"hook": "a", "windows": {"direction": None}}, "windows is .*; give labels"),
        ({"hook": "a", "times": ["b", "c"]}, "later end"),
        ({"hook": "a", "times": [None, 1.0]}, "later end"),
        ({"hook": "a", "times": 3}, "later end"),
        ({"hook": "a", "times": [float("nan"), 1.0]}, "later end"),
        ({"hook": "a", "change": {"clamp": "high"}}, "clamp is 'high'; give a number"),
        ({"hook": "a", "features": [1], "change": {"clamp": "high"}}, "clamp is 'high'"),
        ({"hook": "a", "change": {"clamp": float("nan")}}, "clamp is nan; give a number"),
        ({"hook": "a", "change": {"scale": [1.0, float("inf")]}}, "scale is .*; give a number"),
        ({"hook": "a", "change": {"add": True}}, "add is True; give a number"),
        ({"hook": "a", "change": {"resample": "abc"}}, "resample is 'abc'; give the seed"),
        ({"hook": "a", "change": {"resample": -1}}, "resample is -1; give the seed"),
        ({"hook": "a", "change": {"project_out": "abc"}}, "project_out is 'abc'; give a direction"),
        ({"hook": "a", "change": {"project_out": [[1.0], [1.0, 2.0]]}}, "give a direction"),
    ],
)
def test_bad_interventions_are_one_sentence(given, sentence):
    with pytest.raises(NeuroLensError, match=sentence):
        as_intervention(given)


A = {"hook": "a", "features": [1, 2]}


@pytest.mark.parametrize(
    "other",
    [
        {"hook": "a", "features": [2], "change": {"clamp": 1.0}},
        {"hook": "a", "features": [5], "error_term": True},
        {"hook": "a"},
        {"hook": "a", "features": [2], "times": [0.0, 1.0], "since": "trial"},
        {"hook": "a", "features": [2], "change": "project_out"},
    ],
)
def test_contradictions_are_refused(other):
    with pytest.raises(NeuroLensError, match="contradict each other"):
        as_interventions([A, other])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (A, {"hook": "b", "features": [2]}),
        (A, {"hook": "a", "features": [3]}),
        (A, {"hook": "a", "dimensions": [2]}),
        (A, {"hook": "a", "change": {"project_out": [1.0]}}),
        (A, {"hook": "a", "features": [3], "change": "project_out"}),
        (A | {"positions": [0]}, A | {"positions": [1], "change": "project_out"}),
        (A | {"positions": [0]}, A | {"positions": [1], "change": "mean"}),
        (A | {"times": [0.0, 1.0]}, A | {"times": [1.0, 2.0], "change": "mean"}),
        (A | {"windows": {"v": [1]}}, A | {"windows": {"v": [2]}, "change": "mean"}),
    ],
)
def test_what_lies_apart_goes_together(one, other):
    assert len(as_interventions([one, other])) == 2


def test_at_least_one_is_made():
    with pytest.raises(NeuroLensError, match="is empty; give at least one"):
        as_interventions([])
