import json
from pathlib import Path

import pytest
from pydantic import BaseModel

from neuro_lens.studies.schema import Study

PAGE = Path(__file__).parents[2] / "docs" / "study-files.md"


def fields(model, place=()):
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            yield from fields(type(default), (*place, name))
        elif not field.is_required():
            yield ".".join((*place, name)), json.loads(json.dumps(default))


@pytest.fixture(scope="module")
def listed():
    rows = [line.split("|") for line in PAGE.read_text("utf-8").splitlines() if "| `" in line]
    return {row[1].strip(" `"): row[2].strip(" `") for row in rows}


def test_the_page_lists_every_field_and_no_other(listed):
    assert set(listed) == {name for name, _ in fields(Study)} | {"name"}


@pytest.mark.parametrize(("name", "default"), list(fields(Study)))
def test_the_page_gives_each_default(listed, name, default):
    assert listed[name] == json.dumps(default).replace('"', "")
